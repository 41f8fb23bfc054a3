"""The readme and the addresses of a release, which lead to REPOSITORY_URL=https://... if a build is given one."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)\s]+)\)")


def readme(text: str, address: str) -> str:
    """The README with its relative links and pictures in the repository at this address, as PyPI needs them."""

    def absolute(link: re.Match[str]) -> str:
        picture, label, path = link.groups()
        return f"{picture}[{label}]({address}/{'raw' if picture else 'blob'}/HEAD/{path})"

    return RELATIVE.sub(absolute, text) if address else text


def urls(address: str) -> dict[str, str]:
    if not address:
        return {}
    pages = {"Changelog": "blob/HEAD/CHANGELOG.md", "Documentation": "blob/HEAD/docs/index.md", "Issues": "issues"}
    return {"Source": address, **{name: f"{address}/{path}" for name, path in pages.items()}}


class CustomMetadataHook(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        address = os.environ.get("REPOSITORY_URL", "").rstrip("/")
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": readme(text, address)}
        metadata["urls"] = urls(address)
