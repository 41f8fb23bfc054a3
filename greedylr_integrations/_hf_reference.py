"""The slope's reference in a checkpoint of Hugging Face's Trainer: tensors, next to `trainer_state.json`.

Each rank that has a part of its own writes `greedylr_reference_<rank>.pt`, as the Trainer does with `rng_state_<rank>`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import Any

import torch

from greedylr_integrations.atomic import write_whole
from greedylr_integrations.distributed import rank, world_size
from greedylr_integrations.log import logger


def save(folder: str, state: Mapping[str, Any]) -> None:
    """Write the reference of a scheduler's state into a checkpoint's folder, whole or not at all."""
    slope = state["slope"]
    if slope["reference"] is None or not (slope["sharded"] or rank() == 0) or not os.path.isdir(folder):
        return
    path = _path(folder, rank())
    part = {name: slope[name] for name in ("reference", "sharded", "rank")}
    try:
        content = io.BytesIO()
        torch.save({**part, "world_size": world_size() or 1}, content)
        write_whole(path, content.getvalue())
    except OSError as error:  # no reason to end a run
        logger.warning("GreedyLR could not save the reference of its slope to %s: %s", path, error)


def load(state: Any, folder: str | None) -> Any:
    """A scheduler's saved state, with the reference from the checkpoint's folder, or without one if there is none."""
    if not isinstance(state, Mapping) or not isinstance(state.get("slope"), Mapping):
        return state  # nothing, or damaged, which the scheduler says
    path = next((path for path in (_path(folder or "", rank()), _path(folder or "", 0)) if os.path.exists(path)), None)
    if folder is None or path is None:
        return dict(state)
    try:
        part = torch.load(path, map_location="cpu", weights_only=True)
        if part.pop("world_size") != (world_size() or 1) and part["sharded"]:
            return dict(state)
    except Exception as error:  # whatever a damaged file leads to
        logger.warning("GreedyLR cannot read the reference of its slope in %s: %s", path, error)
        return dict(state)
    return {**state, "slope": {**state["slope"], **part}}


def _path(folder: str, of: int) -> str:
    return os.path.join(folder, f"greedylr_reference_{of}.pt")
