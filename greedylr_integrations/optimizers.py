"""Optimizers whose LR a schedule should not, or cannot, set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

# What each kind has in its parameter groups or is named after, and what happens to a schedule's LR.
_KINDS: list[tuple[Callable[[str, Mapping[str, Any]], bool], str]] = [
    (
        lambda name, group: "schedulefree" in name or "weight_lr_power" in group,
        "is schedule-free and averages the weights instead of decaying the LR, so a schedule works against it",
    ),
    (
        lambda name, group: ("d" in group and "growth_rate" in group) or name in ("dog", "ldog"),
        "finds its own LR, and a schedule on top of it works against that",
    ),
    (
        lambda name, group: "dummy" in name,
        "is a placeholder: the optimizers that really step are hidden behind it, so their LR does not change",
    ),
]


def unwrapped(optimizer: Any) -> Any:
    """The optimizer in Accelerate's wrapper, or another."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def conflict(optimizer: Any) -> str | None:
    """Why GreedyLR should not set the LR of this optimizer, as the end of a sentence; None if there is no reason.

    Seen with schedulefree 1.4, prodigyopt 1.1, dadaptation 3.2, dog-optimizer 1.0 and the layer-wise dummies of
    transformers 5.23.
    """
    name, group = type(unwrapped(optimizer)).__name__.lower(), optimizer.param_groups[0]
    return next((text for matches, text in _KINDS if matches(name, group)), None)


def check_lrs(optimizer: Any) -> None:
    """Refuse an optimizer that has no LR to multiply.

    Raises:
        ValueError: if a parameter group's LR is None, as with Adafactor's `relative_step`.
    """
    for group in optimizer.param_groups:
        if group.get("relative_step") or group["lr"] is None:
            raise ValueError(
                f"{type(unwrapped(optimizer)).__name__} makes its own LR (lr={group['lr']}), so there is none to multiply: give it"
                " an lr and, for Adafactor, relative_step=False and warmup_init=False, or train without GreedyLR"
            )
