"""Reads what any training run left behind into one table of columns: `read(path)`.

It knows the history files of this package, `trainer_state.json` of Hugging Face's Trainer, TensorBoard directories,
the recipes' `metrics.json`, and CSV or JSON lines with a column for the loss, such as Lightning's `metrics.csv`.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from greedylr_integrations.core import HOLD, Action, Decision, Reason
from greedylr_integrations.history import OrderRecord, Record, suggested_lr

LOSSES = ("loss", "train_loss", "train/loss", "training_loss", "train_loss_step", "train/loss_step", "loss/train")
STEPS = ("step", "global_step", "train/global_step", "iteration", "iter", "_step")
LRS = ("lr", "learning_rate", "train/learning_rate", "train/lr", "greedylr/lr")
ACTIONS = [action.value for action in Action]  # a code in `Run.actions` is an index here
NO_DECISION = -1
MISSING = -sys.float_info.max  # stands for an empty cell while columns are read
BY_SENTENCE = {reason.value: reason.name for reason in Reason}

Floats = np.ndarray[Any, np.dtype[np.float64]]
Integers = np.ndarray[Any, np.dtype[np.int64]]


class RunError(ValueError):
    """A run that cannot be read: one sentence that names the file and what is wrong."""


@dataclass
class Run:
    """One run as columns of one length, a row for each recorded loss; NaN stands for what was not recorded.

    Attributes:
        name: what to call it in a table.
        source: what it was read from, in words.
        steps: optimizer steps done.
        losses: the loss as it was recorded.
        lrs: LR of the first parameter group.
        scales: its scale.
        smoothed, best: the smoothed loss and the reference it was compared with.
        envelope: factor of ramp and final decay in the LRs.
        actions: index into `ACTIONS`, or `NO_DECISION`.
        reasons: index into `reason_names`, or `NO_DECISION`.
        reason_names: names of `core.Reason`.
        group_lrs: LRs of all groups, one row a group, where there are several.
        orders: orders given while it ran.
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
    envelope: Floats
    actions: Integers
    reasons: Integers
    reason_names: list[str] = field(default_factory=list)
    group_lrs: Floats | None = None
    orders: list[OrderRecord] = field(default_factory=list)
    config: dict[str, Any] | None = None
    base_lrs: list[float] | None = None
    total_steps: int | None = None
    monitor: str = "loss"
    next_lr: float | None = None
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def has_decisions(self) -> bool:
        return bool((self.actions != NO_DECISION).any())

    def count(self, action: Action) -> int:
        return int((self.actions == ACTIONS.index(action.value)).sum())

    def reason(self, row: int) -> str:
        return "" if self.reasons[row] == NO_DECISION else self.reason_names[self.reasons[row]]

    def final_loss(self, share: float = 0.1) -> float:
        """Mean of the finite losses of the last tenth: a single batch says little."""
        tail = self.losses[-max(1, round(share * len(self))) :]
        tail = tail[np.isfinite(tail)]
        return float(tail.mean()) if len(tail) else math.nan

    def best_loss(self) -> float:
        """Best smoothed loss, or best loss where none was smoothed."""
        values = self.smoothed[np.isfinite(self.smoothed)]
        if not len(values):
            values = self.losses[np.isfinite(self.losses)]
        if not len(values):
            return math.nan
        return float(values.max() if (self.config or {}).get("mode") == "max" else values.min())

    def suggested_lr(self) -> float | None:
        """Where the next such run should start; None where that was not recorded or the run was too short."""
        if self.next_lr is not None:
            return self.next_lr
        steady = self.scales[self.envelope == 1.0]
        if not self.base_lrs or not np.isfinite(steady).all():
            return None
        records = [Record(0, (), 1.0, Decision(HOLD, Reason.FILLING, (scale,), 0.0)) for scale in steady.tolist()]
        return suggested_lr(records, self.base_lrs[0])


