"""Many runs of a workload at once: one vmapped model with the weights of all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.func import grad_and_value, vmap

from benchmarks.search import arms
from benchmarks.search.optimizers import OPTIMIZERS, Table
from benchmarks.search.workload import Batch, Workload
from greedylr_integrations.slope import distance_of, slope_of

DIVERGED = 1.5  # times the loss at the start
AT_ONCE = 140  # runs; more of them no longer fit in the caches


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        stage: what the run is for; part of its key in the results.
        multiple: its base LR as a multiple of the tuned one. None while the tuned one is being searched for.
        decay: share of the run that the final decay takes; for warmup-stable-decay only.
        of: the run whose scales are replayed: workload, multiple and seed.
    """

    stage: str
    workload: str
    arm: str
    steps: int
    lr: float
    seed: int
    multiple: float | None = None
    decay: float | None = None
    of: tuple[str, float, int] | None = None


class Data:
    """Batches of the runs, each made once for all runs that share it."""

    def __init__(self, workload: Workload, jobs: Sequence[Job]) -> None:
        self._workload = workload
        kinds = [(job.seed, job.steps if workload.depends_on_length else 0) for job in jobs]
        self._kinds = sorted(set(kinds))
        self._longest = max(job.steps for job in jobs)
        self._which = torch.tensor([self._kinds.index(kind) for kind in kinds])

    def keep(self, rows: torch.Tensor) -> None:
        """Keep only some of the runs."""
        self._which = self._which[rows]

    def batch(self, step: int) -> Batch:
        """The batches of all runs, stacked."""
        needed = torch.unique(self._which).tolist()
        parts = [self._workload.draw(seed, step, steps or self._longest) for seed, steps in map(self._kind, needed)]
        place = torch.zeros(len(self._kinds), dtype=torch.long)
        place[needed] = torch.arange(len(needed))
        return tuple(torch.stack(tensors)[place[self._which]] for tensors in zip(*parts, strict=True))

    def _kind(self, i: int) -> tuple[int, int]:
        return self._kinds[i]


def train(workload: Workload, jobs: Sequence[Job], replay: Sequence[Sequence[float]] = ()) -> list[dict[str, Any]]:
    """Train, and return for each run its final validation loss (None if it diverged) and what its arm kept.

    Args:
        replay: scales for each job; for yoked runs only.
    """
    results: list[dict[str, Any]] = []
    order = sorted(range(len(jobs)), key=lambda i: jobs[i].steps)
    for i in range(0, len(order), AT_ONCE):
        part = order[i : i + AT_ONCE]
        results += Runs(workload, [jobs[j] for j in part], [replay[j] if replay else () for j in part]).train()
    return [result for _, result in sorted(zip(order, results, strict=True), key=lambda pair: pair[0])]


