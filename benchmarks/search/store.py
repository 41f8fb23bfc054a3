"""The results of the search suite: one line of JSON per run, and the default that they belong to."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import random
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.search import arms, train
from benchmarks.search.train import Job
from benchmarks.search.workload import Workload
from greedylr_integrations.controller import ControllerConfig, GreedyController
from greedylr_integrations.decision import Reason
from recipes.common.records import Record, Records

RESULTS = Path(__file__).parent.parent / "results"
OURS = (*arms.CONFIGS, *arms.YOKED)  # arms that change with the package's rules


class OtherDefault(SystemExit):
    """The file has runs of another default."""


class Results:
    """The runs of one file. What is there is not run again.

    Args:
        path: the file, which is made if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs = Records(path, lambda record: key(record) if "arm" in record else None)
        self.settings = _first(path)

    def of(self, **wanted: Any) -> list[Record]:
        """Runs that have these fields."""
        return [run for run in self.runs.values() if all(run.get(name) == value for name, value in wanted.items())]

    def losses(self, **wanted: Any) -> list[float]:
        """Final validation losses; infinite for runs that diverged."""
        return [math.inf if run["loss"] is None else run["loss"] for run in self.of(**wanted)]

    def run(
        self,
        workload: Workload,
        jobs: Sequence[Job],
        replay: Callable[[Job], Sequence[float]] | None = None,
        trainer: Callable[[list[Job]], list[dict[str, Any]]] | None = None,
    ) -> None:
        """Train what is missing, and keep it.

        Args:
            replay: gives the scales that a job replays.
            trainer: trains jobs. Default: `train.train`.
        """
        missing = [job for job in jobs if key(as_record(job)) not in self.runs]
        if not missing:
            return
        self.check(missing)
        scales = [] if replay is None else [replay(job) for job in missing]
        found = trainer(missing) if trainer else train.train(workload, missing, scales)
        for job, result in zip(missing, found, strict=True):
            self.add(job, result)

    def add(self, job: Job, result: dict[str, Any]) -> None:
        """Keep one run."""
        self.check([job])
        self.runs.add({**as_record(job), **result})

    def check(self, jobs: Sequence[Job]) -> None:
        """Raise OtherDefault if the file has runs of a different default than these jobs."""
        if not self.settings:
            self.settings = environment()
            self.runs.add(self.settings)
        ours = [job for job in jobs if job.arm in OURS]
        if ours and "rules" not in self.settings:  # the fixed schedules came first
            self.settings = {**self.settings, "rules": rules_hash()}
            self.runs.add({"rules": rules_hash(), "commit": _commit()})
        if ours and self.settings["rules"] != rules_hash():
            raise OtherDefault(
                f"{self.path} has runs of the default {self.settings['rules']}, and the default is now {rules_hash()}:"
                " give another folder with --results, or remove the runs of the old one"
            )


def as_record(job: Job) -> Record:
    """The fields of a job that are set."""
    return {name: value for name, value in asdict(job).items() if value is not None}


def key(record: Record) -> str:
    """What names a run."""
    names = ("stage", "workload", "arm", "steps", "lr", "seed", "multiple", "decay")
    return json.dumps([record.get(name) for name in names])


def _first(path: Path) -> Record:
    """What the file says about its runs."""
    settings: Record = {}
    if path.exists():
        for line in path.read_text().splitlines():
            if '"rules"' in line or '"versions"' in line:
                settings |= json.loads(line)
    return settings


def environment() -> Record:
    """Versions, commit and machine of the runs that follow."""
    return {
        "versions": {"torch": version("torch"), "python": platform.python_version()},
        "commit": _commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def _commit() -> str:
    folder = Path(__file__).parent
    found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=folder)
    return found.stdout.strip()


@cache
def rules_hash() -> str:
    """Hash of the current rules: their fields, and what they decide in each stage that a run may reach."""
    configs = [make() for make in arms.CONFIGS.values()]
    seen = [[config.to_dict(), config.decay_ratio, *(run[0] for run in decided(config))] for config in configs]
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()[:12]


def decided(config: ControllerConfig) -> list[tuple[list[float], set[Reason]]]:
    """Scales and reasons of a configuration on fixed losses, slopes and distances."""
    found = []
    for mean_slopes, last_distance in (
        ([-0.3, 0.05, 0.3], 0.5),  # a crossing, then a loss that rises
        ([-0.3, 0.05, -0.2], 0.01),  # a stop too early
        ([0.0, 0.0, 0.1], 0.01),  # a plateau, then a loss that rises
        ([-0.3, -0.3, 0.1], 2.0),  # weights that move far
    ):
        for horizon in (400, None, 3000):
            rng, controller = random.Random(0), GreedyController(config, (1.0,), horizon)
            decisions = []
            for i in range(400):
                slope = mean_slopes[min(i // 50, 2)] + rng.gauss(0, 0.05) if i else math.nan
                loss = 3 - min(i, 90) / 50 + (i > 120) + rng.gauss(0, 0.1)
                decisions.append(controller.observe(loss, slope, last_distance * min(1.0, i / 60)))
            scales = [decision.scales[0] for decision in decisions]
            found.append((scales, {decision.reason for decision in decisions}))
    return found
