"""PyPI shows the README without the other files, so a release is built with absolute links: REPOSITORY_URL=https://..."""

import os
import re
from pathlib import Path

from setuptools import setup

RELATIVE = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)\s]+)\)")


def readme(address: str) -> str:
    """The README with its relative links and pictures in the repository at this address; as it is without one."""
    text = Path(__file__).with_name("README.md").read_text(encoding="utf-8")

    def absolute(link: re.Match[str]) -> str:
        picture, label, path = link.groups()
        return f"{picture}[{label}]({address}/{'raw' if picture else 'blob'}/HEAD/{path})"

    return RELATIVE.sub(absolute, text) if address else text


setup(
    long_description=readme(os.environ.get("REPOSITORY_URL", "").rstrip("/")),
    long_description_content_type="text/markdown",
)
