"""Pictures of runs: a file by matplotlib, text for the terminal by plotext, a page by Bokeh.

A long run is thinned first, and every extreme is kept: see `thinned`.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from greedylr_integrations.core import Action
from greedylr_integrations.runs import ACTIONS, NO_DECISION, Integers, Run, RunError, sentence

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
    "RESET": "#f0e442",
    "ORDERED": "#882255",
}
RUN_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
RAW, SMOOTH, BEST, LR = "#9aa5b1", "#0072b2", "#444444", "#333333"
RAISE, LOWER, HOLD = (ACTIONS.index(action.value) for action in (Action.RAISE, Action.LOWER, Action.HOLD))
ARROWS = {RAISE: ("^", "raised"), LOWER: ("v", "lowered")}
MOST_TURNS = 40_000
PIXELS = 1600  # ticks a row of decisions can show


def colour_of(reason: str) -> str:
    return COLOURS.get(reason, "#882255")


def thinned(run: Run, buckets: int = 1500) -> Integers:
    """Rows to draw: all of a short run, else the smallest and largest loss, smoothed loss and LR of each bucket.

    Rows with a loss that is not finite, decisions that turn the LR round (of more than `MOST_TURNS` an even choice),
    and decisions for a reason that comes up no more often than there are buckets are kept too.
    """
    count = len(run)
    if count <= 6 * buckets:
        return np.arange(count)
    kept = [np.array([0, count - 1]), np.flatnonzero(~np.isfinite(run.losses))[: 4 * buckets]]
    width = math.ceil(count / buckets)
    starts = np.arange(math.ceil(count / width)) * width
    for values in (run.losses, run.smoothed, run.lrs):
        finite = np.isfinite(values)
        for filler, extreme in ((math.inf, np.argmin), (-math.inf, np.argmax)):
            table = np.full(len(starts) * width, filler)
            table[:count] = np.where(finite, values, filler)
            rows = starts + extreme(table.reshape(-1, width), axis=1)
            rows = rows[rows < count]
            kept.append(rows[finite[rows]])
    moves = np.flatnonzero((run.actions == RAISE) | (run.actions == LOWER))
    kept.append(moves[:1])
    turns = moves[1:][np.diff(run.actions[moves]) != 0]
    kept.append(turns[:: math.ceil(len(turns) / MOST_TURNS) or 1])
    for code in range(len(run.reason_names)):
        rows = np.flatnonzero(run.reasons == code)
        if len(rows) <= buckets:
            kept.append(rows)
    return np.unique(np.concatenate(kept))


def _ticks(run: Run, code: int) -> Integers:
    """Steps of the decisions with a reason, one a pixel."""
    steps = run.steps[run.reasons == code]
    first, last = run.steps[0], run.steps[-1]
    pixel = (steps - first) * PIXELS // max(1, last - first)
    return steps[np.unique(pixel, return_index=True)[1]]


def _enveloped(run: Run) -> list[tuple[int, int]]:
    """Spans of steps in which ramp or final decay scale the LR."""
    inside = np.concatenate([[0], (run.envelope < 1.0).astype(int), [0]])
    edges = np.flatnonzero(np.diff(inside))
    return [
        (int(run.steps[start]), int(run.steps[end - 1])) for start, end in zip(edges[::2], edges[1::2], strict=True)
    ]


def _wide(values: np.ndarray) -> bool:
    """Whether values want a logarithmic axis."""
    values = values[np.isfinite(values)]
    return bool(len(values) and values.min() > 0 and values.max() > 30 * values.min())


def _lr_bounds(lrs: np.ndarray) -> tuple[float, float] | None:
    """Range of a logarithmic LR axis; a ramp from 0 and a decay to 0 go out of it at the bottom."""
    positive = lrs[np.isfinite(lrs) & (lrs > 0)]
    if not len(positive):
        return None
    top = float(positive.max())
    usual = float(np.quantile(positive, 0.02))
    return max(float(positive.min()), min(usual, top) / 3, top / 1e6) / 1.15, top * 1.15


# ---- a file ----


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise RunError("a picture needs matplotlib: pip install 'greedylr_integrations[cli]'") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _save(figure: Any, path: Path) -> None:
    try:
        figure.savefig(path, dpi=130)
    except ValueError as error:
        raise RunError(f"{path}: {error}") from None
    except OSError as error:
        raise RunError(f"{path}: {error.strerror or error}") from None
    finally:
        _pyplot().close(figure)


def _log_lr_axis(axes: Any, lrs: np.ndarray, label: str = "learning rate") -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    bounds = _lr_bounds(lrs)
    axes.set_ylabel(label)
    if bounds is None:
        return
    axes.set_yscale("log", nonpositive="mask")
    axes.set_ylim(*bounds)
    subs = (1.0,) if bounds[1] > 100 * bounds[0] else (1.0, 2.0, 5.0) if bounds[1] > 4 * bounds[0] else range(1, 10)
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=20))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.2g}" if value >= 1e-3 else f"{value:.0e}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def picture(run: Run, path: Path) -> None:
    """Loss and LR with each decision marked, as a PNG or SVG; the ending of `path` says which."""
    plt = _pyplot()
    rows = thinned(run)
    names = run.reason_names
    has_lr = bool(np.isfinite(run.lrs).any())
    heights = [3.0] + [3.0] * has_lr + [0.25 * len(names) + 0.2] * bool(names)
    figure, all_axes = plt.subplots(
        len(heights),
        1,
        figsize=(10, sum(heights) + 1.2),
        sharex=True,
        layout="constrained",
        height_ratios=heights,
        squeeze=False,
    )
    axes = list(all_axes[:, 0])
    above = axes[0]
    steps = run.steps[rows]
    above.plot(steps, run.losses[rows], color=RAW, linewidth=0.8, alpha=0.7, label=run.monitor)
    if np.isfinite(run.smoothed).any():
        above.plot(steps, run.smoothed[rows], color=SMOOTH, linewidth=1.6, label="smoothed")
        above.plot(steps, run.best[rows], color=BEST, linewidth=0.9, linestyle=(0, (4, 2)), label="recent best")
    lost = run.steps[~np.isfinite(run.losses)]
    if len(lost):
        top = np.nanmax(np.where(np.isfinite(run.losses), run.losses, math.nan))
        above.plot(lost, np.full(len(lost), top), "x", color="#000000", label="NaN or infinite")
    if _wide(run.losses):
        above.set_yscale("log")
    above.set_ylabel(run.monitor)
    above.set_title(f"{run.name}: {len(run):,} losses from a {run.source}", fontsize=10, loc="left")
    for order in run.orders:
        for each in axes[: 1 + has_lr]:
            each.axvline(order.step, color="#882255", linestyle=":", linewidth=1.2)
        above.annotate(
            str(order),
            (order.step, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, -3),
            textcoords="offset points",
            va="top",
            fontsize=8,
            color="#882255",
        )
    if has_lr:
        _draw_lr(axes[1], run, rows)
    if names:
        _draw_reasons(axes[-1], run)
    for each in axes[: 1 + has_lr]:
        each.grid(alpha=0.25)
        each.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.005, 1), borderaxespad=0, frameon=False)
    axes[-1].set_xlabel("optimizer step")
    axes[-1].xaxis.set_major_formatter("{x:,.0f}")
    _save(figure, path)


def _draw_lr(axes: Any, run: Run, rows: Integers) -> None:
    spans = _enveloped(run)
    for i, span in enumerate(spans):
        axes.axvspan(*span, color="#000000", alpha=0.05, linewidth=0, label=None if i else "ramp or final decay")
    axes.plot(run.steps[rows], run.lrs[rows], color=LR, linewidth=1.0, label="learning rate")
    moves = rows[(run.actions[rows] == RAISE) | (run.actions[rows] == LOWER)]
    size = 26 if len(moves) <= 150 else 9 if len(moves) <= 1500 else 3
    for action, (marker, what) in ARROWS.items():
        for code, name in enumerate(run.reason_names):
            shown = moves[(run.actions[moves] == action) & (run.reasons[moves] == code)]
            if len(shown):
                axes.scatter(
                    run.steps[shown],
                    run.lrs[shown],
                    marker=marker,
                    s=size,
                    color=colour_of(name),
                    linewidth=0,
                    zorder=3,
                )
                axes.scatter([], [], marker=marker, s=26, color=colour_of(name), label=f"{what}: {name}")
    groups = "" if run.group_lrs is None else " (first group)"
    _log_lr_axis(axes, run.lrs, "learning rate" + groups)


def _draw_reasons(axes: Any, run: Run) -> None:
    """A row for each reason, a tick for each decision."""
    places = range(len(run.reason_names))
    for code, name in enumerate(run.reason_names):
        axes.eventplot(_ticks(run, code), lineoffsets=code, linelengths=0.8, linewidths=0.9, colors=colour_of(name))
    counts = [int((run.reasons == code).sum()) for code in places]
    labels = [f"{name} {count:,}" for name, count in zip(run.reason_names, counts, strict=True)]
    axes.set_yticks(list(places), labels, fontsize=8)
    axes.set_ylim(len(counts) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.25)


def comparison(runs: Sequence[Run], path: Path, title: str = "") -> None:
    """Smoothed losses and LRs of several runs, one colour and line style a run."""
    plt = _pyplot()
    figure, (above, below) = plt.subplots(2, 1, figsize=(10, 7), sharex=True, layout="constrained")
    styles = ("-", "--", "-.", ":")
    shared = all(np.array_equal(run.losses, runs[0].losses, equal_nan=True) for run in runs)  # replays of one log
    for i, run in enumerate(runs):
        rows = thinned(run)
        look = {"color": RUN_COLOURS[i % len(RUN_COLOURS)], "linestyle": styles[i // len(RUN_COLOURS) % len(styles)]}
        smoothed = bool((np.isfinite(run.smoothed) & (run.smoothed != run.losses)).any())
        if i == 0 or not shared:
            faint = {"color": RAW} if shared else look
            alpha = 0.3 if smoothed else 0.9
            label = "loss" if shared else None if smoothed else run.name
            above.plot(run.steps[rows], run.losses[rows], linewidth=0.8, alpha=alpha, label=label, **faint)
        if smoothed:
            above.plot(run.steps[rows], run.smoothed[rows], linewidth=1.5, label=f"{run.name}: smoothed", **look)
        below.plot(run.steps[rows], run.lrs[rows], linewidth=1.5, label=run.name, **look)
    if _wide(np.concatenate([run.losses for run in runs])):
        above.set_yscale("log")
    above.set_ylabel("loss")
    above.set_title(title, fontsize=10, loc="left")
    _log_lr_axis(below, np.concatenate([run.lrs for run in runs]))
    below.set_xlabel("optimizer step")
    below.xaxis.set_major_formatter("{x:,.0f}")
    for axes in (above, below):
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    _save(figure, path)


# ---- the terminal ----


def text(runs: Sequence[Run], width: int, colour: bool) -> str:
    """Losses above, LRs below, as lines of `width` characters."""
    try:
        import plotext
    except ImportError:
        raise RunError("a plot in the terminal needs plotext: pip install 'greedylr_integrations[cli]'") from None
    width = max(40, width)
    one = len(runs) == 1
    plotext.main()  # an earlier picture left a part of it active
    plotext.clear_figure()
    plotext.subplots(2, 1)
    plotext.subplot(1, 1)
    for run in runs:
        rows = thinned(run, width)
        values = run.smoothed if np.isfinite(run.smoothed).any() else run.losses
        if one and values is not run.losses:
            _curve(plotext, run.steps[rows], run.losses[rows], run.monitor, colour="gray")
        label = "smoothed " + run.monitor if one and values is run.smoothed else run.monitor if one else run.name
        _curve(plotext, run.steps[rows], values[rows], label)
    plotext.theme("clear")
    plotext.plot_size(width, 15)
    plotext.subplot(2, 1)
    every = np.concatenate([run.lrs for run in runs])
    bounds = _lr_bounds(every)
    for run in runs:
        rows = thinned(run, width)
        rows = rows[run.lrs[rows] >= (bounds[0] if bounds else 0)]
        _curve(plotext, run.steps[rows], run.lrs[rows], "learning rate" if one else run.name)
    if bounds:
        plotext.yscale("log")
        shown = every[every >= bounds[0]]
        ticks = np.geomspace(shown.min(), shown.max(), 5)
        plotext.yticks(ticks.tolist(), [f"{tick:.1e}" for tick in ticks])
    plotext.theme("clear")
    plotext.plot_size(width, 13)
    plotext.xlabel("optimizer step")
    drawn = plotext.build()
    return drawn if colour else plotext.uncolorize(drawn)


def _curve(plotext: Any, steps: np.ndarray, values: np.ndarray, label: str, colour: str | None = None) -> None:
    finite = np.isfinite(values)
    if finite.any():
        plotext.plot(steps[finite].tolist(), values[finite].tolist(), label=label, marker="braille", color=colour)


# ---- a page ----

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1120px; margin: 2em auto; padding: 0 1em }}
h1 {{ font-size: 1.4em }} h2 {{ font-size: 1.15em; margin-top: 2em }}
table {{ border-collapse: collapse; font-size: 0.92em }}
th, td {{ text-align: right; padding: 0.25em 0.9em; border-bottom: 1px solid #ddd }}
th:first-child, td:first-child {{ text-align: left }}
dl {{ display: grid; grid-template-columns: max-content auto; gap: 0 1em; font-size: 0.92em }} dd {{ margin: 0 }}
code, dd {{ font-family: ui-monospace, monospace; font-size: 0.95em }} .note {{ color: #666; font-size: 0.92em }}
</style>
{scripts}
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def page(runs: Sequence[Run], headings: Sequence[str], table: Sequence[Sequence[str]], path: Path) -> None:
    """One HTML file with everything in it: curves with zoom and hover, the table, each run's configuration."""
    try:
        from bokeh.embed import components
        from bokeh.resources import Resources
    except ImportError:
        raise RunError("a page needs bokeh: pip install 'greedylr_integrations[cli]'") from None
    layouts = [_overview(runs)] if len(runs) > 1 else []
    layouts += [_interactive(run) for run in runs]
    script, divs = components(layouts)
    divs = list(divs)
    parts = [_html_table(headings, table)]
    if len(runs) > 1:
        parts.append(divs.pop(0))
    for run, div in zip(runs, divs, strict=True):
        parts += [f"<h2>{html.escape(run.name)}</h2>", div, _about(run)]
    scripts = Resources(mode="inline", components=["bokeh"], log_level="warn").render() + script
    title = "GreedyLR: " + html.escape(", ".join(run.name for run in runs[:4]) + (" ..." if len(runs) > 4 else ""))
    try:
        path.write_text(PAGE.format(title=title, scripts=scripts, body="\n".join(parts)), encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path}: {error.strerror or error}") from None


