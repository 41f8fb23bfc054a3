"""Going back to earlier weights after a loss spike: to snapshots in memory, or to the run's own checkpoints."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from greedylr_integrations.controller import ControllerConfig
from greedylr_integrations.decision import LOWER, ROLLED_BACK, Decision
from greedylr_integrations.distributed import compare
from greedylr_integrations.guard import Guard, SpikeError
from greedylr_integrations.log import logger
from greedylr_integrations.optimizers import unwrapped
from greedylr_integrations.random_numbers import same_random_numbers
from greedylr_integrations.snapshots import OPTIONS, Snapshot, are_finite, trained

OLD_ENOUGH = 10  # decisions since the weights were kept; newer weights may already contain the beginning of the spike
REMEMBERED = 100  # checkpoints
NO_CHECKPOINTS = (
    "with snapshot_every=None, GreedyLR can only go back to checkpoints, and the Trainer is not set to save any; until"
    " there is one, it lowers the LR instead"
)
Place = TypeVar("Place")


class Earlier(NamedTuple, Generic[Place]):
    """Weights to go back to.

    Attributes:
        place: the snapshot, or the path of the checkpoint.
        step (int): optimizer steps that were done.
        decisions (int): decisions that were made.
        memory (Any): the losses with which the guard compared others.
        groups (int): parameter groups that there were.
    """

    place: Place
    step: int
    decisions: int
    memory: Any
    groups: int


class Rollback(ABC, Generic[Place]):
    """What a run goes back to.

    Args:
        optimizer (torch.optim.Optimizer): whose state goes back.
        count (int): places to remember.

    Attributes:
        restoring (bool): whether a scheduler of this process is loading a checkpoint for it.
    """

    restoring: ClassVar[bool] = False

    def __init__(self, optimizer: Optimizer, count: int) -> None:
        self._optimizer = optimizer
        self._kept: deque[Earlier[Place]] = deque(maxlen=count)
        self._decisions = 0

    def follow(self, decision: Decision | None, step: int, guard: Guard, *, ramping: bool = False) -> None:
        """Put earlier weights back if the decision says so.

        Args:
            decision (Decision): what was decided. None: nothing.
            step (int): optimizer steps so far.
            guard (Guard): it is told which losses go with the weights, and whether there is anything to go back to.
            ramping (bool): whether this is a step of a warmup, in which nothing is decided. Default False.
        """
        self._decisions += decision is not None
        back = decision is not None and decision.reason is ROLLED_BACK
        if decision is not None and back:
            earlier = self._choose()
            self._put_back(earlier.place)
            guard.memory = earlier.memory
            while self._kept[-1] is not earlier:  # later weights, which the run has now abandoned
                self._kept.pop()
            why = "was NaN or infinite" if decision.best is None else "spiked"
            lower = ", and lowers the LR" if decision.action is LOWER else ""
            logger.warning(
                "GreedyLR went back to the weights of step %d at step %d%s, since the loss %s%s",
                *(earlier.step, step, self._of, why, lower),
            )
        guard.can_go_back = bool(self._fitting())
        if guard.calm and not back:
            self._stay(step, guard, ramping)

    def _choose(self) -> Earlier[Place]:
        """The newest that is old enough, or else the oldest."""
        there = self._there()
        old = (each for each in reversed(there) if self._decisions - each.decisions >= OLD_ENOUGH)
        return next(old, there[0])

    def _keep(self, place: Place, step: int, guard: Guard) -> None:
        groups = len(self._optimizer.param_groups)
        guard.can_go_back = True
        self._kept.append(Earlier(place, step, self._decisions, guard.memory, groups))

    def saved(self, path: str | os.PathLike[str], step: int, guard: Guard, *, whole: bool) -> None:
        """Take note of a checkpoint saved after `step` optimizer steps; `whole` if it has the optimizer's state."""
        return

    def _stay(self, step: int, guard: Guard, ramping: bool) -> None:
        """A step was made, and its loss was finite and no spike."""
        return

    @property
    def _of(self) -> str:
        """Where the weights were that were put back, for the log."""
        return ""

    @abstractmethod
    def _fitting(self) -> list[Earlier[Place]]:
        """What is remembered and fits the optimizer as it is now, the oldest first."""

    def _there(self) -> list[Earlier[Place]]:
        """What of this still exists; never empty."""
        return self._fitting()

    @abstractmethod
    def _put_back(self, place: Place) -> None:
        """Put weights and optimizer back."""


