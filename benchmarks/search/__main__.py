"""Trains the search suite, and keeps what came out.

    python -m benchmarks.search quick       two workloads, 100 steps, with a report: a minute or two
    python -m benchmarks.search tune        the half that rules are tuned on
    python -m benchmarks.search noisy       its workloads with noisy slopes, with a report: --lengths 300 is minutes
    python -m benchmarks.search held-out    the half that they are judged on
    python -m benchmarks.search rivals      optimizers that need no LR, and others, on that half
    python -m benchmarks.search report      tables and picture

Continues where it stopped.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.search import held_out, noisy, report, rivals, stages, tuning
from benchmarks.search.store import RESULTS, Results
from benchmarks.search.workload import Workload

LENGTHS = (100, 300, 1000)
LONG = 3000
RIVAL_LENGTHS = (300, 1000)
CHEAP = ("flights-machine", "photos-autoencoder")  # also at 3,000 steps, and from farther away


def run_half(
    results: Results,
    half: Sequence[Workload],
    lengths: Sequence[int],
    *,
    rules: bool = True,
    cheap: Sequence[str] = (),
    only: Sequence[str] = (),
) -> None:
    """Run everything of one half that is missing."""
    half = [workload for workload in half if not only or workload.name in only]
    plan = [(workload, steps) for steps in lengths for workload in half]
    plan += [(workload, LONG) for workload in half if workload.name in cheap]
    tuned = {}
    for workload, steps in plan:
        begun = time.time()
        multiples = stages.MULTIPLES + stages.FAR * (workload.name in cheap)
        tuned[workload, steps] = stages.judge(results, workload, steps, multiples, rules=rules)
        print(f"{workload.name}, {steps} steps: {tuned[workload, steps]}, {time.time() - begun:.0f} s", flush=True)
    if rules and not only:
        for workload, steps in plan:
            others = [other for other, length in plan if length == steps]
            stages.yoked(results, workload, others, steps, tuned[workload, steps])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("part", choices=["quick", "tune", "noisy", "held-out", "rivals", "report"])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON-lines files")
    parser.add_argument("--fixed-only", action="store_true", help="without the rules: what does not change with them")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="optimizer steps of the runs")
    parser.add_argument("--only", nargs="+", default=(), help="names of workloads, and nothing that needs all of them")
    args = parser.parse_args(argv)
    logging.getLogger("greedylr_integrations").setLevel(logging.ERROR)  # runs that meet a bound say so
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    rules = not args.fixed_only
    if args.part == "quick":
        folder = args.results / "quick" if args.results == RESULTS else args.results
        quick = [workload for workload in held_out.WORKLOADS if workload.name in CHEAP]
        results = Results(folder / "search-held-out.jsonl")
        run_half(results, quick, [100], rules=rules)
        report.write(results, quick, folder / "search.md", folder / "loss-over-base-lr.png")
    elif args.part == "tune":
        run_half(
            Results(args.results / "search-tune.jsonl"), tuning.WORKLOADS, args.lengths, rules=rules, only=args.only
        )
    elif args.part == "noisy":
        results = Results(args.results / "search-noisy.jsonl")
        run_half(results, noisy.WORKLOADS, args.lengths, rules=rules, only=args.only)
        report.write(results, noisy.WORKLOADS, args.results / "search-noisy.md", args.results / "search-noisy.png")
    elif args.part == "held-out":
        results = Results(args.results / "search-held-out.jsonl")
        run_half(results, held_out.WORKLOADS, args.lengths, rules=rules, cheap=CHEAP, only=args.only)
    elif args.part == "rivals":
        fresh = [workload for workload in held_out.WORKLOADS if workload.epochs == 1]
        for steps in RIVAL_LENGTHS:
            rivals.run(Results(args.results / "search-held-out.jsonl"), fresh, steps)
    else:
        report.main(args.results)


if __name__ == "__main__":
    main()
