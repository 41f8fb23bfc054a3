"""Finds the log of a run and tells what wrote it: `read(path)`.

It knows the history files of this package, `trainer_state.json` of Hugging Face's Trainer, TensorBoard directories,
the recipes' `metrics.json`, and CSV or JSON lines with a column for the loss, such as Lightning's `metrics.csv`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from greedylr_integrations.runs.histories import is_history, read_history
from greedylr_integrations.runs.logs import read_metrics, read_tensorboard, read_trainer_state
from greedylr_integrations.runs.run import Run, RunError, listed
from greedylr_integrations.runs.tables import read_csv, read_json_lines

EVENTS = "events.out.tfevents"
SETTINGS = (".yaml", ".yml", ".toml")


def read(path: str | os.PathLike[str], column: str | None = None, finite: bool = True) -> list[Run]:
    """The runs in a file or folder; several only from a recipe's `metrics.json`.

    Args:
        path (path): a file or a folder. In a folder the first of these counts: a history file, `trainer_state.json`
            (its own or that of the latest checkpoint), `metrics.csv` (its own or of the latest Lightning version),
            `metrics.json`, TensorBoard's event files.
        column (str): name of the loss. Default: the first of `LOSSES` that is there, ignoring case.
        finite (bool): whether to refuse a run without a finite loss. Default True.

    Raises:
        RunError: if there is nothing to read or it cannot be read.
    """
    given = Path(path)
    try:
        file, name = _find(given), given.resolve().name
        if file.name.startswith(EVENTS):
            runs = [read_tensorboard(given, name, column)]
        else:
            runs = _read_file(file, name, column)
    except OSError as error:
        raise RunError(f"{given}: {error.strerror or error}") from None
    except MemoryError:
        raise RunError(f"{given}: there is not enough memory to read this") from None
    for run in runs:
        if finite and not run.has("losses"):
            raise RunError(f"{given}: none of the {len(run)} losses is a finite number")
    return runs


def _find(path: Path) -> Path:
    if not path.exists():
        raise RunError(f"{path}: there is no such file or folder")
    if path.is_file() and path.suffix.lower() in SETTINGS:
        raise RunError(f"{path}: this is a file of settings, not the record of a run: name the run's output folder")
    if path.is_file():
        return path
    if not path.is_dir():
        raise RunError(f"{path}: this is neither a file nor a folder")
    histories = [file for file in sorted(path.glob("*.jsonl")) if file.is_file() and is_history(_head(file, 200))]
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
    ]
    for file in candidates:
        if file.is_file():
            return file
    for file in path.rglob(f"{EVENTS}*"):
        return file
    above = path.resolve().parent / "metrics.json"
    if above.is_file():
        raise RunError(f"{path}: no log of a run in this folder; name {path.parent}, which has a recipe's logs")
    raise RunError(
        f"{path}: no log of a run in this folder; looked for a GreedyLR history (*.jsonl), trainer_state.json,"
        " metrics.csv, metrics.json and TensorBoard's event files"
    )


def _number(folder: Path) -> int:
    digits = folder.name.replace("-", "_").rpartition("_")[2]
    return int(digits) if digits.isdecimal() and len(digits) < 20 else -1


def _head(file: Path, size: int) -> bytes:
    with file.open("rb") as stream:
        return stream.read(size)


def _read_file(file: Path, name: str, column: str | None) -> list[Run]:
    head = _head(file, 65536)
    if not head.strip():
        raise RunError(f"{file}: the file is empty")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise RunError(f"{file}: the text is UTF-16: save it as UTF-8")
    if b"\x00" in head:
        raise RunError(f"{file}: this is a binary file, not a log")
    if not head.lstrip().startswith(b"{"):
        return [read_csv(file, name, column)]
    first = _json_or_none(head.lstrip().split(b"\n", 1)[0])
    if is_history(head) or (isinstance(first, dict) and "greedylr_history" in first):
        _no_choice(file, column, "a GreedyLR history")
        return [read_history(file, name)]
    if isinstance(first, dict) and not {"log_history", "runs"} & first.keys():
        return [read_json_lines(file, name, column)]
    return _read_json(file, name, column)


def _read_json(file: Path, name: str, column: str | None) -> list[Run]:
    try:
        content = json.loads(file.read_bytes())
    except UnicodeDecodeError:
        raise RunError(f"{file}: the text is not UTF-8") from None
    except ValueError as error:
        raise RunError(f"{file}: this is neither JSON ({error}) nor JSON lines") from None
    except RecursionError:
        raise RunError(f"{file}: this JSON is nested too deeply for a log") from None
    if isinstance(content.get("log_history"), list):
        return [read_trainer_state(file, name, content, column)]
    if isinstance(content.get("runs"), list):
        _no_choice(file, column, "a recipe's metrics.json")
        return read_metrics(file, name, content)
    raise RunError(
        f"{file}: this JSON is neither a trainer_state.json (with log_history) nor a recipe's metrics.json (with runs):"
        f" it has {listed(list(content))}"
    )


def _no_choice(file: Path, column: str | None, what: str) -> None:
    if column is not None:
        raise RunError(f"{file}: {what} has one loss only: leave --column out")


def _json_or_none(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
