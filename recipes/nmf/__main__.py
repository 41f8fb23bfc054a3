"""Schedules of stochastic NMF: each tuned on a matrix, then compared on 20 other seeds of it.

    python -m recipes.nmf                                    the shipped policy beside the tuned schedules
    python -m recipes.nmf --policy runs/nmf/nmf.safetensors --report RESULTS.md --pictures img
    python -m recipes.nmf --validation                       on the matrices that the shipped policy was chosen with

Each run is a line of the results; what is there already is not run again, so the command can be stopped at any time.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from greedylr_integrations.learned import Policy
from greedylr_integrations.log import logger
from recipes.common import flags
from recipes.common.offline import RecipeError
from recipes.common.records import Records
from recipes.common.report import write_or_print
from recipes.nmf.problem import Factorization, Matrix, cells, digits, faces, genes, passages, planted, reuters
from recipes.nmf.schedules import METHODS, Run

POINTS = 60  # of a run's curves
TUNING_SEEDS = (1000, 1001, 1002)
# the policy was trained on planted matrices of up to rank 12 and on parts of Reuters
MATRICES: dict[str, Callable[[int], Matrix]] = {
    "ORL faces": lambda seed: faces(),
    "ALL/AML": lambda seed: genes(),
    "Reuters": lambda seed: reuters(),
    "planted, rank 6": lambda seed: planted(seed),
    "planted, rank 16": lambda seed: planted(seed, rows=250, columns=220, rank=16, batch=40),
}
# of the same methods, to choose a policy without a look at the comparison
OTHERS = 100_000  # and on: seeds of matrices that are drawn
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


@dataclass(frozen=True)
class Job:
    """One run. `policy` is the digest of the learned one's."""

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
    """Final loss, in units of that of zeros, steps over the bound, and the curves. A diverged run's loss is None."""
    method = METHODS[job.method]
    factorization = Factorization(KNOWN[job.matrix](job.seed), job.seed, cap=method.cap)
    lr_at = method.build(Run(factorization, job.steps, policy), **job.setting)
    start, loss = factorization.bound, math.nan
    curves: dict[str, list[float]] = {"step": [], "loss_at": [], "lr": [], "bound": []}
    with np.errstate(over="ignore", invalid="ignore"):  # as a run that diverges does
        for step in range(job.steps):
            lr = lr_at(step, loss)
            if step % max(1, job.steps // POINTS) == 0:
                shown = (step, factorization.loss(), lr / start, factorization.bound / start)
                for curve, value in zip(curves.values(), shown, strict=True):
                    curve.append(float(f"{value:.4g}") if math.isfinite(value) else 1e9)
            loss = factorization.step(lr)
        final = factorization.loss()
    return {"loss": final if final < 1 else None, "over": factorization.over, **curves}


class Results:
    """The results file."""

    def __init__(self, path: Path, policy: Policy | None) -> None:
        self._policy = policy
        self._runs = Records(path, lambda run: json.dumps(run["job"], sort_keys=True))

    def job(self, matrix: str, method: str, seed: int, steps: int, setting: dict[str, Any]) -> Job:
        digest = self._policy.digest if self._policy and method == "learned" else None
        return Job(matrix, method, seed, steps, setting, digest)

    def of(self, job: Job) -> dict[str, Any]:
        """The run, made now if it is not there."""
        if job.key not in self._runs:
            self._runs.add({"job": asdict(job), **train(job, self._policy)})
        return self._runs[job.key]

    def loss(self, job: Job) -> float:
        """Infinite where it diverged."""
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


def main(argv: list[str] | None = None) -> None:
    made = argparse.ArgumentParser("nmf", description=__doc__.split("\n")[0])
    made.add_argument("--policy", default="nmf", help="a policy file or a shipped one (default: %(default)s)")
    made.add_argument("--matrices", nargs="+", default=list(MATRICES), metavar="MATRIX", help="; ".join(MATRICES))
    made.add_argument("--validation", dest="matrices", action="store_const", const=list(VALIDATION), help="on others")
    made.add_argument("--steps", type=int, default=300, help="optimizer steps of a run (default: %(default)s)")
    made.add_argument("--seeds", type=int, default=20, help="of each comparison (default: %(default)s)")
    made.add_argument("--results", type=Path, default=Path("runs/nmf.jsonl"), help="default: %(default)s")
    made.add_argument("--report", type=Path, help="where to write the tables (default: to the screen)")
    made.add_argument("--pictures", type=Path, help="folder to draw the schedules and loss histories to")
    made.error = flags.fail
    args = made.parse_args(argv)
    flags.check_at_least_one(args, "steps", "seeds")
    for name in args.matrices:
        if name not in KNOWN:
            raise RecipeError(f"--matrices {name!r} is unknown: choose from {', '.join(KNOWN)}")
    with flags.loading("--policy", args.policy):
        policy = Policy.load(args.policy)
    from recipes.nmf.report import draw, tables

    runs = compare(Results(args.results, policy), args.matrices, args.steps, range(args.seeds))
    text = tables(runs, args.steps, policy)
    write_or_print(text, args.report)
    if args.pictures:
        draw(runs, args.pictures)


Runs = dict[str, dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]]  # matrix, method: setting and its runs


def compare(results: Results, matrices: Iterable[str], steps: int, seeds: Iterable[int]) -> Runs:
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


if __name__ == "__main__":
    logger.setLevel("ERROR")  # trials that start far off are meant to
    flags.run("nmf", main)
