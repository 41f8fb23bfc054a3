"""Reads the logs of others: Hugging Face's trainer_state.json, TensorBoard's event files, a recipe's metrics.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from greedylr_integrations.columns import ACTIONS
from greedylr_integrations.runs.run import (
    NO_DECISION,
    Floats,
    Run,
    RunError,
    config_of,
    from_log,
    listed,
    make_run,
    number_of,
    pick_loss,
    pick_lr,
)


def _pairs(found: Sequence[tuple[Any, Any]]) -> tuple[Floats, Floats]:
    table = np.asarray(found, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


# ---- Hugging Face's Trainer ----


def read_trainer_state(file: Path, name: str, state: Mapping[str, Any], column: str | None) -> Run:
    rows = [row for row in state["log_history"] if isinstance(row, dict)]
    names = list(dict.fromkeys(key for row in rows for key in row))
    loss = pick_loss(file, names, column)

    def pairs(key: str | None) -> tuple[Floats, Floats]:
        found = [(row.get("step"), row[key]) for row in rows if key is not None and row.get(key) is not None]
        where = f"{file}: {key} in log_history"
        return _pairs([(number_of(step, where + "'s step"), number_of(value, where)) for step, value in found])

    total = state.get("max_steps")
    return from_log(
        file,
        name,
        "Trainer log",
        pairs(loss),
        pairs(pick_lr(names)),
        total_steps=total if isinstance(total, int) and not isinstance(total, bool) and total > 0 else None,
        monitor=loss,
        **_callback(name, state),
    )


def _callback(name: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """Configuration and base LRs of the callback that was saved with the Trainer's state."""
    saved = config_of(state.get("stateful_callbacks")).get("GreedyLRCallback")
    if saved is None:
        return {}
    config = config_of(config_of(saved).get("args")).get("config")
    controller = config_of(config_of(config_of(config_of(saved).get("attributes")).get("saved")).get("controller"))
    base_lrs = controller.get("base_lrs")
    try:
        numbers = [number_of(lr, "base_lrs") for lr in base_lrs] if isinstance(base_lrs, list) else None
    except RunError:
        numbers = None
    usable = numbers is None or all(math.isfinite(lr) and lr >= 0 for lr in numbers)
    told: dict[str, Any] = {
        "config": config if isinstance(config, dict) else None,
        "base_lrs": numbers if usable else None,
    }
    if None in told.values():
        what = " and ".join(key for key, value in told.items() if value is None)
        told["notes"] = [f"{name}: the saved callback does not say its {what}"]
    return told


# ---- recipes ----


def read_metrics(file: Path, name: str, content: Mapping[str, Any]) -> list[Run]:
    entries = content["runs"]
    runs = []
    for entry in entries:
        try:
            runs.append(_recipe_run(file, entry, name if len(entries) == 1 else entry["schedule"]))
        except RunError:
            raise
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise RunError(f"{file}: this is not what a recipe writes ({type(error).__name__}: {error})") from None
    if not runs:
        raise RunError(f"{file}: there is no run in it")
    return runs


def _recipe_run(file: Path, entry: Mapping[str, Any], name: str) -> Run:
    if not isinstance(name, str):
        raise RunError(f"{file}: schedule={name!r:.60} is not a name")
    losses, lrs = _pairs(entry["train_loss"]), _pairs(entry["learning_rate"])
    run = from_log(file, name, "recipe's metrics.json", losses, lrs)
    if entry.get("decisions"):
        run = _with_decisions(run, {decision["step"]: decision for decision in entry["decisions"]})
    if entry.get("next_learning_rate") is not None:
        run.next_lr = number_of(entry["next_learning_rate"], f"{file}: next_learning_rate")
    return run


def _with_decisions(run: Run, decisions: Mapping[int, Mapping[str, Any]]) -> Run:
    found = [decisions.get(int(step), {}) for step in run.steps]

    def column(key: str) -> list[float]:
        return [math.nan if decision.get(key) is None else number_of(decision[key], key) for decision in found]

    return make_run(
        run.name,
        run.source,
        run.steps,
        run.losses,
        lrs=run.lrs,
        scales=[number_of(decision["scales"][0], "scales") if decision else math.nan for decision in found],
        smoothed=column("smoothed"),
        best=column("best"),
        slopes=column("slope"),
        distances=column("distance"),
        actions=[ACTIONS.index(decision["action"]) if decision else NO_DECISION for decision in found],
        reasons=[str(decision["reason"]) if decision else "" for decision in found],
        notes=run.notes,
    )


# ---- TensorBoard ----


def read_tensorboard(path: Path, name: str, column: str | None) -> Run:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.util.tensor_util import make_ndarray
    except ImportError:
        raise RunError(
            f"{path}: reading TensorBoard's event files needs tensorboard: pip install tensorboard"
        ) from None
    folder = _event_folder(path)
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})  # 0: all points
    try:
        accumulator.Reload()
        tags = accumulator.Tags()
        scalars = [*tags["scalars"], *tags["tensors"]]
        names = pick_loss(path, scalars, column), pick_lr(scalars)
        found: list[list[tuple[float, float]]] = [[], []]
        for points, tag in zip(found, names, strict=True):
            if tag in tags["scalars"]:
                points += [(event.step, event.value) for event in accumulator.Scalars(tag)]
            elif tag is not None:
                points += [(e.step, float(make_ndarray(e.tensor_proto))) for e in accumulator.Tensors(tag)]
    except RunError:
        raise
    except Exception as error:  # its parser has no error of its own for damaged files
        raise RunError(f"{path}: TensorBoard cannot read this ({type(error).__name__}: {error})") from None
    return from_log(path, name, "TensorBoard log", *map(_pairs, found), monitor=names[0])


def _event_folder(path: Path) -> Path:
    if not path.is_dir() or list(path.glob("events.out.tfevents*")):
        return path
    folders = sorted({file.parent for file in path.rglob("events.out.tfevents*")})
    if len(folders) > 1:
        raise RunError(f"{path}: there are several TensorBoard runs, name one: {listed([*map(str, folders)])}")
    return folders[0]