def make_run(
    name: str,
    source: str,
    steps: Sequence[int] | Integers,
    losses: Sequence[float] | Floats,
    *,
    actions: Sequence[int] | None = None,
    reasons: Sequence[str] | None = None,
    **more: Any,
) -> Run:
    """A Run whose missing columns are NaN; `reasons` are names, "" where there was no decision."""
    count = len(losses)
    columns: dict[str, Any] = {
        column: np.full(count, math.nan) if more.get(column) is None else np.asarray(more[column], dtype=np.float64)
        for column in ("lrs", "scales", "smoothed", "best", "envelope")
    }
    names: list[str] = []
    codes = np.full(count, NO_DECISION, dtype=np.int64)
    if reasons is not None:
        known = list(Reason.__members__)
        names = sorted(set(reasons) - {""}, key=lambda name: (known.index(name) if name in known else 99, name))
        code = {"": NO_DECISION, **{name: i for i, name in enumerate(names)}}
        codes = np.fromiter((code[name] for name in reasons), dtype=np.int64, count=count)
    return Run(
        name=name,
        source=source,
        steps=np.asarray(steps, dtype=np.int64),
        losses=np.asarray(losses, dtype=np.float64),
        actions=np.full(count, NO_DECISION, dtype=np.int64) if actions is None else np.asarray(actions, np.int64),
        reasons=codes,
        reason_names=names,
        **columns,
        **{key: value for key, value in more.items() if key not in columns},
    )


def sentence(reason: str) -> str:
    """What a reason's name means."""
    return Reason[reason].value if reason in Reason.__members__ else reason


# ---- finding and telling apart ----


def read(path: str | os.PathLike[str], column: str | None = None) -> list[Run]:
    """The runs in a file or folder; several only from a recipe's `metrics.json`.

    Args:
        path: a file or a folder. In a folder the first of these counts: a history file, `trainer_state.json` (its own
            or that of the latest checkpoint), `metrics.csv` (its own or of the latest Lightning version),
            `metrics.json`, TensorBoard's event files.
        column (str): name of the loss. Default: the first of `LOSSES` that there is, in any case.

    Raises:
        RunError: if there is nothing to read or it cannot be read.
    """
    given = Path(path)
    try:
        file = _find(given)
        if file.name.startswith("events.out.tfevents"):
            runs = [_read_tensorboard(given, column)]
        else:
            runs = _read_file(file, _name(given), column)
    except OSError as error:
        raise RunError(f"{given}: {error.strerror or error}") from None
    for run in runs:
        if not np.isfinite(run.losses).any():
            raise RunError(f"{given}: none of the {len(run)} losses is a finite number")
    return runs


def _name(path: Path) -> str:
    return path.resolve().name


def _find(path: Path) -> Path:
    if not path.exists():
        raise RunError(f"{path}: there is no such file or folder")
    if not path.is_dir():
        return path
    histories = [file for file in sorted(path.glob("*.jsonl")) if _is_history(file)]
    if len(histories) > 1:
        raise RunError(f"{path}: there are several histories, name one: {', '.join(file.name for file in histories)}")
    versions = sorted([*path.glob("lightning_logs/version_*"), *path.glob("version_*")], key=_number)
    candidates = [
        *histories,
        path / "trainer_state.json",
        *(folder / "trainer_state.json" for folder in sorted(path.glob("checkpoint-*"), key=_number, reverse=True)),
        path / "metrics.csv",
        *(folder / "metrics.csv" for folder in reversed(versions)),
        path / "metrics.json",
        *sorted(path.rglob("events.out.tfevents*")),
    ]
    for file in candidates:
        if file.is_file():
            return file
    raise RunError(
        f"{path}: no log of a run in this folder; looked for a GreedyLR history (*.jsonl), trainer_state.json,"
        " metrics.csv, metrics.json and TensorBoard's event files"
    )


def _number(folder: Path) -> int:
    digits = folder.name.replace("-", "_").rpartition("_")[2]
    return int(digits) if digits.isdigit() else -1