class Runs:
    """Runs that are under way; those that have finished or died leave the table."""

    def __init__(self, workload: Workload, jobs: list[Job], replay: list[Sequence[float]]) -> None:
        self.workload, self.jobs = workload, jobs
        self.data = Data(workload, jobs)
        starts = {job.seed: workload.start(torch.Generator().manual_seed(job.seed)) for job in jobs}
        rows = [torch.cat([tensor.flatten() for tensor in starts[job.seed].values()]) for job in jobs]
        one = starts[jobs[0].seed]
        self.table = Table(torch.stack(rows), list(one), [tensor.shape for tensor in one.values()])
        self.reference: torch.Tensor | None = self.table.weights.clone()
        self._in_matrices = torch.cat([torch.full((t.numel(),), float(t.ndim > 1)) for t in one.values()])
        self.drivers = [
            arms.make(job.arm, job.steps, job.decay, workload.steps_per_epoch(job.steps), scales)
            for job, scales in zip(jobs, replay, strict=True)
        ]
        self.lrs = torch.tensor([job.lr for job in jobs])
        self.left = list(range(len(jobs)))  # numbers of the runs in the table
        self._gradients = vmap(grad_and_value(workload.loss))
        self.results: list[dict[str, Any]] = [{} for _ in jobs]
        self.begun = time.perf_counter()
        batch = workload.validation()
        self.initial = {seed: float(workload.loss(weights, *batch)) for seed, weights in starts.items()}

    def train(self) -> list[dict[str, Any]]:
        step = 0
        while self.left:
            losses = self._step(step)
            step += 1
            dead = [not math.isfinite(loss) or self.drivers[i].dead for i, loss in zip(self.left, losses, strict=True)]
            done = [self.jobs[i].steps <= step for i in self.left]
            if any(done) or sum(dead) > len(dead) // 10 or all(dead):
                self.leave([a or b for a, b in zip(done, dead, strict=True)])
        return self.results

    def _step(self, step: int) -> list[float]:
        """One step of all runs; returns their losses."""
        losses, gradient = self.gradient(step)
        drivers = [self.drivers[i] for i in self.left]
        ways = self._ways(gradient, drivers)
        gradient = self.clipped(gradient)
        factors = torch.tensor([driver.factor for driver in drivers])
        OPTIMIZERS[self.workload.optimizer](self.table, gradient, self.lrs * factors, step)
        for driver, loss, way in zip(drivers, losses, ways, strict=True):
            driver.observe(loss, *way)
        return losses

    def gradient(self, step: int) -> tuple[list[float], torch.Tensor]:
        """Losses and gradients of the runs, on their batches of this step."""
        gradients, losses = self._gradients(self.table.tensors(), *self.data.batch(step))
        return losses.tolist(), torch.cat([gradients[name].flatten(1) for name in self.table.names], 1)

    def clipped(self, gradient: torch.Tensor) -> torch.Tensor:
        """Gradients clipped to the workload's largest norm, as `torch.nn.utils.clip_grad_norm_` does."""
        if not self.workload.clip:
            return gradient
        return gradient * (self.workload.clip / (gradient.norm(dim=1) + 1e-6)).clamp(max=1.0)[:, None]

    def _ways(self, gradient: torch.Tensor, drivers: list[arms.Driver]) -> list[tuple[float | None, float | None]]:
        """Slope and distance as `greedylr_integrations.slope` measures them, for the runs that need them."""
        ways: list[tuple[float | None, float | None]] = [(None, None)] * len(drivers)
        wanting = [i for i, driver in enumerate(drivers) if driver.wants_slope]
        if not wanting or self.reference is None:
            self.reference = None
            return ways
        rows = torch.tensor(wanting)
        g, start = gradient[rows], self.reference[rows]
        way, sized = self.table.weights[rows] - start, start * self._in_matrices
        of_sized = way * (sized != 0)
        pairs = ((g, way), (g, g), (way, way), (of_sized, of_sized), (sized, sized))
        for i, sums in zip(wanting, torch.stack([(a * b).sum(1) for a, b in pairs], 1).tolist(), strict=True):
            ways[i] = slope_of([*sums, 1.0]), distance_of([*sums, 1.0])
        return ways

    def leave(self, leaving: list[bool]) -> None:
        """Validate the runs that leave, and take them out."""
        final = self._validate()
        now = time.perf_counter() - self.begun
        for i, leaves, loss in zip(self.left, leaving, final, strict=True):
            if leaves:
                good = math.isfinite(loss) and loss < DIVERGED * self.initial[self.jobs[i].seed]
                result = self.drivers[i].result()
                seconds = round(now / len(self.jobs), 3)
                self.results[i] = {"loss": float(f"{loss:.6g}") if good else None, "seconds": seconds, **result}
        rows = torch.tensor([i for i, leaves in enumerate(leaving) if not leaves], dtype=torch.long)
        self.left = [i for i, leaves in zip(self.left, leaving, strict=True) if not leaves]
        if self.left:
            self.table.keep(rows)
            self.data.keep(rows)
            self.lrs = self.lrs[rows]
            self.reference = None if self.reference is None else self.reference[rows]

    @torch.no_grad()
    def _validate(self) -> list[float]:
        batch = self.workload.validation()
        whole = vmap(self.workload.loss, in_dims=(0, *[None] * len(batch)), chunk_size=16)
        return whole(self.table.tensors(), *batch).tolist()
