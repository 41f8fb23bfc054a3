"""Makes a page of each notebook in docs/notebooks, with the outputs that are stored in it; a hook of mkdocs."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ANSI = re.compile(r"\x1b\[[0-9;]*m")


def _joined(text: str | list[str]) -> str:
    return text if isinstance(text, str) else "".join(text)


def _output(output: dict[str, Any]) -> str:
    """As HTML: a picture or a table if there is one, else text."""
    data = output.get("data", {})
    if "image/png" in data:
        return f'<img alt="output of the cell above" src="data:image/png;base64,{_joined(data["image/png"]).strip()}">'
    if "text/html" in data:
        lines = (line.strip() for line in _joined(data["text/html"]).splitlines())
        return "<div>" + "".join(lines) + "</div>"  # no empty line, which would end the HTML
    text = ANSI.sub("", _joined(output.get("text") or data["text/plain"])).rstrip()
    lines = html.escape(text).replace("\n", "&#10;")
    return f'<pre><code style="white-space: pre-wrap">{lines}</code></pre>'


def page_of(notebook: dict[str, Any], name: str) -> str:
    """The notebook as Markdown."""
    parts = []
    for cell in notebook["cells"]:
        source = _joined(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        parts += [_output(output) for output in cell["outputs"]]
    parts.append(f"[Download this notebook]({name})")
    return "\n\n".join(parts) + "\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path in sorted((Path(config.docs_dir) / "notebooks").glob("*.ipynb")):
        page = page_of(json.loads(path.read_text()), path.name)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=page))
    return files
