"""The loss meter: mean training loss of the optimizer steps since the last reading, the same on every rank.

`update` and `end_step` only queue work on the loss's device; `compute` does one all-reduce and one host read. Other
numbers may travel with the loss, so that a decision needs no second all-reduce and no second read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from greedylr_integrations.checks import as_json, as_loss, check, fits, is_count, is_list_of, is_none_or, is_number
from greedylr_integrations.distributed import sum_over_ranks, world_size


class LossMeter:
    """Mean training loss of the optimizer steps since the last reading, over all ranks.

    Every rank must call `compute` and `synchronize` at the same time, whatever it has seen. A rank without a loss takes
    part with a weight of 0. A NaN or an infinity on one rank reaches all of them, since it survives the sum.

    Args:
        pre_divided (bool): whether the losses of a step's micro-batches are already divided by their number, so that
            they are summed, not averaged (as Hugging Face's Trainer does). Default False.
        lag (int): 0 reads at once. 1 returns the previous reading, which has been copied to pinned memory in the
            meantime, so that the host never waits for the current step; the first `compute` then returns None. Default
            None: 1 if the loss is on a CUDA device, else 0.
        process_group: the data-parallel ranks, over which to average. A rank outside it (another pipeline stage, say)
            needs no loss. Default None: all ranks.
        source (int): with a process group, the global rank in it whose mean all ranks take. Default 0.

    Attributes:
        steps (int): optimizer steps of all ranks since the last reading.
    """

    def __init__(
        self, *, pre_divided: bool = False, lag: int | None = None, process_group: Any = None, source: int = 0
    ) -> None:
        check(lag in (None, 0, 1), "loss_lag", lag, "0 or 1")
        self._pre_divided = pre_divided
        self.lag = lag
        self.process_group = process_group
        self.source = source
        self._micro: torch.Tensor | None = None  # sum over the micro-batches of the step under way
        self._micro_count = 0
        self._total: torch.Tensor | None = None  # sum over the steps that ended
        self._weight = 0  # number of those for which this rank had a loss
        self._waiting: _Reading | list[float] | None = None  # with a lag, the reading to return next
        self.steps = 0

    @property
    def fed(self) -> bool:
        """Whether the loss of a micro-batch came since the last step."""
        return self._micro is not None

    def update(self, loss: torch.Tensor | float) -> None:
        """Add the loss of one micro-batch: a number or a tensor with one element, on any device."""
        if not isinstance(loss, torch.Tensor):
            loss = torch.tensor(as_loss(loss), dtype=torch.float64)
        elif loss.numel() != 1:
            raise TypeError(f"loss of shape {tuple(loss.shape)} is not allowed: it must be a single number")
        loss = loss.detach()
        # A copy, since the caller may write into it; in float64, so that a saved state continues exactly.
        loss = loss.to(torch.float32 if loss.device.type == "mps" else torch.float64, copy=True)
        if loss.ndim:
            loss = loss.reshape(())
        self._micro = loss if self._micro is None else self._micro + loss
        self._micro_count += 1

    def end_step(self) -> None:
        """The optimizer has stepped, on every rank; this one may have had no loss for it."""
        self.steps += 1
        step = self.discard_step()
        if step is not None:
            self._total = step if self._total is None else self._total + step
            self._weight += 1

    def discard_step(self) -> torch.Tensor | None:
        """Forget the micro-batches since the last step, and return their mean: the optimizer skipped it."""
        micro, count = self._micro, self._micro_count
        self._micro, self._micro_count = None, 0
        return micro if micro is None or self._pre_divided or count == 1 else micro / count

    def compute(self) -> float | None:
        """Mean over the steps of all ranks, and start over; NaN if there is none, None at first with a lag."""
        numbers = self.read()
        return None if numbers is None else numbers[0]

    def read(self, extra: Sequence[torch.Tensor | float] = ()) -> list[float] | None:
        """What `compute` gives, followed by other numbers.

        Args:
            extra (sequence of numbers or 0-d tensors): other numbers to sum over the ranks, as many on every rank.

        Returns:
            The mean over the steps of all ranks, the number of losses in it, and the sums of `extra`. With a lag, those
            of the previous call; None at first.
        """
        numbers = self._sums(extra)
        self._total, self._weight, self.steps = None, 0, 0
        reading = _Reading(numbers)
        if not (numbers.is_cuda if self.lag is None else self.lag):
            return _mean(reading.wait())
        before, self._waiting = self._waiting, reading
        return _mean(before.wait()) if isinstance(before, _Reading) else before

    def synchronize(self) -> None:
        """Replace the losses that await a decision by their mean over the ranks, so that one rank can save for all."""
        if self.steps and (world_size() or 1) > 1:
            total, weight = self._sums(())
            self._total = total / weight.clamp(min=1) * self._weight

    def _sums(self, extra: Sequence[torch.Tensor | float]) -> torch.Tensor:
        """Sum and number of the losses, and the extra numbers, over all ranks."""
        total = torch.zeros((), dtype=torch.float64) if self._total is None else self._total
        numbers = total.new_zeros(2 + len(extra))
        # one by one, and not `numbers[i] = number`: a copy of a Python number to the device would wait for it
        for place, number in zip(numbers.unbind(), (total, self._weight, *extra), strict=True):
            if isinstance(number, torch.Tensor):
                place.copy_(number)
            elif number:
                place.fill_(number)
        return sum_over_ranks(numbers, self.process_group, self.source)

    def state_dict(self) -> dict[str, Any]:
        """Steps and readings that await a decision, as plain JSON; this waits for the device."""
        waiting = self._waiting
        if isinstance(waiting, _Reading):
            waiting = _mean(waiting.wait())
        return {
            "total": 0.0 if self._total is None else as_json(float(self._total)),
            "weight": self._weight,
            "steps": self.steps,
            "waiting": None if waiting is None else [as_json(number) for number in waiting],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        self.discard_step()
        self.steps, self._weight = state["steps"], state["weight"]
        self._total = torch.tensor(float(state["total"]), dtype=torch.float64) if self._weight else None
        waiting = state["waiting"]
        self._waiting = None if waiting is None else [float(number) for number in waiting]


is_pending = fits(
    {
        "total": is_number,
        "weight": is_count,
        "steps": is_count,
        "waiting": is_none_or(is_list_of(is_number)),
    }
)


def _mean(sums: list[float]) -> list[float]:
    total, weight, *extra = sums
    return [total / weight if weight else float("nan"), weight, *extra]


class _Reading:
    """Numbers on their way from the device to the host."""

    def __init__(self, numbers: torch.Tensor) -> None:
        self._copied = None
        self._numbers = numbers
        if numbers.is_cuda:
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def wait(self) -> list[float]:
        if self._copied is not None:
            self._copied.synchronize()
        return self._numbers.tolist()