class Snapshots(Rollback[Snapshot]):
    """The last two snapshots of a run, in the memory of the host.

    Args:
        optimizer (torch.optim.Optimizer): what to copy.
        module (torch.nn.Module): whose buffers to copy. None: none.
        every (int): optimizer steps between two.
    """

    def __init__(self, optimizer: Optimizer, module: torch.nn.Module | None, every: int) -> None:
        super().__init__(optimizer, 2)
        self._module, self._every = module, every
        self._due = self._due_decisions = 0  # step and decision before which no copy is made
        self._size = 0

    def _stay(self, step: int, guard: Guard, ramping: bool) -> None:
        # decisions too, or both copies could be newer than the last decision
        due = step >= self._due and (ramping or self._decisions >= self._due_decisions)
        if not due and guard.can_go_back:
            return
        self._due, self._due_decisions = step + self._every, self._decisions + OLD_ENOUGH
        if compare("", not are_finite(trained(self._optimizer)))[1]:
            logger.warning("GreedyLR keeps no copy of the weights of step %d: some are NaN or infinite", step)
            return
        if len(self._kept) == self._kept.maxlen:
            self._kept.popleft()  # first, so that there are never three
        snapshot = Snapshot(unwrapped(self._optimizer), self._module)
        if snapshot.size != self._size:
            self._size = snapshot.size
            megabytes = self._size / 1e6
            logger.info("GreedyLR keeps two copies of weights and optimizer on the host, of %.3g MB each", megabytes)
        self._keep(snapshot, step, guard)

    def _fitting(self) -> list[Earlier[Snapshot]]:
        weights = trained(self._optimizer)
        return [each for each in self._kept if each.place.fits(weights)]

    def _put_back(self, place: Snapshot) -> None:
        place.restore(unwrapped(self._optimizer))


class Checkpoints(Rollback["str | os.PathLike[str]"]):
    """The checkpoints that a run saves anyway.

    Args:
        optimizer (torch.optim.Optimizer): whose state goes back. Its LRs, and what else schedules set, stay.
        base_schedule (LRScheduler): a schedule that stays where it is. None: there is none.
        restore (callable): `restore(path)` puts weights and optimizer back from a checkpoint.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        base_schedule: LRScheduler | None,
        restore: Callable[[str | os.PathLike[str]], object],
    ) -> None:
        super().__init__(optimizer, REMEMBERED)
        self._base_schedule, self._restore = base_schedule, restore

    def saved(self, path: str | os.PathLike[str], step: int, guard: Guard, *, whole: bool) -> None:
        others = [each for each in self._kept if os.fspath(each.place) != os.fspath(path)]  # it is written over
        self._kept = deque(others, REMEMBERED)
        if compare("", not whole)[1]:
            logger.warning(
                "GreedyLR cannot go back to %s, which has no optimizer state, or is not there on every rank", path
            )
        elif compare("", not are_finite(trained(self._optimizer)))[1]:
            logger.warning("GreedyLR will not go back to %s: some of the weights are NaN or infinite", path)
        else:
            self._keep(path, step, guard)
        guard.can_go_back = bool(self._fitting())

    @property
    def _of(self) -> str:
        return f", from {os.fspath(self._kept[-1].place)}"

    def _fitting(self) -> list[Earlier[str | os.PathLike[str]]]:
        groups = len(self._optimizer.param_groups)
        return [each for each in self._kept if each.groups == groups]

    def _there(self) -> list[Earlier[str | os.PathLike[str]]]:
        there = [each for each in self._fitting() if not compare("", not _exists(each.place))[1]]
        if not there:
            paths = ", ".join(os.fspath(each.place) for each in list(self._kept)[-3:])
            raise SpikeError(
                f"GreedyLR has to go back to earlier weights, and can use none of this run's checkpoints ({paths}):"
                " they are gone. Keep more of them, or set snapshot_every to a number of steps, so that there are"
                " copies in memory"
            )
        return there

    def _put_back(self, place: str | os.PathLike[str]) -> None:
        schedule = None if self._base_schedule is None else self._base_schedule.state_dict()
        Rollback.restoring = True
        try:
            with same_options([self._optimizer]), same_random_numbers():
                self._restore(place)
        finally:
            Rollback.restoring = False
            if self._base_schedule is not None and schedule is not None:
                self._base_schedule.load_state_dict(schedule)
        self._optimizer.zero_grad()


@contextmanager
def same_options(optimizers: Iterable[Any]) -> Iterator[None]:
    """On exit, restore the LRs of the optimizers' groups, and whatever else schedules set there."""
    before = [
        (each, [{name: group[name] for name in OPTIONS if name in group} for group in each.param_groups])
        for each in optimizers
    ]
    try:
        yield
    finally:
        for optimizer, groups in before:
            for group, options in zip(optimizer.param_groups, groups, strict=False):
                group.update(options)


def _exists(path: str | os.PathLike[str]) -> bool:
    return "://" in os.fspath(path) or os.path.exists(path)


def rollback_of(
    config: ControllerConfig,
    optimizer: Optimizer,
    module: torch.nn.Module | None,
    base_schedule: LRScheduler | None,
    restore: Callable[[Any], object] | None,
) -> Rollback[Any] | None:
    """The rollback of a run with these settings; None if it never rolls back.

    Raises:
        ValueError: if it would have to roll back and cannot.
        TypeError: if `module` is not a module.
    """
    if module is not None and not isinstance(module, torch.nn.Module):
        kind = type(module).__name__
        raise TypeError(f"module={kind} is not allowed: it must be a torch.nn.Module, whose buffers go back too")
    if not config.rolls_back:
        return None
    if type(unwrapped(optimizer)).__module__.startswith("deepspeed"):
        raise ValueError("a rollback is not possible with DeepSpeed, which keeps the weights itself: use 'reduce'")
    if config.snapshot_every is not None:
        return Snapshots(optimizer, module, config.snapshot_every)
    if restore is None:
        raise ValueError(
            "snapshot_every=None is not allowed without `restore`, a function that loads a checkpoint: pass restore=,"
            " or set snapshot_every to a number of steps"
        )
    return Checkpoints(optimizer, base_schedule, restore)
