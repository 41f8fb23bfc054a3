"""`Run`: one training run as a table of columns, whatever it was read from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from greedylr_integrations.columns import ACTIONS, CommandRecord
from greedylr_integrations.decision import Action, Reason
from greedylr_integrations.suggestion import suggested_lr

LOSSES = ("loss", "train_loss", "train/loss", "training_loss", "train_loss_step", "train/loss_step", "loss/train")
STEPS = ("step", "global_step", "train/global_step", "iteration", "iter", "_step")
LRS = ("lr", "learning_rate", "train/learning_rate", "train/lr")
NO_DECISION = -1
RAISE, LOWER, HOLD = (ACTIONS.index(action.value) for action in (Action.RAISE, Action.LOWER, Action.HOLD))
LATEST_STEP = 10**12  # places in a picture are worked out in 64 bits

Floats = np.ndarray[Any, np.dtype[np.float64]]
Integers = np.ndarray[Any, np.dtype[Any]]


class RunError(ValueError):
    """A run that cannot be read or shown: one sentence that names the file and what is wrong."""


@dataclass
class Run:
    """One run as columns of one length, a row for each recorded loss; NaN stands for what was not recorded.

    Attributes:
        name: what to call it in a table.
        source: what it was read from, in words.
        steps: optimizer steps, as the record counts them.
        losses: the loss as it was recorded.
        lrs: LR of a parameter group: the one after the step if `lrs_are_next`, else the one of the step.
        scales: its scale.
        smoothed, best: the smoothed loss and the reference it was compared with; at a spike, `best` is its limit.
        slopes, distances: the slope and the distance that the decision saw.
        slope_means: the mean of the last slopes that it was made on.
        envelope: factor of warmup and final decay in the LRs.
        actions: index into `ACTIONS`, or `NO_DECISION`.
        reasons: index into `reason_names`, or `NO_DECISION`.
        reason_names: names of `Reason`; a file may have others.
        lrs_are_next: whether `lrs` are those that the decision of the row led to.
        group: index of that group: the first that moves.
        group_lrs: LRs of all groups, one row for each group, if there are several.
        commands: commands given while it ran.
        config: the configuration as `ControllerConfig.to_dict` writes it, if it was recorded.
        base_lrs, total_steps, monitor: as in the history file's header, if recorded.
        next_lr: the LR that the record itself suggests for the next run.
        notes: what a reader of this run should know about how it was read.
    """

    name: str
    source: str
    steps: Integers
    losses: Floats
    lrs: Floats
    scales: Floats
    smoothed: Floats
    best: Floats
    slopes: Floats
    distances: Floats
    slope_means: Floats
    envelope: Floats
    actions: Integers
    reasons: Integers
    reason_names: list[str] = field(default_factory=list)
    lrs_are_next: bool = False
    group: int = 0
    group_lrs: Floats | None = None
    commands: list[CommandRecord] = field(default_factory=list)
    config: dict[str, Any] | None = None
    base_lrs: list[float] | None = None
    total_steps: int | None = None
    monitor: str = "loss"
    next_lr: float | None = None
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def references(self) -> Floats:
        """What the smoothed loss was compared with: `best`, but where it is the limit that a spike exceeded, NaN."""
        return np.where(np.isfinite(self.smoothed), self.best, np.nan) if self.has("smoothed") else self.best

    @property
    def has_decisions(self) -> bool:
        return bool((self.actions != NO_DECISION).any())

    def has(self, column: str) -> bool:
        """Whether a column has any number."""
        return bool(np.isfinite(getattr(self, column)).any())

    def count(self, action: Action) -> int:
        return int((self.actions == ACTIONS.index(action.value)).sum())

    def reason(self, row: int) -> str:
        return "" if self.reasons[row] == NO_DECISION else self.reason_names[self.reasons[row]]

    def reason_counts(self) -> list[int]:
        """How often each of `reason_names` came up."""
        return np.bincount(self.reasons[self.reasons >= 0], minlength=len(self.reason_names)).tolist()

    def final_loss(self, share: float = 0.1) -> float:
        """Mean of the finite losses of the last tenth: a single batch says little."""
        tail = self.losses[-max(1, round(share * len(self))) :]
        tail = tail[np.isfinite(tail)]
        return float(tail.mean()) if len(tail) else math.nan

    def best_loss(self) -> float:
        """Best smoothed loss, or best loss if none was smoothed."""
        values = self.smoothed if self.has("smoothed") else self.losses
        values = values[np.isfinite(values)]
        if not len(values):
            return math.nan
        return float(values.max() if (self.config or {}).get("mode") == "max" else values.min())

    def suggested_lr(self) -> float | None:
        """The LR to start the next such run at; None if that was not recorded or the run was too short."""
        if self.next_lr is not None:
            return self.next_lr
        steady = self.scales[self.envelope == 1.0]
        if not self.base_lrs or not np.isfinite(steady).all():
            return None
        return suggested_lr(steady.tolist(), self.base_lrs[self.group])


def make_run(
    name: str,
    source: str,
    steps: Sequence[int] | Integers,
    losses: Sequence[float] | Floats,
    *,
    actions: Sequence[int] | Integers | None = None,
    reasons: Sequence[str] | None = None,
    **more: Any,
) -> Run:
    """A Run whose missing columns are NaN; `smoothed` as in a Decision; `reasons` are names, "" for no decision."""
    count = len(losses)
    floats: dict[str, Any] = {
        column: np.full(count, math.nan) if more.get(column) is None else np.asarray(more[column], dtype=np.float64)
        for column in ("lrs", "scales", "smoothed", "best", "slopes", "distances", "slope_means", "envelope")
    }
    by_slope = np.isfinite(floats["slopes"])
    if more.get("slope_means") is None and by_slope.any():  # such a decision has smoothed the slope, not the loss
        floats["slope_means"] = np.where(by_slope, floats["smoothed"], math.nan)
        floats["smoothed"] = np.where(by_slope, math.nan, floats["smoothed"])
    none = np.full(count, NO_DECISION, dtype=np.int8)
    run = Run(
        name=name,
        source=source,
        steps=np.asarray(steps, dtype=np.int64),
        losses=np.asarray(losses, dtype=np.float64),
        actions=none if actions is None else np.asarray(actions, np.int8),
        reasons=none,
        **floats,
        **{key: value for key, value in more.items() if key not in floats},
    )
    if reasons is not None:
        names = list(dict.fromkeys(reasons))
        code = {name: i for i, name in enumerate(names)}
        name_reasons(run, names, np.fromiter((code[name] for name in reasons), dtype=np.int16, count=count))
    return run


def name_reasons(run: Run, names: Sequence[str], codes: Integers) -> None:
    """Give a run its reasons, sorted as in `Reason`; `codes` are indices into `names`, of which "" is none."""
    known = list(Reason.__members__)
    used = {names[code] for code in np.unique(codes)} - {""}
    run.reason_names = sorted(used, key=lambda name: (known.index(name) if name in known else len(known), name))
    places = [run.reason_names.index(name) if name in used else NO_DECISION for name in names]
    run.reasons = np.asarray(places, dtype=np.int16)[codes] if places else np.asarray(codes, dtype=np.int16)


def from_log(
    file: Path, name: str, source: str, losses: tuple[Floats, Floats], lrs: tuple[Floats, Floats], **more: Any
) -> Run:
    """A run without decisions; each loss gets the LR that was logged last, at its step or before.

    Args:
        losses, lrs: their steps, and the values at them.
    """
    steps, values = as_steps(file, losses[0]), losses[1]
    if not len(values):
        raise RunError(f"{file}: there are no losses in it")
    notes: list[str] = more.pop("notes", [])
    # rows that a restart from an earlier step took back
    kept = steps <= np.minimum.accumulate(steps[::-1])[::-1]
    if not kept.all():
        notes = [*notes, f"{name}: {int((~kept).sum())} rows before a restart from an earlier step are left out"]
    steps, values = steps[kept], values[kept]
    aligned = np.full(len(values), math.nan)
    lr_steps = as_steps(file, lrs[0])
    if len(lr_steps):
        order = np.argsort(lr_steps, kind="stable")
        place = np.searchsorted(lr_steps[order], steps, side="right") - 1
        aligned[place >= 0] = lrs[1][order][place[place >= 0]]
    return make_run(name, source, steps, values, lrs=aligned, notes=notes, **more)


def as_steps(file: Path, numbers: Floats) -> Integers:
    """Steps as integers; RunError if a number cannot be one."""
    wrong = ~(np.abs(numbers) <= LATEST_STEP)
    if wrong.any():
        raise RunError(f"{file}: {numbers[wrong][0]:g} is not a step: it must be a number of at most 10^12")
    return numbers.astype(np.int64)


def sentence(reason: str) -> str:
    """What a reason's name means."""
    return Reason[reason].value if reason in Reason.__members__ else reason