def _is_history(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(200).lstrip().startswith(b'{"greedylr_history"')


def _read_file(file: Path, name: str, column: str | None) -> list[Run]:
    with file.open("rb") as stream:
        head = stream.read(65536)
    if not head.strip():
        raise RunError(f"{file}: the file is empty")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise RunError(f"{file}: the text is UTF-16: save it as UTF-8")
    if b"\x00" in head:
        raise RunError(f"{file}: this is a binary file, not a log")
    if not head.lstrip().startswith(b"{"):
        return [_read_csv(file, name, column)]
    first = head.lstrip().split(b"\n", 1)[0]
    start = _json_or_none(first)
    if isinstance(start, dict) and "greedylr_history" in start:
        _no_choice(file, column, "a GreedyLR history")
        return [_read_history(file, name)]
    if isinstance(start, dict) and not {"log_history", "runs"} & start.keys():
        return [_read_json_lines(file, name, column, first)]
    try:
        content = json.loads(file.read_bytes())
    except UnicodeDecodeError:
        raise RunError(f"{file}: the text is not UTF-8") from None
    except ValueError as error:
        raise RunError(f"{file}: this is neither JSON ({error}) nor JSON lines") from None
    if isinstance(content.get("log_history"), list):
        return [_read_trainer_state(file, name, content, column)]
    if isinstance(content.get("runs"), list):
        _no_choice(file, column, "a recipe's metrics.json")
        return _read_metrics(file, name, content)
    raise RunError(
        f"{file}: this JSON is no log that is known here; there are trainer_state.json (log_history) and a recipe's"
        f" metrics.json (runs), this one has {', '.join(list(content)[:8])}"
    )


def _no_choice(file: Path, column: str | None, what: str) -> None:
    if column is not None:
        raise RunError(f"{file}: {what} has one loss only: leave --column out")


def _json_or_none(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _pick(file: Path, names: Iterable[str], column: str | None) -> str:
    """The column of the loss."""
    names = list(names)
    if column is not None:
        if column in names:
            return column
        raise RunError(f"{file}: there is no column {column!r}; there are {_listed(names)}")
    found = _first_of(LOSSES, names)
    if found is None:
        raise RunError(f"{file}: no column is named like a training loss; name one with --column: {_listed(names)}")
    return found


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:12])) + (f" and {len(names) - 12} more" if len(names) > 12 else "") or "none"


def _first_of(wanted: Sequence[str], names: Iterable[str]) -> str | None:
    by_lower = {name.strip().lower(): name for name in reversed(list(names))}
    return next((by_lower[name] for name in wanted if name in by_lower), None)


def _pick_lr(names: Iterable[str]) -> str | None:
    names = list(names)
    # Lightning's LearningRateMonitor writes lr-AdamW, lr-AdamW/pg1
    return _first_of(LRS, names) or next((name for name in sorted(names) if name.lower().startswith("lr-")), None)


def _from_log(
    file: Path, name: str, source: str, steps: Integers, losses: Floats, lr_steps: Integers, lrs: Floats, **more: Any
) -> Run:
    """A run without decisions; each loss gets the LR that was logged last, at its step or before."""
    if not len(losses):
        raise RunError(f"{file}: there are no losses in it")
    notes: list[str] = []
    # rows that a restart from an earlier step took back
    kept = steps <= np.minimum.accumulate(steps[::-1])[::-1]
    if not kept.all():
        notes.append(f"{name}: {int((~kept).sum())} rows before a restart from an earlier step are left out")
    steps, losses = steps[kept], losses[kept]
    aligned = np.full(len(losses), math.nan)
    if len(lrs):
        order = np.argsort(lr_steps, kind="stable")
        place = np.searchsorted(lr_steps[order], steps, side="right") - 1
        aligned[place >= 0] = lrs[order][place[place >= 0]]
    return make_run(name, source, steps, losses, lrs=aligned, notes=notes, **more)


# ---- CSV and JSON lines ----


def _arrow(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"pyarrow.{module}")
    except ImportError:
        raise RunError("reading CSV and JSON lines needs pyarrow: pip install 'greedylr_integrations[cli]'") from None


def _from_columns(file: Path, name: str, source: str, table: Mapping[str, Floats], names: _Names) -> Run:
    """A run from columns in which NaN is a value and `MISSING` an empty cell."""
    losses = table[names.loss]
    steps = table[names.step] if names.step else np.arange(1.0, len(losses) + 1)
    lrs = table[names.lr] if names.lr else np.full(len(losses), np.inf)
    if names.step:  # rows without a step belong to the last one seen
        known = np.isfinite(steps) & (steps != MISSING)
        steps = np.where(known, steps, 0.0)[np.maximum.accumulate(np.where(known, np.arange(len(steps)), 0))]
    numbers = steps.astype(np.int64)
    has_loss, has_lr = losses != MISSING, np.isfinite(lrs) & (lrs != MISSING)
    return _from_log(file, name, source, numbers[has_loss], losses[has_loss], numbers[has_lr], lrs[has_lr])


