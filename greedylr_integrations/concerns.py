"""What is likely to be wrong with a run that begins; `runs.doctor` looks at one that was recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from greedylr_integrations.bounds import BoundedConfig
from greedylr_integrations.controller import ControllerConfig
from greedylr_integrations.optimizers import unwrapped

# LRs from the lowest to the highest that people train with, by a part of the optimizer's name
USUAL_LRS = {
    "sgd": (1e-4, 10.0),
    "muon": (1e-5, 1.0),
    "lion": (1e-7, 1e-2),
    "adam": (1e-7, 0.1),
    "adafactor": (1e-7, 0.1),
    "rmsprop": (1e-7, 0.1),
}


def concerns(
    config: ControllerConfig, optimizer: Any, base_lrs: Sequence[float], horizon: int | None, first_pass: int | None
) -> list[str]:
    """A sentence for each thing that is likely to be wrong.

    Args:
        config (ControllerConfig): the rule and its settings.
        optimizer (torch.optim.Optimizer): whose LR is set.
        base_lrs (sequence of float): base LR of each parameter group.
        horizon (int): decisions of the run. None if unknown.
        first_pass (int): decisions in the first pass over the data. None if all data is new.
    """
    found = [config.concern(horizon, first_pass), _unusual(config, optimizer, base_lrs, horizon, first_pass)]
    return [concern for concern in found if concern is not None]


def _unusual(
    config: ControllerConfig, optimizer: Any, base_lrs: Sequence[float], horizon: int | None, first_pass: int | None
) -> str | None:
    """A sentence if every LR that the run can reach is far from what is usual for this kind of optimizer; else None."""
    name = type(unwrapped(optimizer)).__name__
    signs = "sign" in name.lower()  # SignSGD takes other LRs
    usual = None if signs else next((lrs for part, lrs in USUAL_LRS.items() if part in name.lower()), None)
    moving = [group for group, base_lr in enumerate(base_lrs) if base_lr > 0]
    if usual is None or not moving or not isinstance(config, BoundedConfig):
        return None
    lows, highs = config.scale_bounds(base_lrs)
    if config.concern(horizon, first_pass) is not None:  # the base LR is held
        lows = highs = [1.0] * len(base_lrs)
    start = config.first_scale(horizon) if config.searches(horizon, first_pass) else 0.0
    lowest = min(base_lrs[group] * min(max(start, lows[group]), highs[group]) for group in moving)
    highest = max(base_lrs[group] * highs[group] for group in moving)
    if lowest <= usual[1] and highest >= usual[0]:
        return None
    between = f"{lowest:.2g}" if lowest == highest else f"between {lowest:.2g} and {highest:.2g}"
    return (
        f"the LR of this run can only be {between}, and usual LRs for {name} are between {usual[0]:g} and"
        f" {usual[1]:g}: check the base LR ({max(base_lrs):.2g}) and its bounds"
    )
