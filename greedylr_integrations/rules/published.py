"""What the two published rules share: their fields, absolute LRs within bounds, and what counts as better.

Both keep one LR per parameter group and report it as a scale. If a source holds the LR still during `warmup` and
`cooldown`, so does its rule here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from greedylr_integrations.bounds import check_bounds, check_order, per_group
from greedylr_integrations.checks import (
    Schema,
    check,
    check_choice,
    check_integer,
    check_number,
    check_state,
    is_count,
    is_finite,
    is_integer,
    is_list_of,
    is_none_or,
)
from greedylr_integrations.controller import ControllerConfig
from greedylr_integrations.decision import CEILING, FLOOR, HOLD, IMPROVED, WORSENED, Decision, Reason
from greedylr_integrations.rule import Rule, is_scale, moved


@dataclass(frozen=True, kw_only=True)
class PublishedConfig(ControllerConfig):
    """Fields of the published algorithms."""

    factor: float = 0.95
    """An increase divides the LR by this factor, a decrease multiplies by it; at least 1e-6, below 1. Default 0.95."""
    patience: int = 10
    """Good (bad) calls in a row that do not move the LR yet; the next one does. Default 10."""
    threshold: float = 1e-6
    """Smallest improvement that counts. Default 1e-6."""
    threshold_mode: str = "rel"
    """Unit of `threshold`: "rel" a share of the best, "abs" the unit of the loss. Default: the source's."""
    cooldown: int = 0
    """Calls after a decrease during which the LR does not fall again (paper) or does not move (transformers). Default
    0."""
    warmup: int = 0
    """Calls after an increase during which the LR does not rise again (paper) or does not move (transformers). Default
    0."""
    min_lr: float | Sequence[float] = 1e-3
    """Lower bound on the LR, one value or one per parameter group. Default 1e-3, as in both sources: set it."""
    max_lr: float | Sequence[float] = 1.0
    """Upper bound on the LR, likewise. Default 1, as in both sources: set it."""
    eps: float = 1e-8
    """A change of the LR that is no larger than this is skipped. Default 1e-8."""
    smooth: bool = False
    """Whether to compare the mean of the last `window_size` losses. Default False."""
    window_size: int = 50
    """Losses in the mean. Default 50."""
    reset_start: int = 500
    """When to start over; see the two rules. Default 500."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(1e-6 <= check_number("factor", self.factor) < 1, "factor", self.factor, "at least 1e-6 and below 1")
        for field, value, least in (
            ("patience", self.patience, 0),
            ("cooldown", self.cooldown, 0),
            ("warmup", self.warmup, 0),
            ("window_size", self.window_size, 1),
            ("reset_start", self.reset_start, 1),
        ):
            check_integer(field, value, least=least)
        for field, number in (("threshold", self.threshold), ("eps", self.eps)):
            check(check_number(field, number) >= 0, field, number, "at least 0")
        check_choice("threshold_mode", self.threshold_mode, ("rel", "abs"))
        if self.threshold_mode == "rel":
            check(self.threshold < 1, "threshold", self.threshold, "below 1 if threshold_mode is 'rel'")
        for field, bound in (("min_lr", self.min_lr), ("max_lr", self.max_lr)):
            check_bounds(field, bound)
        check_order(self.min_lr, self.max_lr)
        if not isinstance(self.smooth, bool):
            raise TypeError(f"smooth={self.smooth!r} is not allowed: it must be True or False")


class PublishedRule(Rule):
    """One LR per parameter group within bounds, and what is better.

    Args:
        config (PublishedConfig): the fields.
        base_lrs (sequence of float): base LR of each parameter group, at which it starts.
    """

    STATE: ClassVar[Schema]  # of what a subclass adds to the state

    def __init__(self, config: PublishedConfig, base_lrs: Sequence[float]) -> None:
        self._config = config
        self._base_lrs = list(base_lrs)
        self._set_lrs(list(base_lrs))
        self._fit_bounds()
        self._start_over()

    def _start_over(self) -> None:
        self._best: float | None = None
        self._num_bad = self._num_good = 0
        self._cooldown_counter = self._warmup_counter = 0
        self._reset_start = self._config.reset_start

    def _fit_bounds(self) -> None:
        groups = len(self._base_lrs)
        for field, bound in (("min_lr", self._config.min_lr), ("max_lr", self._config.max_lr)):
            check_bounds(field, bound, groups)
        self._min_lrs = per_group(self._config.min_lr, groups)
        self._max_lrs = per_group(self._config.max_lr, groups)

    def _set_lrs(self, lrs: list[float]) -> None:
        self._lrs = lrs
        self.scales = tuple(lr / base if base else 1.0 for lr, base in zip(lrs, self._base_lrs, strict=True))

    def add_group(self, base_lr: float) -> None:
        self._base_lrs.append(base_lr)
        self._set_lrs([*self._lrs, base_lr * self._common_scale()])
        self._fit_bounds()

    def _common_scale(self) -> float:
        """The scale of all groups if they have the same, else 1."""
        return self.scales[0] if len(set(self.scales)) == 1 else 1.0

    @property
    def position(self) -> list[float]:
        return list(self._lrs)

    @position.setter
    def position(self, lrs: list[float]) -> None:
        self._set_lrs(list(lrs))

    def clamp(self, low: float, high: float) -> None:
        lrs = list(self._lrs)
        for i, (lr, base) in enumerate(zip(lrs, self._base_lrs, strict=True)):
            if lr < low * base:
                lrs[i] = max(lr, min(low * base, self._max_lrs[i]))
            elif lr > high * base:
                lrs[i] = min(lr, max(high * base, self._min_lrs[i]))
        self._set_lrs(lrs)

    def _better(self, current: float, best: float | None) -> bool:
        c = self._config
        if best is None:
            return True
        if c.mode == "max":
            return current > (best * (1.0 + c.threshold) if c.threshold_mode == "rel" else best + c.threshold)
        return current < (best * (1.0 - c.threshold) if c.threshold_mode == "rel" else best - c.threshold)

    def _judge(self, current: float) -> None:
        if self._better(current, self._best):
            self._best = current
            self._num_bad = 0
            self._num_good += 1
        else:
            self._num_bad += 1
            self._num_good = 0

    def _lower_lrs(self) -> None:
        lower = [max(lr * self._config.factor, low) for lr, low in zip(self._lrs, self._min_lrs, strict=True)]
        self._set_lrs([new if lr - new > self._config.eps else lr for lr, new in zip(self._lrs, lower, strict=True)])

    def _raise_lrs(self) -> None:
        higher = [min(lr / self._config.factor, high) for lr, high in zip(self._lrs, self._max_lrs, strict=True)]
        self._set_lrs([new if new - lr > self._config.eps else lr for lr, new in zip(self._lrs, higher, strict=True)])

    def lower(self) -> None:
        self._lower_lrs()

    def _decision(
        self, before: list[float], reason: Reason, loss: float, current: float, best: float | None
    ) -> Decision:
        """The action that follows from how the LRs moved; `reason` is why a move was wanted, or not."""
        action = moved(before, self._lrs)
        if action is HOLD:
            reason = {IMPROVED: CEILING, WORSENED: FLOOR}.get(reason, reason)
        return Decision(action, reason, self.scales, loss, current, best)

    def state_dict(self) -> dict[str, Any]:
        return {
            "lrs": list(self._lrs),
            "best": self._best,
            "num_bad": self._num_bad,
            "num_good": self._num_good,
            "cooldown_counter": self._cooldown_counter,
            "warmup_counter": self._warmup_counter,
            "reset_start": self._reset_start,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        groups = len(self._lrs)
        schema = {
            "lrs": lambda value: is_list_of(is_scale)(value) and len(value) == groups,
            "best": is_none_or(is_finite),
            **dict.fromkeys(("num_bad", "num_good", "cooldown_counter", "warmup_counter"), is_count),
            "reset_start": is_integer,
            **self.STATE,
        }
        check_state(state, schema, "published rule")
        self._set_lrs(list(state["lrs"]))
        self._best = state["best"]
        self._num_bad, self._num_good = state["num_bad"], state["num_good"]
        self._cooldown_counter, self._warmup_counter = state["cooldown_counter"], state["warmup_counter"]
        self._reset_start = state["reset_start"]
