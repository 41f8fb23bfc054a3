"""What is run for one workload and one run length: tuning of the fixed schedules, then every arm at each base LR."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from benchmarks.search import arms
from benchmarks.search.store import Results
from benchmarks.search.train import Job
from benchmarks.search.workload import Workload

MULTIPLES = (0.1, 0.3, 1.0, 3.0, 10.0)  # of the tuned LR
FAR = (0.03, 30.0)
SEEDS = (0, 1, 2)
OTHER_SEEDS = (100, 101)  # for tuning
GRID = tuple(10**x for x in (-1.5, -1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5))
SHARES = (0.1, 0.3, 0.5, 0.7)  # of the final decay of warmup-stable-decay; the smallest also covers a constant LR
LENGTHS = (0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0)  # of the tuned schedule's runs that measure worth


@dataclass(frozen=True)
class Tuned:
    """The best fixed schedule of a workload at a run length, over LRs, shapes and shares of the decay.

    Attributes:
        share: the best share of the decay of warmup-stable-decay, even if another shape is best.
    """

    arm: str
    lr: float
    share: float

    @property
    def decay(self) -> float | None:
        return self.share if self.arm == "wsd" else None


def tune(results: Results, workload: Workload, steps: int) -> Tuned:
    """Search 11 LRs with each shape and share of the decay, moving the grid while the best LR is at its edge."""
    centre = workload.lr
    for _ in range(4):
        grid = [_short(centre * factor) for factor in GRID]
        cells = [*itertools.product(("linear", "cosine"), grid, (None,)), *itertools.product(("wsd",), grid, SHARES)]
        jobs = [
            Job("tune", workload.name, arm, steps, lr, seed, decay=share)
            for (arm, lr, share), seed in itertools.product(cells, OTHER_SEEDS)
        ]
        results.run(workload, jobs)
        losses = {cell: _loss(results, workload, steps, *cell) for cell in cells}
        arm, lr, share = min(losses, key=losses.__getitem__)
        if lr not in (grid[0], grid[-1]):
            break
        centre = lr
    else:
        raise RuntimeError(f"the tuned LR of {workload.name} is out of reach from lr={workload.lr}: set it nearer")
    stable = min((cell for cell in cells if cell[0] == "wsd"), key=losses.__getitem__)
    return Tuned(arm, lr, share or stable[2] or 0.3)


def _short(lr: float) -> float:
    return float(f"{lr:.3g}")


def _loss(results: Results, workload: Workload, steps: int, arm: str, lr: float, share: float | None) -> float:
    losses = results.losses(stage="tune", workload=workload.name, arm=arm, steps=steps, lr=lr, decay=share)
    return mean(losses) if losses else math.inf


def judge(results: Results, workload: Workload, steps: int, multiples: Sequence[float], *, rules: bool) -> Tuned:
    """Tune the fixed schedules, then run what losses are worth in steps, the fixed schedules and the rules."""
    tuned = tune(results, workload, steps)
    lengths = sorted({max(2, round(length * steps)) for length in LENGTHS})
    jobs = [
        Job(f"worth {steps}", workload.name, tuned.arm, length, tuned.lr, seed, 1.0, tuned.decay)
        for length, seed in itertools.product(lengths, SEEDS)
    ]
    jobs += [
        Job("run", workload.name, arm, steps, _short(m * tuned.lr), seed, m, tuned.share if arm == "wsd" else None)
        for arm, m, seed in itertools.product((*arms.FIXED, *(arms.CONFIGS if rules else ())), multiples, SEEDS)
    ]
    results.run(workload, jobs)
    return tuned


def yoked(results: Results, workload: Workload, others: Sequence[Workload], steps: int, tuned: Tuned) -> None:
    """Replays of the default's scales from the next workload, at another multiple of the tuned LR and at the same one.

    The second control is told what a user does not know: how far the base LR is from the tuned one.
    """
    families = [other for other in others if other.family != workload.family]
    after = [other for other in families if others.index(other) > others.index(workload)]
    source = (after or families)[0]

    def replay(job: Job) -> list[float]:
        assert job.of is not None
        name, multiple, seed = job.of
        runs = results.of(stage="run", workload=name, arm="greedy", steps=steps, multiple=multiple, seed=seed)
        return list(runs[0]["scales"])

    jobs = []
    for (i, m), seed in itertools.product(enumerate(MULTIPLES), SEEDS):
        for arm, of in zip(arms.YOKED, (MULTIPLES[(i + seed + 1) % len(MULTIPLES)], m), strict=True):
            run = (source.name, of, seed)
            jobs.append(Job("run", workload.name, arm, steps, _short(m * tuned.lr), seed, m, of=run))
    results.run(workload, jobs, replay)
