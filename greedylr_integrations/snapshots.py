"""A copy of weights and optimizer in the memory of the host, to go back to after a loss spike."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch.optim import Optimizer


class Snapshot:
    """The weights of an optimizer, its state, and the buffers of a module, as they are now.

    Args:
        optimizer (torch.optim.Optimizer): its state is copied, with the weights in its groups.
        module (torch.nn.Module): its buffers are copied. None: none.
    """

    def __init__(self, optimizer: Optimizer, module: torch.nn.Module | None) -> None:
        self._weights = [
            (p, _copy(p), {k: _copy(v) for k, v in optimizer.state[p].items()}) for p in _trained(optimizer)
        ]
        self._buffers = [] if module is None else [(buffer, _copy(buffer)) for buffer in module.buffers()]

    @property
    def size(self) -> int:
        """The size of the copy in bytes."""
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


def _trained(optimizer: Optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a sharded tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # type: ignore[operator]


def _copy(value: Any) -> Any:
    return _local(value).detach().to("cpu", copy=True) if torch.is_tensor(value) else deepcopy(value)
