"""One HTML page about runs, with zoom and hover, by Bokeh. It is complete in itself and loads nothing."""

from __future__ import annotations

import html
import json
import math
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from greedylr_integrations.runs.run import (
    ACTIONS,
    LOWER,
    NO_DECISION,
    RAISE,
    Floats,
    Integers,
    Run,
    RunError,
    printable,
    sentence,
)
from greedylr_integrations.runs.thin import (
    BEST,
    COMMAND,
    LR,
    MOVES,
    RAW,
    RUN_COLOURS,
    SMOOTH,
    buckets_for,
    colour_of,
    commands_of,
    drawable,
    loss_to_show,
    lr_bounds,
    moved,
    thinned,
    ticks,
    wide,
)

MARKERS = {RAISE: "triangle", LOWER: "inverted_triangle"}
DASHES = ("solid", "dashed", "dotted")
MOST_LEGENDS = 40  # runs in the legend of the overview
# the policy lets nothing run but the scripts with the page's own key, and nothing be loaded, whatever the text says
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'nonce-{key}'; style-src \
'unsafe-inline'; img-src data: blob:; font-src data:">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1120px; margin: 2em auto; padding: 0 1em }}
h1 {{ font-size: 1.4em }} h2 {{ font-size: 1.15em; margin-top: 2em }}
table {{ border-collapse: collapse; font-size: 0.92em }}
th, td {{ text-align: right; padding: 0.25em 0.9em; border-bottom: 1px solid #ddd }}
th:first-child, td:first-child {{ text-align: left }}
dl {{ display: grid; grid-template-columns: max-content auto; gap: 0 1em; font-size: 0.92em }} dd {{ margin: 0 }}
code, dd {{ font-family: ui-monospace, monospace; font-size: 0.95em; overflow-wrap: anywhere }}
</style>
{scripts}
</head>
<body>
<h1>{title}</h1>
{body}
<script nonce="{key}">
const drawn = new IntersectionObserver(entries => entries.filter(entry => entry.isIntersecting).forEach(entry => {{
    drawn.unobserve(entry.target);
    Bokeh.embed.embed_item(JSON.parse(entry.target.nextElementSibling.textContent));
}}), {{rootMargin: "600px"}});
document.querySelectorAll(".plot").forEach(plot => drawn.observe(plot));
</script>
</body>
</html>
"""


def page(runs: Sequence[Run], headings: Sequence[str], table: Sequence[Sequence[str]], path: Path) -> None:
    """One HTML file with everything in it: curves with zoom and hover, the table, each run's configuration."""
    try:
        from bokeh.resources import Resources
    except ImportError:
        raise RunError("a page needs bokeh: pip install 'greedylr_integrations[cli]'") from None
    buckets = buckets_for(runs)
    parts = [_table(headings, table)]
    if len(runs) > 1:
        parts.append(_plot("all", _overview(runs, max(1, buckets // 2))))
    for i, run in enumerate(runs):
        rows = thinned(run, buckets)
        parts += [f"<h2>{_html(run.name)}</h2>", _plot(f"run-{i}", _interactive(run, rows)), _about(run, len(rows))]
    key = secrets.token_hex(16)
    resources = Resources(mode="inline", components=["bokeh"], log_level="warn")
    scripts = "".join(f'<script nonce="{key}">{script}</script>\n' for script in resources.js_raw)
    title = "GreedyLR: " + _html(", ".join(run.name for run in runs[:4]) + (" ..." if len(runs) > 4 else ""))
    try:
        path.write_text(PAGE.format(title=title, scripts=scripts, body="\n".join(parts), key=key), encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path}: {error.strerror or error}") from None


# ---- text ----


def _html(text: object) -> str:
    """Text as HTML: all text that a page shows goes through this, or `_drawn` within a plot."""
    return html.escape(printable(text, 1000))


def _drawn(text: str) -> str:
    """Text as Bokeh draws it, in which nothing is a formula: those would be drawn by a script from the network."""
    shown = printable(text, 80)
    for delimiter in ("$$", r"\(", r"\["):
        shown = shown.replace(delimiter, f"{delimiter[0]}\u200b{delimiter[1]}")
    return shown


def _plot(name: str, layout: Any) -> str:
    """A plot that is drawn when it comes into view, and its data; no text in these can end the script's element."""
    from bokeh.embed import json_item

    item = json_item(layout, name)  # type: ignore[arg-type]
    data = json.dumps(item).replace("<", "\\u003c")
    return (
        f'<div class="plot" id="{name}" style="min-height: 300px"></div><script type="application/json">{data}</script>'
    )


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{_html(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{_html(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _about(run: Run, drawn: int) -> str:
    facts = {"read from": f"a {run.source}, {len(run):,} losses"}
    if drawn < len(run):
        facts["drawn"] = f"{drawn:,} of them: extremes, turns of the LR and rare reasons are kept"
    for name, value in (("base LRs", run.base_lrs), ("total steps", run.total_steps)):
        if value is not None:
            facts[name] = json.dumps(value)
    if run.commands:
        shown = ", ".join(f"{command} at step {command.step}" for command in run.commands[:20])
        facts["commands"] = shown + (f" and {len(run.commands) - 20} more" if len(run.commands) > 20 else "")
    if run.config is None:
        facts["configuration"] = "not recorded"
    facts |= {key: json.dumps(value) for key, value in (run.config or {}).items() if value is not None}
    facts |= {f"note {i}": note for i, note in enumerate(run.notes, 1)}
    reasons = [
        (name, f"{count:,} x {sentence(name)}")
        for name, count in zip(run.reason_names, run.reason_counts(), strict=True)
    ]
    return (f"<h3>Decisions</h3>{_listed(reasons)}" if reasons else "") + f"<h3>Record</h3>{_listed(facts.items())}"


def _listed(pairs: Any) -> str:
    return "<dl>" + "".join(f"<dt>{_html(key)}</dt><dd>{_html(value)}</dd>" for key, value in pairs) + "</dl>"


# ---- what the plots share ----


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


def _stacked(plots: Sequence[Any]) -> Any:
    """Below each other, with one toolbar."""
    from bokeh.layouts import gridplot

    return gridplot(
        [[plot] for plot in plots],
        sizing_mode="stretch_width",
        toolbar_location="right",
        toolbar_options={"logo": None},
    )


def _legend(plot: Any) -> None:
    """Beside the plot; a click on an entry hides its curve."""
    if plot.legend:
        plot.legend.click_policy = "hide"
        plot.legend.label_text_font_size = "8pt"
        plot.add_layout(plot.legend[0], "right")


def _lr_ticks(low: float, high: float) -> list[float]:
    """Round numbers for a logarithmic axis, the fewer a decade the longer it is."""
    ratio = high / low
    digits: Sequence[float] = (1,) if ratio > 1000 else (1, 2, 5) if ratio > 4 else np.arange(1, 10, 0.5).tolist()
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    return [tick for decade in decades for digit in digits if low <= (tick := digit * 10.0**decade) <= high]


def _lr_figure(height: int, lrs: Floats, **more: Any) -> Any:
    from bokeh.models import FixedTicker, PrintfTickFormatter, Range1d

    bounds = lr_bounds(lrs)
    if bounds is None:
        return _figure(height, y_axis_label="learning rate", name="lr", **more)
    log = {"y_axis_type": "log", "y_range": Range1d(start=bounds[0], end=bounds[1])}
    plot = _figure(height, y_axis_label="learning rate", name="lr", **log, **more)
    plot.yaxis.ticker = FixedTicker(ticks=_lr_ticks(*bounds))
    plot.yaxis.formatter = PrintfTickFormatter(format="%.1e" if bounds[1] <= 4 * bounds[0] else "%.0e")
    return plot


def _small(values: Floats) -> Floats:
    """Half the bytes in the page, and seven digits are enough for a picture."""
    return drawable(values).astype(np.float32)


def _places(steps: Integers) -> Any:
    """Steps in half the bytes, unless they are too large for that."""
    return steps.astype(np.int32 if int(np.abs(steps[[0, -1]]).max(initial=0)) < 2**31 else np.float64)


# ---- one run ----


def _interactive(run: Run, rows: Integers) -> Any:
    from bokeh.models import Range1d

    span = Range1d(start=int(run.steps[0]), end=max(int(run.steps[-1]), int(run.steps[0]) + 1))
    source, tips = _source(run, rows), _tips(run)
    plots = [_loss_plot(run, source, tips, span)]
    if "lrs" in source.data:
        plots.append(_lr_plot(run, rows, source, tips, span))
    if "slopes" in source.data:
        plots.append(_slope_plot(source, tips, span))
    for plot in plots:
        _mark_commands(plot, run, named=plot is plots[0])
        _legend(plot)
    if run.reason_names:
        plots.append(_reason_rows(run, span))
    plots[-1].xaxis.axis_label = "optimizer step"
    return _stacked(plots)


def _source(run: Run, rows: Integers) -> Any:
    from bokeh.models import ColumnDataSource

    words = [
        f"{ACTIONS[action]}: {printable(run.reason_names[reason])}" if reason != NO_DECISION else "not recorded"
        for action, reason in zip(run.actions[rows].tolist(), run.reasons[rows].tolist(), strict=True)
    ]
    data: dict[str, Any] = {"step": _places(run.steps[rows]), "decision": words}
    for name in ("losses", "lrs", "smoothed", "best", "scales", "slopes"):
        if run.has(name):
            data[name] = _small(getattr(run, name)[rows])
    if "slopes" in data:
        data["slope_means"] = _small(run.slope_means()[rows])
    return ColumnDataSource(data)


def _tips(run: Run) -> list[tuple[str, str]]:
    """What hovering shows; these are templates, so no text of a file is in them."""
    tips = [("step", "@step"), ("loss" if run.monitor == "loss" else "metric", "@losses{0.00000}")]
    if run.has("smoothed"):
        tips += [("smoothed", "@smoothed{0.00000}"), ("recent best", "@best{0.00000}")]
    tips += [("LR", "@lrs{%.3e}")] if run.has("lrs") else []
    tips += [("scale", "@scales{0.0000}")] if run.has("scales") else []
    tips += [("slope", "@slopes{0.0000}"), ("mean slope", "@slope_means{0.0000}")] if run.has("slopes") else []
    return tips + ([("decision", "@decision")] if run.has_decisions else [])


def _hover(plot: Any, lines: list[Any], tips: list[tuple[str, str]]) -> None:
    from bokeh.models import HoverTool

    formats: Any = {"@lrs": "printf", "@value": "printf"}
    plot.add_tools(HoverTool(renderers=lines, mode="vline", line_policy="nearest", tooltips=tips, formatters=formats))


def _loss_plot(run: Run, source: Any, tips: list[tuple[str, str]], span: Any) -> Any:
    log = {"y_axis_type": "log"} if wide(run.losses) else {}
    monitor = _drawn(run.monitor)
    plot = _figure(300, x_range=span, y_axis_label=monitor, name="loss", **log)
    line = plot.line("step", "losses", source=source, color=RAW, line_width=1, legend_label=monitor)
    if "smoothed" in source.data:
        line = plot.line("step", "smoothed", source=source, color=SMOOTH, line_width=2, legend_label="smoothed")
        if "best" in source.data:
            plot.line("step", "best", source=source, color=BEST, line_dash="dashed", legend_label="recent best")
    _hover(plot, [line], tips)
    return plot


def _lr_plot(run: Run, rows: Integers, source: Any, tips: list[tuple[str, str]], span: Any) -> Any:
    from bokeh.models import ColumnDataSource

    plot = _lr_figure(300, run.lrs, x_range=span)
    line = plot.line("step", "lrs", source=source, color=LR, line_width=1.2, legend_label="learning rate")
    for action, what in MOVES.items():
        for code, name in enumerate(run.reason_names):
            shown = moved(run, rows, action, code)
            if len(shown):
                places = {"step": _places(run.steps[shown]), "lr": _small(run.lrs[shown])}
                plot.scatter(
                    "step",
                    "lr",
                    source=ColumnDataSource(places),
                    marker=MARKERS[action],
                    size=7 if len(shown) <= 500 else 4,
                    color=colour_of(name),
                    legend_label=f"{what}: {_drawn(name)}",
                )
    _hover(plot, [line], tips)
    return plot


def _slope_plot(source: Any, tips: list[tuple[str, str]], span: Any) -> Any:
    plot = _figure(180, x_range=span, y_axis_label="slope", name="slope")
    plot.line("step", "slopes", source=source, color=RAW, line_width=1, legend_label="slope")
    line = plot.line("step", "slope_means", source=source, color=SMOOTH, line_width=2, legend_label="its mean")
    _hover(plot, [line], tips)
    return plot


def _mark_commands(plot: Any, run: Run, named: bool) -> None:
    from bokeh.models.annotations import Label, Span

    for command in commands_of(run):
        at = command.step
        plot.add_layout(Span(location=at, dimension="height", line_color=COMMAND, line_dash="dotted"))
        if named:
            plot.add_layout(Label(x=at, y=4, y_units="screen", x_offset=4, text=str(command), text_color=COMMAND))


def _reason_rows(run: Run, span: Any) -> Any:
    """A row for each reason, a tick for each decision."""
    from bokeh.models import ColumnDataSource, FactorRange

    names = [_drawn(name) for name in run.reason_names]
    labels = [name if names.count(name) == 1 else f"{name} ({code})" for code, name in enumerate(names)]
    plot = _figure(28 * len(labels) + 60, x_range=span, y_range=FactorRange(factors=labels[::-1]), name="reasons")
    for code, label in enumerate(labels):
        steps = _places(ticks(run, code))
        source = ColumnDataSource({"step": steps, "reason": [label] * len(steps)})
        colour = colour_of(run.reason_names[code])
        plot.scatter("step", "reason", source=source, marker="dash", size=14, angle=math.pi / 2, color=colour)
    return plot


# ---- several runs ----


def _overview(runs: Sequence[Run], buckets: int) -> Any:
    """Losses and LRs of all runs; the colours repeat, so hovering says which run a curve is of."""
    from bokeh.models import ColumnDataSource

    above = _figure(320, y_axis_label="loss (smoothed if recorded)", name="loss")
    every = np.concatenate([run.lrs for run in runs])
    below = _lr_figure(280, every, x_range=above.x_range, x_axis_label="optimizer step")
    for plot, tip in ((above, "@value{%.5f}"), (below, "@value{%.3e}")):
        lines = []
        for i, run in enumerate(runs):
            rows = thinned(run, buckets)
            values = loss_to_show(run) if plot is above else run.lrs
            kept = rows[np.isfinite(values[rows])]
            name = _drawn(run.name)
            data = {"step": _places(run.steps[kept]), "value": _small(values[kept]), "run": [name] * len(kept)}
            colour, dash = RUN_COLOURS[i % len(RUN_COLOURS)], DASHES[i // len(RUN_COLOURS) % len(DASHES)]
            look = {"color": colour, "line_dash": dash, "line_width": 1.6}
            if len(runs) <= MOST_LEGENDS:
                look["legend_label"] = name
            lines.append(plot.line("step", "value", source=ColumnDataSource(data), **look))
        _hover(plot, lines, [("run", "@run"), ("step", "@step"), ("value", tip)])
        _legend(plot)
    return _stacked([above, below])
