"""What the stages of the suite share: a run, the file that keeps the results, and the constants of the tables."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import random
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import distributions
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from recipes.common.records import Records

RESULTS = Path(__file__).parent / "results"
MULTIPLES = (0.1, 0.3, 1.0, 3.0, 10.0)  # multiples of the tuned base LR
SEEDS = 5
LENGTHS = (0.1, 0.25, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0)  # of the tuned best schedule's runs that measure worth
OURS = ("greedy", "trunk", "yoked")  # arms that change with the default
CURVE = 60  # points of a run's loss and scale that are kept
YOKED = ("yoked to another seed", "yoked to another workload")
LONG = ("cosine", "wsd", "greedy", "envelope")
ABLATIONS: dict[str, dict[str, Any]] = {
    "the default": {},
    "patience 2 instead of 0": {"patience": 2},
    "patience 10 instead of 0": {"patience": 10},
    "no smoothing": {"window": 0.0, "memory": 2},
    "half the smoothing": {"window": 0.04, "memory": 2},
    "twice the smoothing": {"window": 0.16, "memory": 2},
    "no threshold": {"threshold": 0.0},
    "twice the threshold": {"threshold": 2.0},
    "warmup 5 instead of 0": {"warmup": 5},
    "cooldown 5 instead of 0": {"cooldown": 5},
    "half the rate": {"rate": 4.0},
    "half as much again of the rate": {"rate": 12.0},
    "three quarters of the rate": {"rate": 6.0},
    "whole raises, whatever the pace": {"pace": 0.0},
    "half the pace's hold": {"pace": 0.5},
    "a memory of four windows": {"memory": 4},
    "no bounds": {"min_scale": 1e-6, "max_scale": 1e6},
    "no final decay": {"decay_ratio": 0.0},
    "never forget the best": {"best_window": 10**6},
}


@dataclass(frozen=True)
class Job:
    """One run. `key` names it in the results."""

    stage: str
    workload: str
    arm: str
    lr: float
    seed: int
    steps: int
    multiple: float | None = None
    knob: dict[str, Any] = field(default_factory=dict)
    decay_at: int | None = None  # begin a final decay to 0 here, for runs whose end was not known

    @property
    def key(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


def load_tuned(folder: Path = RESULTS) -> dict[str, Any]:
    path = folder / "tuned.json"
    return json.loads(path.read_text())["tuned"] if path.exists() else {}


# ---- one run ----


def train(job: Job, scales: list[float] | None = None, device: str = "cpu") -> dict[str, Any]:
    """Final validation loss of a run, its curves, and how long it took."""
    import torch

    from benchmarks.arms import ARMS, Setting
    from benchmarks.workloads import OPTIMIZERS, WORKLOADS

    workload = WORKLOADS[job.workload]
    torch.manual_seed(job.seed)
    task = workload.build(job.steps)
    before = float(task.validate().detach())
    g = torch.Generator().manual_seed(1000 + job.seed)
    setting = Setting(task, OPTIMIZERS[workload.optimizer], job.lr, job.steps, dict(job.knob), scales)
    method = ARMS[job.arm].build(setting)
    losses: list[float] = []
    seen: list[float | None] = []
    begun = time.perf_counter()
    for step in range(job.steps):
        state = g.get_state()
        loss = task.loss(step, g)
        value = float(loss.detach())
        losses.append(value)
        if not math.isfinite(value):
            break
        task.model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.model.parameters(), 1.0)

        def again(step: int = step, state: torch.Tensor = state) -> torch.Tensor:
            return task.loss(step, torch.Generator().set_state(state))

        method.update(loss.detach(), again)
        task.after_step()
        method.step(value)
        if step + 1 == job.decay_at:
            method.scheduler.start_decay(job.steps - job.decay_at)
        seen.append(method.scale)
    seconds = time.perf_counter() - begun
    method.finish()
    with torch.no_grad():
        after = float(task.validate())
    diverged = not math.isfinite(losses[-1]) or not math.isfinite(after) or after > before
    result: dict[str, Any] = {
        "loss": None if diverged else after,
        "start": before,
        "seconds": round(seconds, 3),
        "evaluations": method.evaluations,
    }
    if job.stage == "held-out" and job.seed < 2:
        result["losses"] = [_short(x) for x in _means(losses, CURVE)]
    if job.stage == "held-out" and job.arm == "greedy" and not diverged:  # for the pictures and the yoked runs
        result["scales"] = [_short(x) for x in _points([1.0, *seen], CURVE)]
    return result


def _means(values: list[float], count: int) -> list[float]:
    size = max(1, len(values) // count)
    return [sum(values[i : i + size]) / len(values[i : i + size]) for i in range(0, len(values), size)]


def _points(values: list, count: int) -> list:
    return [values[round(i * (len(values) - 1) / (count - 1))] for i in range(count)]


def _short(x: float) -> float | None:
    return float(f"{x:.4g}") if math.isfinite(x) else None


# ---- many runs ----


class Results:
    """The results file. A run that is in it is not run again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs = Records(path, lambda entry: json.dumps(entry["job"], sort_keys=True) if "job" in entry else None)

    def of(self, **wanted: Any) -> list[dict[str, Any]]:
        """Runs whose job has these fields."""
        return [
            entry for entry in self.runs.values() if all(entry["job"][name] == value for name, value in wanted.items())
        ]

    def losses(self, **wanted: Any) -> list[float]:
        """Final losses; infinite if the run diverged."""
        return [math.inf if entry["loss"] is None else entry["loss"] for entry in self.of(**wanted)]

    def run(self, jobs: Iterable[tuple[Job, list[float] | None]], workers: int | None = None, title: str = "") -> None:
        missing = [(job, scales) for job, scales in jobs if job.key not in self.runs]
        if not missing:
            return
        for job, _ in missing:
            self.check(job)
        with get_context("spawn").Pool(workers or os.cpu_count(), _worker) as pool:
            for job, result in _progress(pool.imap_unordered(_train, missing, chunksize=1), len(missing), title):
                self.add(job, result)

    def check(self, job: Job) -> None:
        """SystemExit for a run of a different default than those in the file."""
        if self.runs and job.arm.startswith(OURS):
            before = environment_of(self.path)["config"]
            if before != config_hash():
                raise SystemExit(
                    f"{self.path} is of configuration {before}, the default is {config_hash()}: give other --results"
                )

    def add(self, job: Job, result: dict[str, Any]) -> None:
        if not self.runs:
            self.runs.add(environment())
        self.check(job)
        self.runs.add({"job": asdict(job), **result})


