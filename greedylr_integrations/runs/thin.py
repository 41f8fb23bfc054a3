"""What of a run is drawn: which rows of a long one, over which ranges, in which colours."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from greedylr_integrations.columns import CommandRecord
from greedylr_integrations.runs.run import LOWER, RAISE, Floats, Integers, Run

# Okabe and Ito's colours, which colour-blind people can tell apart; in the pictures each reason also has its own row
COLOURS = {
    "FILLING": "#b0b0b0",
    "IMPROVED": "#009e73",
    "WORSENED": "#d55e00",
    "INSIGNIFICANT": "#7f7f7f",
    "PATIENCE": "#56b4e9",
    "WARMUP": "#66c2a5",
    "COOLDOWN": "#e69f00",
    "CEILING": "#cc79a7",
    "FLOOR": "#0072b2",
    "NONFINITE": "#000000",
    "SPIKE": "#cc6677",
    "ROLLED_BACK": "#661100",
    "RESET": "#f0e442",
    "ORDERED": "#882255",
    "POLICY": "#117733",
    "HELD": "#c8ddb5",
    "SEARCHING": "#1b9e77",
    "FOUND": "#332288",
    "FAR_ENOUGH": "#6699cc",
    "SEARCHING_ON": "#88ccee",
    "HOLDING": "#999933",
    "CLIMBING": "#ddcc77",
    "TOO_SHORT": "#dddddd",
}
UNKNOWN = "#aa4499"
RUN_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
RAW, SMOOTH, BEST, LR, COMMAND = "#9aa5b1", "#0072b2", "#444444", "#333333", "#882255"
MOVES = {RAISE: "raised", LOWER: "lowered"}
BUCKETS = 1500
BUCKETS_OF_A_PAGE = 30_000  # shared by the runs of a page
PIXELS = 1600  # ticks a row of decisions can show
MOST_MARKS = 200  # commands, and spans of warmup and decay, in one picture


def colour_of(reason: str) -> str:
    return COLOURS.get(reason, UNKNOWN)


def buckets_for(runs: Sequence[Run]) -> int:
    """Buckets of each run, if they share a page."""
    return max(50, min(BUCKETS, BUCKETS_OF_A_PAGE // max(1, len(runs))))


def thinned(run: Run, buckets: int = BUCKETS) -> Integers:
    """Rows to draw: all of a short run, else the smallest and largest value of each column in each bucket.

    Also kept are rows with a non-finite loss, decisions at which the LR turns (evenly thinned, if there are more than
    30 per bucket), and decisions with a reason that occurs no more often than there are buckets.
    """
    count = len(run)
    if count <= 6 * buckets:
        return np.arange(count)
    kept = [np.array([0, count - 1]), np.flatnonzero(~np.isfinite(run.losses))[: 4 * buckets]]
    kept += [_extremes(run, column, buckets) for column in ("losses", "smoothed", "lrs", "slopes")]
    moves = np.flatnonzero((run.actions == RAISE) | (run.actions == LOWER))
    turns = moves[1:][np.diff(run.actions[moves]) != 0]
    kept += [moves[:1], turns[:: math.ceil(len(turns) / (30 * buckets)) or 1]]
    for code, number in enumerate(run.reason_counts()):
        if number <= buckets:
            kept.append(np.flatnonzero(run.reasons == code))
    return np.unique(np.concatenate(kept))


def _extremes(run: Run, column: str, buckets: int) -> Integers:
    values = getattr(run, column)
    width = math.ceil(len(run) / buckets)
    starts = np.arange(math.ceil(len(run) / width)) * width
    finite = np.isfinite(values)
    kept = [np.zeros(0, dtype=np.int64)]
    if not finite.any():
        return kept[0]
    for filler, extreme in ((math.inf, np.argmin), (-math.inf, np.argmax)):
        table = np.full(len(starts) * width, filler)
        np.copyto(table[: len(run)], values, where=finite)
        rows = starts + extreme(table.reshape(-1, width), axis=1)
        rows = rows[rows < len(run)]
        kept.append(rows[finite[rows]])
    return np.concatenate(kept)


def moved(run: Run, rows: Integers, action: int, code: int) -> Integers:
    """Those of the rows that moved the LR that way for that reason."""
    return rows[(run.actions[rows] == action) & (run.reasons[rows] == code)]


def ticks(run: Run, code: int) -> Integers:
    """Steps of the decisions with a reason, one for each pixel."""
    steps = run.steps[run.reasons == code]
    first, last = run.steps[0], run.steps[-1]
    pixel = (steps - first) * PIXELS // max(1, last - first)
    return steps[np.unique(pixel, return_index=True)[1]]


def enveloped(run: Run) -> list[tuple[int, int]]:
    """Spans of steps in which warmup or final decay scale the LR."""
    inside = np.concatenate([[0], (run.envelope < 1.0).astype(np.int8), [0]])
    edges = np.flatnonzero(np.diff(inside))[: 2 * MOST_MARKS]
    return [
        (int(run.steps[start]), int(run.steps[end - 1])) for start, end in zip(edges[::2], edges[1::2], strict=True)
    ]


def commands_of(run: Run) -> list[CommandRecord]:
    """Those to draw: of very many, the last ones."""
    return run.commands[-MOST_MARKS:]


def drawable(values: Floats) -> Floats:
    """The values, limited to what a picture can show: near the largest floats, the axes overflow."""
    return np.clip(values, -1e30, 1e30)


def wide(values: Floats) -> bool:
    """Whether values want a logarithmic axis."""
    values = values[np.isfinite(values)]
    return bool(len(values) and values.min() > 1e-30 and values.max() > 30 * values.min())


def lr_bounds(lrs: Floats) -> tuple[float, float] | None:
    """Range of a logarithmic LR axis; a warmup from 0 and a decay to 0 go out of it at the bottom."""
    positive = lrs[np.isfinite(lrs) & (lrs > 1e-30)]
    if not len(positive):
        return None
    top = min(float(positive.max()), 1e30)
    usual = float(np.quantile(positive, 0.02))
    return max(float(positive.min()), min(usual, top) / 3, top / 1e6) / 1.15, top * 1.15


def loss_to_show(run: Run) -> Floats:
    """The smoothed loss, or the loss if none was smoothed."""
    return run.smoothed if run.has("smoothed") else run.losses