class _Names(NamedTuple):
    loss: str
    step: str | None
    lr: str | None

    @classmethod
    def of(cls, file: Path, names: Sequence[str], column: str | None) -> _Names:
        return cls(_pick(file, names, column), _first_of(STEPS, names), _pick_lr(names))

    def given(self) -> list[str]:
        return list(dict.fromkeys(name for name in self if name))


def _numpy(table: Any) -> dict[str, Floats]:
    import pyarrow.compute as compute

    return {name: compute.fill_null(table[name], MISSING).to_numpy() for name in table.column_names}


def _read_csv(file: Path, name: str, column: str | None) -> Run:
    arrow, reader = _arrow("lib"), _arrow("csv")
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            header = stream.readline()
    except UnicodeDecodeError:
        raise RunError(f"{file}: the text is not UTF-8") from None
    delimiter = max(",;\t", key=header.count)
    titles = next(csv.reader(io.StringIO(header), delimiter=delimiter))
    if len(set(titles)) < len(titles):
        raise RunError(f"{file}: columns have the same name: {_listed(titles)}")
    names = _Names.of(file, titles, column)
    bad: list[tuple[int | None, str]] = []

    def skip(row: Any) -> str:
        bad.append((row.number, row.text))
        return "skip"

    try:
        table = reader.read_csv(
            file,
            read_options=reader.ReadOptions(use_threads=False),
            parse_options=reader.ParseOptions(delimiter=delimiter, invalid_row_handler=skip),
            convert_options=reader.ConvertOptions(
                include_columns=names.given(),
                column_types=dict.fromkeys(names.given(), arrow.float64()),
                null_values=["", "null", "None"],
            ),
        )
    except (arrow.ArrowInvalid, arrow.ArrowKeyError) as error:
        raise RunError(f"{file}: {str(error).splitlines()[0]}") from None
    with file.open("rb") as raw:
        raw.seek(max(0, file.stat().st_size - 65536))
        torn = raw.read().rpartition(b"\n")[2].decode(errors="replace")
    for number, text in bad:
        if text != torn:  # the last line of a run that was killed
            raise RunError(f"{file}, line {number}: {text!r:.60} does not have {len(titles)} values as the header has")
    return _from_columns(file, name, "CSV log", _numpy(table), names)


def _read_json_lines(file: Path, name: str, column: str | None, first: bytes) -> Run:
    arrow, reader = _arrow("lib"), _arrow("json")
    names = _Names.of(file, _titles(file), column)
    schema = arrow.schema([(title, arrow.float64()) for title in names.given()])
    options = reader.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        columns = _numpy(reader.read_json(file, parse_options=options))
    except arrow.ArrowInvalid:  # NaN, a torn last line, or broken: slower, and it can say where
        columns = _json_columns(file, names)
    return _from_columns(file, name, "JSON lines", columns, names)


def _titles(file: Path) -> list[str]:
    """Fields of the first thousand lines."""
    return list(dict.fromkeys(title for _, entry in islice(_json_lines(file), 1000) for title in entry))


def _json_columns(file: Path, names: _Names) -> dict[str, Floats]:
    given = names.given()
    columns: dict[str, list[float]] = {title: [] for title in given}
    for number, entry in _json_lines(file):
        for title in given:
            value = entry.get(title)
            columns[title].append(MISSING if value is None else _number_of(value, f"{file}, line {number}: {title}"))
    return {title: np.asarray(values) for title, values in columns.items()}


def _number_of(value: Any, where: str) -> float:
    """A number; what JSON cannot say comes as "nan", "inf" or "-inf"."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if value in ("nan", "inf", "-inf", "NaN", "Infinity", "-Infinity"):
        return float(value)
    raise RunError(f"{where} is {value!r:.60}, not a number")


def _json_lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of each line; a last line that was cut off by a kill is left out."""
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except UnicodeDecodeError:
                raise RunError(f"{file}, line {number}: the text is not UTF-8") from None
            except (ValueError, RecursionError):
                if not line.endswith(b"\n"):
                    return
                raise RunError(f"{file}, line {number}: {line[:60]!r} is not JSON") from None
            if not isinstance(entry, dict):
                raise RunError(f"{file}, line {number}: {line[:60]!r} is not an object in braces")
            yield number, entry


