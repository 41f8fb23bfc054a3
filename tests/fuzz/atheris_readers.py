"""Feeds bytes to the readers of runs, guided by the code that they reach.

Run as `atheris_readers.py CORPUS`, with libFuzzer's options behind.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["greedylr_integrations"]):
    from greedylr_integrations import history
    from greedylr_integrations.runs.find import read
    from greedylr_integrations.runs.run import RunError

FILE = Path(tempfile.mkdtemp()) / "file"


def feed(content: bytes) -> None:
    FILE.write_bytes(content)
    for reader, expected in ((read, RunError), (history.read, ValueError)):
        try:
            reader(FILE)
        except expected as error:
            assert "\n" not in str(error)


atheris.Setup(sys.argv, feed)
atheris.Fuzz()
