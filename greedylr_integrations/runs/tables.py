"""Reads CSV and JSON lines with a column for the loss."""

from __future__ import annotations

import csv
import io
import json
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from greedylr_integrations.checks import LARGEST_INTEGER
from greedylr_integrations.columns import LONGEST_LINE
from greedylr_integrations.runs.run import (
    STEPS,
    Floats,
    Run,
    RunError,
    first_of,
    from_log,
    listed,
    number_of,
    pick_loss,
    pick_lr,
)

MISSING = -sys.float_info.max  # stands for an empty cell while columns are read
EMPTY = ("", "null", "None")


class Names(NamedTuple):
    """What the columns are called."""

    loss: str
    step: str | None
    lr: str | None

    @classmethod
    def of(cls, file: Path, names: Sequence[str], column: str | None) -> Names:
        return cls(pick_loss(file, names, column), first_of(STEPS, names), pick_lr(names))

    def given(self) -> list[str]:
        return list(dict.fromkeys(name for name in self if name))


def read_csv(file: Path, name: str, column: str | None) -> Run:
    titles, delimiter = _header(file)
    names = Names.of(file, titles, column)
    columns = {title: array("d") for title in names.given()}
    places = [(title, titles.index(title), numbers) for title, numbers in columns.items()]
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
        rows = csv.reader(iter(partial(stream.readline, LONGEST_LINE), ""), delimiter=delimiter)
        try:
            next(rows)
            for row in rows:
                if len(row) == len(titles):
                    for title, place, numbers in places:  # noqa: B007 - the error below names it
                        cell = row[place]
                        numbers.append(MISSING if cell in EMPTY else float(cell))
                elif row and not (_is_torn(file) and next(rows, None) is None):
                    text = delimiter.join(row)
                    where = f"{file}, line {rows.line_num}"
                    raise RunError(f"{where}: {text!r:.60} does not have {len(titles)} values as the header has")
        except RunError:
            raise
        except csv.Error as error:
            raise RunError(f"{file}, line {rows.line_num}: this is not a row of CSV ({error})") from None
        except ValueError:
            raise RunError(f"{file}, line {rows.line_num}: {title} is {cell!r:.60}, not a number") from None
    return _run(file, name, "CSV log", _arrays(columns), names)


def read_json_lines(file: Path, name: str, column: str | None) -> Run:
    titles = list(dict.fromkeys(title for _, entry in islice(_json_lines(file), 1000) for title in entry))
    names = Names.of(file, titles, column)
    columns = {title: array("d") for title in names.given()}
    for number, entry in _json_lines(file):
        for title, numbers in columns.items():
            value = entry.get(title)
            if type(value) is float or (type(value) is int and abs(value) <= LARGEST_INTEGER):
                numbers.append(value)
            else:
                numbers.append(MISSING if value is None else number_of(value, f"{file}, line {number}: {title}"))
    return _run(file, name, "JSON lines", _arrays(columns), names)


def _arrays(columns: Mapping[str, array[float]]) -> dict[str, Floats]:
    return {title: np.frombuffer(numbers, dtype=np.float64) for title, numbers in columns.items()}


def _header(file: Path) -> tuple[list[str], str]:
    """Titles of a CSV file, and what separates them."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            header = stream.readline(LONGEST_LINE)
        delimiter = max(",;\t", key=header.count)
        titles = next(csv.reader(io.StringIO(header), delimiter=delimiter), [])
    except UnicodeDecodeError:
        raise RunError(f"{file}: the text is not UTF-8") from None
    except csv.Error as error:
        raise RunError(f"{file}, line 1: this is not a header of CSV ({error})") from None
    if len(set(titles)) < len(titles):
        raise RunError(f"{file}: columns have the same name: {listed(titles)}")
    return titles, delimiter


def _is_torn(file: Path) -> bool:
    """Whether the last line was not finished, because the run was killed."""
    with file.open("rb") as raw:
        raw.seek(max(0, file.stat().st_size - 1))
        return raw.read() != b"\n"


def _run(file: Path, name: str, source: str, table: Mapping[str, Floats], names: Names) -> Run:
    """A run from columns in which NaN is a value and `MISSING` an empty cell."""
    losses = table[names.loss]
    steps = table[names.step] if names.step else np.arange(1.0, len(losses) + 1)
    if names.step:  # rows without a step belong to the last one seen
        known = np.isfinite(steps) & (steps != MISSING)
        steps = np.where(known, steps, 0.0)[np.maximum.accumulate(np.where(known, np.arange(len(steps)), 0))]
    has_loss = losses != MISSING
    lrs = table[names.lr] if names.lr else np.full(len(losses), np.inf)
    has_lr = np.isfinite(lrs) & (lrs != MISSING)
    return from_log(file, name, source, (steps[has_loss], losses[has_loss]), (steps[has_lr], lrs[has_lr]))


def _json_lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of each line; a last line that was cut off by a kill is left out."""
    with file.open("rb") as stream:
        lines = enumerate(iter(partial(stream.readline, LONGEST_LINE), b""), 1)
        while block := list(islice(lines, 1000)):
            block = [(number, line) for number, line in block if line.strip()]
            yield from _at_once(block) or _one_by_one(file, block)


def _at_once(block: list[tuple[int, bytes]]) -> list[tuple[int, dict[str, Any]]]:
    """Faster than one by one; nothing if a line is not an object."""
    try:
        entries = json.loads(b"[" + b",".join(line for _, line in block) + b"]")
    except (ValueError, RecursionError):
        return []
    whole = len(entries) == len(block) and all(isinstance(entry, dict) for entry in entries)
    return [(number, entry) for (number, _), entry in zip(block, entries, strict=True)] if whole else []


def _one_by_one(file: Path, block: list[tuple[int, bytes]]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in block:
        try:
            entry = json.loads(line)
        except UnicodeDecodeError:
            raise RunError(f"{file}, line {number}: the text is not UTF-8") from None
        except (ValueError, RecursionError):
            if not line.endswith(b"\n") and len(line) < LONGEST_LINE:
                return
            raise RunError(f"{file}, line {number}: {line[:60]!r} is not JSON") from None
        if not isinstance(entry, dict):
            raise RunError(f"{file}, line {number}: {line[:60]!r} is not an object in braces")
        yield number, entry
