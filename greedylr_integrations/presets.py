"""The rules of others, each reading like its source: the GreedyLR paper's algorithm, and the version in transformers.

Both keep absolute LRs, one a group, and report them as scales. Where a source holds the LR still during `warmup` and
`cooldown`, so does its preset.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from greedylr_integrations.checks import (
    check,
    check_bounds,
    check_choice,
    check_number,
    check_shared,
    check_state,
    is_finite,
    is_integer,
    is_numbers,
    is_window,
    per_group,
)
from greedylr_integrations.core import (
    CEILING,
    COOLDOWN,
    FLOOR,
    HOLD,
    IMPROVED,
    LOWER,
    NONFINITE,
    PATIENCE,
    RAISE,
    RESET,
    WARMUP,
    WORSENED,
    ControllerConfig,
    Decision,
    Reason,
    Rule,
)
from greedylr_integrations.window import RollingWindow


@dataclass(frozen=True, kw_only=True)
class PresetConfig(ControllerConfig):
    """Fields of the published algorithms.

    Attributes:
        factor (float): in (0, 1). Default 0.95.
        patience (int): good (bad) calls in a row before the LR moves, on the next one. Default 10.
        threshold (float): least gain that counts. Default 1e-6.
        threshold_mode (str): "rel" or "abs".
        cooldown, warmup (int): calls after a lowering (raise) during which the LR does not move that way again (paper)
            or at all (transformers). Default 0.
        min_lr, max_lr (float or list of float): bounds on the LR. Defaults 1e-3 and 1: both sources' own; set them.
        eps (float): a change of the LR of at most this is skipped. Default 1e-8.
        smooth (bool): compare the mean of the last `window_size` losses. Default False.
        window_size (int): Default 50.
        reset_start (int): see the two presets. Default 500.
    """

    factor: float = 0.95
    patience: int = 10
    threshold: float = 1e-6
    threshold_mode: str = "rel"
    cooldown: int = 0
    warmup: int = 0
    min_lr: float | Sequence[float] = 1e-3
    max_lr: float | Sequence[float] = 1.0
    eps: float = 1e-8
    smooth: bool = False
    window_size: int = 50
    reset_start: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("factor", "patience", "window_size", "warmup", "cooldown", "reset_start", "min_lr", "max_lr"):
            if getattr(self, field) is None:
                raise TypeError(f"{field}=None is not allowed: it must be a number")
        check_shared(self)
        check_choice("threshold_mode", self.threshold_mode, ("rel", "abs"))
        if self.threshold_mode == "rel":
            check(self.threshold < 1, "threshold", self.threshold, "below 1 where threshold_mode is 'rel'")
        check_number("eps", self.eps)
        check(self.eps >= 0, "eps", self.eps, "at least 0")
        if not isinstance(self.smooth, bool):
            raise TypeError(f"smooth={self.smooth!r} is not allowed: it must be True or False")


@dataclass(frozen=True, kw_only=True)
class PaperConfig(PresetConfig):
    """Algorithms 2 and 3 of arXiv 2512.14527; "better" is relative by default, as there.

    `reset_start` counts down on every call in which all groups share one LR; then the best and all counters start
    over, while LR and window stay.
    """

    def rule(self, base_lrs: Sequence[float], horizon: int | None) -> Rule:
        return PaperRule(self, base_lrs)


@dataclass(frozen=True, kw_only=True)
class TransformersConfig(PresetConfig):
    """`transformers.optimization.GreedyLR` (5.23) with the same keywords, its running sum and eps included.

    `reset_start` counts lowerings that find every group at its min_lr; then the initial LRs come back too. `verbose`
    is accepted and has no effect: decisions are logged.
    """

    threshold_mode: str = "abs"
    verbose: bool = False

    def rule(self, base_lrs: Sequence[float], horizon: int | None) -> Rule:
        return TransformersRule(self, base_lrs)


class _PresetRule:
    """What the two share: LRs within bounds, and what is better."""

    _schema: ClassVar[Mapping[str, Any]]

    def __init__(self, config: PresetConfig, base_lrs: Sequence[float]) -> None:
        self._config = config
        self._base_lrs: list[float] = []
        self._lrs: list[float] = []
        for lr in base_lrs:
            self.add_group(lr, len(base_lrs))
        self._start_over()

    def _start_over(self) -> None:
        self._best: float | None = None
        self._num_bad = self._num_good = 0
        self._cooldown_counter = self._warmup_counter = 0
        self._reset_start = self._config.reset_start

    def add_group(self, base_lr: float, groups: int | None = None) -> None:
        self._base_lrs.append(base_lr)
        self._lrs.append(base_lr)
        groups = groups or len(self._lrs)
        for field in ("min_lr", "max_lr"):
            check_bounds(field, getattr(self._config, field), groups)
        self._min_lrs = per_group(self._config.min_lr, groups)
        self._max_lrs = per_group(self._config.max_lr, groups)

    @property
    def scales(self) -> tuple[float, ...]:
        return tuple(lr / base if base else 1.0 for lr, base in zip(self._lrs, self._base_lrs, strict=True))

    @property
    def position(self) -> list[float]:
        return list(self._lrs)

    @position.setter
    def position(self, lrs: list[float]) -> None:
        self._lrs = list(lrs)

    def clamp(self, low: float, high: float) -> None:
        for i, (lr, base) in enumerate(zip(self._lrs, self._base_lrs, strict=True)):
            if lr < low * base:
                self._lrs[i] = max(lr, min(low * base, self._max_lrs[i]))
            elif lr > high * base:
                self._lrs[i] = min(lr, max(high * base, self._min_lrs[i]))

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
        for i, lr in enumerate(self._lrs):
            new = max(lr * self._config.factor, self._min_lrs[i])
            if lr - new > self._config.eps:
                self._lrs[i] = new

    def _raise_lrs(self) -> None:
        for i, lr in enumerate(self._lrs):
            new = min(lr / self._config.factor, self._max_lrs[i])
            if new - lr > self._config.eps:
                self._lrs[i] = new

    def lower(self) -> None:
        self._lower_lrs()

    def _decision(
        self, before: list[float], reason: Reason, loss: float, current: float, best: float | None
    ) -> Decision:
        """The action from how the LRs moved; `reason` is that of a move that was wanted, or of none."""
        if self._lrs == before:
            bound = {IMPROVED: CEILING, WORSENED: FLOOR}
            return Decision(HOLD, bound.get(reason, reason), self.scales, loss, current, best)
        action = RAISE if sum(self._lrs) > sum(before) else LOWER
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
            **dict.fromkeys(self.state_dict(), is_integer),
            "lrs": lambda value: is_numbers(value) and len(value) == groups,
            "best": lambda value: value is None or is_finite(value),
            **self._schema,
        }
        check_state(state, schema, "GreedyLR preset")
        for key in _PresetRule.state_dict(self):
            setattr(self, "_" + key, list(state[key]) if key == "lrs" else state[key])


class PaperRule(_PresetRule):
    """Algorithms 2 and 3."""

    _schema: ClassVar = {"window": is_window}

    def __init__(self, config: PaperConfig, base_lrs: Sequence[float]) -> None:
        super().__init__(config, base_lrs)
        self._window = RollingWindow(config.window_size if config.smooth else 1)

    def update(self, loss: float) -> Decision:
        c = self._config
        current = self._window.push(loss)
        best, before, reason = self._best, list(self._lrs), PATIENCE
        self._judge(current)
        if self._cooldown_counter > 0:
            self._cooldown_counter -= 1
            self._num_bad = 0
            reason = COOLDOWN
        if self._warmup_counter > 0:
            self._warmup_counter -= 1
            self._num_good = 0
            reason = WARMUP
        if self._num_bad > c.patience:
            self._lower_lrs()
            self._cooldown_counter = c.cooldown
            self._num_bad = 0
            reason = WORSENED
        if self._num_good > c.patience:
            self._raise_lrs()
            self._warmup_counter = c.warmup
            self._num_good = 0
            reason = IMPROVED
        if self._reset_start == 0:
            self._start_over()
        if len(set(self._lrs)) == 1:
            self._reset_start -= 1
        return self._decision(before, reason, loss, current, best)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "window": self._window.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._window.load_state_dict(state["window"])


class TransformersRule(_PresetRule):
    """The step of `transformers.optimization.GreedyLR`."""

    _schema: ClassVar = {"losses": is_numbers, "sum": is_finite}

    def __init__(self, config: TransformersConfig, base_lrs: Sequence[float]) -> None:
        super().__init__(config, base_lrs)
        self._losses: deque[float] = deque()
        self._sum = 0.0

    def _smooth(self, loss: float) -> float:
        # the source's running sum, rounding and all
        if not self._config.smooth:
            return loss
        self._losses.append(loss)
        self._sum += loss
        if len(self._losses) > self._config.window_size:
            self._sum -= self._losses.popleft()
        return self._sum / len(self._losses)

    def update(self, loss: float) -> Decision:
        c = self._config
        current = self._smooth(loss)
        if not math.isfinite(current):  # the source would be poisoned for good; start its window over
            self._losses.clear()
            self._sum = 0.0
            return Decision(HOLD, NONFINITE, self.scales, loss)
        best, before, reason = self._best, list(self._lrs), PATIENCE
        if self._cooldown_counter > 0:
            self._cooldown_counter -= 1
            self._num_bad = self._num_good = 0
            reason = COOLDOWN
        elif self._warmup_counter > 0:
            self._warmup_counter -= 1
            self._num_bad = self._num_good = 0
            reason = WARMUP
        else:
            self._judge(current)
            if self._num_good > c.patience:
                self._raise_lrs()
                self._reset_start = c.reset_start
                self._warmup_counter = c.warmup
                self._num_good = 0
                reason = IMPROVED
            elif self._num_bad > c.patience:
                reason = WORSENED
                self._lower_lrs()
                if all(lr <= low for lr, low in zip(self._lrs, self._min_lrs, strict=True)):
                    self._reset_start -= 1
                    if self._reset_start <= 0:
                        self._reset()
                        reason = RESET
                self._cooldown_counter = c.cooldown
                self._num_bad = 0
        return self._decision(before, reason, loss, current, best)

    def _reset(self) -> None:
        self._lrs = list(self._base_lrs)
        self._start_over()
        self._losses.clear()
        self._sum = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "losses": list(self._losses), "sum": self._sum}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._losses, self._sum = deque(state["losses"]), state["sum"]
