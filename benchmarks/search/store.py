"""The results of the search suite: one line of JSON a run, and which default they are of."""

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
        """Raise OtherDefault if the file has runs of another default than these would be of."""
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
    """The fields of a job that say something."""
    return {name: value for name, value in asdict(job).items() if value is not None}


def key(record: Record) -> str:
    """What names a run."""
    names = ("stage", "workload", "arm", "steps", "lr", "seed", "multiple", "decay")
    return json.dumps([record.get(name) for name in names])


def _first(path: Path) -> Record:
    """What the file says of its runs."""
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
    """Of the rules as they are: their fields, and what they decide on fixed losses, slopes and distances."""
    rng = random.Random(0)
    losses = [3 - min(i, 90) / 50 + (i > 250) + rng.gauss(0, 0.1) for i in range(400)]
    slopes = [math.nan, *(min(1.0, -0.3 + i / 400 + rng.gauss(0, 0.05)) for i in range(399))]
    distances = [0.0005 * 1.06**i if i < 120 else 0.5 for i in range(400)]

    def scales(config: ControllerConfig, horizon: int | None) -> list[float]:
        controller = GreedyController(config, (1.0,), horizon)
        seen = zip(losses, slopes, distances, strict=True)
        return [controller.observe(*each).scales[0] for each in seen]

    configs = [make() for make in arms.CONFIGS.values()]
    seen = [
        [config.to_dict(), config.decay_ratio, *(scales(config, horizon) for horizon in (400, None))]
        for config in configs
    ]
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()[:12]