def _html_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _about(run: Run) -> str:
    facts = {"read from": f"a {run.source}, {len(run):,} losses"}
    kept = len(thinned(run))
    if kept < len(run):
        facts["drawn"] = f"{kept:,} of them: extremes, turns of the LR and rare reasons are kept"
    for name, value in (("base LRs", run.base_lrs), ("total steps", run.total_steps)):
        if value is not None:
            facts[name] = json.dumps(value)
    if run.orders:
        facts["orders"] = ", ".join(f"{order} at step {order.step}" for order in run.orders)
    if run.config is None:
        facts["configuration"] = "not recorded"
    facts |= {key: json.dumps(value) for key, value in (run.config or {}).items() if value is not None}
    facts |= {f"note {i}": note for i, note in enumerate(run.notes, 1)}
    reasons = "".join(
        f"<dt>{name}</dt><dd>{int((run.reasons == code).sum()):,} x {html.escape(sentence(name))}</dd>"
        for code, name in enumerate(run.reason_names)
    )
    listed = "".join(f"<dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd>" for key, value in facts.items())
    return (f"<h3>Decisions</h3><dl>{reasons}</dl>" if reasons else "") + f"<h3>Record</h3><dl>{listed}</dl>"


def _figure(height: int, **more: Any) -> Any:
    from bokeh.plotting import figure

    plot = figure(
        height=height,
        sizing_mode="stretch_width",
        tools="xbox_zoom,xwheel_zoom,xpan,reset,save",
        active_drag="xbox_zoom",
        active_scroll="xwheel_zoom",
        **more,
    )
    return plot


