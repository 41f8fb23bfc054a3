"""The learned policy, compared with tuned schedules on data, model sizes and run lengths that it has not seen.

    python -m recipes.research.learn.compare --report recipes/research/learn/RESULTS.md

Each run is a line of the results file, and a run that is already there is not repeated: the command can be stopped at
any time.
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

from greedylr_integrations import GreedyConfig, GreedyController
from greedylr_integrations.envelope import Envelope
from greedylr_integrations.learned import Policy, PolicyConfig
from greedylr_integrations.log import logger
from recipes.common.flags import fail, loading, run
from recipes.common.records import Records
from recipes.common.report import write_or_print
from recipes.research.learn.networks import NetworkEpisode, Task

LRS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # multiples of the usual LR: the trials of every schedule
SEEDS = (0, 1, 2)
TUNING_SEED = 100
MEASUREMENTS = 25  # of the validation loss, per run
USUAL = {"adamw": 1e-3, "sgd": 0.03}
TASKS = {
    f"{data} {optimizer}": Task(data, optimizer, width=128, depth=2, batch=64, steps=steps, base_lr=0.0, seed=0)
    for data, steps in (("fashion-mnist", 600), ("chitchat", 1000), ("reviews", 1000))
    for optimizer in ("adamw", "sgd")
}
SCHEDULES = ("learned", "greedy", "cosine", "linear", "constant")
Schedule = Callable[[int, float], float]  # optimizer step and the loss before it -> scale


def schedule(name: str, steps: int, policy: Policy) -> Schedule:
    if name == "learned":
        envelope = Envelope(total_steps=steps, decay_ratio=policy.decay_ratio)
        return _controlled(GreedyController(PolicyConfig(policy=policy), horizon=steps), envelope)
    if name == "greedy":
        return _controlled(GreedyController(GreedyConfig(), horizon=steps), Envelope(total_steps=steps))
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
    """Losses and scales of one run. The final validation loss is infinite if the run diverged."""
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
    """(task, schedule, LR, seed) of each run: first those for tuning, then the other seeds at each of `BASE_LRS`."""
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
    """The runs in the file. Runs of the learned schedule with another policy do not count."""

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
        "Written by `python -m recipes.research.learn.compare`. The policy"
        f" (`{policy.digest}`, {policy.trained.get('decisions', 0):,} decisions of PPO on digits and Python's"
        " documentation) was not trained on any of this data, nor on networks this wide (two hidden layers of 128). It"
        " was chosen from four by its results on Fashion-MNIST and the chats; the film reviews were added afterwards."
        " Every schedule gets the same six trials of its base LR, on another seed.",
        "",
        "## Final validation loss compared with tuned linear decay",
        "",
        f"Smallest and largest over the {len(TASKS)} tasks. For each task: mean of {len(SEEDS)} seeds, each compared"
        " with the loss of linear decay on the same seed. The reference has linear decay's tuned base LR in every"
        " column.",
        "",
        "| schedule | " + " | ".join(f"base LR {title}" for title in BASE_LRS) + " |",
        "| --- " * (1 + len(BASE_LRS)) + "|",
    ]
    for name in SCHEDULES:
        cells = []
        for lr_of in BASE_LRS.values():
            means = [statistics.mean(_over_linear(done, task, name, lr_of(done, task, name))) for task in TASKS]
            cells.append(f"{min(means):+.1%} to {max(means):+.1%}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Below: the mean final validation loss of {len(SEEDS)} seeds, with their range in brackets; the same compared"
        " with tuned linear decay; and the mean number of optimizer steps after which the validation loss was first at"
        f" or below the target, measured {MEASUREMENTS} times per run. The target is the mean final loss of tuned"
        " linear decay plus 2%. A run that does not reach it counts as `never`.",
    ]
    for title, lr_of in BASE_LRS.items():
        lines += ["", f"## Base LR {title}", "", *_table(done, lr_of)]
    return "\n".join([*lines, ""])


def _finals(done: dict[tuple, dict], task: str, name: str, lr: float) -> list[float]:
    return [done[task, name, lr, seed]["final"] for seed in SEEDS]


def _over_linear(done: dict[tuple, dict], task: str, name: str, lr: float) -> list[float]:
    """Loss of each seed relative to that of tuned linear decay, minus 1."""
    linear = _finals(done, task, "linear", best_lr(done, task, "linear"))
    return [own / other - 1 for own, other in zip(_finals(done, task, name, lr), linear, strict=True)]


def _table(done: dict[tuple, dict], lr_of: Callable[[dict[tuple, dict], str, str], float]) -> list[str]:
    lines = [
        "| task | schedule | base LR | final validation loss | compared with linear | target | steps to target |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for task in TASKS:
        target = 1.02 * statistics.mean(_finals(done, task, "linear", best_lr(done, task, "linear")))
        lrs = {name: lr_of(done, task, name) for name in SCHEDULES}
        finals = {name: _finals(done, task, name, lr) for name, lr in lrs.items()}
        best = min(statistics.mean(values) for values in finals.values())
        for name, values in finals.items():
            mean = statistics.mean(values)
            final = f"**{mean:.4f}**" if mean == best else f"{mean:.4f}"
            over = _over_linear(done, task, name, lrs[name])
            steps = [_first(done[task, name, lrs[name], seed]["validation"], target) for seed in SEEDS]
            reached = [count for count in steps if count is not None]
            count = f"{statistics.mean(reached):.0f}" if reached else "never"
            if reached and len(reached) < len(SEEDS):
                count += f" ({len(SEEDS) - len(reached)} of {len(SEEDS)} never)"
            lines.append(
                f"| {task} | {name} | {USUAL[TASKS[task].optimizer] * lrs[name]:.2g} | {final}"
                f" ({min(values):.4f} to {max(values):.4f}) | {statistics.mean(over):+.1%}"
                f" ({min(over):+.1%} to {max(over):+.1%}) | {target:.4f} | {count} |"
            )
    return lines


def _first(validation: list[tuple[int, float]], target: float) -> int | None:
    return next((step for step, loss in validation if loss <= target), None)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("learn.compare", description=__doc__.split("\n")[0])
    parser.add_argument("--policy", default="network", help="a policy file or a shipped policy (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=Path("runs/learn_compare.jsonl"))
    parser.add_argument("--report", type=Path, help="where to write the tables (default: to the screen)")
    parser.error = fail
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    with loading("--policy", args.policy):
        policy = Policy.load(args.policy)
    text = report(run_all(args.results, policy), policy)
    write_or_print(text, args.report)


if __name__ == "__main__":
    logger.setLevel("ERROR")  # many base LRs are too low by design
    run("learn.compare", main)