# ---- history of this package ----


def _is(kind: type | tuple[type, ...]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind) and not isinstance(value, bool)


_HEADER: dict[str, Callable[[Any], bool]] = {
    "config": lambda value: value is None or isinstance(value, dict),
    "base_lrs": lambda value: isinstance(value, list) and all(map(_is((int, float)), value)),
    "total_steps": lambda value: value is None or _is(int)(value),
    "monitor": _is(str),
}


def _read_history(file: Path, name: str) -> Run:
    header: dict[str, Any] = {}
    steps: list[int] = []
    rows: list[tuple[float, ...]] = []  # loss, smoothed, best, envelope, action
    reasons: list[str] = []
    scales: list[float] = []
    lrs: list[list[float]] = []
    orders: list[OrderRecord] = []
    code = {action: i for i, action in enumerate(ACTIONS)}
    nan = math.nan
    for number, entry in _json_lines(file):
        if number == 1 or "resumed" in entry:
            if number == 1 and entry.get("greedylr_history") != 1:
                version = entry.get("greedylr_history")
                raise RunError(f"{file}: this history is of version {version!r}, known here is 1")
            for key, ok in _HEADER.items():
                if not ok(entry.get(key)):
                    raise RunError(f"{file}, line {number}: {key} of the header is {entry.get(key)!r:.60}")
            header = entry
            if number > 1:
                resumed = entry["resumed"]
                if not _is(int)(resumed):
                    raise RunError(f"{file}, line {number}: resumed is {resumed!r:.60}, not a step")
                kept = len(steps)
                while kept and steps[kept - 1] > resumed:
                    kept -= 1
                for column in (steps, rows, reasons, scales, lrs):
                    del column[kept:]  # type: ignore[attr-defined]
                orders = [order for order in orders if order.step <= resumed]
            continue
        try:
            if "order" in entry:
                orders.append(OrderRecord(int(entry["step"]), str(entry["order"]), entry["value"]))
                continue
            smoothed, best = entry["smoothed"], entry["best"]
            row = (
                float(entry["loss"]),
                nan if smoothed is None else smoothed,
                nan if best is None else best,
                entry["envelope"],
                code[entry["action"]],
            )
            steps.append(int(entry["step"]))
            scales.append(float(entry["scales"][0]))
            lrs.append(entry["lrs"])
            reasons.append(entry["reason"])
            rows.append(row)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise RunError(
                f"{file}, line {number}: this is neither a decision nor an order ({type(error).__name__}: {error})"
            ) from None
    if not steps:
        raise RunError(f"{file}: the history has no decision yet")
    try:
        columns = np.asarray(rows, dtype=np.float64)
        groups = np.full((max(map(len, lrs)), len(lrs)), nan)
        for i in range(len(groups)):
            groups[i] = [row[i] if i < len(row) else nan for row in lrs]
    except (TypeError, ValueError) as error:
        raise RunError(f"{file}: a decision has something that is not a number ({error})") from None
    return make_run(
        name,
        "GreedyLR history",
        steps,
        columns[:, 0],
        smoothed=columns[:, 1],
        best=columns[:, 2],
        envelope=columns[:, 3],
        actions=columns[:, 4],  # type: ignore[arg-type]
        reasons=reasons,
        scales=scales,
        lrs=groups[0],
        group_lrs=groups if len(groups) > 1 else None,
        orders=orders,
        **{key: header[key] for key in _HEADER},
    )


# ---- logs of others ----


