"""The loss window: raise on a new recent best of the mean loss, lower on a significantly worse one, hold between.

It needs the loss alone. The default rule follows it if the slope cannot be measured.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from greedylr_integrations.bounds import BoundedConfig
from greedylr_integrations.checks import (
    check,
    check_choice,
    check_integer,
    check_number,
    check_state,
    is_flag,
    is_integer,
)
from greedylr_integrations.decision import (
    CEILING,
    COOLDOWN,
    FILLING,
    FLOOR,
    HOLD,
    IMPROVED,
    INSIGNIFICANT,
    LOWER,
    NONFINITE,
    PATIENCE,
    RAISE,
    WARMUP,
    WORSENED,
    Action,
    Decision,
    Reason,
)
from greedylr_integrations.log import logger
from greedylr_integrations.rolling import Pace, RecentBest, RollingMean, is_pace, is_recent, is_window
from greedylr_integrations.rule import OneScaleRule, is_scale


@dataclass(frozen=True, kw_only=True)
class GreedyConfig(BoundedConfig):
    """The loss window, made for the training loss of every optimizer step.

    The mean of the last `window_size` losses is compared with the best such mean of the last `best_window` decisions.
    A new best increases the LR; a mean above the best by more than the threshold decreases it; in between, it holds. So
    the LR can rise again after a spike or a change of data. The more slowly the loss falls, compared with its fastest
    fall so far, the smaller the increase is (`pace`). If the LR is too low, the loss keeps falling at the same pace, so
    the LR keeps rising; if the LR fits, the loss falls fast at first and then slowly, so the LR stays. When the loss no
    longer falls, the LR decreases slowly: the higher the threshold, the more slowly. Decisions begin once the window is
    full.

    Fields named as in the GreedyLR paper (https://arxiv.org/abs/2512.14527) mean what they mean there, except as noted.
    """

    factor: float | None = None
    """An increase divides the scale by this factor, a decrease multiplies by it; at least 1e-6 and below 1. Default
    None: exp(-8/T) for a run of T decisions, at least 0.5, or 0.99 if T is unknown."""
    patience: int = 0
    """Good (bad) losses in a row that do not move the LR yet; the next one does. Default 0: the window does the
    smoothing."""
    window_size: int | None = None
    """Decisions in the rolling mean. Default None: 8% of the run, or 50 if its length is unknown."""
    best_window: int | None = None
    """Decisions over which the best mean is remembered. Default None: 2 x window_size."""
    threshold: float = 1.0
    """How far above the best the mean must be to count as worse. Default 1."""
    threshold_mode: str = "se"
    """Unit of `threshold`: "se" (default) standard errors of the mean, "rel" a share of the best's magnitude, "abs" the
    unit of the loss. For "rel" and "abs", a gain must exceed it too."""
    warmup: int = 0
    """Decisions for which the LR keeps rising after an increase, even if the trend reverses (as the Amazon Science
    article on GreedyLR has it; the published rules hold instead). This is not a ramp at the start: that is
    `linear_warmup_steps`. Default 0."""
    cooldown: int = 0
    """Decisions for which the LR keeps falling after a decrease, likewise. Default 0."""
    pace: float = 1.0
    """How much a slow fall of the loss limits increases, at least 0: an increase divides the scale by
    factor ** share ** pace, where share is the fall of the mean over the last window as a share of the largest such
    fall so far. Default 1; with 0 every increase is a full one."""
    reset_start: int | None = None
    """The best and the streaks are forgotten each time this many decisions have passed. Default None: never, since the
    best is recent anyway."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor is not None:
            check(1e-6 <= check_number("factor", self.factor) < 1, "factor", self.factor, "at least 1e-6 and below 1")
        for field, value, least in (
            ("patience", self.patience, 0),
            ("warmup", self.warmup, 0),
            ("cooldown", self.cooldown, 0),
        ):
            check_integer(field, value, least=least)
        for field, optional in (
            ("window_size", self.window_size),
            ("best_window", self.best_window),
            ("reset_start", self.reset_start),
        ):
            if optional is not None:
                check_integer(field, optional, least=1)
        check(check_number("threshold", self.threshold) >= 0, "threshold", self.threshold, "at least 0")
        check_choice("threshold_mode", self.threshold_mode, ("se", "rel", "abs"))
        check(check_number("pace", self.pace) >= 0, "pace", self.pace, "at least 0")

    def fitted(self, horizon: int | None) -> GreedyConfig:
        """The configuration with every open default filled in for a run of `horizon` decisions."""
        window_size = self.window_size or (50 if horizon is None else max(1, round(0.08 * horizon)))
        factor = self.factor or (0.99 if horizon is None else max(0.5, math.exp(-8 / horizon)))
        best_window = self.best_window or 2 * window_size
        return dataclasses.replace(self, factor=factor, window_size=window_size, best_window=best_window)

    def concern(self, horizon: int | None, first_pass: int | None) -> str | None:
        if horizon is None or self.window_size is None or horizon > self.window_size:
            return None
        return f"the LR will not move: window_size={self.window_size}, and the run has {horizon} decisions"

    def rule(self, base_lrs: Sequence[float], horizon: int | None, first_pass: int | None = None) -> WindowRule:
        return WindowRule(self.fitted(horizon), base_lrs)


class WindowRule(OneScaleRule):
    """The rule of `GreedyConfig`.

    Args:
        config (GreedyConfig): with every default filled in: see `GreedyConfig.fitted`.
        base_lrs (sequence of float): base LR of each parameter group.
    """

    def __init__(self, config: GreedyConfig, base_lrs: Sequence[float]) -> None:
        super().__init__(base_lrs, config.scale_bounds)
        assert config.factor
        assert config.window_size
        assert config.best_window
        self._config = config
        self._factor = config.factor
        self._patience = config.patience
        self._threshold = config.threshold
        self._by_standard_error = config.threshold_mode == "se"
        self._pace_exponent = config.pace
        self._maximize = config.mode == "max"  # then all losses are negated in here
        self._window = RollingMean(config.window_size)
        self._recent = RecentBest(config.best_window)
        self._pace = Pace(config.window_size)
        self._streak = 0  # good losses in a row, or bad ones as a negative number
        self._stage = 0  # decisions left of a warmup, or of a cooldown as a negative number
        self._until_reset = config.reset_start or 0
        self._ceiling_reached = False

    def update(self, loss: float, slope: float | None = None, distance: float | None = None) -> Decision:
        value = -loss if self._maximize else loss
        smoothed = self._window.push(value)
        if smoothed - smoothed != 0.0:  # the sum overflowed
            return Decision(HOLD, NONFINITE, self.scales, loss)
        if self._config.reset_start:
            self._count_down(self._config.reset_start)
        pace = self._pace.push(smoothed, value)
        # the mean of part of a window is not a fair reference: the smallest of a few would be low by chance
        best = self._recent.push(smoothed) if self._window.full else None
        if best is None:
            return Decision(HOLD, FILLING, self.scales, loss, -smoothed if self._maximize else smoothed)
        action, reason = self._continue_stage() if self._stage else self._compare(smoothed, best)
        if action is not HOLD:
            action, reason = self._move(action, reason, pace if reason is IMPROVED else 1.0)
        if self._maximize:
            smoothed, best = -smoothed, -best
        return Decision(action, reason, self.scales, loss, smoothed, best, slope)

    def _compare(self, smoothed: float, best: float) -> tuple[Action, Reason]:
        """What the mean asks for, once it has asked often enough in a row."""
        if self._by_standard_error:
            gain, loss = 0.0, self._threshold * self._window.standard_error()
        else:
            gain = loss = self._threshold * (abs(best) if self._config.threshold_mode == "rel" else 1.0)
        if smoothed < best - gain:
            self._streak = self._streak + 1 if self._streak > 0 else 1
            if self._streak <= self._patience:
                return HOLD, PATIENCE
            self._streak, self._stage = 0, self._config.warmup
            return RAISE, IMPROVED
        if smoothed > best + loss:
            self._streak = self._streak - 1 if self._streak < 0 else -1
            if self._streak >= -self._patience:
                return HOLD, PATIENCE
            self._streak, self._stage = 0, -self._config.cooldown
            return LOWER, WORSENED
        self._streak = 0
        return HOLD, INSIGNIFICANT

    def _continue_stage(self) -> tuple[Action, Reason]:
        if self._stage > 0:
            self._stage -= 1
            return RAISE, WARMUP
        self._stage += 1
        return LOWER, COOLDOWN

    def _move(self, action: Action, reason: Reason, pace: float) -> tuple[Action, Reason]:
        """Raise the scale (by less if the loss falls slowly) or lower it; return the resulting action and reason."""
        scale = self._scale
        if action is LOWER:
            if scale == self._floor:
                return HOLD, FLOOR
            return self.move(scale * self._factor), reason
        if scale == self._ceiling:
            self._warn_at_ceiling()
            return HOLD, CEILING
        return self.move(scale * self._factor ** -(pace**self._pace_exponent)), reason

    def _warn_at_ceiling(self) -> None:
        if not self._ceiling_reached:
            self._ceiling_reached = True
            if self._config.max_lr is not None:
                advice = f"raise max_lr={self._config.max_lr}"
            elif self._ceiling < 1:
                advice = f"raise max_scale={self._config.max_scale}"
            else:
                advice = "the base LR is probably far too low; raise it, or max_scale"
            logger.warning(
                "GreedyLR would raise the LR beyond its upper bound (scale %s): %s",
                ", ".join(f"{scale:g}" for scale in dict.fromkeys(self.scales)),
                advice,
            )

    def _count_down(self, reset_start: int) -> None:
        if self._until_reset <= 0:
            self._until_reset = reset_start
            self._recent.clear()
            self._pace.clear()
            self._streak = self._stage = 0
        self._until_reset -= 1

    def lower(self) -> None:
        """Lower once, whatever the losses say, and end any warmup."""
        self._stage = 0
        self.set_scale(self._scale * self._factor)

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "until_reset": self._until_reset,
            "ceiling_reached": self._ceiling_reached,
            "streak": self._streak,
            "stage": self._stage,
            "recent": self._recent.state_dict(),
            "pace": self._pace.state_dict(),
            "window": self._window.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_state(state, WINDOW_STATE, "loss window")
        self._until_reset, self._streak, self._stage = state["until_reset"], state["streak"], state["stage"]
        self._ceiling_reached = state["ceiling_reached"]
        self._recent.load_state_dict(state["recent"])
        self._pace.load_state_dict(state["pace"])
        self._window.load_state_dict(state["window"])
        self.set_scale(state["scale"])


WINDOW_STATE = {
    "scale": is_scale,
    "until_reset": is_integer,
    "ceiling_reached": is_flag,
    "streak": is_integer,
    "stage": is_integer,
    "recent": is_recent,
    "pace": is_pace,
    "window": is_window,
}
