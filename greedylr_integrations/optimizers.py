"""Optimizers whose LR a schedule should not, or cannot, set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer

# How to recognize each kind, by its name or its parameter groups, and why a schedule does not work with it.
_KINDS: list[tuple[Callable[[str, Mapping[str, Any]], bool], str]] = [
    (
        lambda name, group: "schedulefree" in name or "weight_lr_power" in group,
        "is schedule-free and averages the weights instead of decaying the LR, so a schedule works against it",
    ),
    (
        lambda name, group: (
            name.startswith(("dadapt", "prodigy", "mechani"))
            or name in ("dog", "ldog")
            or ("d" in group and ("growth_rate" in group or "k" in group))
        ),
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


def check_optimizer(optimizer: Any) -> None:
    """Refuse an optimizer without an LR.

    Raises:
        ValueError: if a parameter group's LR is None, or the optimizer computes it, as Adafactor with `relative_step`.
    """
    raw = unwrapped(optimizer)
    if not isinstance(raw, Optimizer):
        return  # torch says what is wrong with it
    for group in optimizer.param_groups:
        if group["lr"] is None or group.get("relative_step"):
            raise ValueError(
                f"{type(raw).__name__} computes its own LR (lr={group['lr']}), so there is nothing to multiply: give it"
                " an lr and, for Adafactor, relative_step=False and warmup_init=False, or train without GreedyLR"
            )


def why_not(optimizer: Any) -> str | None:
    """Why GreedyLR should not set the LR of this optimizer, in words that continue its name; None if it may.

    Checked with schedulefree 1.4, prodigyopt 1.1, dadaptation 3.2, dog-optimizer 1.0, mechanic-pytorch 0.0.1 and the
    layer-wise dummies of transformers 5.23.
    """
    raw = unwrapped(optimizer)
    name, group = type(raw).__name__.lower(), raw.param_groups[0]
    return next((why for matches, why in _KINDS if matches(name, group)), None)


class _Groups:
    """Parameter groups without their parameters."""

    def __init__(self, param_groups: list[dict[str, Any]]) -> None:
        self.param_groups = param_groups


def without_parameters(optimizer: Any) -> Any:
    """What takes the optimizer's place when its run is over: its LRs."""
    kept = ("lr", "initial_lr")
    return _Groups([{key: float(group[key]) for key in kept if key in group} for group in optimizer.param_groups])


def refuse_accelerate(scheduler: Any) -> bool:
    """Refuse to be prepared by Accelerate, which steps what it prepares once for each process."""
    raise TypeError(
        f"Accelerate would step this {type(scheduler).__name__} once for each process: use GreedyLR of"
        " greedylr_integrations.accelerate, with the same arguments"
    )
