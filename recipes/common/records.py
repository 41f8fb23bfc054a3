"""A file of results with one JSON object per line, for work that may be stopped at any time."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class Records(dict[Any, Record]):
    """The records of a file by their keys. If two have the same key, the last one counts.

    A line that a kill left unfinished is skipped, and stays in the file as a separate line.

    Args:
        path (Path): the file, which is read if it exists.
        key (callable): returns the key of a record, or None if the record is to be in the file only.
    """

    def __init__(self, path: Path, key: Callable[[Record], Any]) -> None:
        super().__init__()
        self._path, self._key = path, key
        for line in path.read_bytes().splitlines() if path.exists() else ():
            with contextlib.suppress(json.JSONDecodeError, UnicodeDecodeError):
                self._take(json.loads(line))

    def add(self, record: Record) -> None:
        """Append a record to the file. On return, the operating system has it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a+b") as file:
            torn = file.tell() > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
            file.write(b"\n" * torn + json.dumps(record).encode() + b"\n")
        self._take(record)

    def _take(self, record: Record) -> None:
        key = self._key(record)
        if key is not None:
            self[key] = record