def _read_trainer_state(file: Path, name: str, state: dict[str, Any], column: str | None) -> Run:
    rows = [row for row in state["log_history"] if isinstance(row, dict)]
    loss = _pick(file, dict.fromkeys(key for row in rows for key in row), column)

    def pairs(key: str | None) -> tuple[Integers, Floats]:
        found = [(row.get("step"), row[key]) for row in rows if key is not None and row.get(key) is not None]
        where = f"{file}: {key} in log_history"
        numbers = [(_number_of(step, where + "'s step"), _number_of(value, where)) for step, value in found]
        table = np.asarray(numbers, dtype=np.float64).reshape(-1, 2)
        return table[:, 0].astype(np.int64), table[:, 1]

    more: dict[str, Any] = {"total_steps": state.get("max_steps"), "monitor": loss}
    saved = (state.get("stateful_callbacks") or {}).get("GreedyLRCallback")
    if isinstance(saved, dict):
        more["config"] = (saved.get("args") or {}).get("config")
        controller = ((saved.get("attributes") or {}).get("saved") or {}).get("controller") or {}
        more["base_lrs"] = controller.get("base_lrs")
    lr = _pick_lr(key for row in rows for key in row)
    return _from_log(file, name, "Trainer log", *pairs(loss), *pairs(lr), **more)


def _read_metrics(file: Path, name: str, content: dict[str, Any]) -> list[Run]:
    runs = []
    for entry in content["runs"]:
        try:
            title = entry["schedule"] if len(content["runs"]) > 1 else name
            losses = np.asarray(entry["train_loss"], dtype=np.float64).reshape(-1, 2)
            rates = np.asarray(entry["learning_rate"], dtype=np.float64).reshape(-1, 2)
            run = _from_log(
                file,
                title,
                "recipe's metrics.json",
                losses[:, 0].astype(np.int64),
                losses[:, 1],
                rates[:, 0].astype(np.int64),
                rates[:, 1],
            )
            if entry.get("decisions"):
                run = _with_decisions(run, {decision["step"]: decision for decision in entry["decisions"]})
            run.next_lr = entry.get("next_learning_rate")
        except (KeyError, TypeError, ValueError, IndexError) as error:
            if isinstance(error, RunError):
                raise
            raise RunError(f"{file}: this is not what a recipe writes ({type(error).__name__}: {error})") from None
        runs.append(run)
    if not runs:
        raise RunError(f"{file}: there is no run in it")
    return runs


def _with_decisions(run: Run, decisions: Mapping[int, Mapping[str, Any]]) -> Run:
    found = [decisions.get(int(step), {}) for step in run.steps]

    def column(key: str) -> list[float]:
        return [math.nan if decision.get(key) is None else decision[key] for decision in found]

    return make_run(
        run.name,
        run.source,
        run.steps,
        run.losses,
        lrs=run.lrs,
        scales=[decision["scales"][0] if decision else math.nan for decision in found],
        smoothed=column("smoothed"),
        best=column("best"),
        actions=[ACTIONS.index(decision["action"]) if decision else NO_DECISION for decision in found],
        reasons=[BY_SENTENCE.get(decision["reason"], decision["reason"]) if decision else "" for decision in found],
        notes=run.notes,
    )


def _read_tensorboard(path: Path, column: str | None) -> Run:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        raise RunError(
            f"{path}: reading TensorBoard's event files needs tensorboard: pip install tensorboard"
        ) from None
    folder = path
    if path.is_dir() and not list(path.glob("events.out.tfevents*")):
        folders = sorted({file.parent for file in path.rglob("events.out.tfevents*")})
        if len(folders) > 1:
            raise RunError(f"{path}: there are several TensorBoard runs, name one: {_listed([*map(str, folders)])}")
        folder = folders[0]
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})  # 0: all points
    accumulator.Reload()
    tags = accumulator.Tags()
    scalars = [*tags["scalars"], *tags["tensors"]]

    def pairs(tag: str | None) -> tuple[Integers, Floats]:
        if tag is None:
            return np.zeros(0, np.int64), np.zeros(0)
        if tag in tags["scalars"]:
            found = [(event.step, event.value) for event in accumulator.Scalars(tag)]
        else:
            from tensorboard.util.tensor_util import make_ndarray

            found = [(event.step, float(make_ndarray(event.tensor_proto))) for event in accumulator.Tensors(tag)]
        table = np.asarray(found, dtype=np.float64).reshape(-1, 2)
        return table[:, 0].astype(np.int64), table[:, 1]

    loss = _pick(path, scalars, column)
    return _from_log(path, _name(path), "TensorBoard log", *pairs(loss), *pairs(_pick_lr(scalars)), monitor=loss)
