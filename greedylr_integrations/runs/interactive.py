"""The plots of a page, by Bokeh, as the JSON that its script draws.

Bokeh takes half a second to make the plots of one run, so they are made once for all runs with the same curves, with
slots that each run's numbers are put into.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from greedylr_integrations.columns import ACTIONS
from greedylr_integrations.runs.run import LOWER, NO_DECISION, RAISE, Floats, Integers, Run, RunError, printable
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
    loss_to_show,
    lr_bounds,
    thinned,
    ticks,
    wide,
)

CURVES = ("losses", "smoothed", "references", "lrs", "scales", "slopes", "slope_means")
MARKERS = {RAISE: "triangle", LOWER: "inverted_triangle"}
DASHES = ("solid", "dashed", "dotted")
MOST_LEGENDS = 40  # runs in the legend of the overview
# slots for numbers; those for text and for lists are strings that begin with "slot "
FIRST, LAST, LOW, HIGH, TICKS, TALL = -910_000_001, -910_000_002, -910_000_003, -910_000_004, -910_000_005, 910_000_006


def scripts() -> list[str]:
    """Bokeh's own, which a page needs."""
    try:
        from bokeh.resources import Resources
    except ImportError:
        raise RunError("a page needs bokeh: pip install 'greedylr_integrations[cli]'") from None
    return list(Resources(mode="inline", components=["bokeh"], log_level="warn").js_raw)


def drawn(text: str) -> str:
    """Text for Bokeh to draw, without anything that it takes for a formula and draws with a script from the network."""
    shown = printable(text, 80)
    for delimiter in ("$$", r"\(", r"\["):
        shown = shown.replace(delimiter, f"{delimiter[0]}\u200b{delimiter[1]}")
    return shown


class Plots:
    """Makes the plots of run after run; those with the same curves share a template."""

    def __init__(self) -> None:
        self._templates: dict[tuple[bool, ...], Any] = {}

    def of(self, run: Run, rows: Integers, number: int) -> Any:
        """The plots of a run, with these rows of it; `number` tells it apart from the others of the page."""
        bounds = lr_bounds(run.lrs)
        shape = (
            *map(run.has, CURVES),
            bool(run.reason_names),
            bool(run.commands),
            wide(run.losses),
            bounds is not None,
        )
        if shape not in self._templates:
            self._templates[shape] = _template(*shape)
        return _filled(self._templates[shape], _values(run, rows, bounds), number)


