"""Reads CSV and JSON lines with a column for the loss."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

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
    arrow, reader = _arrow("lib"), _arrow("csv")
    titles, delimiter = _header(file)
    names = Names.of(file, titles, column)
    bad: list[tuple[int | None, str]] = []

    def skip(row: Any) -> str:
        bad.append((row.number, row.text))
        return "skip"

    try:
        table = reader.read_csv(
            _utf8(file),
            read_options=reader.ReadOptions(use_threads=False),
            parse_options=reader.ParseOptions(delimiter=delimiter, invalid_row_handler=skip),
            convert_options=reader.ConvertOptions(
                include_columns=names.given(),
                column_types=dict.fromkeys(names.given(), arrow.float64()),
                null_values=["", "null", "None"],
            ),
        )
    except (arrow.ArrowException, KeyError) as error:
        raise RunError(f"{file}: {str(error).splitlines()[0]}") from None
    torn = _last_line(file)
    for number, text in bad:
        if text != torn:  # the last line of a run that was killed
            raise RunError(f"{file}, line {number}: {text!r:.60} does not have {len(titles)} values as the header has")
    return _run(file, name, "CSV log", _numpy(table), names)


def read_json_lines(file: Path, name: str, column: str | None) -> Run:
    arrow, reader = _arrow("lib"), _arrow("json")
    titles = list(dict.fromkeys(title for _, entry in islice(_json_lines(file), 1000) for title in entry))
    names = Names.of(file, titles, column)
    schema = arrow.schema([(title, arrow.float64()) for title in names.given()])
    options = reader.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        columns = _numpy(reader.read_json(file, parse_options=options))
    except (arrow.ArrowException, KeyError):  # NaN, a torn last line, or broken: slower, and it can say where
        columns = _json_columns(file, names)
    return _run(file, name, "JSON lines", columns, names)


def _utf8(file: Path) -> Path | io.BytesIO:
    """The file, with U+FFFD for what is not UTF-8: pyarrow fails on such a line while it says what is wrong with it."""
    data = file.read_bytes()
    try:
        data.decode()
    except UnicodeDecodeError:
        return io.BytesIO(data.decode(errors="replace").encode())
    return file


def _arrow(module: str) -> Any:
    try:
        return import_module(f"pyarrow.{module}")
    except ImportError:
        raise RunError("reading CSV and JSON lines needs pyarrow: pip install 'greedylr_integrations[cli]'") from None


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


def _last_line(file: Path) -> str:
    """What is behind the last line's end: nothing, or a line that was not finished."""
    with file.open("rb") as raw:
        raw.seek(max(0, file.stat().st_size - 65536))
        return raw.read().rpartition(b"\n")[2].decode(errors="replace")


def _numpy(table: Any) -> dict[str, Floats]:
    compute = _arrow("compute")
    return {name: compute.fill_null(table[name], MISSING).to_numpy() for name in table.column_names}


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


def _json_columns(file: Path, names: Names) -> dict[str, Floats]:
    given = names.given()
    columns: dict[str, list[float]] = {title: [] for title in given}
    for number, entry in _json_lines(file):
        for title in given:
            value = entry.get(title)
            where = f"{file}, line {number}: {title}"
            columns[title].append(MISSING if value is None else number_of(value, where))
    return {title: np.asarray(values) for title, values in columns.items()}


def _json_lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of each line; a last line that was cut off by a kill is left out."""
    with file.open("rb") as stream:
        for number, line in enumerate(iter(partial(stream.readline, LONGEST_LINE), b""), 1):
            if not line.strip():
                continue
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
