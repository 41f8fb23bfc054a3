"""A learned policy compared with GreedyLR's rule: a picture, and the GreedyLR settings that come closest to it.

    python -m recipes.research.distill_policy --policy network --report recipes/research/learn/DISTILLATION.md

The policy drives training runs of its family. GreedyLR is then given the losses of these runs, and a search finds the
settings whose LRs are closest to the policy's.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from greedylr_integrations import GreedyConfig, GreedyController
from greedylr_integrations.envelope import Envelope
from greedylr_integrations.learned import OBSERVED, Policy, PolicyConfig, PolicyRule
from greedylr_integrations.log import logger
from recipes.common.bootstrap import interval
from recipes.common.flags import check_at_least_one, fail, loading, run
from recipes.common.report import write_or_print
from recipes.research.learn.environment import step
from recipes.research.learn.tasks import FAMILIES, TaskFamily, family

STILL = 0.05  # doublings per block below which a change does not count as a move


@dataclass
class Trained:
    """A run under the policy: its losses, and at the end of each block the observation and log2(LR / base LR)."""

    losses: list[float]
    ends: list[int]
    seen: np.ndarray
    scales: np.ndarray


@dataclass(frozen=True)
class Settings:
    """Settings of GreedyLR for a run of any length T."""

    window: float = 0.08  # window_size / T
    rate: float = 8.0  # factor = exp(-rate / T)
    threshold: float = 1.0
    patience: int = 0
    pace: float = 1.0
    decay_ratio: float = 0.3

    def controller(self, steps: int) -> GreedyController:
        config = GreedyConfig(
            window_size=max(1, round(self.window * steps)),
            factor=max(0.5, math.exp(-self.rate / steps)),
            threshold=self.threshold,
            patience=self.patience,
            pace=self.pace,
        )
        return GreedyController(config, horizon=steps)


def run_policy(tasks: TaskFamily, policy: Policy, count: int, seed: int) -> list[Trained]:
    rng, runs = np.random.default_rng(seed), []
    while len(runs) < count:
        episode = tasks.sample(rng)
        rule = PolicyRule(policy, episode.steps)
        envelope = Envelope(total_steps=episode.steps, decay_ratio=policy.decay_ratio)
        losses: list[float] = []
        ends, seen, scales = [], [], []
        for i in range(episode.steps):
            losses.append(step(episode, rule, envelope(i)))
            if not math.isfinite(losses[-1]):
                break
            if observation := rule.push(losses[-1]):
                rule.act(policy(observation))
                ends.append(i)
                seen.append(observation)
                scales.append(_log_lr(rule.scales[0], envelope, i))
        else:
            runs.append(Trained(losses, ends, np.array(seen), np.array(scales)))
    return runs


def greedy_scales(past: Trained, settings: Settings) -> np.ndarray:
    """log2 of the LR / base LR that GreedyLR would have had at the end of each block, including the final decay."""
    controller, total = settings.controller(len(past.losses)), len(past.losses)
    envelope = Envelope(total_steps=total, decay_ratio=settings.decay_ratio)
    scales = [_log_lr(controller.observe(loss).scales[0], envelope, i) for i, loss in enumerate(past.losses)]
    return np.array(scales)[past.ends]


def _log_lr(scale: float, envelope: Envelope, step: int) -> float:
    return math.log2(scale * max(envelope(step), 0.01))  # the end of the decay to 0 carries no information


def agreement(runs: list[Trained], settings: Settings) -> dict[str, float]:
    """Agreement of LRs (root mean square of the log2 of their ratio, correlation) and of moves (same direction)."""
    pairs = [(past.scales, greedy_scales(past, settings)) for past in runs]
    ours, theirs = (np.concatenate(scales) for scales in zip(*pairs, strict=True))
    moves = [(direction(np.diff(one)), direction(np.diff(other))) for one, other in pairs]
    same = np.concatenate([one == other for one, other in moves])
    return {
        "distance": float(np.sqrt(np.mean((ours - theirs) ** 2))),
        "correlation": float(np.corrcoef(ours, theirs)[0, 1]) if theirs.std() > 0 else 0.0,
        "same direction": float(same.mean()),
    }


def direction(moves: np.ndarray) -> np.ndarray:
    return np.where(np.abs(moves) < STILL, 0, np.sign(moves))


def fit(runs: list[Trained], trials: int, seed: int) -> Settings:
    """Random search for the smallest distance; two thirds of the trials are near the best so far."""
    rng = np.random.default_rng(seed)
    best, least = Settings(), math.inf
    for trial in range(trials):
        drawn = Settings(
            window=float(10 ** rng.uniform(-2, -0.7)),
            rate=float(2 ** rng.uniform(1, 6)),
            threshold=float(rng.choice([0, 0.5, 1, 1.5, 2, 3])),
            patience=int(rng.choice([0, 0, 1, 3, 10])),
            pace=float(rng.choice([0, 0.5, 1, 2])),
            decay_ratio=float(rng.choice([0, 0.2, 0.3, 0.5, 0.7, 0.9])),
        )
        if trial == 0:
            drawn = best
        elif trial > trials // 3:  # window and rate close to the best so far, and sometimes another choice
            near = {name: getattr(best, name) * float(np.exp(rng.normal(0, 0.2))) for name in ("window", "rate")}
            kept = {name: value for name, value in vars(best).items() if name not in near and rng.random() < 0.8}
            drawn = Settings(**{**vars(drawn), **near, **kept})
        distance = agreement(runs, drawn)["distance"]
        if distance < least:
            best, least = drawn, distance
    return best


def outcome(tasks: TaskFamily, settings: Settings | Policy, count: int, seed: int) -> np.ndarray:
    """Log validation losses of runs that are trained with the settings, or with the policy."""
    rng, logs = np.random.default_rng(seed), []
    for _ in range(count):
        episode = tasks.sample(rng)
        learned = isinstance(settings, Policy)
        if learned:
            controller = GreedyController(PolicyConfig(policy=settings), horizon=episode.steps)
        else:
            controller = settings.controller(episode.steps)
        envelope = Envelope(total_steps=episode.steps, decay_ratio=settings.decay_ratio)
        for i in range(episode.steps):
            bound = episode.bound()
            most = math.inf if bound is None else bound / episode.base_lr
            if learned:  # the policy sees how far below the bound it is
                controller.rule.limit = most
            scale = min(controller.scales[0] * envelope(i), most)
            controller.observe(episode.advance(episode.base_lr * scale))
        logs.append(math.log(episode.validation_loss()))
    return np.array(logs)


def paired(logs: np.ndarray, others: np.ndarray) -> tuple[float, float, float]:
    """Geometric mean of the ratio of losses on the same runs, with its 95% bootstrap interval."""
    found, low, high = np.exp(interval(logs - others, np.mean))
    return float(found), float(low), float(high)


# ---- picture and report ----


def draw(runs: list[Trained], settings: Settings, path: Path) -> None:
    """Draw the mean move of the scale over trend and noise, for the policy, GreedyLR, and GreedyLR fitted to it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    trend, noise = (
        np.concatenate([past.seen[1:, OBSERVED.index(name)] for past in runs]) for name in ("trend", "noise")
    )
    panels = {
        "learned policy": [past.scales for past in runs],
        "GreedyLR, default": [greedy_scales(past, Settings()) for past in runs],
        "GreedyLR, fitted to the policy": [greedy_scales(past, settings) for past in runs],
    }
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), sharex=True, sharey=True, layout="constrained")
    bins = [np.linspace(-1, 1, 13), np.linspace(0, min(1.0, float(np.quantile(noise, 0.99)) + 0.02), 11)]
    for axis, (title, scales) in zip(axes, panels.items(), strict=True):
        moves = np.concatenate([np.diff(each) for each in scales])
        total, *_ = np.histogram2d(trend, noise, bins, weights=moves)
        count, *edges = np.histogram2d(trend, noise, bins)
        mean = np.where(count >= 5, total / np.maximum(count, 1), np.nan)
        shown = axis.pcolormesh(*edges, mean.T, cmap="RdBu_r", vmin=-0.8, vmax=0.8)
        axis.set(title=title, xlabel="trend of the loss (-1: falls steadily, 1: rises)")
    axes[0].set_ylabel("noise, as a share of the change of the loss")
    figure.colorbar(shown, ax=axes, label="doublings of the LR per block")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def report(
    name: str, policy: Policy, agreements: dict[str, dict], outcomes: dict[str, np.ndarray], fitted: Settings
) -> str:
    lines = [
        f"# The {name} policy compared with GreedyLR",
        "",
        f"Written by `python -m recipes.research.distill_policy --policy {name}`, for the policy"
        f" `{policy.digest}`. GreedyLR is given the losses of runs that the policy trained. Distance: root mean square"
        " of the log2 of the ratio of the two LRs. Direction: share of the blocks in which both raise, both lower or"
        f" both hold (a move below {STILL} of a doubling). Both are measured on runs that were not used for fitting."
        " Validation loss: geometric mean over other runs of the family, trained with the schedule. Last column: the"
        " policy's loss as a share of this one on the same runs, with its 95% bootstrap interval; below 1, the policy"
        " is better.",
        "",
        "| | distance | correlation of log LR | same direction | validation loss | policy's / this |",
        "| --- | --- | --- | --- | --- | --- |",
        f"| learned policy | | | | {math.exp(outcomes['policy'].mean()):.4f} | |",
    ]
    lines += [
        f"| GreedyLR, {which} | {found['distance']:.2f} | {found['correlation']:.2f} | {found['same direction']:.0%} |"
        f" {math.exp(outcomes[which].mean()):.4f} |"
        " {:.3f} ({:.3f} to {:.3f}) |".format(*paired(outcomes["policy"], outcomes[which]))
        for which, found in agreements.items()
    ]
    lines += [
        "",
        f"The fitted settings, for a run of T steps: `window_size={fitted.window:.3f}*T,"
        f" factor=exp(-{fitted.rate:.1f}/T), threshold={fitted.threshold:g}, patience={fitted.patience},"
        f" pace={fitted.pace:g}`, `decay_ratio={fitted.decay_ratio:g}`. They are not available as a preset.",
        "",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("distill_policy", description=__doc__.split("\n")[0])
    parser.add_argument("--policy", default="network", help="a policy file or a shipped policy (default: %(default)s)")
    parser.add_argument(
        "--family", help="tasks to train: " + ", ".join(FAMILIES) + " (default: what it was trained on)"
    )
    parser.add_argument("--runs", type=int, default=40, help="runs to fit to, and to check with (default: %(default)s)")
    parser.add_argument("--trials", type=int, default=200, help="number of settings to try (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, help="where to draw the policy's moves over trend and noise")
    parser.add_argument("--report", type=Path, help="where to write the tables (default: to the screen)")
    parser.error = fail
    args = parser.parse_args(argv)
    check_at_least_one(args, "runs", "trials")
    torch.set_num_threads(1)
    with loading("--policy", args.policy):
        policy = Policy.load(args.policy)
    name = args.family or policy.trained.get("family")
    tasks = family(name)
    runs = run_policy(tasks, policy, 2 * args.runs, args.seed)
    fitted = fit(runs[: args.runs], args.trials, args.seed)
    candidates = {"default": Settings(), "fitted": fitted}
    agreements = {which: agreement(runs[args.runs :], settings) for which, settings in candidates.items()}
    outcomes = {
        which: outcome(tasks, settings, args.runs, args.seed + 1)
        for which, settings in {"policy": policy, **candidates}.items()
    }
    text = report(name, policy, agreements, outcomes, fitted)
    if args.picture:
        draw(runs, fitted, args.picture)
    write_or_print(text, args.report)


if __name__ == "__main__":
    logger.setLevel("ERROR")  # many base LRs are too low by design
    run("distill_policy", main)
