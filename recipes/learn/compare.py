"""The learned policy on data, model sizes and lengths that it has not seen, beside tuned schedules.

    python -m recipes.learn.compare --results runs/learn_compare.jsonl --report recipes/learn/RESULTS.md

Each run is a line of the results; what is there already is not run again, so the command can be stopped at any time.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch

from greedylr_integrations.controller import GreedyController
from greedylr_integrations.envelope import Envelope
from greedylr_integrations.learned import Policy, PolicyConfig, PolicyController
from greedylr_integrations.log import logger
from recipes.common.flags import fail, loading, run
from recipes.common.records import Records
from recipes.common.report import write_or_print
from recipes.learn.networks import NetworkEpisode, Task

LRS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # times the usual one: the trials that every schedule has
SEEDS = (0, 1, 2)
TUNING_SEED = 100
MEASUREMENTS = 25  # of the validation loss, over a run
USUAL = {"adamw": 1e-3, "sgd": 0.03}
TASKS = {
    f"{data} {optimizer}": Task(data, optimizer, width=128, depth=2, batch=64, steps=steps, base_lr=0.0, seed=0)
    for data, steps in (("fashion-mnist", 600), ("chitchat", 1000), ("reviews", 1000))
    for optimizer in ("adamw", "sgd")
}
SCHEDULES = ("learned", "greedy", "cosine", "linear", "constant")
Schedule = Callable[[int, float], float]  # from optimizer step and the loss before it to the scale


def schedule(name: str, steps: int, policy: Policy) -> Schedule:
    if name == "learned":
        envelope = Envelope(total_steps=steps, decay_ratio=policy.decay_ratio)
        return _controlled(PolicyController(PolicyConfig(policy=policy), horizon=steps), envelope)
    if name == "greedy":
        return _controlled(GreedyController(horizon=steps), Envelope(total_steps=steps))
    return {
        "constant": lambda step, loss: 1.0,
        "linear": lambda step, loss: 1 - step / steps,
        "cosine": lambda step, loss: (1 + math.cos(math.pi * step / steps)) / 2,
    }[name]


def _controlled(controller: GreedyController, envelope: Envelope) -> Schedule:
    def scale(step: int, loss: float) -> float:
        if step:
            controller.observe(loss)
        return controller.scales[0] * envelope(step)

    return scale


def train(task: Task, scale: Schedule) -> dict[str, Any]:
    """Losses and scales of one run; the validation loss is infinite from where it diverged."""
    episode = NetworkEpisode(task)
    losses: list[float] = []
    scales: list[float] = []
    validation: list[tuple[int, float]] = []
    every = task.steps // MEASUREMENTS
    loss = math.nan
    for step in range(task.steps):
        try:
            scales.append(scale(step, loss))
        except FloatingPointError:
            break
        losses.append(loss := episode.advance(task.base_lr * scales[-1]))
        if (step + 1) % every == 0:
            validation.append((step + 1, episode.validation_loss()))
    final = validation[-1][1] if len(losses) == task.steps else math.inf
    return {
        "final": final if math.isfinite(final) else math.inf,
        "validation": validation,
        "losses": losses,
        "scales": scales,
    }


def jobs(done: dict[tuple, dict]) -> Iterator[tuple]:
    """(task, schedule, LR, seed), first those that tune, then other seeds at each of `BASE_LRS`."""
    for task in TASKS:
        for name in SCHEDULES:
            yield from ((task, name, lr, TUNING_SEED) for lr in LRS)
        for lr_of, name, seed in product(BASE_LRS.values(), SCHEDULES, SEEDS):
            yield task, name, lr_of(done, task, name), seed


def best_lr(done: dict[tuple, dict], task: str, name: str) -> float:
    return min(LRS, key=lambda lr: done[task, name, lr, TUNING_SEED]["final"])


BASE_LRS: dict[str, Callable[[dict[tuple, dict], str, str], float]] = {
    "tuned for each schedule": best_lr,
    "a tenth of what is best for each": lambda done, task, name: best_lr(done, task, name) / 10,
    "a tenth of what is best for cosine": lambda done, task, name: best_lr(done, task, "cosine") / 10,
}


def read(path: Path, policy: Policy) -> Records:
    """The runs that are there already; another policy's are no longer the learned schedule's."""

    def key(row: dict[str, Any]) -> tuple | None:
        current = row["schedule"] != "learned" or row["policy"] == policy.digest
        return (row["task"], row["schedule"], row["lr"], row["seed"]) if current else None

    return Records(path, key)


def run_all(path: Path, policy: Policy) -> Records:
    from rich.progress import track

    done = read(path, policy)
    total = len(TASKS) * len(SCHEDULES) * (len(LRS) + len(BASE_LRS) * len(SEEDS))
    for job in track(jobs(done), "training", total):
        if job in done:
            continue
        name, arm, lr, seed = job
        task = TASKS[name]._replace(base_lr=USUAL[TASKS[name].optimizer] * lr, seed=seed)
        row = {"task": name, "schedule": arm, "lr": lr, "seed": seed, "policy": policy.digest}
        done.add(row | train(task, schedule(arm, task.steps, policy)))
    return done


# ---- the report ----


def report(done: dict[tuple, dict], policy: Policy) -> str:
    lines = [
        "# The learned network policy on data that it was not trained on",
        "",
        "Written by `python -m recipes.learn.compare`. The policy"
        f" (`{policy.digest}`, {policy.trained.get('decisions', 0):,} decisions of PPO on digits and Python's"
        " documentation) was trained on none of this data, nor on networks as wide (two hidden layers of 128). It was"
        " chosen among four with the tasks on Fashion-MNIST and the chats in view; those on film reviews were added"
        " afterwards. Every schedule has the same six trials of its base LR on another seed.",
        "",
        "## Final validation loss beside tuned linear decay's",
        "",
        f"Least and largest over the {len(TASKS)} tasks. Of each task: mean of {len(SEEDS)} seeds, each beside linear"
        " decay's loss on the same seed. The reference has linear's tuned base LR in every column.",
        "",
        "| schedule | " + " | ".join(f"base LR {title}" for title in BASE_LRS) + " |",
        "| --- " * (1 + len(BASE_LRS)) + "|",
    ]
    for name in SCHEDULES:
        cells = []
        for lr_of in BASE_LRS.values():
            means = [statistics.mean(_beside_linear(done, task, name, lr_of(done, task, name))) for task in TASKS]
            cells.append(f"{min(means):+.1%} to {max(means):+.1%}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Below: mean final validation loss of {len(SEEDS)} seeds, the seeds' range in brackets; the same beside tuned"
        " linear decay's; and the mean of the optimizer steps after which the validation loss was first at or below the"
        f" target, measured {MEASUREMENTS} times a run. The target is what tuned linear decay ends with, on average,"
        " plus 2%. A run that does not get there counts as `never`.",
    ]
    for title, lr_of in BASE_LRS.items():
        lines += ["", f"## Base LR {title}", "", *_table(done, lr_of)]
    return "\n".join([*lines, ""])


def _finals(done: dict[tuple, dict], task: str, name: str, lr: float) -> list[float]:
    return [done[task, name, lr, seed]["final"] for seed in SEEDS]


def _beside_linear(done: dict[tuple, dict], task: str, name: str, lr: float) -> list[float]:
    """How far each seed's loss is above that of tuned linear decay, as a share of it."""
    linear = _finals(done, task, "linear", best_lr(done, task, "linear"))
    return [own / other - 1 for own, other in zip(_finals(done, task, name, lr), linear, strict=True)]


