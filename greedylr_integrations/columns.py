"""Reads a history file, strictly, into columns: an array for each field in place of an object for each decision."""

from __future__ import annotations

import json
import math
import os
import sys
from array import array
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

from greedylr_integrations.decision import Action
from greedylr_integrations.steering import COMMANDS, Command, make_command

VERSIONS = (1, 2)  # version 2 has slopes and the run's id
ACTIONS = [action.value for action in Action]  # an index into it is a code in `Columns.actions`
MOST_REASONS = 100
MAX = sys.float_info.max
LONGEST_LINE = 1 << 24  # bytes; a header with a thousand parameter groups has some 20,000

Check = tuple[Callable[[Any], bool], str]  # and what a value must be, in words


def _is_number(value: Any) -> bool:  # called ten times a row, so short; a bool is of neither type, and NaN in no range
    return type(value) in (float, int) and -MAX <= value <= MAX


def _at_least(least: int) -> Check:
    return lambda value: type(value) is int and least <= value < 2**53, f"an integer of at least {least}"


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check[0](value), f"{check[1]}, or null"


def _not_negative(value: Any) -> bool:
    return type(value) is list and len(value) > 0 and all(_is_number(item) and item >= 0 for item in value)


NUMBER: Check = (_is_number, "a finite number")
NUMBERS: Check = (_not_negative, "a list of finite numbers of at least 0, one for each parameter group")
TEXT: Check = (lambda value: isinstance(value, str) and 0 < len(value) <= 1000, "text of at most 1000 characters")
HEADER: dict[str, Check] = {
    "greedylr_history": (lambda value: type(value) is int and value in VERSIONS, "1 or 2"),
    "config": (lambda value: value is None or isinstance(value, dict), "an object, or null"),
    "base_lrs": NUMBERS,
    "total_steps": _or_none(_at_least(1)),
    "monitor": TEXT,
    "world_size": _at_least(1),
}
COMMAND: dict[str, Check] = {
    "step": _at_least(0),
    "order": (lambda value: value in COMMANDS, "one of " + ", ".join(COMMANDS)),
    "value": _or_none(NUMBER),
}
DECISION: dict[str, Check] = {
    "step": _at_least(0),
    "loss": (lambda value: _is_number(value) or value in ("nan", "inf", "-inf"), 'a number, "nan", "inf" or "-inf"'),
    "smoothed": _or_none(NUMBER),
    "best": _or_none(NUMBER),
    "action": (lambda value: value in ACTIONS, "one of " + ", ".join(ACTIONS)),
    "reason": TEXT,
    "scales": NUMBERS,
    "lrs": NUMBERS,
    "envelope": (lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1"),
    "nonfinite": _at_least(0),
}
# version 2 has the run's id, unless the run began with version 1, and the numbers of decisions and commands before it
HEADER_OF_RUN = {
    **HEADER,
    "run": (lambda value: isinstance(value, str) and len(value) <= 1000, "text of at most 1000 characters"),
    "decisions": _at_least(0),
    "commands": _at_least(0),
}
SLOPE: Check = (lambda value: _is_number(value) and -1 <= value <= 1, "a number from -1 to 1")
DISTANCE: Check = (lambda value: _is_number(value) and value >= 0, "a finite number of at least 0")
DECISION_BY_SLOPE = {**DECISION, "slope": _or_none(SLOPE), "distance": _or_none(DISTANCE)}


def _checked(entry: Mapping[str, Any], schema: Mapping[str, Check], what: str) -> Mapping[str, Any]:
    """The entry if it fits the schema; otherwise, a ValueError that names every missing, unknown or wrong value."""
    if entry.keys() == schema.keys():
        for key, (check, _) in schema.items():
            if not check(entry[key]):
                break
        else:
            return entry
    faults = [f"{key} is missing" for key in schema if key not in entry]
    faults += [f"{key!r:.80} is unknown" for key in entry if key not in schema]
    faults += [
        f"{key}={entry[key]!r:.80} is not allowed: it must be {words}"
        for key, (check, words) in schema.items()
        if key in entry and not check(entry[key])
    ]
    raise ValueError(f"this is not {what}: {'; '.join(faults)}")


class CommandRecord(NamedTuple):
    """One command in its place: optimizer steps done when it was followed, its name and its value."""

    step: int
    order: str
    value: float | None

    def __str__(self) -> str:
        return str(Command(self.order, self.value))


class Columns:
    """The decisions of a history, an array for each field: a million of them take 80 MB.

    Attributes:
        steps (array of int): optimizer steps done.
        losses, smoothed, best, slopes, distances, envelopes (array of float): as in `history.Record`; NaN for None.
        nonfinite (array of int): non-finite losses in a row.
        actions (array of int): index into `ACTIONS`.
        reasons (array of int): index into `reason_names`.
        reason_names (list of str): names of `Reason`, in the order in which they came up.
        groups (array of int): number of parameter groups.
        scales, lrs (array of float): of all groups, so that one decision has as many entries as `groups` says.
    """

    def __init__(self) -> None:
        self.steps, self.nonfinite, self.groups = array("q"), array("q"), array("L")
        self.losses, self.smoothed, self.best = array("d"), array("d"), array("d")
        self.slopes, self.distances, self.envelopes = array("d"), array("d"), array("d")
        self.actions, self.reasons = array("b"), array("b")
        self.scales, self.lrs = array("d"), array("d")
        self._codes: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def reason_names(self) -> list[str]:
        return list(self._codes)

    def append(self, entry: Mapping[str, Any]) -> None:
        """One more decision, as the file has it."""
        if len(entry["scales"]) != len(entry["lrs"]):
            raise ValueError(f"there are {len(entry['scales'])} scales for {len(entry['lrs'])} LRs")
        self.steps.append(entry["step"])
        self.losses.append(float(entry["loss"]))
        for column, value in (
            (self.smoothed, entry["smoothed"]),
            (self.best, entry["best"]),
            (self.slopes, entry.get("slope")),
            (self.distances, entry.get("distance")),
        ):
            column.append(math.nan if value is None else value)
        self.envelopes.append(entry["envelope"])
        self.nonfinite.append(entry["nonfinite"])
        self.actions.append(ACTIONS.index(entry["action"]))
        self.reasons.append(self._codes.setdefault(entry["reason"], len(self._codes)))
        self.groups.append(len(entry["lrs"]))
        self.scales.extend(entry["scales"])
        self.lrs.extend(entry["lrs"])
        if len(self._codes) > MOST_REASONS:
            raise ValueError(f"there are more than {MOST_REASONS} different reasons")

    def until(self, step: int) -> int:
        """How many decisions there are up to a step."""
        kept = len(self)
        while kept and self.steps[kept - 1] > step:
            kept -= 1
        return kept

    def cut(self, kept: int) -> None:
        """Keep only the first decisions."""
        entries = sum(self.groups[kept:])
        for column in (self.scales, self.lrs):
            del column[len(column) - entries :]
        columns: tuple[array[Any], ...] = (
            *(self.steps, self.nonfinite, self.groups, self.losses, self.smoothed, self.best),
            *(self.slopes, self.distances, self.envelopes, self.actions, self.reasons),
        )
        for each in columns:
            del each[kept:]


def read(
    path: str | os.PathLike[str], reasons: Collection[str] | None = None
) -> tuple[dict[str, Any], Columns, list[CommandRecord]]:
    """Header, decisions and commands of a history file; see `history.read`.

    Args:
        path (path): the file.
        reasons (collection of str): the names that are allowed. Default None: any, since a later version may have more.

    Raises:
        OSError: if the file cannot be read.
        ValueError: for anything else, with file and line.
    """
    header: dict[str, Any] = {}  # the first one
    latest: dict[str, Any] = {}  # header of the last resume
    columns, step, commanded = Columns(), 0, 0  # steps of the last decision and the last command
    commands: list[CommandRecord] = []
    for number, line in _lines(path):
        try:
            entry = _object(line)
            if not header:
                header = latest = _header(entry)
            elif "resumed" in entry:
                latest, step = _resumed(header, entry)
                commanded = step
                _take_back(header, latest, step, columns, commands)
            elif "order" in entry:
                commands.append(_command(entry, commanded))
                commanded = entry["step"]
            else:
                columns.append(_decision(entry, latest, step, reasons))
                step = entry["step"]
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}, line {number}: {error}") from None
    if not header:
        raise ValueError(f"{os.fspath(path)}, line 1: there is no complete header of a GreedyLR history")
    now = {key: latest[key] for key in HEADER if key != "greedylr_history"}
    # the id and the counts are for the file itself, to tell runs and resumes apart
    return {**{key: header[key] for key in HEADER}, **now}, columns, commands


