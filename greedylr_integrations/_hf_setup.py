"""Before Hugging Face's Trainer trains: what is refused, what is said, and the base LRs after a resume."""

from __future__ import annotations

import logging
from typing import Any
from weakref import WeakKeyDictionary

from greedylr_integrations import _hf_trainer
from greedylr_integrations.callbacks import Settings, SharedCallback
from greedylr_integrations.core import logger
from greedylr_integrations.optimizers import check_lrs, unwrapped

# the default, and schedules without a shape to miss
NOT_CHOSEN = ("linear", "constant", "constant_with_warmup")
_given_lrs: WeakKeyDictionary[Any, list[float]] = WeakKeyDictionary()  # base LRs of optimizers passed to a Trainer


def refuse(callback: SharedCallback, args: Any, optimizer: Any, lr_scheduler: Any = None, trainer: Any = None) -> None:
    """Refuse a second one that sets the LR, and an optimizer without an LR.

    Raises:
        ValueError: with what to drop.
    """
    if optimizer is not None:
        check_lrs(optimizer)
    kind, name, shadow = _kind(args), type(lr_scheduler).__name__, callback.settings.shadow
    if kind in ("greedy", "reduce_lr_on_plateau") and not shadow:
        raise ValueError(
            f"lr_scheduler_type={kind!r} follows a metric too, and only one can set the LR: drop it from the"
            " TrainingArguments, or drop GreedyLRCallback"
        )
    if name in ("GreedyLR", "ReduceLROnPlateau") and not shadow:
        raise ValueError(
            f"the Trainer was given a {name}, which follows a metric too, and only one can set the LR: leave it"
            " out of `optimizers`, or drop GreedyLRCallback"
        )
    callbacks = trainer.callback_handler.callbacks if trainer is not None else [callback]
    if sum(isinstance(each, type(callback)) for each in callbacks) > 1:
        raise ValueError("the Trainer has more than one GreedyLRCallback, and only one can set the LR: keep one")


def warn(settings: Settings, args: Any, trainer: Any, replaces: bool) -> None:
    """Say what becomes of the Trainer's own schedule, and that the loss of a reward trainer is none to follow."""
    kind = _kind(args)
    if replaces and not settings.shadow:
        chosen = settings.base_schedule is None and kind not in NOT_CHOSEN
        logger.log(
            logging.WARNING if chosen else logging.INFO,
            "GreedyLR is the schedule; lr_scheduler_type %r is set aside%s",
            kind,
            ": pass base_schedule='multiply' to keep it, or 'replace' not to be told" if chosen else "",
        )
    if settings.monitor == "loss" and _hf_trainer.is_rewarded(trainer):
        logger.warning(
            "the loss of %s is about 0 whatever the model learns: follow the reward instead, with"
            " GreedyLRCallback(monitor='reward', mode='max')",
            type(trainer).__name__,
        )


def _kind(args: Any) -> str:
    return str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))


# ---- base LRs ----


def remember_lrs(optimizer: Any) -> None:
    """Keep the base LRs of an optimizer that was passed to the Trainer, before a checkpoint is loaded into it."""
    if optimizer is not None:
        _given_lrs[unwrapped(optimizer)] = _base_lrs(optimizer)


def default_lr(optimizer: Any) -> float | None:
    """LR of the optimizer's groups that were made without one of their own."""
    lr = unwrapped(optimizer).defaults.get("lr")
    return None if lr is None else float(lr)


def configure_lrs(optimizer: Any, saved_default: float | None) -> None:
    """Give a resumed optimizer, which has a checkpoint's base LRs, those of this run, for `on_resume` to choose.

    They are known of an optimizer that was passed to the Trainer. Of another one, its `defaults` have the LR of the
    groups without one of their own, which are those that had the default LR in the checkpoint's run.
    """
    lrs = _base_lrs(optimizer)
    if saved_default is None and len(set(lrs)) == 1:  # in checkpoints written before the default was saved
        saved_default = lrs[0]
    default = default_lr(optimizer)
    now = _given_lrs.get(unwrapped(optimizer)) or [default if lr == saved_default else lr for lr in lrs]
    for group, lr in zip(optimizer.param_groups, now, strict=False):
        group["initial_lr"] = lr


def _base_lrs(optimizer: Any) -> list[float]:
    return [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
