"""The runs of the comparison: what is trained, and the file that keeps the results."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from greedylr_integrations.learned import Policy
from recipes.common.records import Records
from recipes.research.nmf.problem import Factorization, Matrix, cells, digits, faces, genes, passages, planted, reuters
from recipes.research.nmf.schedules import METHODS, Setup

POINTS = 60  # number of points in the curves of a run
TUNING_SEEDS = (1000, 1001, 1002)
# The policy was trained on planted matrices of up to rank 12 and on parts of Reuters.
MATRICES: dict[str, Callable[[int], Matrix]] = {
    "ORL faces": lambda seed: faces(),
    "ALL/AML": lambda seed: genes(),
    "Reuters": lambda seed: reuters(),
    "planted, rank 6": lambda seed: planted(seed),
    "planted, rank 16": lambda seed: planted(seed, rows=250, columns=220, rank=16, batch=40),
}
# Run with the same methods, to choose a policy without looking at the comparison.
OTHERS = 100_000  # first seed of the matrices that are drawn
VALIDATION: dict[str, Callable[[int], Matrix]] = {
    "digits": lambda seed: digits(),
    "cells": lambda seed: cells(),
    "passages": lambda seed: passages(),
    "part of Reuters": lambda seed: reuters().part(
        np.random.default_rng(OTHERS + seed), rows=300, columns=500, rank=8, batch=24
    ),
    "planted, rank 5": lambda seed: planted(OTHERS + seed, rows=150, columns=100, rank=5, batch=15),
    "planted, rank 12": lambda seed: planted(OTHERS + seed, rows=220, columns=200, rank=12, batch=36),
    "planted, noisy": lambda seed: planted(
        OTHERS + seed, rows=180, columns=120, rank=8, hidden=20, noise=1.0, batch=20
    ),
    "planted, tall": lambda seed: planted(
        OTHERS + seed, rows=3000, columns=40, rank=4, hidden=20, spread=1.0, batch=48
    ),
    "planted, dense": lambda seed: planted(
        OTHERS + seed, rows=300, columns=400, rank=14, hidden=40, density=1.0, batch=32
    ),
}
KNOWN = MATRICES | VALIDATION
Runs = dict[str, dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]]  # matrix -> method -> setting and its runs


@dataclass(frozen=True)
class Job:
    """One run. `policy` is the digest of the policy, for the learned schedule."""

    matrix: str
    method: str
    seed: int
    steps: int
    setting: dict[str, Any]
    policy: str | None = None

    @property
    def key(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


def train(job: Job, policy: Policy | None) -> dict[str, Any]:
    """Final loss (1 for all-zero factors; None if the run diverged), steps above the bound, and the curves."""
    method = METHODS[job.method]
    factorization = Factorization(KNOWN[job.matrix](job.seed), job.seed, cap=method.cap)
    lr_at = method.build(Setup(factorization, job.steps, policy), **job.setting)
    start, loss = factorization.bound, math.nan
    curves: dict[str, list[float]] = {"step": [], "loss_at": [], "lr": [], "bound": []}
    with np.errstate(over="ignore", invalid="ignore"):  # a run that diverges overflows
        for step in range(job.steps):
            lr = lr_at(step, loss)
            if step % max(1, job.steps // POINTS) == 0:
                point = (step, factorization.loss(), lr / start, factorization.bound / start)
                for curve, value in zip(curves.values(), point, strict=True):
                    curve.append(float(f"{value:.4g}") if math.isfinite(value) else 1e9)
            loss = factorization.step(lr)
        final = factorization.loss()
    return {"loss": final if final < 1 else None, "over": factorization.over, **curves}


class Results:
    """The results file. A run that is already in it is not repeated."""

    def __init__(self, path: Path, policy: Policy | None) -> None:
        self._policy = policy
        self._runs = Records(path, lambda run: json.dumps(run["job"], sort_keys=True))

    def job(self, matrix: str, method: str, seed: int, steps: int, setting: dict[str, Any]) -> Job:
        digest = self._policy.digest if self._policy and method == "learned" else None
        return Job(matrix, method, seed, steps, setting, digest)

    def of(self, job: Job) -> dict[str, Any]:
        """The run; trained now if it is not in the file."""
        if job.key not in self._runs:
            self._runs.add({"job": asdict(job), **train(job, self._policy)})
        return self._runs[job.key]

    def loss(self, job: Job) -> float:
        """Final loss; infinite if the run diverged."""
        loss = self.of(job)["loss"]
        return math.inf if loss is None else loss

    def tuned(self, matrix: str, method: str, steps: int) -> dict[str, Any]:
        """The setting with the smallest median loss over the tuning seeds."""
        trials = METHODS[method].trials
        if len(trials) == 1:
            return dict(trials[0])

        def score(setting: dict[str, Any]) -> float:
            return float(np.median([self.loss(self.job(matrix, method, s, steps, setting)) for s in TUNING_SEEDS]))

        return dict(min(trials, key=score))


def compare(results: Results, matrices: Iterable[str], steps: int, seeds: Iterable[int]) -> Runs:
    """Tune every method on every matrix, then run it with the other seeds."""
    from rich.progress import Progress

    runs: Runs = {}
    pairs = [(matrix, method) for matrix in matrices for method in METHODS]
    with Progress() as progress:
        task = progress.add_task("", total=len(pairs))
        for matrix, method in pairs:
            progress.update(task, description=f"{matrix}: {method}")
            setting = results.tuned(matrix, method, steps)
            jobs = [results.job(matrix, method, seed, steps, setting) for seed in seeds]
            runs.setdefault(matrix, {})[method] = setting, [results.of(job) for job in jobs]
            progress.advance(task)
    return runs
