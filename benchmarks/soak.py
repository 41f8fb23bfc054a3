"""Memory and cost of very long runs.

    python -m benchmarks.soak         one process, a few minutes on one core
    python -m benchmarks.soak ranks   two processes for two hours, which sleep most of the time

A million decisions of a scheduler on losses alone, and 100,000 steps of a small model, each of which is measured. After
the first fifth, memory and cost should stay the same, apart from the history, which keeps 100,000 decisions. With
`ranks`, 150,000 steps of the small model on two processes, so that the history is full after the first two thirds.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.report import replace_part
from greedylr_integrations import GreedyConfig, GreedyLR, SlopeConfig

PARTS, RANKS, RANK_STEPS, SECONDS = 30, 2, 150_000, 7200
FIFTH, TWO_THIRDS = PARTS // 5, 2 * PARTS // 3
HEADS = "| | steps | memory, after the first {} | a step, second fifth | last fifth |\n|---|---|---|---|---|"


def losses_alone(config: GreedyConfig, steps: int) -> Callable[[], None]:
    weight = torch.nn.Parameter(torch.zeros(1))
    scheduler = GreedyLR(torch.optim.SGD([weight], lr=0.1), config, total_steps=steps)
    rng = random.Random(0)
    scheduler.optimizer.step()
    return lambda: scheduler.step(3 + rng.gauss(0, 0.1))


def training(steps: int, rank: int = 0) -> Callable[[], None]:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    model = torch.nn.parallel.DistributedDataParallel(net) if dist.is_initialized() else net
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    config = SlopeConfig(on_spike="rollback", on_nonfinite="rollback", snapshot_every=1000)
    scheduler = GreedyLR(optimizer, config, total_steps=steps)
    data = torch.Generator().manual_seed(rank)

    def step() -> None:
        x = torch.randn(8, 20, generator=data)
        loss = (model(x).squeeze(-1) - x.sum(1) - 0.3 * torch.randn(8, generator=data)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step(loss)

    return step


def soak(step: Callable[[], object], steps: int, settled: int = FIFTH, seconds: float = 0.0) -> str:
    """Cells of the table: growth of memory after the first `settled` of `PARTS`, cost of a step early and late.

    If the run would take less than `seconds`, it sleeps in between.
    """
    process = psutil.Process(os.getpid())
    sizes, costs = [process.memory_info().rss], []
    began = time.monotonic()
    for part in range(PARTS):
        busy = 0.0
        for number in range(steps // PARTS):
            before = time.perf_counter()
            step()
            busy += time.perf_counter() - before
            if seconds and number % 100 == 0:
                done = part / PARTS + number / steps
                time.sleep(max(0.0, began + seconds * done - time.monotonic()))
        sizes.append(process.memory_info().rss)
        costs.append(busy / (steps // PARTS) * 1e6)
    early, late = statistics.median(costs[FIFTH : 2 * FIFTH]), statistics.median(costs[-FIFTH:])
    return f"{steps:,} | {(sizes[-1] - sizes[settled]) / 1e6:+.2f} MB | {early:.1f} us | {late:.1f} us"


def on_rank(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    cells = soak(training(RANK_STEPS, rank), RANK_STEPS, settled=TWO_THIRDS, seconds=SECONDS)
    lines: list[str | None] = [None] * RANKS
    dist.all_gather_object(lines, f"| rank {rank} | {cells} |")
    if rank == 0:
        write("soak ranks", [HEADS.format("two thirds"), *map(str, lines)])
    dist.destroy_process_group()


def write(part: str, lines: list[str]) -> None:
    print("\n".join(lines))
    replace_part(Path(__file__).with_name("RELIABILITY.md"), "\n".join([*lines, ""]), part)


def main(argv: list[str]) -> None:
    if argv not in ([], ["ranks"]):
        raise SystemExit("usage: python -m benchmarks.soak [ranks]")
    if argv:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(on_rank, (f"{folder}/store",), RANKS)
        return
    torch.set_num_threads(1)
    lines = [HEADS.format("fifth")]
    for name, config in (("loss window", GreedyConfig()), ("loss window, `on_spike`", GreedyConfig(on_spike="hold"))):
        lines.append(f"| {name}, losses alone | {soak(losses_alone(config, 1_000_000), 1_000_000)} |")
    lines.append(f"| default, rollback, a small model | {soak(training(100_000), 100_000)} |")
    write("soak", lines)


if __name__ == "__main__":
    main(sys.argv[1:])
