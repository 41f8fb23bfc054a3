"""Reads a history file of this package into a `Run`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from greedylr_integrations.columns import Columns
from greedylr_integrations.columns import read as read_columns
from greedylr_integrations.runs.run import Floats, Run, RunError, make_run, name_reasons


def is_history(head: bytes) -> bool:
    """Whether a file that begins like this is a history."""
    return head.lstrip().startswith(b'{"greedylr_history"')


def read_history(file: Path, name: str) -> Run:
    try:
        header, columns, commands = read_columns(file)
    except ValueError as error:
        raise RunError(str(error)) from None
    if not len(columns):
        raise RunError(f"{file}: the history has no decision yet")
    lines = {key: header[key] for key in ("config", "base_lrs", "total_steps", "monitor")}
    group = next((i for i, lr in enumerate(header["base_lrs"]) if lr > 0), 0)
    return run_of(columns, name, "GreedyLR history", group, commands=commands, **lines)


def run_of(columns: Columns, name: str, source: str, group: int = 0, **more: Any) -> Run:
    """A Run that shares the memory of the columns, with LR and scale of a parameter group."""
    lrs, scales = _by_group(columns, "lrs"), _by_group(columns, "scales")
    group = min(group, len(lrs) - 1)
    run = make_run(
        name,
        source,
        np.frombuffer(columns.steps, np.int64),
        np.frombuffer(columns.losses),
        smoothed=np.frombuffer(columns.smoothed),
        best=np.frombuffer(columns.best),
        slopes=np.frombuffer(columns.slopes),
        distances=np.frombuffer(columns.distances),
        envelope=np.frombuffer(columns.envelopes),
        actions=np.frombuffer(columns.actions, np.int8),
        scales=scales[group],
        lrs=lrs[group],
        group=group,
        group_lrs=lrs if len(lrs) > 1 else None,
        lrs_are_next=True,
        **more,
    )
    name_reasons(run, columns.reason_names, np.frombuffer(columns.reasons, np.int8))
    return run


def _by_group(columns: Columns, field: str) -> Floats:
    """One row for each parameter group; NaN before a group was there."""
    values = np.frombuffer(getattr(columns, field))
    counts = np.asarray(columns.groups, np.int64)
    most = int(counts.max())
    if (counts == most).all():
        return values.reshape(-1, most).T
    if most * len(counts) > 16 * len(values) + 1_000_000:
        raise RunError(f"{most} parameter groups in a few of {len(counts):,} decisions are more than can be shown")
    table = np.full((most, len(counts)), math.nan)
    row = np.repeat(np.arange(len(counts)), counts)
    table[np.arange(len(values)) - np.repeat(np.cumsum(counts) - counts, counts), row] = values
    return table