def printable(text: object, longest: int = 200) -> str:
    """Text from a file, safe to show: unprintable characters, such as escape codes and line ends, are replaced.

    Everything that a picture, a page or the terminal shows of a file goes through this first.
    """
    shown = "".join(sign if sign.isprintable() else "\ufffd" for sign in str(text)[: longest + 1])
    return shown if len(shown) <= longest else shown[: longest - 3] + "..."


def number_of(value: Any, where: str) -> float:
    """A float from JSON, in which "nan", "inf" and "-inf" are numbers too; RunError with the place otherwise."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise RunError(f"{where} is {str(value)[:20]}..., which is too large") from None
    if isinstance(value, str) and value in ("nan", "inf", "-inf", "NaN", "Infinity", "-Infinity"):
        return float(value)
    raise RunError(f"{where} is {value!r:.60}, not a number")


def first_of(wanted: Sequence[str], names: Sequence[str]) -> str | None:
    """The first of the wanted names that is in `names`, ignoring case."""
    by_lower = {name.strip().lower(): name for name in reversed(names)}
    return next((by_lower[name] for name in wanted if name in by_lower), None)


def pick_loss(file: Path, names: Sequence[str], column: str | None) -> str:
    """Name of the loss."""
    if column is not None:
        if column in names:
            return column
        raise RunError(f"{file}: there is no column {column!r}; there are {listed(names)}")
    found = first_of(LOSSES, names)
    if found is None:
        raise RunError(f"{file}: no column is named like a training loss; name one with --column: {listed(names)}")
    return found


def pick_lr(names: Sequence[str]) -> str | None:
    """Name of the LR, if there is one."""
    # Lightning's LearningRateMonitor writes lr-AdamW, lr-AdamW/pg1
    monitored = [name for name in sorted(names) if name.lower().startswith("lr-")]
    return first_of(LRS, names) or next(iter(monitored), None) or first_of(("greedylr/lr",), names)


def listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"{name!r:.60}" for name in names[:12])
    return shown + (f" and {len(names) - 12} more" if len(names) > 12 else "") or "none"


def config_of(value: Any) -> Mapping[str, Any]:
    """`value` if it is an object of JSON, else an empty one."""
    return value if isinstance(value, dict) else {}