def _stacked(plots: Sequence[Any]) -> Any:
    """Below each other, with one toolbar."""
    from bokeh.layouts import gridplot

    return gridplot(
        [[plot] for plot in plots],
        sizing_mode="stretch_width",
        toolbar_location="right",
        toolbar_options={"logo": None},
    )


def _lr_ticks(low: float, high: float) -> list[float]:
    """Round numbers for a logarithmic axis, the fewer a decade the longer it is."""
    ratio = high / low
    digits: Sequence[float] = (1,) if ratio > 1000 else (1, 2, 5) if ratio > 4 else np.arange(1, 10, 0.5).tolist()
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    return [tick for decade in decades for digit in digits if low <= (tick := digit * 10.0**decade) <= high]


def _lr_axis(plot: Any, lrs: np.ndarray) -> None:
    from bokeh.models import FixedTicker, PrintfTickFormatter

    bounds = _lr_bounds(lrs)
    if bounds:
        plot.yaxis.ticker = FixedTicker(ticks=_lr_ticks(*bounds))
        plot.yaxis.formatter = PrintfTickFormatter(format="%.1e" if bounds[1] <= 4 * bounds[0] else "%.0e")


def _lr_range(lrs: np.ndarray) -> dict[str, Any]:
    from bokeh.models import Range1d

    bounds = _lr_bounds(lrs)
    return {"y_axis_type": "log", "y_range": Range1d(start=bounds[0], end=bounds[1])} if bounds else {}


