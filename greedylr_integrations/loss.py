"""The loss meter: accumulates on the device, reads once a decision, the same number on every rank."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from greedylr_integrations.checks import as_loss


class LossMeter:
    """Mean training loss of the optimizer steps since the last reading, over all ranks.

    `update` and `end_step` only queue work on the loss's device; `compute` does one all-reduce of two numbers and one
    host read. Every rank must call `compute` and `synchronize` at the same time, whatever it has seen. A NaN or an
    infinity on one rank reaches all of them, since it survives the sum.

    Args:
        pre_divided (bool): the losses of a step's micro-batches are already divided by their number, so that they are
            summed, not averaged (as Hugging Face's Trainer has them). Default False.
        process_group: ranks to average over; default all of them. Nothing is reduced where torch.distributed is not
            initialized.
    """

    def __init__(self, *, pre_divided: bool = False, process_group: Any = None) -> None:
        self._pre_divided = pre_divided
        self._group = process_group
        self._micro: torch.Tensor | None = None  # sum over the micro-batches of the step under way
        self._micro_count = 0
        self._total: torch.Tensor | None = None  # sum over the steps that ended
        self.steps = 0

    def update(self, loss: torch.Tensor | float) -> None:
        """Add the loss of one micro-batch: a number or a tensor with one element, on any device."""
        if not isinstance(loss, torch.Tensor):
            loss = torch.tensor(as_loss(loss), dtype=torch.float64)
        elif loss.numel() != 1:
            raise TypeError(f"loss of shape {tuple(loss.shape)} is not allowed: it must be a single number")
        loss = loss.detach().reshape(())
        loss = loss.to(torch.promote_types(loss.dtype, torch.float32))
        self._micro = loss.clone() if self._micro is None else self._micro + loss
        self._micro_count += 1

    @property
    def fed(self) -> bool:
        """Whether a micro-batch came since the last step."""
        return self._micro is not None

    def end_step(self) -> None:
        """The optimizer has stepped on what was added since the last step."""
        if self._micro is None:
            return
        step = self._micro if self._pre_divided else self._micro / self._micro_count
        step = step.float() if step.device.type == "mps" else step.double()  # so that what is saved goes on exactly
        self._total = step if self._total is None else self._total + step
        self.steps += 1
        self.discard_step()

    def discard_step(self) -> None:
        """Forget the micro-batches since the last step: the optimizer skipped it."""
        self._micro, self._micro_count = None, 0

    def compute(self) -> float:
        """Mean over the steps of all ranks, and start over; NaN where no rank has a step."""
        mean = self._mean()
        self._total, self.steps = None, 0
        return float(mean)

    def synchronize(self) -> None:
        """Make what waits for its decision the mean over ranks, so that what one rank saves is right for all."""
        if self.steps:
            self._total = self._mean() * self.steps

    def _mean(self) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64) if self._total is None else self._total
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(self._group) == 1:
            return total / self.steps
        if total.device.type == "cpu" and dist.get_backend(self._group) == "nccl":
            total = total.cuda()
        payload = torch.stack([total, total.new_tensor(self.steps)])
        dist.all_reduce(payload, group=self._group)
        return payload[0] / payload[1]

    def state_dict(self) -> dict[str, Any]:
        """Steps that wait for their decision; reads the host."""
        return {"total": 0.0 if self._total is None else float(self._total), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.discard_step()
        self.steps = state["steps"]
        self._total = torch.tensor(state["total"], dtype=torch.float64) if self.steps else None


def agree(value: torch.Tensor | float) -> float:
    """The mean of a number over all ranks, so that they decide alike; every rank must call it."""
    meter = LossMeter()
    meter.update(value)
    meter.end_step()
    return meter.compute()
