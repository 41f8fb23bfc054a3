"""The evidence: trains every workload with every arm and keeps the results, one line of JSON per run.

    python -m benchmarks.suite quick          a small part, to a folder of its own, with its report (10 minutes)
    python -m benchmarks.suite search         the tuned base LR of each workload, for the strongest fixed schedule
    python -m benchmarks.suite tune           the main knob of each arm, on the tuning half
    python -m benchmarks.suite ablate         the default without each of its parts, on the tuning half
    python -m benchmarks.suite held-out       every arm on the held-out half
    python -m benchmarks.suite cost           seconds of one run of each workload
    python -m benchmarks.suite full           search, tune, ablate, held-out

Continues where it stopped; one worker per core. `python -m benchmarks.report` makes tables and pictures from the
results.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.store import (
    ABLATIONS,
    LENGTHS,
    LONG,
    MULTIPLES,
    RESULTS,
    SEEDS,
    YOKED,
    Job,
    Results,
    load_tuned,
    train,
)

SEARCHED = ("linear", "cosine", "wsd")


# ---- stages ----


def _workloads(half: str | None = None) -> list[Any]:
    from benchmarks.workloads import WORKLOADS

    return [workload for workload in WORKLOADS.values() if half in (None, workload.half)]


def search(results: Results, half: str | None = None) -> dict[str, dict[str, Any]]:
    """Best base LR and fixed schedule of each workload, in half decades; the grid grows if the best is at its edge."""
    tuned = {}
    for workload in _workloads(half):
        low, high = -2, 2
        while True:
            grid = [workload.lr * 10 ** (i / 2) for i in range(low, high + 1)]
            grid = [float(f"{lr:.3g}") for lr in grid]
            jobs = [
                Job("search", workload.name, arm, lr, seed, workload.steps)
                for arm, lr, seed in itertools.product(SEARCHED, grid, range(2))
            ]
            results.run([(job, None) for job in jobs], title=f"search {workload.name}")
            means = {
                (arm, lr): _mean(results.losses(stage="search", workload=workload.name, arm=arm, lr=lr))
                for arm, lr in itertools.product(SEARCHED, grid)
            }
            arm, lr = min(means, key=means.__getitem__)
            if lr == grid[0]:
                low -= 2
            elif lr == grid[-1]:
                high += 2
            else:
                tuned[workload.name] = {"arm": arm, "lr": lr, "loss": means[arm, lr]}
                break
    return tuned


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.inf


def tune_jobs(tuned: dict[str, Any]) -> Iterator[Job]:
    """Eight trials per arm on every second workload of the tuning half: four values of its knob at two base LRs."""
    from benchmarks.arms import ARMS

    for workload in _workloads("tune")[::2]:
        for name, arm in ARMS.items():
            if len(arm.knobs) == 1:
                continue
            for knob, multiple in itertools.product(arm.knobs, (1.0,) if arm.kind == "free" else (0.3, 1.0)):
                lr = tuned[workload.name]["lr"] * multiple
                yield Job("tune", workload.name, name, lr, 0, workload.steps, multiple, dict(knob))


def best_knobs(results: Results) -> dict[str, dict[str, Any]]:
    """The knob of each arm with the smallest geometric mean loss over the tuning half; a divergence disqualifies."""
    from benchmarks.arms import ARMS

    best = {}
    for name, arm in ARMS.items():

        def score(knob: dict[str, Any], name: str = name) -> float:
            losses = [
                math.inf if entry["loss"] is None else entry["loss"] / entry["start"]
                for entry in results.of(stage="tune", arm=name, knob=knob)
            ]
            return sum(map(math.log, losses)) if losses else math.inf

        best[name] = dict(min(arm.knobs, key=score))
    return best


def ablate_jobs(tuned: dict[str, Any]) -> Iterator[Job]:
    """The ablations, on the tuning half, with two seeds."""
    for workload in _workloads("tune"):
        yield from reference_jobs(workload.name, workload.steps, tuned[workload.name], 2)
        for multiple, seed in itertools.product(MULTIPLES, range(2)):
            lr = tuned[workload.name]["lr"] * multiple
            arms = [("greedy", knob) for knob in ABLATIONS.values()]
            arms += [(name, {}) for name in ("greedy, no horizon", "cosine", "wsd")]
            for name, knob in arms:
                yield Job("ablate", workload.name, name, lr, seed, workload.steps, multiple, dict(knob))


ON_FOUR = ("hypergradient", "hypergradient, groups", "hypergradient, tensors", "line search")


def reference_jobs(name: str, steps: int, best: dict[str, Any], seeds: int) -> Iterator[Job]:
    """The tuned best schedule at several lengths: what a loss is worth in steps."""
    for length, seed in itertools.product(LENGTHS, range(seeds)):
        yield Job("reference", name, best["arm"], best["lr"], seed, round(length * steps), 1.0)


def held_out_jobs(tuned: dict[str, Any], knobs: dict[str, Any] | None = None) -> Iterator[Job]:
    """Every arm at each base LR, at its default, and with its tuned knob if it has one in `knobs`."""
    from benchmarks.arms import ARMS

    workloads = _workloads("held out")
    for workload, (name, arm) in itertools.product(workloads, ARMS.items()):
        knob = {} if knobs is None else knobs.get(name)
        if name in (*YOKED, "trunk") or knob is None or (knobs is not None and not knob):
            continue
        if name in ON_FOUR and workload not in workloads[:4]:
            continue
        for multiple in (1.0,) if arm.kind == "free" else MULTIPLES:
            for seed in range(SEEDS):
                lr = tuned[workload.name]["lr"] * multiple
                yield Job("held-out", workload.name, name, lr, seed, workload.steps, multiple, dict(knob))


def long_jobs(tuned: dict[str, Any]) -> Iterator[Job]:
    """Runs of four times the length."""
    for workload, name, multiple, seed in itertools.product(_workloads("held out"), LONG, (0.3, 1.0, 3.0), range(3)):
        lr, steps = tuned[workload.name]["lr"] * multiple, 4 * workload.steps
        yield Job("long", workload.name, name, lr, seed, steps, multiple)


def unknown_end_jobs(tuned: dict[str, Any]) -> Iterator[Job]:
    """Runs of unknown length, with a decay over the last 10% of a quarter, half, three quarters or all of the steps.

    They are the same run until the decay begins, but each is trained from the start. They are compared with
    warmup-stable-decay that knows the length.
    """
    for workload, part, seed in itertools.product(_workloads("held out"), (1, 2, 3, 4), range(3)):
        lr, steps = tuned[workload.name]["lr"], part * workload.steps
        at = round(0.9 * steps)
        yield Job("unknown end", workload.name, "trunk", lr, seed, steps, 1.0, decay_at=at)
        for decay in (0.1, 0.2, 0.4):
            yield Job("unknown end", workload.name, "wsd", lr, seed, steps, 1.0, {"decay": decay})


def yoked_jobs(results: Results, tuned: dict[str, Any], half: str, stage: str) -> Iterator[tuple[Job, list[float]]]:
    """Replays of the scales that the default took on another seed, or on another workload of the same half."""
    workloads = _workloads(half)
    for i, workload in enumerate(workloads):
        sources = {YOKED[0]: workload, YOKED[1]: workloads[(i + 1) % len(workloads)]}
        for (name, source), multiple in itertools.product(sources.items(), MULTIPLES):
            for seed in range(SEEDS):
                other = (seed + 1) % SEEDS
                recorded = results.of(
                    stage=stage, workload=source.name, arm="greedy", multiple=multiple, seed=other, knob={}
                )
                scales = recorded[0].get("scales") if recorded else None
                if scales:
                    lr = tuned[workload.name]["lr"] * multiple
                    yield Job(stage, workload.name, name, lr, seed, workload.steps, multiple), scales


def quick_jobs(tuned: dict[str, Any]) -> Iterator[Job]:
    for name in QUICK:
        from benchmarks.workloads import WORKLOADS

        workload, best = WORKLOADS[name], tuned[name]
        yield from reference_jobs(name, workload.steps, best, 3)
        for arm, multiple in itertools.product(("cosine", "wsd", "linear", "greedy", "transformers"), (0.3, 1.0, 3.0)):
            for seed in range(3):
                yield Job("held-out", name, arm, best["lr"] * multiple, seed, workload.steps, multiple)
        for arm, seed in itertools.product(("schedule-free AdamW", "Prodigy"), range(3)):
            yield Job("held-out", name, arm, best["lr"], seed, workload.steps, 1.0)


QUICK = ("flights-embedded", "genes-nmf")  # two cheap ones of the held-out half that need no Debian packages


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite", description=__doc__.split("\n")[0])
    parser.add_argument("stages", nargs="+", choices=["quick", "search", "tune", "ablate", "held-out", "cost", "full"])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON-lines files")
    parser.add_argument("--workers", type=int, default=None, help="default: one a core")
    args = parser.parse_args(argv)
    stages = ["search", "tune", "ablate", "held-out"] if "full" in args.stages else args.stages
    folder = args.results / "quick" if stages == ["quick"] and args.results == RESULTS else args.results
    for stage in stages:
        run_stage(stage, folder, args.workers)


def run_stage(stage: str, folder: Path, workers: int | None) -> None:
    if stage == "cost":
        cost(folder)
        return
    searched = Results(folder / "search.jsonl")
    if stage == "quick":
        from benchmarks.workloads import WORKLOADS

        tuned = {}
        for name in QUICK:  # LR of the full search if it is in the repository, else of a shorter one
            tuned[name] = load_tuned().get(name) or {"arm": "cosine", "lr": WORKLOADS[name].lr}
        (folder).mkdir(parents=True, exist_ok=True)
        (folder / "tuned.json").write_text(json.dumps({"tuned": tuned, "knobs": {}}, indent=1) + "\n")
        Results(folder / "held-out.jsonl").run([(job, None) for job in quick_jobs(tuned)], workers, "quick")
        report.main(["--results", str(folder), "--output", str(folder)])
        return
    if stage == "search":
        tuned = search(searched)
        _save(folder, tuned=tuned)
        return
    tuned = load_tuned(folder)
    if stage == "tune":
        results = Results(folder / "tune.jsonl")
        results.run([(job, None) for job in tune_jobs(tuned)], workers, "tune")
        _save(folder, knobs=best_knobs(results))
    elif stage == "ablate":
        Results(folder / "ablate.jsonl").run([(job, None) for job in ablate_jobs(tuned)], workers, "ablate")
    elif stage == "held-out":
        results = Results(folder / "held-out.jsonl")
        knobs = json.loads((folder / "tuned.json").read_text()).get("knobs", {})
        reference = [job for w in _workloads("held out") for job in reference_jobs(w.name, w.steps, tuned[w.name], 5)]
        parts = {"reference": reference, "held-out": held_out_jobs(tuned), "unknown end": unknown_end_jobs(tuned)}
        for title, jobs in parts.items():
            results.run([(job, None) for job in jobs], workers, title)
        results.run(yoked_jobs(results, tuned, "held out", "held-out"), workers, "yoked")
        for title, jobs in {"tuned": held_out_jobs(tuned, knobs), "long": long_jobs(tuned)}.items():
            results.run([(job, None) for job in jobs], workers, title)


def _save(folder: Path, **parts: Any) -> None:
    path = folder / "tuned.json"
    stored = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**stored, **parts}, indent=1) + "\n")


def cost(folder: Path) -> None:
    """Seconds of a run of each workload on one core, and what the stages add up to."""
    import torch

    from benchmarks.arms import ARMS

    torch.set_num_threads(1)
    rows, seconds = [], {}
    for workload in _workloads():
        seconds[workload.name] = train(Job("cost", workload.name, "cosine", workload.lr, 0, workload.steps))["seconds"]
        rows.append(f"| {workload.name} | {workload.half} | {workload.steps} | {seconds[workload.name]:.2f} |")
    tuned = load_tuned(folder) or {w.name: {"lr": w.lr, "arm": "cosine"} for w in _workloads()}
    steps = {w.name: w.steps for w in _workloads()}
    lines = [
        "| workload | half | steps | seconds |",
        "|---|---|---|---|",
        *rows,
        "",
        "| stage | runs | core-minutes |",
        "|---|---|---|",
    ]
    stages = {
        "tune": tune_jobs(tuned),
        "ablate": ablate_jobs(tuned),
        "held-out": held_out_jobs(tuned),
        "held-out, tuned": held_out_jobs(tuned, {name: arm.knobs[-1] for name, arm in ARMS.items()}),
        "held-out, four times as long": long_jobs(tuned),
        "held-out, unknown end": unknown_end_jobs(tuned),
    }
    for name, jobs in stages.items():
        jobs = list(jobs)
        total = sum(seconds[job.workload] * job.steps / steps[job.workload] for job in jobs)
        lines.append(f"| {name} | {len(jobs)} | {total / 60:.0f} |")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cost.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
