"""What is likely to be wrong with a run that begins; `runs.doctor` looks at one that was recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from greedylr_integrations.bounds import BoundedConfig, per_group
from greedylr_integrations.controller import ControllerConfig
from greedylr_integrations.learning_rates import LearningRates
from greedylr_integrations.optimizers import unwrapped, why_not
from greedylr_integrations.rules.published import PublishedConfig

# LRs from the lowest to the highest that people train with, by a part of the optimizer's name
USUAL_LRS = {
    "sgd": (1e-4, 10.0),
    "muon": (1e-5, 1.0),
    "lion": (1e-7, 1e-2),
    "adam": (1e-7, 0.1),
    "adafactor": (1e-7, 0.1),
    "rmsprop": (1e-7, 0.1),
    "adagrad": (1e-5, 10.0),
    "adadelta": (1e-4, 100.0),
    "rprop": (1e-7, 1.0),
    "lamb": (1e-6, 1.0),
    "lars": (1e-4, 100.0),
}


def concerns(
    config: ControllerConfig, optimizer: Any, rates: LearningRates, horizon: int | None, first_pass: int | None
) -> list[str]:
    """A sentence for each thing that is likely to be wrong.

    Args:
        config (ControllerConfig): the rule and its settings.
        optimizer (torch.optim.Optimizer): whose LR is set.
        rates (LearningRates): base LRs, warmup, and the schedule that is multiplied, if there is one.
        horizon (int): decisions of the run. None if unknown.
        first_pass (int): decisions in the first pass over the data. None if all data is new.
    """
    name, why = type(unwrapped(optimizer)).__name__, why_not(optimizer)
    found = [_all_warmup(rates) or config.concern(horizon, first_pass)]
    if why is not None:
        found.append(f"{name} {why}: train with it without GreedyLR")
    elif rates.schedule is None:  # whose LRs are not known yet
        found.append(_about_lr(config, name, rates.base_lrs, horizon, first_pass))
    return [concern for concern in found if concern is not None]


def _all_warmup(rates: LearningRates) -> str | None:
    warmup, total = rates.envelope.linear_warmup_steps, rates.envelope.total_steps
    if total is None or warmup < total:
        return None
    return f"linear_warmup_steps={warmup} leaves no step for anything else: lower it, since the run has {total}"


def _about_lr(
    config: ControllerConfig, name: str, base_lrs: Sequence[float], horizon: int | None, first_pass: int | None
) -> str | None:
    """A sentence on the base LRs and their bounds; None if there is nothing wrong with them."""
    moving = [group for group, base_lr in enumerate(base_lrs) if base_lr > 0]
    if not moving:
        return "the base LR is 0, so nothing is trained: give the optimizer an LR above 0"
    if isinstance(config, BoundedConfig):
        scales = config.scale_bounds(base_lrs)
        lows, highs = ([base_lrs[group] * bounds[group] for group in moving] for bounds in scales)
    elif isinstance(config, PublishedConfig):
        lows, highs = (
            [per_group(bound, len(base_lrs))[group] for group in moving] for bound in (config.min_lr, config.max_lr)
        )
    else:
        return None
    lrs = [base_lrs[group] for group in moving]
    held = config.concern(horizon, first_pass) is not None
    searches = not held and config.searches(horizon, first_pass)
    scale = config.first_scale(horizon) if searches else 1.0
    starts = [lr * scale for lr in lrs]
    lowest, highest = _bound(config, "min"), _bound(config, "max")
    if all(low > lr for low, lr in zip(lows, lrs, strict=True)):
        return (
            f"the LR can only rise, because its lower bound ({lowest}) is above the base LR ({max(lrs):.2g}): lower the"
            " one, or raise the other"
        )
    if not held and lows == highs:
        return f"the LR cannot move, because its bounds are equal ({lowest}, {highest}): move them apart"
    if searches and all(start >= high for start, high in zip(starts, highs, strict=True)):
        return (
            f"there is nothing to search, because the search starts at {scale:g} x the base LR, and the upper bound"
            f" ({highest}) is no higher: raise the bound, or lower start_scale"
        )
    if isinstance(config, BoundedConfig):
        starts = [min(max(start, low), high) for start, low, high in zip(starts, lows, highs, strict=True)]
    if held or searches:
        lows = starts
    return _unusual(name, max(base_lrs), starts, lows, starts if held else highs)


def _bound(config: BoundedConfig | PublishedConfig, which: str) -> str:
    """The field that determines a bound, with its value."""
    field = f"{which}_lr" if getattr(config, f"{which}_lr") is not None else f"{which}_scale"
    value = getattr(config, field)
    return f"{field}={getattr(config, field.upper()) if value is None else value}"


def _unusual(
    name: str, base_lr: float, starts: Sequence[float], lows: Sequence[float], highs: Sequence[float]
) -> str | None:
    """A sentence if every LR that the run can reach, or starts at, is far from what is usual for this optimizer."""
    usual = next((lrs for part, lrs in USUAL_LRS.items() if part in name.lower()), None)
    if usual is None or "sign" in name.lower():  # SignSGD takes other LRs
        return None
    start, low, high = (float(f"{lr:.2g}") for lr in (min(starts), min(lows), max(highs)))  # as they are shown
    if start <= usual[1] and high >= usual[0]:
        return None
    if start > usual[1] and low < start:  # it may come down, but not before the harm is done
        reaches = f"starts at {start:.2g}"
    else:
        reaches = f"can only be {low:.2g}" if low == high else f"can only be between {low:.2g} and {high:.2g}"
    return (
        f"the LR of this run {reaches}, and usual LRs for {name} are between {usual[0]:g} and {usual[1]:g}: check the"
        f" base LR ({base_lr:.2g}) and its bounds"
    )
