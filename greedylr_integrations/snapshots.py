"""Copies of weights and optimizer in the memory of the host, to go back to after a loss spike."""

from __future__ import annotations

from collections import deque
from copy import deepcopy
from typing import Any

import torch
from torch.optim import Optimizer

from greedylr_integrations.decision import ROLLED_BACK, Decision
from greedylr_integrations.guard import Guard, SpikeError
from greedylr_integrations.log import logger
from greedylr_integrations.optimizers import unwrapped

OLD_ENOUGH = 10  # optimizer steps: what was copied later may have the spike's beginning in it


class Snapshot:
    """The weights of an optimizer, its state, and the buffers of a module, as they are now.

    Args:
        optimizer (torch.optim.Optimizer): its state is copied, with the weights in its groups.
        module (torch.nn.Module): its buffers are copied. None: none.
        step (int): optimizer steps so far.
        memory (Any): the losses with which others are compared, from `guard.Guard.memory`.
    """

    def __init__(self, optimizer: Optimizer, module: torch.nn.Module | None, step: int, memory: Any) -> None:
        self.step, self.memory = step, memory
        self._weights = [
            (p, _copy(p), {k: _copy(v) for k, v in optimizer.state[p].items()}) for p in _trained(optimizer)
        ]
        self._buffers = [] if module is None else [(buffer, _copy(buffer)) for buffer in module.buffers()]

    @property
    def size(self) -> int:
        """Bytes of it."""
        copies = [*(copy for _, copy in self._buffers), *(copy for _, copy, _ in self._weights)]
        copies += [value for *_, state in self._weights for value in state.values() if torch.is_tensor(value)]
        return sum(copy.numel() * copy.element_size() for copy in copies)

    @torch.no_grad()
    def restore(self, optimizer: Optimizer) -> None:
        """Put all of it back; gradients are cleared."""
        for p, weights, state in self._weights:
            _local(p).copy_(weights)
            p.grad = None
            now = optimizer.state[p]
            for name in now.keys() - state.keys():  # the optimizer makes it anew
                del now[name]
            for name, value in state.items():
                if torch.is_tensor(value):
                    _local(now[name]).copy_(value)
                else:
                    now[name] = value
        for buffer, value in self._buffers:
            _local(buffer).copy_(value)


class Snapshots:
    """The last two snapshots of a run.

    Args:
        optimizer (torch.optim.Optimizer): what to copy.
        module (torch.nn.Module): whose buffers to copy. None: none.
        every (int): optimizer steps between two.
    """

    def __init__(self, optimizer: Optimizer, module: torch.nn.Module | None, every: int) -> None:
        if type(unwrapped(optimizer)).__module__.startswith("deepspeed"):
            raise ValueError("a rollback is not possible with DeepSpeed, which keeps the weights itself: use 'reduce'")
        self._optimizer, self._module, self._every = optimizer, module, every
        self._kept: deque[Snapshot] = deque(maxlen=2)

    def follow(self, decision: Decision | None, step: int, guard: Guard) -> None:
        """Put earlier weights back if the decision says so, or copy those of now if it is time."""
        if decision is not None and decision.reason is ROLLED_BACK:
            guard.memory = self.go_back(step).memory
        elif guard.calm:
            self.take(step, guard)

    def take(self, step: int, guard: Guard) -> None:
        """Take one after an optimizer step, if it is time."""
        if self._kept and step - self._kept[-1].step < self._every:
            return
        snapshot = Snapshot(unwrapped(self._optimizer), self._module, step, guard.memory)
        if not self._kept:
            megabytes = snapshot.size / 1e6
            logger.info("GreedyLR keeps two copies of weights and optimizer on the host, of %.3g MB each", megabytes)
        self._kept.append(snapshot)

    def go_back(self, step: int) -> Snapshot:
        """Put the newest one back that is old enough, or else the oldest."""
        if not self._kept:
            raise SpikeError("the loss was not finite from the first step on, so there are no weights to go back to")
        if len(self._kept) == 2 and step - self._kept[-1].step < OLD_ENOUGH:
            self._kept.pop()
        snapshot = self._kept[-1]
        snapshot.restore(unwrapped(self._optimizer))
        logger.warning("GreedyLR put the weights of step %d back in step %d", snapshot.step, step)
        return snapshot

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_kept": deque(maxlen=2)}


def _trained(optimizer: Optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a sharded tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # type: ignore[operator]


def _copy(value: Any) -> Any:
    return _local(value).detach().to("cpu", copy=True) if torch.is_tensor(value) else deepcopy(value)
