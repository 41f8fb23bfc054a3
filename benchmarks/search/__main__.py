"""Trains the search suite, and keeps what came out.

    python -m benchmarks.search quick       two workloads, 100 steps, with a report: a minute or two
    python -m benchmarks.search tune        the half that rules are tuned on
    python -m benchmarks.search noisy       its workloads with noisy slopes, with a report: --lengths 300 is minutes
    python -m benchmarks.search held-out    the half that they were judged on until it had been looked at five times
    python -m benchmarks.search fresh       the half that they are judged on
    python -m benchmarks.search rivals      optimizers that need no LR, and others, on that half
    python -m benchmarks.search report      its tables and picture

Continues where it stopped.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.search import fresh, held_out, noisy, report, rivals, stages, tuning
from benchmarks.search.store import RESULTS, Results
from benchmarks.search.workload import Workload

LONG = 3000


@dataclass(frozen=True)
class Half:
    """
    Attributes:
        file: where its runs are kept.
        lengths: optimizer steps of its runs.
        cheap: workloads that are also run with 3,000 steps, and from base LRs that are further off.
    """

    file: str
    workloads: Sequence[Workload]
    lengths: Sequence[int] = (100, 300, 1000)
    cheap: Sequence[str] = ()


HALVES = {
    "tune": Half("search-tune.jsonl", tuning.WORKLOADS),
    "noisy": Half("search-noisy.jsonl", noisy.WORKLOADS),
    "held-out": Half("search-held-out.jsonl", held_out.WORKLOADS, cheap=("flights-machine", "photos-autoencoder")),
    "fresh": Half("search-fresh.jsonl", fresh.WORKLOADS, (300, 1000), cheap=("births-poisson", "baseball-experts")),
}
JUDGED = HALVES["fresh"]  # what rules are judged on


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
    parser.add_argument("part", choices=["quick", *HALVES, "rivals", "report"])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON-lines files")
    parser.add_argument("--fixed-only", action="store_true", help="only what does not depend on the rules")
    parser.add_argument("--lengths", type=int, nargs="+", help="optimizer steps of the runs")
    parser.add_argument("--only", nargs="+", default=(), help="only these workloads; skips what needs all of them")
    args = parser.parse_args(argv)
    logging.getLogger("greedylr_integrations").setLevel(logging.ERROR)  # runs that reach a bound log it
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    rules = not args.fixed_only
    if args.part == "quick":
        folder = args.results / "quick" if args.results == RESULTS else args.results
        quick = [workload for workload in JUDGED.workloads if workload.name in JUDGED.cheap]
        results = Results(folder / JUDGED.file)
        run_half(results, quick, [100], rules=rules)
        report.write(results, quick, folder / "search.md", folder / "loss-over-base-lr.png")
    elif args.part == "rivals":
        once = [workload for workload in JUDGED.workloads if workload.epochs == 1]
        for steps in args.lengths or JUDGED.lengths:
            rivals.run(Results(args.results / JUDGED.file), once, steps)
    elif args.part == "report":
        report.main(Results(args.results / JUDGED.file), JUDGED.workloads, args.results)
    else:
        half = HALVES[args.part]
        results = Results(args.results / half.file)
        lengths = args.lengths or half.lengths
        run_half(results, half.workloads, lengths, rules=rules, cheap=half.cheap, only=args.only)
        if args.part == "noisy":
            report.write(results, half.workloads, args.results / "search-noisy.md", args.results / "search-noisy.png")


if __name__ == "__main__":
    main()
