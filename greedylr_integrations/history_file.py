"""The file of a history: appends to the history of this run, and leaves everything else alone.

It is JSON lines: a header, then one object for each decision and each command, written as they are made. A run that was
killed leaves at most an unfinished last line. A file belongs to one run, by the run's id in its header.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

from greedylr_integrations.log import logger

try:
    import fcntl
except ImportError:  # Windows has no locks of this kind
    fcntl = None  # type: ignore[assignment]

LONGEST_HEADER = 1 << 20  # bytes

_encode = json.JSONEncoder(allow_nan=False).encode


class HistoryFile:
    """Appends to the history of one run. Each line is in the hands of the operating system when `write` returns.

    A history of an earlier run at the same path is renamed and otherwise left alone. If the path is taken by anything
    else (a file that is not a history, a link, a pipe, a history that another process is writing), the history goes to
    a new file beside it. Both are logged as a WARNING.

    Attributes:
        path (str): where it is.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._descriptor: int | None = None
        self._begun = False
        self._early: list[Mapping[str, Any]] = []  # lines from before the beginning

    @property
    def waiting(self) -> int:
        """Number of lines that wait for the beginning."""
        return len(self._early)

    def begin(self, header: Mapping[str, Any], *, resumed: int, writes: bool) -> None:
        """Open the file for a run, whose id is `header["run"]`, after `resumed` optimizer steps.

        Only a rank that `writes` touches the file.
        """
        self._begun = True
        early, self._early = self._early, []
        if not writes:
            return
        try:
            self._descriptor = self._open(header["run"])
            begins = os.fstat(self._descriptor).st_size == 0
            self._line(header if begins else {"resumed": resumed, **header})
        except OSError as error:  # a full disk is not a reason to end a run
            self._give_up(error)
        for entry in early:
            self.write(entry)

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append a line; before `begin`, keep it until then."""
        if not self._begun:
            self._early.append(entry)
        elif self._descriptor is not None:
            try:
                self._line(entry)
            except OSError as error:
                self._give_up(error)

    def end(self) -> None:
        """Close the file; another `begin` continues in it."""
        self.close()
        self._begun, self._early = False, []

    def close(self) -> None:
        """Close the file: nothing more is written."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _give_up(self, error: OSError) -> None:
        logger.warning("GreedyLR stops writing to history_file %s: %s", self.path, error)
        self.close()

    def _open(self, run: str) -> int:
        os.makedirs(os.path.dirname(os.path.abspath(self.path)), exist_ok=True)
        names = _names(self.path)
        asked = next(names)
        descriptor, why_not = _claim(asked, run)
        while descriptor is None:
            self.path = next(names)
            descriptor, _ = _claim(self.path, run)
        if self.path != asked:
            logger.warning("GreedyLR writes its history to %s: %s %s", self.path, asked, why_not)
        return descriptor

    def _line(self, entry: Mapping[str, Any]) -> None:
        line = f"{_encode(entry)}\n".encode()
        assert self._descriptor is not None
        if os.write(self._descriptor, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_descriptor": None, "_begun": False}

    def __del__(self) -> None:
        self.close()


def _names(path: str) -> Iterator[str]:
    """The path, then path-2, path-3 and so on."""
    yield path
    stem, suffix = os.path.splitext(path)
    for number in count(2):
        yield f"{stem}-{number}{suffix}"


def _claim(path: str, run: str) -> tuple[int | None, str]:
    """Open a file for the history of a run, locked against other writers; or None, and why it cannot be."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return None, "is not a regular file"
    except FileNotFoundError:
        pass
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0), 0o666)
    why = "is being written by another process"
    if _lock(descriptor):
        end = os.fstat(descriptor).st_size
        owner = _owner(descriptor)
        if end == 0 or owner == run:
            _cut_unfinished_line(descriptor, end)
            return descriptor, ""
        why = "is not a GreedyLR history"
        if owner is not None:
            aside = next(name for name in _names(path) if not os.path.lexists(name))
            os.rename(path, aside)
            logger.warning(
                "GreedyLR renamed the history of an earlier run to %s, and writes its own to %s", aside, path
            )
            os.close(descriptor)
            return _claim(path, run)
    os.close(descriptor)
    return None, why


def _lock(descriptor: int) -> bool:
    """Keep other writers out until the descriptor is closed; False if another one is there."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _owner(descriptor: int) -> str | None:
    """Id of the run whose history a file is, empty if it has none; None if the file is not a history."""
    start = os.pread(descriptor, LONGEST_HEADER, 0)
    line, newline, _ = start.partition(b"\n")
    beginning = b'{"greedylr_history"'
    if not newline:  # a kill may have left less than a header
        return "" if line.startswith(beginning) or beginning.startswith(line) else None
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(header, dict) or "greedylr_history" not in header:
        return None
    owner = header.get("run", "")
    return owner if isinstance(owner, str) else ""


def _cut_unfinished_line(descriptor: int, size: int) -> None:
    end = size
    while end > 0:
        start = max(0, end - 4096)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        os.ftruncate(descriptor, end)