def _worker() -> None:
    import logging

    import torch

    torch.set_num_threads(1)
    logging.getLogger("greedylr_integrations").setLevel(logging.ERROR)


def _train(work: tuple[Job, list[float] | None]) -> tuple[Job, dict[str, Any]]:
    job, scales = work
    return job, train(job, scales)


def _progress(results: Iterator, total: int, title: str) -> Iterator:
    from rich.progress import track

    return track(results, description=title, total=total)


def environment() -> dict[str, Any]:
    """Versions, commit and machine of the runs that follow."""
    installed = {found.name: found.version for found in distributions()}
    packages = ("torch", "transformers", "schedulefree", "prodigyopt", "dadaptation", "dog-optimizer")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "versions": {name: installed[name] for name in packages if name in installed},
        "python": platform.python_version(),
        "commit": commit,
        "config": config_hash(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


@cache
def environment_of(path: Path) -> dict[str, Any]:
    with path.open() as file:
        return json.loads(file.readline())


@cache
def config_hash() -> str:
    """Hash of the current loss window: its fields, and its decisions on fixed losses with and without a run length."""
    from greedylr_integrations import GreedyConfig, GreedyController

    rng = random.Random(0)
    losses = [3 - min(i, 90) / 50 + (i > 250) + rng.gauss(0, 0.1) for i in range(400)]
    scales = [
        [controller.observe(loss).scales[0] for loss in losses]
        for controller in (GreedyController(GreedyConfig()), GreedyController(GreedyConfig(), horizon=400))
    ]
    fields = GreedyConfig().fitted(400).hyperparameters()
    return hashlib.sha256(json.dumps([fields, scales], sort_keys=True).encode()).hexdigest()[:12]
