"""The loss meter: accumulates on the device, reads once a decision, the same number on every rank."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from greedylr_integrations.checks import as_json, as_loss, check
from greedylr_integrations.control import ControlFile, Order


class LossMeter:
    """Mean training loss of the optimizer steps since the last reading, over all ranks.

    `update` and `end_step` only queue work on the loss's device; `compute` does one all-reduce of two numbers, sum and
    count, and one host read. Every rank must call `compute` and `synchronize` at the same time, whatever it has seen. A
    NaN or an infinity on one rank reaches all of them, since it survives the sum.

    Args:
        pre_divided (bool): the losses of a step's micro-batches are already divided by their number, so that they are
            summed, not averaged (as Hugging Face's Trainer has them). Default False.
        lag (int): 0 reads at once. 1 hands over the reading before, copied to pinned memory meanwhile, so that the
            host never waits for the step under way; the first `compute` then gives None. Default None: 1 where the
            loss is on a CUDA device, else 0.
        process_group: the data-parallel ranks, over which to average. Default None: all ranks. A rank outside of it
            (another pipeline stage, say) needs no loss.
        source (int): with a process group, the global rank in it whose mean all ranks take. Default 0.

    Attributes:
        control (ControlFile): where orders come from; rank `source` reads it, and two more numbers in the all-reduce
            take them to all ranks. Default None: none.
        order (Order): what came with the last `compute`, until `take_order`.
    """

    def __init__(
        self, *, pre_divided: bool = False, lag: int | None = None, process_group: Any = None, source: int = 0
    ) -> None:
        check(lag in (None, 0, 1), "loss_lag", lag, "0 or 1")
        self._pre_divided = pre_divided
        self.lag = lag
        self._group = process_group
        self._source = source
        self.control: ControlFile | None = None
        self.order: Order | None = None
        self._micro: torch.Tensor | None = None  # sum over the micro-batches of the step under way
        self._micro_count = 0
        self._total: torch.Tensor | None = None  # sum over the steps that ended
        self._weight = 0  # how many steps that is: those that this rank had a batch for
        self._missed = False
        self._waiting: _Reading | float | None = None  # with a lag: the reading to hand over next
        self.steps = 0  # of all ranks, since the last reading

    @property
    def fed(self) -> bool:
        """Whether a micro-batch came since the last step, or the step has none on this rank."""
        return self._micro is not None or self._missed

    def update(self, loss: torch.Tensor | float) -> None:
        """Add the loss of one micro-batch: a number or a tensor with one element, on any device."""
        if not isinstance(loss, torch.Tensor):
            loss = torch.tensor(as_loss(loss), dtype=torch.float64)
        elif loss.numel() != 1:
            raise TypeError(f"loss of shape {tuple(loss.shape)} is not allowed: it must be a single number")
        loss = loss.detach()
        # A copy, since the caller may write into it; in float64, so that what is saved goes on exactly.
        loss = loss.to(torch.float32 if loss.device.type == "mps" else torch.float64, copy=True)
        if loss.ndim:
            loss = loss.reshape(())
        self._micro = loss if self._micro is None else self._micro + loss
        self._micro_count += 1

    def end_step(self) -> None:
        """The optimizer has stepped on what was added since the last step."""
        if self._missed:
            self.steps += 1
            self._missed = False
        if self._micro is None:
            return
        step = self._micro if self._pre_divided or self._micro_count == 1 else self._micro / self._micro_count
        self._total = step if self._total is None else self._total + step
        self._weight += 1
        self.steps += 1
        self.discard_step()

    def miss_step(self) -> None:
        """The step under way is one of the other ranks, on which this one has no batch."""
        self._missed = True

    def discard_step(self) -> None:
        """Forget the micro-batches since the last step: the optimizer skipped it."""
        self._micro, self._micro_count, self._missed = None, 0, False

    def compute(self) -> float | None:
        """Mean over the steps of all ranks, and start over; NaN where there is none, None at first with a lag."""
        mean = self._mean(self.control)
        self._total, self._weight, self.steps = None, 0, 0
        lag = mean.is_cuda if self.lag is None else self.lag
        if not lag:
            return self._hand_over(_numbers(mean))
        before, self._waiting = self._waiting, _Reading(mean)
        return self._hand_over(before.wait()) if isinstance(before, _Reading) else before

    def _hand_over(self, numbers: list[float]) -> float:
        if self.control is not None and len(numbers) > 1:
            self.order = self.control.receive(*numbers[1:])
        return numbers[0]

    def take_order(self) -> Order | None:
        order, self.order = self.order, None
        return order

    def agree(self, value: torch.Tensor | float) -> float:
        """The mean of a number over all ranks, at once and apart from the losses; every rank must call it."""
        meter = LossMeter(lag=0)
        meter.control = self.control
        meter.update(value)
        meter.end_step()
        mean, self.order = meter.compute(), meter.order
        assert mean is not None
        return mean

    def synchronize(self) -> None:
        """Make what waits for its decision the mean over ranks, so that what one rank saves is right for all."""
        if self.steps:
            self._total = self._mean() * self._weight

    def _mean(self, control: ControlFile | None = None) -> torch.Tensor:
        """Mean over ranks; with a control file, and ranks, the two numbers of an order behind it."""
        total = torch.zeros((), dtype=torch.float64) if self._total is None else self._total
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            if control is not None:
                self.order = control.receive(*control.poll())
            return total if self._weight == 1 else total / self._weight
        if total.device.type == "cpu" and dist.get_backend() == "nccl":
            total = total.cuda()
        order: list[float] = []
        if control is not None:
            order += control.poll() if dist.get_rank() == self._source else (0.0, 0.0)
        payload = torch.cat([total.reshape(1), total.new_tensor([self._weight, *order])])
        if self._group is None or dist.get_rank(self._group) >= 0:
            dist.all_reduce(payload, group=self._group)
        mean = payload[0] / payload[1]
        if order:
            mean = torch.cat([mean.reshape(1), payload[2:]])
        if self._group is not None:
            dist.broadcast(mean, src=self._source)
        return mean

    def state_dict(self) -> dict[str, Any]:
        """Steps and readings that wait for their decision; reads the host."""
        waiting = self._waiting.wait()[0] if isinstance(self._waiting, _Reading) else self._waiting
        return {
            "total": 0.0 if self._total is None else as_json(float(self._total)),
            "weight": self._weight,
            "steps": self.steps,
            "waiting": None if waiting is None else as_json(waiting),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.discard_step()
        self.steps, self._weight = state["steps"], state["weight"]
        self._total = torch.tensor(float(state["total"]), dtype=torch.float64) if self._weight else None
        self._waiting = None if state["waiting"] is None else float(state["waiting"])


class _Reading:
    """Numbers on their way from the device to the host."""

    def __init__(self, value: torch.Tensor) -> None:
        self._copied = None
        self._value = value
        if value.is_cuda:
            self._value = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self._value.copy_(value, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def wait(self) -> list[float]:
        if self._copied is not None:
            self._copied.synchronize()
        return _numbers(self._value)


def _numbers(value: torch.Tensor) -> list[float]:
    return value.tolist() if value.ndim else [float(value)]