def _filled(node: Any, values: Mapping[Any, Any], number: int) -> Any:
    """A template with values in its slots; a list of one slot becomes the value itself."""
    if isinstance(node, dict):
        return {key: _filled(value, values, number) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        if len(node) == 1 and isinstance(node[0], (str, int, float)) and node[0] in values:
            return values[node[0]]
        return [_filled(value, values, number) for value in node]
    if isinstance(node, str) and re.fullmatch(r"p\d+", node):  # a model's id
        return f"{node}-{number}"
    return values.get(node, node) if isinstance(node, (str, int, float)) else node


def _values(run: Run, rows: Integers, bounds: tuple[float, float] | None) -> dict[Any, Any]:
    """What a run puts into the slots."""
    first, last = int(run.steps[0]), int(run.steps[-1])
    values = {**_lr_values(bounds), FIRST: first, LAST: max(last, first + 1), "slot monitor": drawn(run.monitor)}
    columns: dict[str, Any] = {"step": _places(run.steps[rows]), "decision": _decisions(run, rows)}
    columns |= {name: _small(getattr(run, name)[rows]) for name in CURVES}
    moves = rows[(run.actions[rows] == RAISE) | (run.actions[rows] == LOWER)]
    names = [run.reason(row) for row in moves]
    columns["move_step"], columns["move_lr"] = _places(run.steps[moves]), _small(run.lrs[moves])
    columns["move"] = [f"{MOVES[run.actions[row]]}: {drawn(name)}" for row, name in zip(moves, names, strict=True)]
    columns["move_marker"] = [MARKERS[run.actions[row]] for row in moves]
    columns["move_colour"] = [colour_of(name) for name in names]
    columns["move_size"] = [7 if len(moves) <= 500 else 4] * len(moves)
    columns["command_step"] = [command.step for command in commands_of(run)]
    columns["command"] = [str(command) for command in commands_of(run)]
    reasons = [drawn(name) for name in run.reason_names]
    reasons = [name if reasons.count(name) == 1 else f"{name} ({code})" for code, name in enumerate(reasons)]
    tick_steps = [ticks(run, code) for code in range(len(reasons))]
    columns["tick_step"] = _places(np.concatenate(tick_steps)) if reasons else []
    columns["tick"] = [name for name, steps in zip(reasons, tick_steps, strict=True) for _ in steps]
    colours = map(colour_of, run.reason_names)
    columns["tick_colour"] = [colour for colour, steps in zip(colours, tick_steps, strict=True) for _ in steps]
    values |= {f"slot {name}": _encoded(column) for name, column in columns.items()}
    values["slot reasons"], values[TALL] = reasons[::-1], 28 * len(reasons) + 60
    return values


def _lr_values(bounds: tuple[float, float] | None) -> dict[Any, Any]:
    if bounds is None:
        return {}
    low, high = bounds
    return {LOW: low, HIGH: high, TICKS: _lr_ticks(low, high), "slot format": "%.1e" if high <= 4 * low else "%.0e"}


def _encoded(column: Any) -> Any:
    """An array as Bokeh's script reads it, in base 64; lists are as they are."""
    from bokeh.core.serialization import Serializer

    return column if isinstance(column, list) else Serializer(deferred=False).encode(column)


def _decisions(run: Run, rows: Integers) -> list[str]:
    names = [printable(name) for name in run.reason_names]
    return [
        f"{ACTIONS[action]}: {names[reason]}" if NO_DECISION not in (action, reason) else "not recorded"
        for action, reason in zip(run.actions[rows].tolist(), run.reasons[rows].tolist(), strict=True)
    ]


def _lr_ticks(low: float, high: float) -> list[float]:
    """Round numbers for a logarithmic axis, the fewer a decade the longer it is."""
    ratio = high / low
    digits: Sequence[float] = (1,) if ratio > 1000 else (1, 2, 5) if ratio > 4 else np.arange(1, 10, 0.5).tolist()
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    return [tick for decade in decades for digit in digits if low <= (tick := digit * 10.0**decade) <= high]


def _small(values: Floats) -> Floats:
    """Half the bytes in the page, and seven digits are enough for a picture."""
    return drawable(values).astype(np.float32)


def _places(steps: Integers) -> Any:
    """Steps in half the bytes, unless they are too large for that."""
    return steps.astype(np.int32 if int(np.abs(steps).max(initial=0)) < 2**31 else np.float64)


# ---- templates ----


def _source(*names: str) -> Any:
    from bokeh.models import ColumnDataSource

    return ColumnDataSource({name: [f"slot {name}"] for name in names})


def _figure(height: int, **more: Any) -> Any:
    from bokeh.plotting import figure

    return figure(
        height=height,
        sizing_mode="stretch_width",
        tools="xbox_zoom,xwheel_zoom,xpan,reset,save",
        active_drag="xbox_zoom",
        active_scroll="xwheel_zoom",
        **more,
    )


def _hover(plot: Any, lines: list[Any], tips: list[tuple[str, str]], mode: Any = "vline") -> None:
    from bokeh.models import HoverTool

    formats: Any = {"@lrs": "printf", "@value": "printf"}
    plot.add_tools(HoverTool(renderers=lines, mode=mode, line_policy="nearest", tooltips=tips, formatters=formats))


def _legend(plot: Any) -> None:
    """Beside the plot; a click on an entry hides its curve."""
    if plot.legend:
        plot.legend.click_policy = "hide"
        plot.legend.label_text_font_size = "8pt"
        plot.add_layout(plot.legend[0], "right")


def _item(plots: Sequence[Any]) -> Any:
    """Plots below each other, with one toolbar, as JSON."""
    from bokeh.embed import json_item
    from bokeh.layouts import gridplot

    layout = gridplot(
        [[plot] for plot in plots],
        sizing_mode="stretch_width",
        toolbar_location="right",
        toolbar_options={"logo": None},
    )
    return json_item(layout)


def _template(
    losses: bool,
    smoothed: bool,
    references: bool,
    lrs: bool,
    scales: bool,
    slopes: bool,
    slope_means: bool,
    reasons: bool,
    commands: bool,
    log_loss: bool,
    log_lr: bool,
) -> Any:
    from bokeh.models import Range1d

    # templates of what hovering shows; no text of a file is in them
    tips = [("step", "@step"), ("loss", "@losses{0.00000}")]
    tips += [("smoothed", "@smoothed{0.00000}")] * smoothed + [("recent best", "@references{0.00000}")] * references
    tips += [("LR", "@lrs{%.3e}")] * lrs + [("scale", "@scales{0.0000}")] * scales
    tips += [("slope", "@slopes{0.0000}")] * slopes + [("mean slope", "@slope_means{0.0000}")] * slope_means
    tips += [("decision", "@decision")] * reasons
    source, span = _source("step", "decision", *CURVES), Range1d(start=FIRST, end=LAST)
    plots = [_loss_plot(source, span, tips, smoothed, references, log_loss)]
    plots += [_lr_plot(source, span, tips, log_lr)] * lrs
    plots += [_slope_plot(source, span, tips)] * slopes
    if commands:
        _mark_commands(plots)
    for plot in plots:
        _legend(plot)
    plots += [_reason_plot(span)] * reasons
    plots[-1].xaxis.axis_label = "optimizer step"
    return _item(plots)


def _loss_plot(source: Any, span: Any, tips: Any, smoothed: bool, references: bool, log: bool) -> Any:
    axis = {"y_axis_type": "log"} if log else {}
    plot = _figure(300, x_range=span, y_axis_label="slot monitor", name="loss", **axis)
    line = plot.line("step", "losses", source=source, color=RAW, line_width=1, legend_label="slot monitor")
    if smoothed:
        line = plot.line("step", "smoothed", source=source, color=SMOOTH, line_width=2, legend_label="smoothed")
    if references:
        plot.line("step", "references", source=source, color=BEST, line_dash="dashed", legend_label="recent best")
    _hover(plot, [line], tips)
    return plot


def _lr_figure(height: int, log: bool, **more: Any) -> Any:
    from bokeh.models import FixedTicker, PrintfTickFormatter, Range1d

    axis = {"y_axis_type": "log", "y_range": Range1d(start=LOW, end=HIGH)} if log else {}
    plot = _figure(height, y_axis_label="learning rate", name="lr", **axis, **more)
    if log:
        plot.yaxis.ticker = FixedTicker(ticks=[TICKS])
        plot.yaxis.formatter = PrintfTickFormatter(format="slot format")
    return plot


def _lr_plot(source: Any, span: Any, tips: Any, log: bool) -> Any:
    plot = _lr_figure(300, log, x_range=span)
    line = plot.line("step", "lrs", source=source, color=LR, line_width=1.2, legend_label="learning rate")
    moves = _source("move_step", "move_lr", "move", "move_marker", "move_colour", "move_size")
    look = {"marker": "move_marker", "color": "move_colour", "size": "move_size", "legend_field": "move"}
    plot.scatter("move_step", "move_lr", source=moves, **look)
    _hover(plot, [line], tips)
    return plot


def _slope_plot(source: Any, span: Any, tips: Any) -> Any:
    plot = _figure(180, x_range=span, y_axis_label="slope", name="slope")
    plot.line("step", "slopes", source=source, color=RAW, line_width=1, legend_label="slope")
    line = plot.line("step", "slope_means", source=source, color=SMOOTH, line_width=2, legend_label="its mean")
    _hover(plot, [line], tips)
    return plot


def _mark_commands(plots: Sequence[Any]) -> None:
    from bokeh.models.annotations import LabelSet

    source = _source("command_step", "command")
    for plot in plots:
        plot.vspan("command_step", source=source, line_color=COMMAND, line_dash="dotted")
    where: Any = {"x": "command_step", "y": 4, "y_units": "screen", "x_offset": 4}
    plots[0].add_layout(LabelSet(text="command", source=source, text_color=COMMAND, **where))


def _reason_plot(span: Any) -> Any:
    """A row for each reason, a tick for each decision."""
    from bokeh.models import FactorRange

    plot = _figure(TALL, x_range=span, y_range=FactorRange(factors=["slot reasons"]), name="reasons")
    look: Any = {"marker": "dash", "size": 14, "angle": math.pi / 2, "color": "tick_colour"}
    plot.scatter("tick_step", "tick", source=_source("tick_step", "tick", "tick_colour"), **look)
    return plot


# ---- several runs ----


def overview(runs: Sequence[Run], buckets: int) -> Any:
    """Losses and LRs of all runs; the colours repeat, so hovering says which run a curve is of."""
    bounds = lr_bounds(np.concatenate([run.lrs for run in runs]))
    above = _figure(320, y_axis_label="loss (smoothed if recorded)", name="loss")
    below = _lr_figure(280, bounds is not None, x_range=above.x_range, x_axis_label="optimizer step")
    draw = _lines if len(runs) <= MOST_LEGENDS else _lines_without_legend
    for plot, tip in ((above, "@value{%.5f}"), (below, "@value{%.3e}")):
        draw(
            plot,
            [_curve(i, run, loss_to_show(run) if plot is above else run.lrs, buckets) for i, run in enumerate(runs)],
        )
        tips = [("run", "@run"), ("step", "$x{0}"), ("value", tip)]
        _hover(plot, list(plot.renderers), tips, "mouse")
        _legend(plot)
    return _filled(_item([above, below]), _lr_values(bounds), -1)


def _curve(i: int, run: Run, values: Floats, buckets: int) -> dict[str, Any]:
    rows = thinned(run, buckets)
    rows = rows[np.isfinite(values[rows])]
    return {
        "xs": _places(run.steps[rows]),
        "ys": _small(values[rows]),
        "run": drawn(run.name),
        "line_color": RUN_COLOURS[i % len(RUN_COLOURS)],
        "line_dash": DASHES[i // len(RUN_COLOURS) % len(DASHES)],
    }


def _lines(plot: Any, curves: Sequence[dict[str, Any]]) -> None:
    from bokeh.models import ColumnDataSource

    for curve in curves:
        look = {key: curve[key] for key in ("line_color", "line_dash")}
        names = [curve["run"]] * len(curve["xs"])
        source = ColumnDataSource({"step": curve["xs"], "value": curve["ys"], "run": names})
        plot.line("step", "value", source=source, line_width=1.6, legend_label=curve["run"], **look)


def _lines_without_legend(plot: Any, curves: Sequence[dict[str, Any]]) -> None:
    from bokeh.models import ColumnDataSource

    source = ColumnDataSource({key: [curve[key] for curve in curves] for key in curves[0]})
    look = {key: key for key in ("line_color", "line_dash")}
    plot.multi_line("xs", "ys", source=source, line_width=1.6, **look)
