"""One HTML page about runs, with zoom and hover. It is complete in itself and loads nothing."""

from __future__ import annotations

import html
import json
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from greedylr_integrations.runs.interactive import Plots, overview, scripts
from greedylr_integrations.runs.run import Run, RunError, printable, sentence
from greedylr_integrations.runs.thin import buckets_for, thinned

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
.plot {{ min-height: 600px }}
</style>
{scripts}
</head>
<body>
<h1>{title}</h1>
{body}
<script nonce="{key}">
const visible = new IntersectionObserver(entries => entries.filter(entry => entry.isIntersecting).forEach(entry => {{
    visible.unobserve(entry.target);
    Bokeh.embed.embed_item(JSON.parse(entry.target.nextElementSibling.textContent), entry.target.id);
}}), {{rootMargin: "600px"}});
document.querySelectorAll(".plot").forEach(plot => visible.observe(plot));
</script>
</body>
</html>
"""


def page(runs: Sequence[Run], headings: Sequence[str], table: Sequence[Sequence[str]], path: Path) -> None:
    """One HTML file with everything in it: curves with zoom and hover, the table, each run's configuration."""
    key = secrets.token_hex(16)
    libraries = "\n".join(f'<script nonce="{key}">{script}</script>' for script in scripts())
    buckets, plots = buckets_for(runs), Plots()
    parts = [_table(headings, table)]
    if len(runs) > 1:
        parts.append(_plot("overview", overview(runs, max(1, buckets // 2))))
    for number, run in enumerate(runs):
        rows = thinned(run, buckets)
        plot = _plot(f"run-{number}", plots.of(run, rows, number))
        parts += [f"<h2>{_html(run.name)}</h2>", plot, _about(run, len(rows))]
    title = "GreedyLR: " + _html(", ".join(run.name for run in runs[:4]) + (" ..." if len(runs) > 4 else ""))
    text = PAGE.format(title=title, scripts=libraries, body="\n".join(parts), key=key)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path}: {error.strerror or error}") from None


def _html(text: object) -> str:
    """Text as HTML: all text of a page goes through this, or through `interactive.drawn`."""
    return html.escape(printable(text, 1000))


def _plot(name: str, item: Any) -> str:
    """A plot that is drawn when it comes into view, and its data; no text in these can end the script's element."""
    data = json.dumps(item, allow_nan=False).replace("<", "\\u003c")
    return f'<div class="plot" id="{name}"></div><script type="application/json">{data}</script>'


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
    counted = zip(run.reason_names, run.reason_counts(), strict=True)
    reasons = [(name, f"{count:,} x {sentence(name)}") for name, count in counted]
    return (f"<h3>Decisions</h3>{_listed(reasons)}" if reasons else "") + f"<h3>Record</h3>{_listed(facts.items())}"


def _listed(pairs: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{_html(key)}</dt><dd>{_html(value)}</dd>" for key, value in pairs) + "</dl>"
