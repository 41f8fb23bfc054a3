"""What a scheduler step costs, side by side in one run, and what importing the package costs.

    make bench          (or: python benchmarks/overhead.py)

Every round times each scheduler once, one after another; the table shows the median over rounds, and the median of the
ratios to LambdaLR within a round. Losses fall noisily for the first half and then stay, so the LR moves in most steps.
"""

from __future__ import annotations

import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time

import torch
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from transformers import get_cosine_schedule_with_warmup

from greedylr_integrations import GreedyConfig, GreedyController, GreedyLR

STEPS, ROUNDS = 2000, 31
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
    """What keeping the decisions costs is the difference to this."""
    scheduler._entries = Nowhere()
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

    made = {
        "LambdaLR, constant lambda": without_metric(lambda o: LambdaLR(o, lambda step: 1.0)),
        "LambdaLR, transformers' cosine": without_metric(lambda o: get_cosine_schedule_with_warmup(o, 10, STEPS)),
        "ReduceLROnPlateau": with_metric(ReduceLROnPlateau),
        "GreedyLR": with_metric(lambda o: GreedyLR(o, total_steps=STEPS)),
        "GreedyLR with history_file": with_metric(lambda o: GreedyLR(o, total_steps=STEPS, history_file=new_file())),
        "GreedyLR without history": with_metric(lambda o: without_history(GreedyLR(o, total_steps=STEPS))),
    }
    try:
        from transformers.optimization import GreedyLR as Theirs

        made["transformers' GreedyLR"] = with_metric(
            lambda o: Theirs(o, smooth=True, patience=0, min_lr=0.01, max_lr=1.0)
        )
    except ImportError:
        pass
    if groups == 1:
        made["GreedyController.observe alone"] = lambda: GreedyController(GreedyConfig(), horizon=STEPS).observe
    return made


def measure(groups: int) -> None:
    data, starts = losses(), contenders(groups)
    seconds: dict[str, list[float]] = {name: [] for name in starts}
    for _ in range(ROUNDS):
        for name, start in starts.items():
            step = start()
            begin = time.perf_counter()
            for loss in data:
                step(loss)
            seconds[name].append((time.perf_counter() - begin) / STEPS)
    reference = seconds["LambdaLR, constant lambda"]
    cosine = seconds["LambdaLR, transformers' cosine"]
    print(f"\n{groups} parameter group{'s' * (groups > 1)}\n{'':32}   us a step   x constant lambda   x cosine lambda")
    for name, times in seconds.items():
        ratios = [statistics.median(a / b for a, b in zip(times, other, strict=True)) for other in (reference, cosine)]
        print(f"{name:32}{statistics.median(times) * 1e6:12.2f}{ratios[0]:20.2f}{ratios[1]:18.2f}")


def import_cost() -> None:
    def start(code: str) -> float:
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - begin

    pairs = [(start("pass"), start("import greedylr_integrations")) for _ in range(21)]
    added = statistics.median(with_us - bare for bare, with_us in pairs)
    print(f"\nimport greedylr_integrations adds {added * 1e3:.1f} ms to a bare Python (median of {len(pairs)} pairs)")


if __name__ == "__main__":
    print(f"Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}")
    for groups in (1, 64):
        measure(groups)
    import_cost()
