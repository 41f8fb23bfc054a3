"""What the controller decided, in memory and on disk, and what that suggests for the next run.

On disk it is JSON lines: a header, then one object for each decision and each order, written as they are made. A run
that was killed leaves at most a torn last line.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from greedylr_integrations import columns
from greedylr_integrations.checks import as_json
from greedylr_integrations.control import Order
from greedylr_integrations.core import LOWER, RAISE, Action, Decision, Reason, logger

VERSION = 1
HISTORY_SIZE = 100_000  # decisions that are kept in memory


class Record(NamedTuple):
    """One decision in its place.

    Attributes:
        step: optimizer steps done when it was made.
        lrs: LR of each parameter group after it.
        envelope: factor of ramp and final decay in those LRs, from 0 to 1.
        decision: the decision.
        nonfinite: non-finite losses in a row up to this one; 0 with a controller that does not count them.
    """

    step: int
    lrs: tuple[float, ...]
    envelope: float
    decision: Decision
    nonfinite: int = 0


class OrderRecord(NamedTuple):
    """One order in its place: optimizer steps done when it was followed, its name and its value."""

    step: int
    order: str
    value: float | None

    def __str__(self) -> str:
        return str(Order(self.order, self.value))


class History(Sequence[Record]):
    """The last decisions of a run, 100,000 by default: a sequence of `Record`.

    A step leaves a tuple here; the record of it is made when somebody looks.
    """

    def __init__(self, size: int = HISTORY_SIZE) -> None:
        # step, LRs before scale and envelope, envelope, decision, non-finite losses in a row
        self.entries: deque[tuple[int, Sequence[float], float, Decision, int]] = deque(maxlen=size)

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Record]:
        return map(_made, self.entries)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [_made(entry) for entry in list(self.entries)[index]]
        return _made(self.entries[index])

    def pop(self) -> Record:
        """Take the last one back."""
        return _made(self.entries.pop())


def _made(entry: tuple[int, Sequence[float], float, Decision, int]) -> Record:
    step, bases, envelope, decision, nonfinite = entry
    scales = decision.scales if len(decision.scales) == len(bases) else decision.scales[:1] * len(bases)  # one for all
    lrs = tuple([lr * (scale * envelope) for lr, scale in zip(bases, scales, strict=True)])
    return Record(step, lrs, envelope, decision, nonfinite)


def steady_scales(records: Iterable[Record]) -> list[float]:
    """Scales of the first group, of the decisions outside warmup and final decay."""
    return [record.decision.scales[0] for record in records if record.envelope == 1.0]


def suggested_lr(scales: Sequence[float], base_lr: float) -> float | None:
    """The LR to start the next such run at: base LR x the scale that this run settled on.

    That is the median over the later half of the scales.

    Args:
        scales (sequence of float): as `steady_scales` gives them.
        base_lr (float): base LR of the first group.

    Returns:
        None if there are fewer than 10 scales.
    """
    if len(scales) < 10:
        return None
    return base_lr * median(scales[len(scales) // 2 :])


def shadow_summary(records: Sequence[Record], base_lr: float) -> str:
    """How the LR of the first group would have gone, ramp and final decay aside."""
    scales = [record.decision.scales[0] for record in records]
    high, low = (function(range(len(scales)), key=scales.__getitem__) for function in (max, min))
    actions = [record.decision.action for record in records]
    return (
        f"would have taken the LR from {base_lr:.3g} to {base_lr * scales[-1]:.3g} (highest"
        f" {base_lr * scales[high]:.3g} at step {records[high].step}, lowest {base_lr * scales[low]:.3g} at step"
        f" {records[low].step}, ramp and final decay aside); {actions.count(RAISE)} raises, {actions.count(LOWER)}"
        " lowerings"
    )


# ---- on disk ----

_encode = json.JSONEncoder(allow_nan=False).encode


class HistoryFile:
    """Appends to the history of one run. Each line is in the hands of the operating system when `write` returns."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.begun = False
        self._ours = False  # whether an earlier beginning was this object's
        self._opening: Mapping[str, Any] | None = None  # the line to write before the next
        self._descriptor: int | None = None
        self._writes = True

    def is_anothers(self, step: int) -> bool:
        """Whether a run at that step would write into the history of another."""
        return step == 0 and not self._ours and os.path.exists(self.path) and os.path.getsize(self.path) > 0

    def begin(self, step: int, header: Mapping[str, Any], writes: bool) -> None:
        """Say what the next line belongs to; only a rank that `writes` touches the file."""
        self._opening = {"resumed": step, **header}
        self._writes = writes
        self.begun = self._ours = True

    def write(self, entry: Record | OrderRecord) -> None:
        if not self._writes:
            return
        try:
            if self._descriptor is None:
                self._descriptor = self._open()
            if self._opening is not None:
                if not os.fstat(self._descriptor).st_size:
                    self._opening = {key: value for key, value in self._opening.items() if key != "resumed"}
                self._line(self._opening)
                self._opening = None
            self._line(_of_record(entry) if isinstance(entry, Record) else entry._asdict())
        except OSError as error:  # a full disk is no reason to end a run
            self._writes = False
            logger.warning("GreedyLR writes no more to history_file %s: %s", self.path, error)

    def _open(self) -> int:
        os.makedirs(os.path.dirname(os.path.abspath(self.path)), exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        self._cut_torn_line(descriptor)
        return descriptor

    @staticmethod
    def _cut_torn_line(descriptor: int) -> None:
        end = size = os.fstat(descriptor).st_size
        while end > 0:
            start = max(0, end - 4096)
            newline = os.pread(descriptor, end - start, start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            os.ftruncate(descriptor, end)

    def _line(self, entry: Mapping[str, Any]) -> None:
        line = f"{_encode(entry)}\n".encode()
        if os.write(self._descriptor, line) < len(line):  # type: ignore[arg-type]
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self, close: Any = os.close) -> None:  # bound here: when Python exits, `os` may be gone first
        if self._descriptor is not None:
            close(self._descriptor)
            self._descriptor = None

    __del__ = close

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_descriptor": None}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _of_record(record: Record) -> dict[str, Any]:
    step, lrs, envelope, (action, reason, scales, loss, smoothed, best), nonfinite = record
    return {
        "step": step,
        "loss": as_json(loss),
        "smoothed": _finite(smoothed),
        "best": _finite(best),
        "action": action._value_,
        "reason": reason._name_,
        "scales": scales if len(scales) == len(lrs) else scales[:1] * len(lrs),  # one for all
        "lrs": lrs,
        "envelope": envelope,
        "nonfinite": nonfinite,
    }


# ---- reading ----


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], list[Record], list[OrderRecord]]:
    """Header, decisions and commands of a history file.

    What a resume took back (steps after the one that it continued from) is left out, so that a run that was
    interrupted reads as one that was not; the header is that of the last resume. A torn last line, as a kill leaves
    it, is left out too.

    Args:
        path (path): the file that `history_file` named.

    Raises:
        OSError: if the file cannot be read.
        ValueError: for anything else, with file and line.
    """
    header, decisions, commands = columns.read(path, Reason.__members__)
    return header, list(_records(decisions)), [OrderRecord(step, *command) for step, command in commands]


def read_columns(path: str | os.PathLike[str]) -> tuple[dict[str, Any], columns.Columns, list[OrderRecord]]:
    """As `read`, with an array for each field in place of a record for each decision.

    Reasons that a later version may have written are kept by their names.
    """
    header, decisions, commands = columns.read(path)
    return header, decisions, [OrderRecord(step, *command) for step, command in commands]


def _records(decisions: columns.Columns) -> Iterator[Record]:
    actions, reasons = list(Action), [Reason[name] for name in decisions.reason_names]
    start = 0
    for row, count in enumerate(decisions.groups):
        groups = slice(start, start := start + count)
        seen = [column[row] for column in (decisions.smoothed, decisions.best)]
        decision = Decision(
            actions[decisions.actions[row]],
            reasons[decisions.reasons[row]],
            tuple(decisions.scales[groups]),
            decisions.losses[row],
            *(None if math.isnan(value) else value for value in seen),
        )
        lrs = tuple(decisions.lrs[groups])
        yield Record(decisions.steps[row], lrs, decisions.envelopes[row], decision, decisions.nonfinite[row])
