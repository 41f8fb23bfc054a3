"""Runs side by side: what the tables of the command line and of a page say."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from greedylr_integrations.decision import Action
from greedylr_integrations.runs.run import Run

HEADINGS = ["run", "final loss", "best loss", "steps", "LR range", "raises", "lowerings", "next LR"]
REPLAY_HEADINGS = ["configuration", "last LR", "lowest", "highest", "raises", "lowerings"]


def summary(runs: Sequence[Run]) -> list[list[str]]:
    """A row for each run, under `HEADINGS`."""
    rows = []
    for run in runs:
        lrs = run.lrs[np.isfinite(run.lrs) & (run.lrs > 0)]
        rows.append(
            [
                run.name,
                _text(run.final_loss(), ".5g"),
                _text(run.best_loss(), ".5g"),
                f"{int(run.steps[-1]):,}",
                f"{_lr(lrs.min())} to {_lr(lrs.max())}" if len(lrs) else "-",
                *(_moves(run) if run.has_decisions else ["-", "-"]),
                _lr(run.suggested_lr()),
            ]
        )
    return rows


def replay_summary(runs: Sequence[Run]) -> list[list[str]]:
    """A row for each replay, under `REPLAY_HEADINGS`."""
    return [[run.name, *map(_lr, (run.lrs[-1], run.lrs.min(), run.lrs.max())), *_moves(run)] for run in runs]


def base_lr_of(run: Run) -> float:
    """The run's base LR if it was recorded, else the highest LR that it can have come from, else 1."""
    if run.base_lrs and run.base_lrs[run.group] > 0:
        return run.base_lrs[run.group]
    usable = run.scales > 0
    for lrs in (run.lrs[usable] / run.scales[usable], run.lrs):
        lrs = lrs[np.isfinite(lrs)]
        if len(lrs) and lrs.max() > 0:
            return float(lrs.max())
    return 1.0


def _moves(run: Run) -> list[str]:
    return [f"{run.count(action):,}" for action in (Action.RAISE, Action.LOWER)]


def _text(value: float | None, digits: str) -> str:
    return "-" if value is None or not math.isfinite(value) else format(value, digits)


def _lr(value: float | None) -> str:
    return _text(value, ".3g")
