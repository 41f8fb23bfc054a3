"""What a scheduler step and a decision cost in time and memory, side by side in one run, and what the import costs.

    make bench          (or: python benchmarks/overhead.py)

Every round times each scheduler once, one after another; the table shows the median over rounds, and the median of the
ratios to LambdaLR within a round. Losses fall noisily in the first half, then level off, so the LR moves in most steps.
"""

from __future__ import annotations

import logging
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc

import torch
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from transformers import get_cosine_schedule_with_warmup

from greedylr_integrations import GreedyConfig, GreedyController, GreedyLR, SlopeConfig

STEPS, ROUNDS = 2000, 31
WINDOWS = (10, 100, 1000, 10_000, 100_000, 1_000_000)
FOLDER = tempfile.TemporaryDirectory()


def losses() -> list[float]:
    rng = random.Random(0)
    return [3 - min(i, STEPS // 2) / 1000 + rng.gauss(0, 0.1) for i in range(STEPS)]


def optimizer_of(groups: int) -> torch.optim.Optimizer:
    parameters = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.1} for _ in range(groups)]
    return torch.optim.SGD(parameters, lr=0.1)


def new_file() -> str:
    return os.path.join(tempfile.mkdtemp(dir=FOLDER.name), "history.jsonl")


def without_history(scheduler: GreedyLR) -> GreedyLR:
    """The difference from this is what keeping the decisions costs."""
    scheduler._recorder._entries = Nowhere()
    return scheduler


class Nowhere:
    def append(self, entry: tuple) -> None:
        pass


def contenders(groups: int) -> dict:
    def with_metric(make):
        def start():
            return make(optimizer_of(groups)).step

        return start

    def without_metric(make):
        def start():
            scheduler = make(optimizer_of(groups))
            scheduler.optimizer.step()  # torch warns if the scheduler steps first
            step = scheduler.step
            return lambda loss: step()

        return start

    window = GreedyConfig()
    made = {
        "no scheduler": lambda: lambda loss: None,
        "LambdaLR, constant lambda": without_metric(lambda o: LambdaLR(o, lambda step: 1.0)),
        "LambdaLR, transformers' cosine": without_metric(lambda o: get_cosine_schedule_with_warmup(o, 10, STEPS)),
        "ReduceLROnPlateau": with_metric(ReduceLROnPlateau),
        "GreedyLR, nothing left to search": with_metric(lambda o: GreedyLR(o, SlopeConfig(), horizon=1)),
        "GreedyLR, loss window": with_metric(lambda o: GreedyLR(o, window, total_steps=STEPS)),
        "the same with history_file": with_metric(
            lambda o: GreedyLR(o, window, total_steps=STEPS, history_file=new_file())
        ),
        "the same without history": with_metric(lambda o: without_history(GreedyLR(o, window, total_steps=STEPS))),
    }
    try:
        from transformers.optimization import GreedyLR as Theirs

        made["transformers' GreedyLR"] = with_metric(
            lambda o: Theirs(o, smooth=True, patience=0, min_lr=0.01, max_lr=1.0)
        )
    except ImportError:
        pass
    if groups == 1:
        made["GreedyController.observe alone, loss window"] = lambda: GreedyController(window, horizon=STEPS).observe
    return made


def measure(groups: int) -> None:
    """Time of a step; with many groups fewer steps and rounds."""
    data, starts = losses()[:: 10 if groups > 64 else 1], contenders(groups)
    seconds: dict[str, list[float]] = {name: [] for name in starts}
    for _ in range(7 if groups > 64 else ROUNDS):
        for name, start in starts.items():
            step = start()
            begin = time.perf_counter()
            for loss in data:
                step(loss)
            seconds[name].append((time.perf_counter() - begin) / len(data))
    reference = seconds["LambdaLR, constant lambda"]
    cosine = seconds["LambdaLR, transformers' cosine"]
    print(f"\n{groups} parameter group{'s' * (groups > 1)}\n{'':32}   us a step   x constant lambda   x cosine lambda")
    for name, times in seconds.items():
        ratios = [statistics.median(a / b for a, b in zip(times, other, strict=True)) for other in (reference, cosine)]
        print(f"{name:32}{statistics.median(times) * 1e6:12.2f}{ratios[0]:20.2f}{ratios[1]:18.2f}")


def measure_windows() -> None:
    """Time and memory of a decision, by window size, once the window has filled twice; the same for transformers'."""
    from transformers.optimization import GreedyLR as Theirs

    def ours(size: int):
        return GreedyController(GreedyConfig(window_size=size)).observe

    def theirs(size: int):
        return Theirs(optimizer_of(1), smooth=True, window_size=size, patience=0, min_lr=0.01, max_lr=1.0).step

    def cost(start, size: int, steps: int) -> tuple[float, float]:
        """Seconds per decision (median over blocks of 100), and bytes held."""
        rng = random.Random(0)
        tracemalloc.start()
        step = start(size)
        for _ in range(2 * size + 1):
            step(rng.random())
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        times = []
        for _ in range(steps // 100):
            block = [rng.random() for _ in range(100)]
            begin = time.perf_counter()
            for loss in block:
                step(loss)
            times.append((time.perf_counter() - begin) / 100)
        return statistics.median(times), held

    print(f"\n{'window':>9}{'us a decision':>16}{'KiB held':>12}{'transformers: us':>18}{'KiB':>8}")
    for size in WINDOWS:
        seconds, held = cost(ours, size, 5000)
        line = f"{size:9}{seconds * 1e6:16.2f}{held / 1024:12.1f}"
        if size <= 10_000:
            seconds, held = cost(theirs, size, 1000)
            line += f"{seconds * 1e6:18.2f}{held / 1024:8.1f}"
        print(line)


def import_cost() -> None:
    def start(code: str) -> float:
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - begin

    pairs = [(start("pass"), start("import greedylr_integrations")) for _ in range(21)]
    added = statistics.median(with_us - bare for bare, with_us in pairs)
    print(f"\nimport greedylr_integrations adds {added * 1e3:.1f} ms to a bare Python (median of {len(pairs)} pairs)")


if __name__ == "__main__":
    logging.getLogger("greedylr_integrations").setLevel(logging.ERROR)
    print(f"Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}")
    for groups in (1, 64, 1000):
        measure(groups)
    measure_windows()
    import_cost()