def _small(values: np.ndarray) -> np.ndarray:
    """Half the bytes in the page, and seven digits are enough for a picture."""
    return values.astype(np.float32)


def _interactive(run: Run) -> Any:
    from bokeh.models import ColumnDataSource, HoverTool, Range1d
    from bokeh.models.annotations import Label, Span

    rows = thinned(run)
    words = [
        f"{ACTIONS[action]}: {run.reason_names[reason]}" if reason != NO_DECISION else "not recorded"
        for action, reason in zip(run.actions[rows].tolist(), run.reasons[rows].tolist(), strict=True)
    ]
    source = ColumnDataSource(
        {
            "step": run.steps[rows].astype(np.int32),
            "decision": words,
            **{
                name: _small(getattr(run, name)[rows])
                for name in ("losses", "lrs", "smoothed", "best", "scales")
                if np.isfinite(getattr(run, name)).any()
            },
        }
    )
    tips = [("step", "@step"), (run.monitor, "@losses{0.00000}")]
    tips += [("smoothed", "@smoothed{0.00000}"), ("recent best", "@best{0.00000}")] if "best" in source.data else []
    tips += [("LR", "@lrs{%.3e}")] if "lrs" in source.data else []
    tips += [("scale", "@scales{0.0000}")] if "scales" in source.data else []
    tips += [("decision", "@decision")] if run.has_decisions else []
    span = Range1d(start=int(run.steps[0]), end=max(int(run.steps[-1]), int(run.steps[0]) + 1))
    log = {"y_axis_type": "log"} if _wide(run.losses) else {}
    above = _figure(300, x_range=span, y_axis_label=run.monitor, name="loss", **log)
    raw = above.line("step", "losses", source=source, color=RAW, line_width=1, legend_label=run.monitor)
    watched = [(above, raw)]
    if "smoothed" in source.data:
        smooth = above.line("step", "smoothed", source=source, color=SMOOTH, line_width=2, legend_label="smoothed")
        above.line("step", "best", source=source, color=BEST, line_dash="dashed", legend_label="recent best")
        watched = [(above, smooth)]
    plots = [above]
    if "lrs" in source.data:
        below = _figure(300, x_range=span, y_axis_label="learning rate", name="lr", **_lr_range(run.lrs))
        line = below.line("step", "lrs", source=source, color=LR, line_width=1.2, legend_label="learning rate")
        watched.append((below, line))
        _marks(below, run, rows)
        _lr_axis(below, run.lrs)
        plots.append(below)
    for plot, line in watched:
        plot.add_tools(
            HoverTool(
                renderers=[line], mode="vline", line_policy="nearest", tooltips=tips, formatters={"@lrs": "printf"}
            )
        )
    for order in run.orders:
        for plot in plots:
            plot.add_layout(Span(location=order.step, dimension="height", line_color="#882255", line_dash="dotted"))
        above.add_layout(Label(x=order.step, y=4, y_units="screen", x_offset=4, text=str(order), text_color="#882255"))
    if run.reason_names:
        plots.append(_reason_rows(run, span))
    for plot in plots[:2]:
        plot.legend.click_policy = "hide"
        plot.legend.label_text_font_size = "8pt"
        plot.add_layout(plot.legend[0], "right")
    plots[-1].xaxis.axis_label = "optimizer step"
    return _stacked(plots)


