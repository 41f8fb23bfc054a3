"""Before Hugging Face's Trainer trains: what is refused, what is logged, and the base LRs after a resume."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from math import ceil
from typing import Any
from weakref import WeakKeyDictionary

from greedylr_integrations._hf_metric import MonitoredMetric
from greedylr_integrations.callbacks import Settings, SharedCallback
from greedylr_integrations.controller import ControllerConfig
from greedylr_integrations.log import logger
from greedylr_integrations.optimizers import check_optimizer, unwrapped
from greedylr_integrations.rollback import NO_CHECKPOINTS

# the default, and schedules without a shape to miss
NOT_CHOSEN = ("linear", "constant", "constant_with_warmup")
# TRL's trainers whose loss is about 0 by construction, whatever the policy learns (1.16)
REWARDED = {"GRPOTrainer", "RLOOTrainer", "PPOTrainer", "OnlineDPOTrainer", "XPOTrainer", "NashMDTrainer"}
_given_lrs: WeakKeyDictionary[Any, list[float]] = WeakKeyDictionary()  # base LRs of optimizers passed to a Trainer


def refuse(callback: SharedCallback, args: Any, optimizer: Any, lr_scheduler: Any = None, trainer: Any = None) -> None:
    """Refuse anything else that sets the LR, and an optimizer without an LR.

    Raises:
        ValueError: if there is one; the message says what to drop.
    """
    if optimizer is not None:
        check_optimizer(optimizer)
    kind, name, shadow = kind_of(args), type(lr_scheduler).__name__, callback.settings.shadow
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
    if callback.config.needs_checkpoints and args.save_only_model and not shadow:
        raise ValueError(
            "snapshot_every=None is not allowed with save_only_model=True, whose checkpoints have no optimizer to put"
            " back: drop one of the two"
        )
    callbacks = trainer.callback_handler.callbacks if trainer is not None else [callback]
    if sum(isinstance(each, type(callback)) for each in callbacks) > 1:
        raise ValueError("the Trainer has more than one GreedyLRCallback, and only one can set the LR: keep one")


def warn(settings: Settings, args: Any, trainer: Any, replaces: bool) -> None:
    """Log what happens to the Trainer's own schedule, and that the loss of a reward trainer says nothing."""
    kind = kind_of(args)
    if replaces and not settings.shadow:
        chosen = settings.base_schedule is None and kind not in NOT_CHOSEN
        logger.log(
            logging.WARNING if chosen else logging.INFO,
            "GreedyLR is the schedule; lr_scheduler_type %r is set aside%s",
            kind,
            ": pass base_schedule='multiply' to keep it, or 'replace' to silence this" if chosen else "",
        )
    if settings.config.needs_checkpoints and not settings.shadow and args.save_strategy == "no":
        logger.warning("%s: set save_strategy and save_steps", NO_CHECKPOINTS)
    if settings.monitor == "loss" and is_rewarded(trainer):
        logger.warning(
            "the loss of %s is about 0, whatever the model learns: follow the reward instead, with"
            " GreedyLRCallback(monitor='reward', mode='max')",
            type(trainer).__name__,
        )


def warn_of_unsaved(callback: SharedCallback) -> None:
    """Log a WARNING if the Trainer re-created this callback from a checkpoint, which cannot hold all arguments."""
    lost = set(getattr(callback, "unsaved", ())) - set(callback.settings.unsaved())
    if lost:
        logger.warning(
            "the Trainer re-created GreedyLRCallback from the checkpoint, which cannot hold %s: leave"
            " restore_callback_states_from_checkpoint at False; GreedyLR does not need it to resume",
            " and ".join(sorted(lost)),
        )


def is_rewarded(trainer: Any) -> bool:
    """Whether it is one of TRL's trainers that follow a reward."""
    return any(base.__name__ in REWARDED for base in type(trainer).__mro__)


# ---- the length of a run ----


def steps_per_epoch(args: Any, train_dataloader: Any) -> int | None:
    """Optimizer steps in one pass over the data, counted as the Trainer does; None for a stream."""
    try:
        return max(1, ceil(len(train_dataloader) / args.gradient_accumulation_steps))
    except TypeError:
        return None


def warmup_steps(
    settings: Settings, config: ControllerConfig, args: Any, state: Any, per_epoch: int | None, replaces: bool
) -> int:
    """Optimizer steps of the warmup: the callback's if given, else the TrainingArguments', unless a search replaces it.

    Raises:
        ValueError: if a warmup was asked for, and another schedule has its own.
    """
    ours, theirs = settings.linear_warmup_steps, args.get_warmup_steps(state.max_steps)
    if ours and not replaces:
        raise ValueError(
            f"linear_warmup_steps={ours} is not allowed with base_schedule='multiply': the schedule has its own warmup"
        )
    if ours is not None or not replaces:
        return ours or 0
    if theirs and config.searches(state.max_steps, per_epoch):
        logger.warning(
            "the search for the LR takes the place of the %d warmup steps of the TrainingArguments: pass"
            " linear_warmup_steps=%d to GreedyLRCallback to have both",
            theirs,
            theirs,
        )
        return 0
    return theirs


def fall_back(args: Any, state: Any) -> MonitoredMetric:
    """What to follow if the loss of each step cannot be seen: the loss that the Trainer logs."""
    logger.warning(
        "GreedyLR cannot see the loss of each step in this Trainer and follows the logged one instead"
        " (logging_strategy %r, logging_steps %s)",
        str(getattr(args.logging_strategy, "value", args.logging_strategy)),
        state.logging_steps,
    )
    return MonitoredMetric("loss", args)


def kind_of(args: Any) -> str:
    """The `lr_scheduler_type` of TrainingArguments, as a word."""
    return str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))


# ---- a checkpoint ----


def attributes_of(entry: Any) -> Mapping[str, Any]:
    """What the callback left in a checkpoint's `trainer_state.json`; nothing if the entry is None.

    Raises:
        ValueError: if the entry is damaged.
    """
    attributes: Any = {} if entry is None else entry.get("attributes") if isinstance(entry, Mapping) else None
    if not isinstance(attributes, Mapping):
        raise ValueError(
            f"trainer_state.json has {entry!r:.80} for GreedyLRCallback, which is not what it saved: resume from"
            " another checkpoint"
        )
    return attributes


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
    """Give a resumed optimizer the base LRs of this run in place of the checkpoint's, so that `on_resume` can choose.

    If the optimizer was passed to the Trainer, this run's base LRs are known. Otherwise, the groups whose LR was the
    default in the checkpoint's run get the LR in the optimizer's `defaults`, and the others keep theirs.
    """
    lrs = _base_lrs(optimizer)
    if saved_default is None and len(set(lrs)) == 1:  # in checkpoints written before the default was saved
        saved_default = lrs[0]
    default = default_lr(optimizer)
    now = _given_lrs.get(unwrapped(optimizer)) or [
        default if default is not None and lr == saved_default else lr for lr in lrs
    ]
    for group, lr in zip(optimizer.param_groups, now, strict=False):
        group["initial_lr"] = lr


def _base_lrs(optimizer: Any) -> list[float]:
    return [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
