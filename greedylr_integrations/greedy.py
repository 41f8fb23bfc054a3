"""The project's own behaviour, made for the training loss of every optimizer step: its configuration and its rule."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from greedylr_integrations.checks import (
    check,
    check_bounds,
    check_choice,
    check_number,
    check_shared,
    check_state,
    is_finite,
    is_integer,
    is_pace,
    is_recent,
    is_window,
    per_group,
)
from greedylr_integrations.core import (
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
    ControllerConfig,
    Decision,
    Reason,
    logger,
    new_decision,
)
from greedylr_integrations.window import Pace, RecentBest, RollingWindow


@dataclass(frozen=True, kw_only=True)
class GreedyConfig(ControllerConfig):
    """The project's own rule, made for the training loss of every optimizer step.

    The mean of the last `window_size` losses is compared with the best such mean of the last `best_window` decisions.
    A new best raises the LR; a mean above the best by more than the threshold lowers it; between, it holds. So the LR
    can rise again after a spike or a change of data. A raise is the smaller the more slowly the loss falls, beside the
    fastest that it has fallen (`pace`): at an LR that is too low the loss keeps its pace, so the LR keeps rising; at
    one that fits it falls fast at first and then slowly, so the LR stays. A loss that no longer falls lowers the LR
    slowly, the more slowly the higher the threshold. Decisions begin once the window has filled.

    Fields named as in the GreedyLR paper mean what they mean there, except where noted.

    Attributes:
        factor (float): a raise divides the scale by it, a lowering multiplies; in (0, 1). Default None: exp(-8/T) for a
            horizon of T decisions, at least 0.5, or 0.99 without a horizon.
        patience (int): good (bad) losses in a row before the first raise (lowering); the LR moves on the next. Default
            0: the window does the smoothing.
        window_size (int): decisions in the rolling mean. Default None: 8% of the horizon, or 50 without one.
        best_window (int): decisions over which the best mean is remembered. Default None: 2 x window_size.
        threshold (float): how far above the best the mean must be to count as worse. Default 1.
        threshold_mode (str): unit of `threshold`: "se" (default) standard errors of the mean, "rel" a share of the
            best's magnitude, "abs" the unit of the loss. For "rel" and "abs" a gain must exceed it too.
        warmup (int): after a raise the LR keeps rising for this many decisions, even if the trend reverses (as the
            Amazon Science article on GreedyLR has it; the presets hold instead). Not a ramp: that is
            `linear_warmup_steps`. Default 0.
        cooldown (int): after a lowering the LR keeps falling for this many decisions likewise. Default 0.
        min_scale, max_scale (float): bounds on LR / base LR. Defaults 0.01 and 10.
        pace (float): how much a slow fall of the loss holds raises back, at least 0: a raise divides the scale by
            factor ** share ** pace, where share is the fall of the mean over the last window as a share of the largest
            such fall so far. Default 1; with 0 every raise is a whole one.
        min_lr, max_lr (float or list of float): absolute bounds in place of them, one value or one a group. The groups
            keep their ratios until one of them meets its bound, and find them again when it leaves it. Default None.
        reset_start (int): decisions after which the best and the streaks are forgotten, again and again. Default None:
            never, since the best is recent anyway.
    """

    factor: float | None = None
    patience: int = 0
    window_size: int | None = None
    best_window: int | None = None
    threshold: float = 1.0
    threshold_mode: str = "se"
    warmup: int = 0
    cooldown: int = 0
    min_scale: float | None = None
    max_scale: float | None = None
    pace: float = 1.0
    min_lr: float | Sequence[float] | None = None
    max_lr: float | Sequence[float] | None = None
    reset_start: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shared(self)
        check_choice("threshold_mode", self.threshold_mode, ("se", "rel", "abs"))
        if self.best_window is not None:
            check_number("best_window", self.best_window, int)
            check(self.best_window >= 1, "best_window", self.best_window, "at least 1")
        check_number("pace", self.pace)
        check(self.pace >= 0, "pace", self.pace, "at least 0")
        for bound in ("min", "max"):
            scale, lr = getattr(self, bound + "_scale"), getattr(self, bound + "_lr")
            if scale is not None:
                check_number(bound + "_scale", scale)
                check(scale > 0, bound + "_scale", scale, "above 0")
                check(lr is None, bound + "_scale", scale, f"None where {bound}_lr is given ({lr!r})")
        if self.max_lr is None:
            check((self.min_scale or 0) <= self._max_scale, "min_scale", self.min_scale, f"at most {self._max_scale}")
        if self.min_lr is None:
            check(self._min_scale <= self._max_scale, "max_scale", self.max_scale, f"at least {self._min_scale}")

    @property
    def _min_scale(self) -> float:
        return 0.01 if self.min_scale is None else self.min_scale

    @property
    def _max_scale(self) -> float:
        return 10.0 if self.max_scale is None else self.max_scale

    @staticmethod
    def paper(**fields: Any) -> ControllerConfig:
        """Algorithms 2 and 3 of the paper: see `presets.PaperConfig` for the fields."""
        from greedylr_integrations.presets import PaperConfig

        return PaperConfig(**fields)

    @staticmethod
    def transformers(**fields: Any) -> ControllerConfig:
        """The LRs of `transformers.optimization.GreedyLR` with the same keywords: see `presets.TransformersConfig`."""
        from greedylr_integrations.presets import TransformersConfig

        return TransformersConfig(**fields)

    def fitted(self, horizon: int | None) -> GreedyConfig:
        """The configuration with every open default filled in for a horizon, in decisions."""
        window_size = self.window_size or (50 if horizon is None else max(1, round(0.08 * horizon)))
        factor = self.factor or (0.99 if horizon is None else max(0.5, math.exp(-8 / horizon)))
        best_window = self.best_window or 2 * window_size
        return dataclasses.replace(self, factor=factor, window_size=window_size, best_window=best_window)

    def scale_bounds(self, base_lrs: Sequence[float]) -> tuple[list[float], list[float]]:
        """Lowest and highest scale of each group."""
        groups = len(base_lrs)
        lows, highs = [self._min_scale] * groups, [self._max_scale] * groups
        for field, bounds, inward in (("min_lr", lows, math.inf), ("max_lr", highs, 0.0)):
            value = getattr(self, field)
            if value is None:
                continue
            check_bounds(field, value, groups)
            for i, (lr, base) in enumerate(zip(per_group(value, groups), base_lrs, strict=True)):
                if base == 0:
                    continue  # a frozen group stays at 0
                scale = lr / base
                # rounding must not carry base x scale over the bound
                while (base * scale < lr) if inward else (base * scale > lr):
                    scale = math.nextafter(scale, inward)
                bounds[i] = scale
        for low, high in zip(lows, highs, strict=True):
            if low > high:
                raise ValueError(
                    f"lower bound {low:g} x base LR is above upper bound {high:g} x base LR for base LRs"
                    f" {list(base_lrs)}: change min_lr, max_lr, min_scale or max_scale"
                )
        return lows, highs

    def rule(self, base_lrs: Sequence[float], horizon: int | None) -> GreedyRule:
        return GreedyRule(self.fitted(horizon), base_lrs)


class GreedyRule:
    """Raise on a new recent best, lower on a significantly worse mean, hold between."""

    def __init__(self, config: GreedyConfig, base_lrs: Sequence[float]) -> None:
        assert config.factor
        assert config.window_size
        assert config.best_window
        self._config = config
        self._factor = config.factor
        self._slowing = config.pace
        self._patience = config.patience
        self._threshold = config.threshold
        self._standard_errors = config.threshold_mode == "se"
        self._reset_start = config.reset_start
        self._maximize = config.mode == "max"  # then all losses are negated in here
        self._window = RollingWindow(config.window_size)
        self._recent = RecentBest(config.best_window)
        self._pace = Pace(config.window_size)
        self._streak = 0  # good losses in a row, or bad ones as a negative number
        self._stage = 0  # decisions left of a warmup, or of a cooldown as a negative number
        self._until_reset = config.reset_start or 0
        self._ceiling_reached = False
        self._base_lrs: list[float] = list(base_lrs)
        self._scale = 1.0
        self._set_bounds()
        self._set_scale(min(max(1.0, self._floor), self._ceiling))

    def update(self, loss: float) -> Decision:
        smoothed = self._window.push(-loss if self._maximize else loss)
        if smoothed - smoothed != 0.0:  # the sum overflowed
            return Decision(HOLD, NONFINITE, self.scales, loss)
        if self._reset_start:
            self._count_down(self._reset_start)
        pace = self._pace.push(smoothed)
        # the mean of a part of a window is no fair reference: the smallest of a few would be low by chance
        best = self._recent.push(smoothed) if self._window.full else None
        if best is None:
            return Decision(HOLD, FILLING, self.scales, loss, -smoothed if self._maximize else smoothed)
        if self._stage:
            action, reason = self._continue_stage()
        elif smoothed < (best if self._standard_errors else best - self._margin(best)):
            self._streak = self._streak + 1 if self._streak > 0 else 1
            if self._streak <= self._patience:
                action, reason = HOLD, PATIENCE
            else:
                action, reason = RAISE, IMPROVED
                self._streak, self._stage = 0, self._config.warmup
        elif smoothed > best + (
            self._threshold * self._window.standard_error() if self._standard_errors else self._margin(best)
        ):
            self._streak = self._streak - 1 if self._streak < 0 else -1
            if self._streak >= -self._patience:
                action, reason = HOLD, PATIENCE
            else:
                action, reason = LOWER, WORSENED
                self._streak, self._stage = 0, -self._config.cooldown
        else:
            action, reason = HOLD, INSIGNIFICANT
            self._streak = 0
        if action is not HOLD and not self._move(action, pace if reason is IMPROVED else 1.0):
            reason = self._at_bound(action)
            action = HOLD
        if self._maximize:
            smoothed, best = -smoothed, -best
        return new_decision(Decision, (action, reason, self.scales, loss, smoothed, best))

    def _at_bound(self, action: Action) -> Reason:
        if action is LOWER:
            return FLOOR
        if not self._ceiling_reached:
            self._ceiling_reached = True
            logger.warning(
                "GreedyLR has raised the LR to its upper bound (scale %s) and would raise it further: the base LR is"
                " probably far too low; raise it, or max_scale",
                ", ".join(f"{scale:g}" for scale in dict.fromkeys(self.scales)),
            )
        return CEILING

    def _count_down(self, reset_start: int) -> None:
        if self._until_reset <= 0:
            self._until_reset = reset_start
            self._recent.clear()
            self._pace.clear()
            self._streak = self._stage = 0
        self._until_reset -= 1

    def _continue_stage(self) -> tuple[Action, Reason]:
        if self._stage > 0:
            self._stage -= 1
            return RAISE, WARMUP
        self._stage += 1
        return LOWER, COOLDOWN

    def _margin(self, best: float) -> float:
        """For the two units other than standard errors."""
        return self._threshold * abs(best) if self._config.threshold_mode == "rel" else self._threshold

    def lower(self) -> None:
        """Lower once, whatever the losses say, and end any warmup."""
        self._stage = 0
        self._move(LOWER)

    def _move(self, action: Action, pace: float = 1.0) -> bool:
        """Raise (less where the loss falls slowly) or lower the scale; False where it stands at the bound already."""
        scale = self._scale
        if action is RAISE:
            if scale == self._ceiling:
                return False
            scale *= self._factor ** -(pace**self._slowing)
            if scale > self._ceiling:
                scale = self._ceiling
        else:
            if scale == self._floor:
                return False
            scale *= self._factor
            if scale < self._floor:
                scale = self._floor
        if self._alike:  # as `_set_scale` does; this is the hot path
            self._scale, self.scales = scale, (scale,) * len(self._lows)
        else:
            self._set_scale(scale)
        return True

    def _set_scale(self, scale: float) -> None:
        # One scale for all, cut to each group's bounds only on the way out: the ratios come back by themselves.
        self._scale = scale
        if self._alike:
            self.scales = (scale,) * len(self._lows)
        else:
            self.scales = tuple(min(max(scale, low), high) for low, high in zip(self._lows, self._highs, strict=True))

    @property
    def position(self) -> float:
        return self._scale

    @position.setter
    def position(self, scale: float) -> None:
        if scale != self._scale:
            self._set_scale(scale)

    def clamp(self, low: float, high: float) -> None:
        scale = min(max(self._scale, low), high)
        self.position = min(max(scale, self._floor), self._ceiling)

    def add_group(self, base_lr: float) -> None:
        self._base_lrs.append(base_lr)
        self._set_bounds()
        self._set_scale(self._scale)

    def _set_bounds(self) -> None:
        self._lows, self._highs = self._config.scale_bounds(self._base_lrs)
        self._floor, self._ceiling = min(self._lows), max(self._highs)
        self._alike = self._floor == max(self._lows) and self._ceiling == min(self._highs)

    def state_dict(self) -> dict[str, Any]:
        return {
            "scale": self._scale,
            "until_reset": self._until_reset,
            "ceiling_reached": self._ceiling_reached,
            "streak": self._streak,
            "stage": self._stage,
            "recent": self._recent.state_dict(),
            "pace": self._pace.state_dict(),
            "window": self._window.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_state(state, GREEDY_STATE, "GreedyLR rule")
        self._until_reset, self._streak, self._stage = state["until_reset"], state["streak"], state["stage"]
        self._ceiling_reached = state["ceiling_reached"]
        self._set_bounds()
        self._recent.load_state_dict(state["recent"])
        self._pace.load_state_dict(state["pace"])
        self._window.load_state_dict(state["window"])
        self._set_scale(min(max(state["scale"], self._floor), self._ceiling))


GREEDY_STATE = {
    "scale": is_finite,
    "until_reset": is_integer,
    "ceiling_reached": lambda value: isinstance(value, bool),
    "streak": is_integer,
    "stage": is_integer,
    "recent": is_recent,
    "pace": is_pace,
    "window": is_window,
}


def config_from_dict(fields: Mapping[str, Any]) -> ControllerConfig:
    """The configuration that `ControllerConfig.to_dict` wrote; "behaviour" is GreedyConfig where it is not named."""
    fields = dict(fields)
    behaviour = fields.pop("behaviour", "GreedyConfig")
    makers: dict[str, Callable[..., ControllerConfig]] = {
        "GreedyConfig": GreedyConfig,
        "PaperConfig": GreedyConfig.paper,
        "TransformersConfig": GreedyConfig.transformers,
    }
    check_choice("behaviour", behaviour, list(makers))
    return makers[behaviour](**fields)