def _lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, bytes]]:
    """Number and text of each complete line; what comes after the last newline is unfinished, and left out."""
    with open(path, "rb") as file:
        for number, line in enumerate(iter(partial(file.readline, LONGEST_LINE), b""), 1):
            if line.endswith(b"\n"):
                yield number, line[:-1]
            elif len(line) == LONGEST_LINE:
                raise ValueError(f"{os.fspath(path)}, line {number}: the line is longer than {LONGEST_LINE:,} bytes")


def _object(line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError(f"{line!r:.80} is not JSON") from None
    if not isinstance(entry, dict):
        raise ValueError(f"{entry!r:.80} is not an object")
    return entry


def _header(entry: dict[str, Any]) -> dict[str, Any]:
    new = entry.get("greedylr_history") == 2 and "run" in entry
    _checked(entry, HEADER_OF_RUN if new else HEADER, "the header of a GreedyLR history of version 1 or 2")
    return entry


def _resumed(header: Mapping[str, Any], entry: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """The header of a resume, and the step that the run continued from."""
    _checked({"resumed": entry["resumed"]}, {"resumed": _at_least(0)}, "a resume")
    new = _header({key: value for key, value in entry.items() if key != "resumed"})
    if new.get("run", "") != header.get("run", new.get("run", "")):
        raise ValueError(f"the run {new.get('run')!r} resumes in the history of {header['run']!r}")
    return new, entry["resumed"]


def _take_back(
    header: Mapping[str, Any],
    resumed: Mapping[str, Any],
    step: int,
    columns: Columns,
    commands: list[CommandRecord],
) -> None:
    """Remove what was decided and commanded after the checkpoint that a resume continued from."""
    kept = [columns.until(step), bisect_right(commands, step, key=itemgetter(0))]
    if "decisions" in resumed and "decisions" in header:  # it may be older than a decision of the same step
        then = [max(resumed[key] - header[key], 0) for key in ("decisions", "commands")]
        kept = list(map(min, kept, then))
    columns.cut(kept[0])
    del commands[kept[1] :]


def _command(entry: Mapping[str, Any], earlier: int) -> CommandRecord:
    _checked(entry, COMMAND, "a command")
    _check_order(entry["step"], earlier)
    try:
        return CommandRecord(entry["step"], *make_command(entry["order"], entry["value"]))
    except TypeError as error:
        raise ValueError(f"this is not a command: {error}") from None


def _decision(
    entry: Mapping[str, Any], header: Mapping[str, Any], earlier: int, reasons: Collection[str] | None
) -> Mapping[str, Any]:
    new = header["greedylr_history"] == 2 and "slope" in entry
    if new and "distance" not in entry:  # the first files of version 2 had none
        entry = {"distance": None, **entry}
    _checked(entry, DECISION_BY_SLOPE if new else DECISION, "a decision")
    if reasons is not None and entry["reason"] not in reasons:
        raise ValueError(f"this is not a decision: reason={entry['reason']!r:.80} is not known in this version")
    _check_order(entry["step"], earlier)
    return entry


def _check_order(step: int, earlier: int) -> None:
    if step < earlier:
        raise ValueError(f"step {step} comes after step {earlier} without a resume in between")