def _marks(plot: Any, run: Run, rows: Integers) -> None:
    from bokeh.models import ColumnDataSource

    shapes = {RAISE: "triangle", LOWER: "inverted_triangle"}
    for action, (_, what) in ARROWS.items():
        for code, name in enumerate(run.reason_names):
            shown = rows[(run.actions[rows] == action) & (run.reasons[rows] == code)]
            if len(shown):
                places = {"step": run.steps[shown].astype(np.int32), "lr": _small(run.lrs[shown])}
                plot.scatter(
                    "step",
                    "lr",
                    source=ColumnDataSource(places),
                    marker=shapes[action],
                    size=7 if len(shown) <= 500 else 4,
                    color=colour_of(name),
                    legend_label=f"{what}: {name}",
                )


def _reason_rows(run: Run, span: Any) -> Any:
    """A row for each reason, a tick for each decision."""
    from bokeh.models import ColumnDataSource, FactorRange

    names = run.reason_names
    plot = _figure(28 * len(names) + 60, x_range=span, y_range=FactorRange(factors=names[::-1]), name="reasons")
    for code, name in enumerate(names):
        ticks = _ticks(run, code).astype(np.int32)
        source = ColumnDataSource({"step": ticks, "reason": [name] * len(ticks)})
        plot.scatter("step", "reason", source=source, marker="dash", size=14, angle=math.pi / 2, color=colour_of(name))
    return plot


