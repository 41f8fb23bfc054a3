"""What the controller decided, in memory and on disk, and what that suggests for the next run.

See `history_file` for what is on disk.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from greedylr_integrations import columns
from greedylr_integrations.checks import as_json, check_hook
from greedylr_integrations.columns import CommandRecord
from greedylr_integrations.decision import Action, Decision, Reason
from greedylr_integrations.history_file import HistoryFile
from greedylr_integrations.steering import Command

VERSION = 2
HISTORY_SIZE = 100_000  # decisions that are kept in memory
SHOWN = 10  # decisions in the table of a notebook


class Record(NamedTuple):
    """One decision in its place.

    Attributes:
        step (int): optimizer steps done when it was made.
        lrs (tuple of float): LR of each parameter group after it.
        envelope (float): factor of warmup and final decay in those LRs, from 0 to 1.
        decision (Decision): the decision.
        nonfinite (int): non-finite losses in a row up to this one.
    """

    step: int
    lrs: tuple[float, ...]
    envelope: float
    decision: Decision
    nonfinite: int = 0

    def __str__(self) -> str:
        group = next((i for i, lr in enumerate(self.lrs) if lr > 0), 0)
        return self.of_group(group)

    def of_group(self, group: int) -> str:
        """The record in words, with LR and scale of a parameter group."""
        action, reason, scales, loss, *_ = self.decision
        lr = f"LR {self.lrs[group]:.3g} ({scales[group]:.3g} x the base LR)"
        return f"step {self.step:,}: loss {loss:.4g}, {action.value}, {lr}: {reason.value}"


class Entry(NamedTuple):
    """What is kept of a step; its `Record` is only made when it is read."""

    step: int
    bases: Sequence[float]  # LRs before scale and envelope
    envelope: float
    decision: Decision
    nonfinite: int

    def record(self) -> Record:
        pairs = zip(self.bases, self.decision.scales, strict=True)
        lrs = tuple([lr * (scale * self.envelope) for lr, scale in pairs])
        return Record(self.step, lrs, self.envelope, self.decision, self.nonfinite)


class History(Sequence[Record]):
    """The last decisions of a run, 100,000 by default: a sequence of `Record`.

    Attributes:
        group (int): index of the parameter group whose LR is shown.
    """

    def __init__(self, size: int = HISTORY_SIZE) -> None:
        self.group = 0
        self.entries: deque[Entry] = deque(maxlen=size)

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Record]:
        return map(Entry.record, self.entries)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [entry.record() for entry in list(self.entries)[index]]
        return self.entries[index].record()

    def pop(self) -> Record:
        """Remove the last decision and return it."""
        return self.entries.pop().record()

    def plot(self, name: str = "run") -> Any:
        """The picture of the run, as a matplotlib figure: loss, LR, slope, and each decision.

        In a notebook, end the line with a semicolon: the figure that is returned would be shown a second time.

        Args:
            name (str): what to call the run. Default "run".
        """
        from greedylr_integrations.runs import figures  # needs matplotlib

        decisions = columns.Columns()
        for record in self:
            decisions.append(row_of(record))
        return figures.plot(decisions, name, group=self._shown(self[-1]) if self else 0)

    def _shown(self, record: Record) -> int:
        return min(self.group, len(record.lrs) - 1)  # that group may have been added later

    def __repr__(self) -> str:
        if not self.entries:
            return "<History: no decision yet>"
        first, last = self.entries[0].step, self.entries[-1].record()
        return (
            f"<History: {len(self):,} decisions, steps {first:,} to {last.step:,}; {last.of_group(self._shown(last))}>"
        )

    def _repr_html_(self) -> str:
        """The latest decisions as a table, for notebooks."""
        rows = [("step", "loss", "LR", "scale", "action", "reason")]
        for entry in list(self.entries)[-SHOWN:]:
            step, lrs, _, (action, reason, scales, loss, *_), _ = record = entry.record()
            group = self._shown(record)
            lr, scale = lrs[group], scales[group]
            rows.append((f"{step:,}", f"{loss:.4g}", f"{lr:.3g}", f"{scale:.3g}", action.value, reason.value))
        cells = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
        return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


class Recorder:
    """Keeps the decisions and commands of a run, in memory and in a file if there is one.

    Args:
        file (path or HistoryFile): where they are written as well. Default None: nowhere.
        on_decision (callable): what is called with each `Record`. Default None: nothing.

    Attributes:
        file (HistoryFile): that file.
        history (History): the last decisions.
        commands (deque of CommandRecord): the last commands.
        tells (bool): whether `on_decision` is called.
        decision_count, command_count (int): how many there were since the start of the run, also before a resume.
    """

    def __init__(
        self,
        file: str | os.PathLike[str] | HistoryFile | None = None,
        on_decision: Callable[[Record], object] | None = None,
    ) -> None:
        check_hook("on_decision", on_decision, "a history.Record")
        self.file = file if isinstance(file, HistoryFile | None) else HistoryFile(file)
        self._on_decision = on_decision
        self.tells = on_decision is not None
        self.history = History()
        self._entries = self.history.entries
        self.commands: deque[CommandRecord] = deque(maxlen=HISTORY_SIZE)
        self.decision_count = self.command_count = 0

    def begin(self, header: Mapping[str, Any], *, resumed: int, writes: bool) -> None:
        """Begin the file, or continue in it after `resumed` optimizer steps; see `HistoryFile.begin`."""
        if self.file is not None:
            # commands that wait to be written come after this line
            counts = {"decisions": self.decision_count, "commands": self.command_count - self.file.waiting}
            entry = {"greedylr_history": VERSION, **header, **counts}
            self.file.begin(entry, resumed=resumed, writes=writes)

    def decision(self, step: int, bases: Sequence[float], envelope: float, decision: Decision, nonfinite: int) -> None:
        """Keep a decision, made after `step` optimizer steps. The LRs before scale and envelope must not change."""
        entry = Entry(step, bases, envelope, decision, nonfinite)
        self._entries.append(entry)
        self.decision_count += 1
        if self.file is None and self._on_decision is None:
            return
        record = entry.record()
        if self.file is not None:
            self.file.write(row_of(record))
        if self._on_decision is not None:
            self._on_decision(record)

    def command(self, step: int, command: Command) -> None:
        """Keep a command, followed after `step` optimizer steps."""
        record = CommandRecord(step, *command)
        self.commands.append(record)
        self.command_count += 1
        if self.file is not None:
            self.file.write(record._asdict())

    def rewind(self, decisions: int, commands: int) -> None:
        """Drop what came after so many decisions and commands: it is later than the checkpoint that was loaded."""
        for _ in range(min(self.decision_count - decisions, len(self.history))):
            self.history.pop()
        for _ in range(min(self.command_count - commands, len(self.commands))):
            self.commands.pop()
        self.decision_count, self.command_count = decisions, commands
        if self.file is not None:
            self.file.end()


def _finite_or_none(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def row_of(record: Record) -> dict[str, Any]:
    """A decision as a line of the history file has it, ready for JSON."""
    decision = record.decision
    return {
        "step": record.step,
        "loss": as_json(decision.loss),
        "smoothed": _finite_or_none(decision.smoothed),
        "best": _finite_or_none(decision.best),
        "slope": _finite_or_none(decision.slope),
        "distance": _finite_or_none(decision.distance),
        "action": decision.action.value,
        "reason": decision.reason.name,
        "scales": decision.scales,
        "lrs": record.lrs,
        "envelope": record.envelope,
        "nonfinite": record.nonfinite,
    }


# ---- what it suggests ----


def steady_scales(records: Iterable[Record], group: int = 0) -> list[float]:
    """Scales of a parameter group, of the decisions between warmup and final decay."""
    return [record.decision.scales[group] for record in records if record.envelope == 1.0]


# ---- reading ----


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], list[Record], list[CommandRecord]]:
    """Header, decisions and commands of a history file.

    Steps that a resume took back (those after the step that it continued from) are left out, so an interrupted run
    reads like one that was not; the header is that of the last resume. An unfinished last line, such as a killed run
    leaves, is left out too.

    Args:
        path (path): the file that `history_file` named.

    Raises:
        OSError: if the file cannot be read.
        ValueError: for anything else, with file and line.
    """
    header, decisions, commands = columns.read(path, Reason.__members__)
    return header, list(_records(decisions)), commands


def read_columns(path: str | os.PathLike[str]) -> tuple[dict[str, Any], columns.Columns, list[CommandRecord]]:
    """As `read`, with an array for each field in place of a record for each decision.

    Reasons that a later version may have written are kept by their names.
    """
    return columns.read(path)


def _records(decisions: columns.Columns) -> Iterator[Record]:
    actions, reasons = list(Action), [Reason[name] for name in decisions.reason_names]
    start = 0
    for row, count in enumerate(decisions.groups):
        groups = slice(start, start := start + count)
        columns_seen = (decisions.smoothed, decisions.best, decisions.slopes, decisions.distances)
        seen = [column[row] for column in columns_seen]
        decision = Decision(
            actions[decisions.actions[row]],
            reasons[decisions.reasons[row]],
            tuple(decisions.scales[groups]),
            decisions.losses[row],
            *(None if math.isnan(value) else value for value in seen),
        )
        lrs = tuple(decisions.lrs[groups])
        yield Record(decisions.steps[row], lrs, decisions.envelopes[row], decision, decisions.nonfinite[row])
