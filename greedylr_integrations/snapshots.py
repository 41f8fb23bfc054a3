"""A copy of weights and optimizer in the memory of the host, to go back to after a loss spike."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch.optim import Optimizer

# what schedules set in an optimizer's groups; other entries, such as Prodigy's d, are its state
OPTIONS = ("lr", "initial_lr", "max_lr", "min_lr", "betas", "momentum", "base_momentum", "max_momentum", "weight_decay")


class Snapshot:
    """The weights of an optimizer, its state, and the buffers of a module, as they are now.

    Args:
        optimizer (torch.optim.Optimizer): its state is copied, with the weights in its groups.
        module (torch.nn.Module): its buffers are copied. None: none.
    """

    def __init__(self, optimizer: Optimizer, module: torch.nn.Module | None) -> None:
        self._weights = [
            (p, _copy(p), {k: _copy(v) for k, v in optimizer.state.get(p, {}).items()}) for p in trained(optimizer)
        ]
        self._groups = [
            {name: _copy(value) for name, value in group.items() if name not in ("params", *OPTIONS)}
            for group in optimizer.param_groups
        ]
        self._buffers = [  # by name, since some modules replace the tensor
            (owner, name, _copy(buffer))
            for owner in ([] if module is None else module.modules())
            for name, buffer in owner._buffers.items()
            if buffer is not None
        ]

    @property
    def size(self) -> int:
        """The size of the copy in bytes."""
        copies = [*(copy for *_, copy in self._buffers), *(copy for _, copy, _ in self._weights)]
        copies += [value for *_, state in self._weights for value in state.values() if torch.is_tensor(value)]
        return sum(copy.numel() * copy.element_size() for copy in copies)

    def fits(self, weights: list[torch.Tensor]) -> bool:
        """Whether it is a copy of exactly these weights."""
        return len(weights) == len(self._weights) and all(
            now is then for now, (then, *_) in zip(weights, self._weights, strict=True)
        )

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
                now[name] = _put(value, now.get(name), p)
        for group, entries in zip(optimizer.param_groups, self._groups, strict=True):
            for name, value in entries.items():
                group[name] = _put(value, group.get(name), value)
        for owner, name, value in self._buffers:
            now = owner._buffers[name]
            owner._buffers[name] = _put(value, now, value if now is None else now)


def trained(optimizer: Optimizer) -> list[torch.Tensor]:
    """The weights in an optimizer's groups that require a gradient."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def are_finite(weights: list[torch.Tensor]) -> bool:
    """Whether this rank's parts of the weights have no NaN and no infinity."""
    return all(bool(torch.isfinite(_local(p)).all()) for p in weights)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a sharded tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # type: ignore[operator]


def _copy(value: Any) -> Any:
    return _local(value).detach().to("cpu", copy=True) if torch.is_tensor(value) else deepcopy(value)


def _put(value: Any, now: Any, like: Any) -> Any:
    """A copied value, in the tensor that is there now if it fits, else where `like` is."""
    if not torch.is_tensor(value):
        return deepcopy(value)
    if torch.is_tensor(now) and _local(now).shape == value.shape:
        _local(now).copy_(value)
        return now
    return value.to(like.device if value.ndim else "cpu", copy=True)  # a count of steps is on the CPU, as in AdamW
