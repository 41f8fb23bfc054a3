"""What a decision is based on: the loss and its slope, the same on every rank, and a command that came with them.

All of it takes one all-reduce and one host read per decision. All ranks send equally many numbers, whatever they saw.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch.optim import Optimizer

from greedylr_integrations.checks import is_count
from greedylr_integrations.distributed import rank, world_size
from greedylr_integrations.loss import LossMeter, is_pending
from greedylr_integrations.optimizers import unwrapped
from greedylr_integrations.slope import SUMS, SlopeMeter, distance_of, is_slope_state, slope_of
from greedylr_integrations.steering import Command, CommandFile, received


class Observation(NamedTuple):
    """What one decision is based on.

    Attributes:
        loss (float): mean loss of all ranks and of all steps since the last decision. None if no rank has one.
        slope (float): slope of the same steps, from -1 to 1; NaN if it could not be computed, None if no rank measured
            it.
        distance (float): how far the weights have moved, relative to their norm at the start; NaN and None likewise.
        command (Command): a command that came with it. None if there is none.
    """

    loss: float | None
    slope: float | None = None
    distance: float | None = None
    command: Command | None = None


class Signals:
    """Measures loss and slope of the optimizer steps.

    Args:
        meter (LossMeter): the losses of this rank.
        slopes (SlopeMeter): the gradients of this rank.
        control_file (path): where commands come from, read by rank 0 (of the process group). Default None.

    Attributes:
        last_command (int): mark of the last command that came by the file of any rank; part of the state.
    """

    def __init__(
        self, meter: LossMeter, slopes: SlopeMeter, control_file: str | os.PathLike[str] | None = None
    ) -> None:
        self.meter = meter
        self.slopes = slopes
        self._file = None if control_file is None else CommandFile(control_file)
        self.last_command = 0

    @property
    def direct(self) -> bool:
        """Whether a loss that is a float is the observation itself: one rank, no lag, no file."""
        return self.meter.lag != 1 and self._file is None and world_size() is None

    def measure(self, loss: float | torch.Tensor | None, every: int) -> Observation | None:
        """Take up the loss of an optimizer step; every `every` steps, return what to decide on.

        None between decisions, and for the first one with a lag.
        """
        if loss is not None:
            self.meter.update(loss)
        elif not self.meter.fed and (world_size() or 1) == 1:
            self.slopes.discard_step()
            return Observation(None)
        self.meter.end_step()
        self.slopes.end_step()
        if self.meter.steps < every:
            return None
        numbers = self.meter.read([*self.slopes.take(), *self._poll()])
        if numbers is None:
            return None
        mean, losses, *sums, code, value = numbers
        command = self._received(code, value)
        return Observation(mean if losses else None, slope_of(sums), distance_of(sums), command)

    def agree(self, loss: float | torch.Tensor | None) -> Observation:
        """Average a loss that is not of an optimizer step over the ranks that have one; each rank must call it."""
        meter = LossMeter(lag=0)  # with the same checks, and apart from the losses that wait
        if loss is not None:
            meter.update(loss)
        meter.end_step()
        numbers = meter.read(self._poll())
        assert numbers is not None
        mean, losses, code, value = numbers
        return Observation(mean if losses else None, command=self._received(code, value))

    def skip_step(self) -> torch.Tensor | None:
        """Forget what was measured for the step under way, and return its loss on this rank; None if it has none."""
        self.slopes.discard_step()
        return self.meter.discard_step()

    def synchronize(self) -> None:
        """Make what awaits a decision the same on all ranks, so that what one of them saves is right for all."""
        if self.meter.steps:
            self.meter.synchronize()
            self.slopes.synchronize()

    def _poll(self) -> tuple[float, float]:
        # only one rank reads: if the ranks share a disk, all of them would find the command, and their numbers add up
        reads = world_size() is None or rank() == (0 if self.meter.process_group is None else self.meter.source)
        return self._file.poll() if self._file is not None and reads else (0.0, 0.0)

    def _received(self, code: float, value: float) -> Command | None:
        found = received(code, value)
        if found is None:
            return None
        self.last_command, command = found
        return command

    def state_dict(self) -> dict[str, Any]:
        """What waits for its decision, the slope's reference, and which command came last."""
        return {
            "pending": self.meter.state_dict(),
            "slope": self.slopes.state_dict(),
            "last_order": self.last_command,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        self.meter.load_state_dict(state["pending"])
        self.slopes.load_state_dict(state["slope"])
        self.last_command = state["last_order"]
        if self._file is not None:
            self._file.load(self.last_command)


WAITING = 2 + SUMS + 2  # numbers that wait with a lag: a loss, how many are in it, the sums of the slope, a command


def _is_pending(value: object) -> bool:
    return is_pending(value) and (value["waiting"] is None or len(value["waiting"]) == WAITING)  # type: ignore


SIGNALS_STATE = {"pending": _is_pending, "slope": is_slope_state, "last_order": is_count}


def watch_steps(optimizer: Any, before_step: Callable[[bool], None]) -> Any:
    """Have a method called before each step of an optimizer, with whether the gradients are complete by then.

    They are not if the step is given a closure, which has not run yet. The optimizer does not keep the method's object
    alive. An optimizer that is not torch's cannot be watched.

    Returns:
        A handle whose `remove` ends it; None if the optimizer cannot be watched.
    """
    raw = unwrapped(optimizer)  # Accelerate's wrapper steps the optimizer inside of it
    if not isinstance(raw, Optimizer):
        return None
    method = weakref.WeakMethod(before_step)

    def hook(_: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = method()
        if call is not None:
            closure = args[1] if len(args) > 1 else kwargs.get("closure")
            call(closure is None)

    return raw.register_step_pre_hook(hook)
