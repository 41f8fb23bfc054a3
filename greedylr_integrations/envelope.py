"""The part of the LR that does not follow the loss: a ramp at the start, a decay at the end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

from greedylr_integrations.checks import check, check_number


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """Factor in [0, 1] as a function of the optimizer step, counted from 0. LR = base LR x scale x envelope(step).

    Attributes:
        linear_warmup_steps (int): optimizer steps of a linear ramp from 0, as in transformers' schedules: step t of n
            has t/n. No decision is made during it. Default 0.
        total_steps (int): optimizer steps of the whole run, the horizon. Default None: unknown, no decay.
        decay_ratio (float): share of the horizon, in [0, 1], over which the LR decays linearly to 0 at its end.
            Default 0.3.
        decay_start, decay_steps (int), decay_from (float): a decay begun by hand, in place of the horizon's: from which
            step, over how many, from which factor. Default None: not begun.
    """

    linear_warmup_steps: int = 0
    total_steps: int | None = None
    decay_ratio: float = 0.3
    decay_start: int | None = None
    decay_steps: int | None = None
    decay_from: float = 1.0

    def __post_init__(self) -> None:
        for field, least in (("linear_warmup_steps", 0), ("total_steps", 1), ("decay_start", 0), ("decay_steps", 1)):
            value = getattr(self, field)
            if value is not None or field == "linear_warmup_steps":
                check_number(field, value, int)
                check(value >= least, field, value, f"at least {least}")
        for field in ("decay_ratio", "decay_from"):
            check_number(field, getattr(self, field))
            check(0 <= getattr(self, field) <= 1, field, getattr(self, field), "between 0 and 1")

    def __call__(self, step: int) -> float:
        if self.decay_start is not None and self.decay_steps is not None:
            return self.decay_from * max(1.0 - (step - self.decay_start) / self.decay_steps, 0.0)
        factor = step / self.linear_warmup_steps if step < self.linear_warmup_steps else 1.0
        total = self.total_steps
        if total is not None:
            if step >= total:
                return 0.0
            decayed = (total - step) / (self.decay_ratio * total or 1.0)
            if decayed < factor:
                return decayed
        return factor

    def constant(self) -> tuple[float, float]:
        """Steps [from, until) between ramp and decay, where the factor is 1."""
        if self.decay_start is not None:
            return 0, 0
        end = inf if self.total_steps is None else self.total_steps - self.decay_ratio * self.total_steps
        return self.linear_warmup_steps, end

    def decaying(self, start: int, steps: int, factor: float | None = None) -> Envelope:
        """The same envelope with a decay to 0 over `steps` that begins at step `start`, from `factor` or what it is."""
        return replace(self, decay_start=start, decay_steps=steps, decay_from=self(start) if factor is None else factor)