def _table(done: dict[tuple, dict], lr_of: Callable[[dict[tuple, dict], str, str], float]) -> list[str]:
    lines = [
        "| task | schedule | base LR | final validation loss | beside linear | target | steps to target |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for task in TASKS:
        target = 1.02 * statistics.mean(_finals(done, task, "linear", best_lr(done, task, "linear")))
        lrs = {name: lr_of(done, task, name) for name in SCHEDULES}
        finals = {name: _finals(done, task, name, lr) for name, lr in lrs.items()}
        best = min(statistics.mean(values) for values in finals.values())
        for name, values in finals.items():
            mean = statistics.mean(values)
            shown = f"**{mean:.4f}**" if mean == best else f"{mean:.4f}"
            beside = _beside_linear(done, task, name, lrs[name])
            steps = [_first(done[task, name, lrs[name], seed]["validation"], target) for seed in SEEDS]
            reached = [count for count in steps if count is not None]
            told = f"{statistics.mean(reached):.0f}" if reached else "never"
            if reached and len(reached) < len(SEEDS):
                told += f" ({len(SEEDS) - len(reached)} of {len(SEEDS)} never)"
            lines.append(
                f"| {task} | {name} | {USUAL[TASKS[task].optimizer] * lrs[name]:.2g} | {shown}"
                f" ({min(values):.4f} to {max(values):.4f}) | {statistics.mean(beside):+.1%}"
                f" ({min(beside):+.1%} to {max(beside):+.1%}) | {target:.4f} | {told} |"
            )
    return lines


def _first(validation: list[tuple[int, float]], target: float) -> int | None:
    return next((step for step, loss in validation if loss <= target), None)


def main(argv: list[str] | None = None) -> None:
    made = argparse.ArgumentParser("learn.compare", description=__doc__.split("\n")[0])
    made.add_argument("--policy", default="network", help="a policy file or a shipped one (default: %(default)s)")
    made.add_argument("--results", type=Path, default=Path("runs/learn_compare.jsonl"))
    made.add_argument("--report", type=Path, help="where to write the tables (default: to the screen)")
    made.error = fail
    args = made.parse_args(argv)
    torch.set_num_threads(1)
    with loading("--policy", args.policy):
        policy = Policy.load(args.policy)
    text = report(run_all(args.results, policy), policy)
    write_or_print(text, args.report)


if __name__ == "__main__":
    logger.setLevel("ERROR")  # many base LRs are too low on purpose
    run("learn.compare", main)
