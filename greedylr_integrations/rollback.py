"""Going back to earlier weights after a loss spike: to snapshots in memory, or to the run's own checkpoints."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from greedylr_integrations.controller import ControllerConfig
from greedylr_integrations.decision import ROLLED_BACK, Decision
from greedylr_integrations.distributed import compare
from greedylr_integrations.guard import Guard, SpikeError
from greedylr_integrations.log import logger
from greedylr_integrations.optimizers import unwrapped
from greedylr_integrations.snapshots import Snapshot

OLD_ENOUGH = 10  # optimizer steps: later weights may have the spike's beginning in them
REMEMBERED = 100  # checkpoints
NO_CHECKPOINTS = (
    "GreedyLR has only checkpoints to go back to (snapshot_every=None), and this run saves none by itself, so a"
    " rollback only lowers the LR until there is one"
)


class Rollback(ABC):
    """What a run goes back to.

    Attributes:
        restoring (bool): whether a checkpoint is being loaded for it.
    """

    restoring = False

    def follow(self, decision: Decision | None, step: int, guard: Guard) -> None:
        """Put earlier weights back if the decision says so.

        Args:
            decision (Decision): what was decided. None: nothing.
            step (int): optimizer steps so far.
            guard (Guard): it takes the memory that goes with the weights, and knows whether there is a way back.
        """
        if decision is not None and decision.reason is ROLLED_BACK:
            guard.memory = self._go_back(step)
        elif guard.calm:
            self._stay(step, guard)
        guard.can_go_back = self._is_possible

    @abstractmethod
    def saved(self, path: str, step: int, guard: Guard) -> None:
        """A checkpoint of the run was saved after so many optimizer steps."""

    @property
    @abstractmethod
    def _is_possible(self) -> bool:
        """Whether there is anything to go back to."""

    @abstractmethod
    def _stay(self, step: int, guard: Guard) -> None:
        """After a step that was calm."""

    @abstractmethod
    def _go_back(self, step: int) -> Any:
        """Put weights and optimizer back, and return the guard's memory of then."""


class Snapshots(Rollback):
    """The last two snapshots of a run, in the memory of the host.

    Args:
        optimizer (torch.optim.Optimizer): what to copy.
        module (torch.nn.Module): whose buffers to copy. None: none.
        every (int): optimizer steps between two.
    """

    def __init__(self, optimizer: Optimizer, module: torch.nn.Module | None, every: int) -> None:
        self._optimizer, self._module, self._every = optimizer, module, every
        self._kept: deque[Snapshot] = deque(maxlen=2)

    @property
    def _is_possible(self) -> bool:
        return bool(self._kept)

    def saved(self, path: str, step: int, guard: Guard) -> None:
        """They need no checkpoints."""

    def _stay(self, step: int, guard: Guard) -> None:
        """Take one, if it is time."""
        if self._kept and step - self._kept[-1].step < self._every:
            return
        snapshot = Snapshot(unwrapped(self._optimizer), self._module, step, guard.memory)
        if not self._kept:
            megabytes = snapshot.size / 1e6
            logger.info("GreedyLR keeps two copies of weights and optimizer on the host, of %.3g MB each", megabytes)
        self._kept.append(snapshot)

    def _go_back(self, step: int) -> Any:
        """Put the newest one back that is old enough, or else the oldest."""
        if len(self._kept) == 2 and step - self._kept[-1].step < OLD_ENOUGH:
            self._kept.pop()
        snapshot = self._kept[-1]
        snapshot.restore(unwrapped(self._optimizer))
        logger.warning("GreedyLR put the weights of step %d back in step %d", snapshot.step, step)
        return snapshot.memory

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_kept": deque(maxlen=2)}


class _Saved(NamedTuple):
    """A checkpoint, the optimizer steps it was saved after, and the guard's memory of then."""

    path: str
    step: int
    memory: Any


class Checkpoints(Rollback):
    """The checkpoints that a run saves anyway.

    Args:
        optimizer (torch.optim.Optimizer): its LRs and other options stay as they are.
        base_schedule (LRScheduler): it stays where it is. None: there is none.
        restore (callable): `restore(path)` puts weights and optimizer back from a checkpoint; whatever else it puts
            back is no matter.
    """

    def __init__(
        self, optimizer: Optimizer, base_schedule: LRScheduler | None, restore: Callable[[str], object]
    ) -> None:
        self._optimizer, self._base_schedule, self._restore = optimizer, base_schedule, restore
        self._saved: deque[_Saved] = deque(maxlen=REMEMBERED)

    @property
    def _is_possible(self) -> bool:
        return bool(self._saved)

    def saved(self, path: str, step: int, guard: Guard) -> None:
        others = [each for each in self._saved if each.path != path]  # it is written over
        mine = [_Saved(path, step, guard.memory)] if guard.calm else []
        self._saved = deque([*others, *mine], REMEMBERED)
        guard.can_go_back = bool(self._saved)

    def _stay(self, step: int, guard: Guard) -> None:
        """They are saved by others."""

    def _go_back(self, step: int) -> Any:
        """Go back to the newest one that is old enough, or else to the oldest."""
        there = [saved for saved in self._saved if not compare("", not _is_there(saved.path))[1]]
        if not there:
            raise SpikeError(
                "the loss has risen, and none of this run's checkpoints is there any more: keep more of them, or set"
                " snapshot_every, so that copies are kept in memory"
            )
        saved = next((each for each in reversed(there) if step - each.step >= OLD_ENOUGH), there[0])
        options = [{name: v for name, v in group.items() if name != "params"} for group in self._optimizer.param_groups]
        schedule = None if self._base_schedule is None else self._base_schedule.state_dict()
        self.restoring = True
        try:
            self._restore(saved.path)
        finally:
            self.restoring = False
        for group, kept in zip(self._optimizer.param_groups, options, strict=True):
            group.update(kept)
            for p in group["params"]:
                p.grad = None
        if self._base_schedule is not None and schedule is not None:
            self._base_schedule.load_state_dict(schedule)
        self._saved = deque((each for each in there if each.step <= saved.step), REMEMBERED)
        logger.warning("GreedyLR put the weights of step %d back in step %d, from %s", saved.step, step, saved.path)
        return saved.memory

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_saved": deque(maxlen=REMEMBERED), "_restore": None}


def _is_there(path: str) -> bool:
    return "://" in path or os.path.exists(path)


def rollback_of(
    config: ControllerConfig,
    optimizer: Optimizer,
    module: torch.nn.Module | None,
    base_schedule: LRScheduler | None,
    restore: Callable[[str], object] | None,
) -> Rollback | None:
    """What a run with these settings goes back to; None if it never does.

    Raises:
        ValueError: if it cannot.
    """
    if not config.rolls_back:
        return None
    if type(unwrapped(optimizer)).__module__.startswith("deepspeed"):
        raise ValueError("a rollback is not possible with DeepSpeed, which keeps the weights itself: use 'reduce'")
    if config.snapshot_every is not None:
        return Snapshots(optimizer, module, config.snapshot_every)
    if restore is None:
        raise ValueError(
            "snapshot_every=None is not allowed without `restore`, a function that loads a checkpoint: pass one, or a"
            " number of steps"
        )
    return Checkpoints(optimizer, base_schedule, restore)