def _overview(runs: Sequence[Run]) -> Any:
    from bokeh.models import ColumnDataSource, HoverTool

    above = _figure(320, y_axis_label="loss (smoothed where recorded)", name="loss")
    below = _figure(
        280,
        x_range=above.x_range,
        y_axis_label="learning rate",
        x_axis_label="optimizer step",
        name="lr",
        **_lr_range(np.concatenate([run.lrs for run in runs])),
    )
    for i, run in enumerate(runs):
        rows = thinned(run, 700)
        values = run.smoothed if np.isfinite(run.smoothed).any() else run.losses
        for plot, each in ((above, values), (below, run.lrs)):
            kept = rows[np.isfinite(each[rows])]
            source = ColumnDataSource({"step": run.steps[kept].astype(np.int32), "value": _small(each[kept])})
            line = plot.line(
                "step",
                "value",
                source=source,
                color=RUN_COLOURS[i % len(RUN_COLOURS)],
                line_dash=("solid", "dashed", "dotted")[i // len(RUN_COLOURS) % 3],
                line_width=1.6,
                legend_label=run.name,
            )
            shown = "@value{%.5f}" if plot is above else "@value{%.3e}"
            tips = [("run", html.escape(run.name)), ("step", "@step"), ("value", shown)]
            plot.add_tools(HoverTool(renderers=[line], tooltips=tips, formatters={"@value": "printf"}))
    for plot in (above, below):
        plot.legend.click_policy = "hide"
        plot.legend.label_text_font_size = "8pt"
        plot.add_layout(plot.legend[0], "right")
    _lr_axis(below, np.concatenate([run.lrs for run in runs]))
    return _stacked([above, below])
