"""The fields of all rules as keyword arguments, so that an editor and a type checker see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict


class ConfigFields(TypedDict, total=False):
    """Fields of `SlopeConfig`, `GreedyConfig`, `PaperConfig` and `TransformersConfig`, documented there."""

    mode: str | None
    every_n_steps: int
    on_nonfinite: str
    on_spike: str | None
    snapshot_every: int | None
    on_resume: str
    min_scale: float | None
    max_scale: float | None
    min_lr: float | Sequence[float] | None
    max_lr: float | Sequence[float] | None
    start_scale: float | None
    doubling: float | None
    on_missing_slope: str
    factor: float | None
    patience: int
    window_size: int | None
    best_window: int | None
    threshold: float
    threshold_mode: str
    warmup: int
    cooldown: int
    pace: float
    reset_start: int | None
    eps: float
    smooth: bool
    verbose: bool
