"""Another schedule of the same optimizer, which GreedyLR multiplies: it gets its own LRs back whenever it steps."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau


def write_lr(group: dict[str, Any], lr: float) -> None:
    """Set the LR of a parameter group."""
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(lr)  # in place: a captured or compiled step holds this very tensor
    else:
        group["lr"] = lr


class BaseSchedule:
    """A schedule, its LRs, and whether they are the ones in the optimizer at the moment.

    Args:
        schedule (LRScheduler): a schedule of the same optimizer that steps without a metric.
        optimizer (torch.optim.Optimizer): the optimizer, wrapped or not.
        shadow (bool): whether the optimizer has the schedule's LRs all the time.

    Attributes:
        lrs (list of float): the schedule's LR of each parameter group now.
        ramping (bool): whether the LRs are still in their first rise.
        lent (bool): whether the optimizer has the schedule's own LRs, so that their owner can step it.
    """

    def __init__(self, schedule: LRScheduler, optimizer: Optimizer, shadow: bool) -> None:
        same = getattr(schedule, "optimizer", None)
        if isinstance(schedule, ReduceLROnPlateau) or same is None or same.param_groups is not optimizer.param_groups:
            raise ValueError(
                f"base_schedule={type(schedule).__name__} is not allowed: it must be a schedule of the same optimizer"
                " that steps without a metric"
            )
        self._schedule: LRScheduler | None = schedule
        self._optimizer = optimizer
        self._shadow = shadow
        self.lrs = self._read()
        self.ramping = True
        self.lent = False

    def detach(self, optimizer: Any) -> None:
        """Let go of the schedule and the optimizer; another object has the LRs from now on."""
        self._schedule, self._optimizer = None, optimizer

    def lend(self) -> None:
        """Give the optimizer the schedule's own LRs."""
        if not self.lent:
            self.lent = True
            if not self._shadow:
                for group, lr in zip(self._optimizer.param_groups, self.lrs, strict=True):
                    write_lr(group, lr)

    def take_back(self) -> None:
        """Take up what the schedule made of the LRs."""
        if self.lent:
            self.lrs = self._read()
            self.lent = False

    def advance(self) -> None:
        """Advance by one optimizer step: step the schedule, unless its owner has borrowed the LRs and stepped it."""
        before = self.lrs
        if not self.lent:
            self.lend()
            assert self._schedule is not None
            self._schedule.step()
        self.take_back()
        if self.lrs[0] <= before[0]:
            self.ramping = False

    def add_group(self, lr: float) -> None:
        """Take up a parameter group that was added to the optimizer."""
        self.lrs = [*self.lrs, lr]  # a new list: the history holds the old one

    def load(self, lrs: list[float], *, ramping: bool) -> None:
        """Continue from the LRs of a checkpoint."""
        self.lrs, self.ramping, self.lent = lrs, ramping, False

    def _read(self) -> list[float]:
        return [float(group["lr"]) for group in self._optimizer.param_groups]
