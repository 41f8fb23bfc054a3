"""The default rule: search for the LR by the slope, then hold it.

The slope is the cosine of the gradient and of the way that the weights have come since the start of training. If it is
below 0, going farther the same way would lower the loss, so the LR is too low; if it is above 0, it has overshot.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from greedylr_integrations.bounds import BoundedConfig
from greedylr_integrations.checks import check, check_choice, check_number, check_state, is_count, is_finite, is_list_of
from greedylr_integrations.controller import ControllerConfig
from greedylr_integrations.decision import CEILING, FOUND, HOLD, HOLDING, SEARCHING, SEARCHING_ON, Decision
from greedylr_integrations.rule import OneScaleRule, is_scale
from greedylr_integrations.rules.window import GreedyConfig

SEARCH, HELD, SEARCH_ON, DONE = "search", "held", "search on", "done"


@dataclass(frozen=True, kw_only=True)
class SlopeConfig(BoundedConfig):
    """Search, hold, decay: the default rule."""

    MIN_SCALE: ClassVar[float] = 0.001
    MAX_SCALE: ClassVar[float] = 100.0

    start_scale: float = 0.03
    """Scale at which the search begins. Default 0.03."""
    on_missing_slope: str = "loss"
    """What to do if the slope cannot be measured: "loss" (default) follows the loss window, "raise" is an error."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(check_number("start_scale", self.start_scale) > 0, "start_scale", self.start_scale, "above 0")
        check_choice("on_missing_slope", self.on_missing_slope, ("loss", "raise"))
        check(self.mode != "max", "mode", self.mode, "'min': the slope is that of a loss")

    @property
    def searches(self) -> bool:
        return True

    def without_slope(self) -> ControllerConfig:
        if self.on_missing_slope == "raise":
            raise RuntimeError(
                "on_missing_slope='raise', and there are no gradients before the optimizer's steps (DeepSpeed's ZeRO,"
                " an optimizer fused into backward, or a step with a closure): use GreedyConfig(), which follows the"
                " loss alone"
            )
        return GreedyConfig(
            mode=self.mode,
            every_n_steps=self.every_n_steps,
            on_nonfinite=self.on_nonfinite,
            on_resume=self.on_resume,
            min_scale=self.min_scale,
            max_scale=self.max_scale,
            min_lr=self.min_lr,
            max_lr=self.max_lr,
        )

    def rule(self, base_lrs: Sequence[float], horizon: int | None) -> SlopeRule:
        return SlopeRule(self, base_lrs, horizon)


class SlopeRule(OneScaleRule):
    """The rule of `SlopeConfig`."""

    wants_slope = True

    def __init__(self, config: SlopeConfig, base_lrs: Sequence[float], horizon: int | None) -> None:
        super().__init__(base_lrs, config.scale_bounds)
        self._horizon = horizon
        self._doubling = 12.0 if horizon is None else 0.02 * horizon
        self._look_until = math.inf if horizon is None else 0.4 * horizon
        self._stage = SEARCH
        self._seen = 0
        self._slopes: deque[float] = deque(maxlen=6)
        self._longer = 12 if horizon is None else max(12, int(0.02 * horizon))
        self.set_scale(config.start_scale)

    def update(self, loss: float, slope: float | None) -> Decision:
        self._seen += 1
        if self._seen > self._look_until:
            self.wants_slope = False
        if slope is None or slope != slope or not self.wants_slope:
            return Decision(HOLD, HOLDING if self._stage == HELD else SEARCHING, self.scales, loss, slope=slope)
        self._slopes.append(slope)
        mean, error = _mean_and_error(self._slopes)
        full = len(self._slopes) == self._slopes.maxlen
        if self._stage == HELD:
            if full and mean < -error:
                self._stage = SEARCH_ON
                self._slopes = deque(maxlen=6)
            return Decision(HOLD, HOLDING, self.scales, loss, mean, slope=slope)
        if full and mean > -0.5 * error:
            self._stage = HELD
            self._slopes = deque(maxlen=self._longer)
            return Decision(HOLD, FOUND, self.scales, loss, mean, slope=slope)
        doubling, reason = (self._doubling, SEARCHING) if self._stage == SEARCH else (2 * self._doubling, SEARCHING_ON)
        action = self.move(self.scale * 2 ** (1 / max(doubling, 1.0)))
        return Decision(action, CEILING if action is HOLD else reason, self.scales, loss, mean, slope=slope)

    def lower(self) -> None:
        self._stage = HELD
        self.set_scale(self.scale * 0.3)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "stage": self._stage, "seen": self._seen, "slopes": list(self._slopes)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_state(state, SLOPE_RULE_STATE, "slope rule")
        self._stage, self._seen = state["stage"], state["seen"]
        self._slopes = deque(state["slopes"], maxlen=self._longer if self._stage == HELD else 6)
        self.wants_slope = self._seen <= self._look_until
        self.set_scale(state["scale"])


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and its standard error from the differences of neighbours."""
    values = list(values)
    count = len(values)
    squares = sum((a - b) ** 2 for a, b in zip(values, values[1:], strict=False))
    return sum(values) / count, math.sqrt(squares / (2 * max(1, count - 1) * count)) + 1e-12


SLOPE_RULE_STATE = {
    "scale": is_scale,
    "stage": lambda value: value in (SEARCH, HELD, SEARCH_ON),
    "seen": is_count,
    "slopes": is_list_of(is_finite),
}
