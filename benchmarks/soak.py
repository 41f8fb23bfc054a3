"""Memory and cost of very long runs: python -m benchmarks.soak, a few minutes on one core.

A million decisions of a scheduler on losses alone, and 100,000 steps of a small model of which each is measured. After
the first fifth, in which the history fills (it keeps 100,000 decisions), both should stay as they are.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import psutil
import torch

from benchmarks.report import replace_part
from greedylr_integrations import GreedyConfig, GreedyLR, SlopeConfig

PARTS = 20


def losses_alone(config: GreedyConfig, steps: int) -> Callable[[], None]:
    weight = torch.nn.Parameter(torch.zeros(1))
    scheduler = GreedyLR(torch.optim.SGD([weight], lr=0.1), config, total_steps=steps)
    rng = random.Random(0)
    scheduler.optimizer.step()
    return lambda: scheduler.step(3 + rng.gauss(0, 0.1))


def training(steps: int) -> Callable[[], None]:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    config = SlopeConfig(on_spike="rollback", on_nonfinite="rollback", snapshot_every=1000)
    scheduler = GreedyLR(optimizer, config, total_steps=steps)

    def step() -> None:
        x = torch.randn(8, 20)
        loss = (net(x).squeeze(-1) - x.sum(1) - 0.3 * torch.randn(8)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step(loss)

    return step


def soak(step: Callable[[], object], steps: int) -> str:
    """Cells of the table: growth of memory after the first fifth, cost of a step in the second fifth and the last."""
    process, sizes, times = psutil.Process(os.getpid()), [], [time.perf_counter()]
    for _ in range(PARTS):
        for _ in range(steps // PARTS):
            step()
        sizes.append(process.memory_info().rss)
        times.append(time.perf_counter())
    costs = [(b - a) / (steps // PARTS) * 1e6 for a, b in pairwise(times)]
    fifth = PARTS // 5
    early, late = statistics.median(costs[fifth : 2 * fifth]), statistics.median(costs[-fifth:])
    return f"{steps:,} | {(sizes[-1] - sizes[fifth]) / 1e6:+.2f} MB | {early:.1f} us | {late:.1f} us"


def main() -> None:
    torch.set_num_threads(1)
    lines = ["| | steps | memory, after the first fifth | a step, second fifth | last fifth |", "|---|---|---|---|---|"]
    for name, config in (("loss window", GreedyConfig()), ("loss window, `on_spike`", GreedyConfig(on_spike="hold"))):
        lines.append(f"| {name}, losses alone | {soak(losses_alone(config, 1_000_000), 1_000_000)} |")
    lines.append(f"| default, rollback, a small model | {soak(training(100_000), 100_000)} |")
    print("\n".join(lines))
    replace_part(Path(__file__).with_name("RELIABILITY.md"), "\n".join([*lines, ""]), "soak")


if __name__ == "__main__":
    main()
