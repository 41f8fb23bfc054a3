"""The part of the LR that no rule decides: a warmup at the start, a decay at the end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

from greedylr_integrations.checks import check, check_integer, check_number


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """Factor in [0, 1] as a function of the optimizer step, counted from 0. LR = base LR x scale x envelope(step)."""

    linear_warmup_steps: int = 0
    """Optimizer steps of a linear warmup from 0, as in transformers' schedules: step t of n has t/n. No decision is
    made during it. Default 0."""
    total_steps: int | None = None
    """Optimizer steps of the whole run. Default None: unknown, no decay."""
    decay_ratio: float = 0.3
    """Share of the run, in [0, 1], over which the LR decays linearly to 0 at its end. Default 0.3."""
    decay_start: int | None = None
    """First step of a decay that was started by hand, in place of the one at the end. Default None: none."""
    decay_steps: int | None = None
    """Steps of that decay."""
    decay_from: float = 1.0
    """Factor at its first step."""

    def __post_init__(self) -> None:
        for field, least in (("linear_warmup_steps", 0), ("total_steps", 1), ("decay_start", 0), ("decay_steps", 1)):
            value = getattr(self, field)
            if value is not None or field == "linear_warmup_steps":
                object.__setattr__(self, field, check_integer(field, value, least=least))
        for field, share in (("decay_ratio", self.decay_ratio), ("decay_from", self.decay_from)):
            number = check_number(field, share)
            check(0 <= number <= 1, field, share, "between 0 and 1")
            object.__setattr__(self, field, number)

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

    @property
    def decided_steps(self) -> int | None:
        """Optimizer steps after the warmup, in which decisions are made. None if the run length is unknown."""
        return None if self.total_steps is None else max(1, self.total_steps - self.linear_warmup_steps)

    def constant(self) -> tuple[float, float]:
        """Steps [from, until) between warmup and decay, where the factor is 1."""
        if self.decay_start is not None:
            return 0, 0
        end = inf if self.total_steps is None else self.total_steps - self.decay_ratio * self.total_steps
        return self.linear_warmup_steps, end

    def decaying(self, start: int, steps: int, factor: float | None = None) -> Envelope:
        """The same envelope with a decay to 0 over `steps` that begins at step `start`, from `factor` or what it is."""
        return replace(self, decay_start=start, decay_steps=steps, decay_from=self(start) if factor is None else factor)
