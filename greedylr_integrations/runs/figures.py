"""Pictures of runs in a file or a notebook, by matplotlib."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from greedylr_integrations.columns import Columns
from greedylr_integrations.runs.histories import run_of
from greedylr_integrations.runs.run import LOWER, RAISE, Floats, Integers, Run, RunError, printable
from greedylr_integrations.runs.thin import (
    BEST,
    COMMAND,
    LR,
    MOVES,
    RAW,
    RUN_COLOURS,
    SMOOTH,
    colour_of,
    commands_of,
    drawable,
    enveloped,
    lr_bounds,
    moved,
    thinned,
    ticks,
    wide,
)

MARKERS = {RAISE: "^", LOWER: "v"}
STYLES = ("-", "--", "-.", ":")


def plot(columns: Columns, name: str = "run", **more: Any) -> Any:
    """The picture of a run for a notebook.

    Args:
        columns (Columns): the run's decisions; see `history.read_columns`.
        name (str): what to call it.
        more: `config`, `monitor`, `commands` and so on, as in `Run`.

    Returns:
        A figure of `matplotlib.pyplot`.
    """
    if not len(columns):
        raise RunError(f"{name}: there is no decision to draw yet")
    run = run_of(columns, name, "history", **more)
    return _draw(run, _matplotlib("pyplot").figure(**_shape(run)))


def picture(run: Run, path: Path) -> None:
    """Loss, LR and slope with each decision marked, as a PNG, SVG or PDF; the ending of `path` says which."""
    _save(_draw(run, _matplotlib("figure").Figure(**_shape(run))), path)


def comparison(runs: Sequence[Run], path: Path, title: str = "") -> None:
    """Smoothed losses and LRs of several runs, one colour and line style for each run."""
    figure = _matplotlib("figure").Figure(figsize=(10, 7), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    shared = all(np.array_equal(run.losses, runs[0].losses, equal_nan=True) for run in runs)  # replays of one log
    for i, run in enumerate(runs):
        rows = thinned(run)
        look = {"color": RUN_COLOURS[i % len(RUN_COLOURS)], "linestyle": STYLES[i // len(RUN_COLOURS) % len(STYLES)]}
        smoothed = bool((np.isfinite(run.smoothed) & (run.smoothed != run.losses)).any())
        name = _text(run.name)
        if i == 0 or not shared:
            faint = {"color": RAW} if shared else look
            label = "loss" if shared else None if smoothed else name
            _line(above, run, run.losses, rows, linewidth=0.8, alpha=0.3 if smoothed else 0.9, label=label, **faint)
        if smoothed:
            _line(above, run, run.smoothed, rows, linewidth=1.5, label=f"{name}: smoothed", **look)
        _line(below, run, run.lrs, rows, linewidth=1.5, label=name, **look)
    if wide(np.concatenate([run.losses for run in runs])):
        above.set_yscale("log")
    above.set_ylabel("loss")
    above.set_title(_text(title), fontsize=10, loc="left")
    _log_lr_axis(below, np.concatenate([run.lrs for run in runs]))
    _step_axis(below)
    for axes in (above, below):
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    _save(figure, path)


# ---- what they share ----


def _matplotlib(module: str) -> Any:
    from importlib import import_module

    try:
        return import_module(f"matplotlib.{module}")
    except ImportError:
        raise RunError("a picture needs matplotlib: pip install 'greedylr_integrations[cli]'") from None


def _save(figure: Any, path: Path) -> None:
    content = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # letters that the font does not have
            figure.savefig(content, dpi=130, format=path.suffix[1:].lower())
        path.write_bytes(content.getvalue())
    except (ValueError, OverflowError) as error:
        raise RunError(f"{path}: {printable(error)}") from None
    except OSError as error:
        raise RunError(f"{path}: {error.strerror or error}") from None


def _text(text: str) -> str:
    """As a label: no formula in dollars, and no underscore at the start, which would keep it out of the legend."""
    return (" " * text.startswith("_") + printable(text)).replace("$", r"\$")


def _line(axes: Any, run: Run, values: Floats, rows: Integers, **look: Any) -> None:
    axes.plot(run.steps[rows], drawable(values[rows]), **look)


def _step_axis(axes: Any) -> None:
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _log_lr_axis(axes: Any, lrs: Floats, label: str = "learning rate") -> None:
    ticker, bounds = _matplotlib("ticker"), lr_bounds(lrs)
    axes.set_ylabel(label)
    if bounds is None:
        return
    axes.set_yscale("log", nonpositive="mask")
    axes.set_ylim(*bounds)
    subs = (1.0,) if bounds[1] > 100 * bounds[0] else (1.0, 2.0, 5.0) if bounds[1] > 4 * bounds[0] else range(1, 10)
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=subs, numticks=20))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.2g}" if value >= 1e-3 else f"{value:.0e}")
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())


# ---- one run ----


def _panels(run: Run) -> dict[str, float]:
    """Which panels a run has, and their heights in inches."""
    heights = {"loss": 3.0}
    if run.has("lrs"):
        heights["lr"] = 3.0
    if run.has("slopes"):
        heights["slope"] = 1.6
    if run.reason_names:
        heights["reasons"] = 0.25 * len(run.reason_names) + 0.2
    return heights


def _shape(run: Run) -> dict[str, Any]:
    return {"figsize": (10, sum(_panels(run).values()) + 1.2), "layout": "constrained"}


def _draw(run: Run, figure: Any) -> Any:
    heights = list(_panels(run).values())
    grid = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)
    panels = dict(zip(_panels(run), grid[:, 0], strict=True))
    rows = thinned(run)
    _draw_loss(panels["loss"], run, rows)
    if "lr" in panels:
        _draw_lr(panels["lr"], run, rows)
    if "slope" in panels:
        _draw_slope(panels["slope"], run, rows)
    for name, axes in panels.items():
        if name == "reasons":
            _draw_reasons(axes, run)
            continue
        for command in commands_of(run):
            axes.axvline(command.step, color=COMMAND, linestyle=":", linewidth=1.2)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.005, 1), borderaxespad=0, frameon=False)
    _step_axis(grid[-1, 0])
    return figure


def _draw_loss(axes: Any, run: Run, rows: Integers) -> None:
    monitor = _text(run.monitor)
    _line(axes, run, run.losses, rows, color=RAW, linewidth=0.8, alpha=0.7, label=monitor)
    if run.has("smoothed"):
        _line(axes, run, run.smoothed, rows, color=SMOOTH, linewidth=1.6, label="smoothed")
        _line(axes, run, run.references, rows, color=BEST, linewidth=0.9, linestyle=(0, (4, 2)), label="recent best")
    lost = rows[~np.isfinite(run.losses[rows])]
    if len(lost):
        top = drawable(run.losses[np.isfinite(run.losses)].max())
        axes.plot(run.steps[lost], np.full(len(lost), top), "x", color="#000000", label="NaN or infinite")
    if wide(run.losses):
        axes.set_yscale("log")
    axes.set_ylabel(monitor)
    axes.set_title(f"{_text(run.name)}: {len(run):,} losses from a {run.source}", fontsize=10, loc="left")
    for command in commands_of(run):
        axes.annotate(
            str(command),
            (command.step, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, -3),
            textcoords="offset points",
            va="top",
            fontsize=8,
            color=COMMAND,
        )


def _draw_lr(axes: Any, run: Run, rows: Integers) -> None:
    for i, span in enumerate(enveloped(run)):
        axes.axvspan(*span, color="#000000", alpha=0.05, linewidth=0, label=None if i else "warmup or final decay")
    _line(axes, run, run.lrs, rows, color=LR, linewidth=1.0, label="learning rate")
    moves = rows[(run.actions[rows] == RAISE) | (run.actions[rows] == LOWER)]
    size = 26 if len(moves) <= 150 else 9 if len(moves) <= 1500 else 3
    for action, what in MOVES.items():
        for code, name in enumerate(run.reason_names):
            shown = moved(run, moves, action, code)
            if len(shown):
                look = {"marker": MARKERS[action], "color": colour_of(name)}
                axes.scatter(run.steps[shown], drawable(run.lrs[shown]), s=size, linewidth=0, zorder=3, **look)
                axes.scatter([], [], s=26, label=f"{what}: {_text(name)}", **look)
    groups = "" if run.group_lrs is None else f" (group {run.group + 1} of {len(run.group_lrs)})"
    _log_lr_axis(axes, run.lrs, "learning rate" + groups)


def _draw_slope(axes: Any, run: Run, rows: Integers) -> None:
    axes.axhline(0, color="#000000", linewidth=0.8)
    _line(axes, run, run.slopes, rows, color=RAW, linewidth=0.8, alpha=0.7, label="slope")
    _line(axes, run, run.slope_means, rows, color=SMOOTH, linewidth=1.6, label="its mean")
    axes.set_ylabel("slope")


def _draw_reasons(axes: Any, run: Run) -> None:
    """A row for each reason, a tick for each decision."""
    for code, name in enumerate(run.reason_names):
        axes.eventplot(ticks(run, code), lineoffsets=code, linelengths=0.8, linewidths=0.9, colors=colour_of(name))
    labels = [f"{_text(name)} {n:,}" for name, n in zip(run.reason_names, run.reason_counts(), strict=True)]
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.25)
