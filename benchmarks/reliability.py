"""Faults in mid-run, and who recovers: the table of RELIABILITY.md.

    python -m benchmarks.reliability          what is missing, about half an hour on one core, then the table
    python -m benchmarks.reliability show     the table, from what is there

Four small trainings, 300 steps, at the LR that is best for a fixed schedule. Each has one fault, at a step between 40%
and 65% of the run that depends on the seed: `batches` follows the gradient of each batch uphill, of a loss 30 times as
large, for 5 steps; `lr` multiplies the LR by 30 for 5 steps; `nan` makes the gradients of one step NaN. A run has
recovered if its final validation loss is at most 2% above that of the same run without the fault.
"""

from __future__ import annotations

import itertools
import logging
import math
import random
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import replace_part
from benchmarks.store import RESULTS, Job, Results, load_tuned
from greedylr_integrations import GreedyConfig, GreedyLR, SlopeConfig, SpikeError

WORKLOADS = ("docs-transformer", "digits-mlp", "fashion-cnn", "tweets-conv")
FAULTS = ("batches", "lr", "nan")
SEEDS, STEPS, LASTS, TIMES = 3, 300, 5, 30.0
BACK = {"on_spike": "rollback", "on_nonfinite": "rollback", "snapshot_every": 25}


def fixed(name: str) -> Callable[[Any], Any]:
    from transformers import get_scheduler

    return lambda optimizer: get_scheduler(name, optimizer, 0, STEPS)


def greedy(config: Any) -> Callable[[Any], Any]:
    return lambda optimizer: GreedyLR(optimizer, config, total_steps=STEPS)


def on_top(optimizer: Any) -> Any:
    """The linear schedule with GreedyLR's rollback and nothing else: its scale is pinned."""
    base = fixed("linear")(optimizer)
    scheduler = GreedyLR(optimizer, GreedyConfig(**BACK), total_steps=STEPS, base_schedule=base)
    scheduler.pin(1.0)
    return scheduler


ARMS: dict[str, Callable[[Any], Any]] = {
    "cosine": fixed("cosine"),
    "linear": fixed("linear"),
    "linear, rollback": on_top,
    "greedy": greedy(SlopeConfig()),
    "greedy, hold": greedy(SlopeConfig(on_spike="hold")),
    "greedy, reduce": greedy(SlopeConfig(on_spike="reduce")),
    "greedy, rollback": greedy(SlopeConfig(**BACK)),
}


def train(job: Job) -> float | None:
    """Final validation loss; None if it is not finite or the run ended with an error."""
    from benchmarks.workloads import OPTIMIZERS, WORKLOADS

    fault = job.stage
    torch.manual_seed(job.seed)
    workload = WORKLOADS[job.workload]
    task = workload.build(STEPS)
    optimizer = OPTIMIZERS[workload.optimizer](task.model.parameters(), job.lr)
    scheduler = ARMS[job.arm](optimizer)
    batches = torch.Generator().manual_seed(1000 + job.seed)
    begin = int(random.Random(job.seed).uniform(0.4, 0.65) * STEPS)
    for step in range(STEPS):
        broken = begin <= step < begin + (1 if fault == "nan" else LASTS)
        loss = task.loss(step, batches)
        if broken and fault == "batches":
            loss = TIMES * (loss - 2 * loss.detach()).abs()  # the gradient uphill, of a loss that is 30 times as large
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.model.parameters(), 1.0)
        if broken and fault == "nan":
            next(p for p in task.model.parameters() if p.grad is not None).grad.fill_(math.nan)
        if broken and fault == "lr":
            for group in optimizer.param_groups:
                group["lr"] *= TIMES
        optimizer.step()
        if broken and fault == "lr":
            for group in optimizer.param_groups:
                group["lr"] /= TIMES
        task.after_step()
        try:
            scheduler.step(loss) if isinstance(scheduler, GreedyLR) else scheduler.step()
        except (FloatingPointError, SpikeError):
            return None
    with torch.no_grad():
        after = float(task.validate())
    return after if math.isfinite(after) else None


def jobs() -> list[Job]:
    tuned = load_tuned()
    return [
        Job(fault, name, arm, tuned[name]["lr"], seed, STEPS)
        for seed, name, fault, arm in itertools.product(range(SEEDS), WORKLOADS, ("none", *FAULTS), ARMS)
    ]


def table(results: Results) -> str:
    heads = [f"{fault}, recovered" for fault in FAULTS]
    lines = [f"| | {' | '.join(heads)} | all | final loss over that without the fault, median |", "|---|" + "---|" * 5]
    for arm in ARMS:
        ratios: dict[str, list[float]] = {fault: [] for fault in FAULTS}
        for job in jobs():
            clean = Job("none", job.workload, arm, job.lr, job.seed, STEPS)
            if job.arm == arm and job.stage in FAULTS and {job.key, clean.key} <= results.runs.keys():
                loss, without = results.runs[job.key]["loss"], results.runs[clean.key]["loss"]
                ratios[job.stage].append(math.inf if loss is None else loss / without)
        every = [ratio for each in ratios.values() for ratio in each]
        if every:
            cells = [f"{sum(r <= 1.02 for r in each)} of {len(each)}" for each in (*ratios.values(), every)]
            lines.append(f"| {arm} | {' | '.join(cells)} | {statistics.median(every):.3g} |")
    return "\n".join([*lines, ""])


def main(argv: list[str]) -> None:
    if argv not in ([], ["show"]):
        raise SystemExit("usage: python -m benchmarks.reliability [show]")
    torch.set_num_threads(1)
    logging.getLogger("greedylr_integrations").setLevel(logging.CRITICAL)
    results = Results(RESULTS / "reliability.jsonl")
    missing = [] if argv else [job for job in jobs() if job.key not in results.runs]
    for i, job in enumerate(missing, 1):
        results.add(job, {"loss": train(job)})
        if i % 50 == 0:
            print(f"{i} of {len(missing)}", flush=True)
    replace_part(Path(__file__).with_name("RELIABILITY.md"), table(results), "reliability")


if __name__ == "__main__":
    main(sys.argv[1:])
