"""The default rule: search for the LR by the slope of the loss, then hold it.

The slope is the cosine of the angle between the gradient and the displacement of the weights since the start of
training. If it is below 0, moving further in the same direction would lower the loss, so the LR is too low; if it is
above 0, the weights have overshot.

    search   start far below the base LR and double it every few steps, until the slope is no longer clearly negative,
             or the weights have moved a long way in few steps
    hold     keep an LR half a doubling lower, since an LR that is too high costs more than one that is too low; if the
             slope of the LR that is held is clearly negative, the search stopped too early: raise it by half a
             doubling, and hold that; if the slope is positive and the loss far above its best, the search has
             overshot: multiply the LR by 0.3
    done     after 40% of the run, or the first pass over the data, the rule changes nothing; the final decay follows

How each part was chosen, and what did worse, is in benchmarks/LOG.md.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from greedylr_integrations.bounds import BoundedConfig
from greedylr_integrations.checks import (
    check,
    check_choice,
    check_number,
    check_state,
    is_count,
    is_finite,
    is_flag,
    is_list_of,
    is_numbers,
)
from greedylr_integrations.controller import ControllerConfig
from greedylr_integrations.decision import (
    CEILING,
    CLIMBING,
    FAR_ENOUGH,
    FLOOR,
    FOUND,
    HOLD,
    HOLDING,
    SEARCHING,
    SEARCHING_ON,
    TOO_SHORT,
    WORSENED,
    Action,
    Decision,
    Reason,
)
from greedylr_integrations.rolling import Average, RollingMean, average, is_average, is_window
from greedylr_integrations.rule import OneScaleRule, is_scale
from greedylr_integrations.rules.window import GreedyConfig

ASSUMED_LENGTH = 1000  # decisions of a run whose length is unknown
SHORTEST = 60  # decisions with a slope below which there is no search
SHORT = 200  # decisions of a run below which the search hurries
NEWEST = 6  # slopes that end the search: more would only lag behind the LR
LONGEST_SHARE = 0.4  # of the run, for searching
FAR_AWAY = 0.04  # distance that ends the first search, for each optimizer step in which the LR doubles
NEARBY = 0.0075  # likewise: below it, a slope that was never clearly negative ends a search only above 0
BELOW = 0.5  # doublings by which the LR that is held lies below the one at which the search ended
ON = 0.5  # doublings by which it rises if its slope asks for more
CLEARLY = 1.5  # standard errors by which that slope must be below 0
BACK = 0.3  # factor on the LR after an overshoot or a non-finite loss
FAR = 3.0  # standard errors by which the loss of an overshoot is above its best
LATE_FAR = 8.0  # the same, later on: by then, the best is that of many windows
OUTLIER = 8.0  # a window with an outlier has a standard error at least this many times that of a window without it
LATE = 5  # windows since the LR last rose


@dataclass(frozen=True, kw_only=True)
class SlopeConfig(BoundedConfig):
    """Search for the LR by the slope, hold it, decay: the default rule.

    The search takes the place of a warmup. It ends when the mean of the last 6 slopes is above -1 standard error, or
    when the weights have moved far: by 16% of their norm if the LR doubles every 4 steps, and in proportion otherwise.
    While the weights have hardly moved and the slope has never been clearly negative, the mean must be above 0.

    After the search, the LR goes back by half a doubling and is held. While it is held, it rises by half a doubling
    whenever the mean slope over a longer window (2% of the run, at least 12 slopes) is below -1.5 standard errors. If
    the slope has never been clearly different from 0, as on a plateau, the LR climbs towards the base LR at half the
    speed of the search, until the weights have moved far. All of these standard errors are based on the noise of all
    slopes so far.
    """

    MIN_SCALE: ClassVar[float] = 0.001
    MAX_SCALE: ClassVar[float] = 100.0

    min_scale: float | None = None
    """Lower bound on LR / base LR. Default None: 0.001."""
    max_scale: float | None = None
    """Upper bound on LR / base LR. Default None: 100."""
    start_scale: float | None = None
    """LR / base LR at which the search begins. Default None: 0.02, or 0.03 in runs of fewer than 200 decisions."""
    doubling: float | None = None
    """Decisions in which the search doubles the LR, at least 1. Default None: 6 in runs of at least 1,000 decisions or
    of unknown length; in shorter runs 0.6% of the run, at least 4 (3 in runs of fewer than 200); never more than a
    twentieth of the first pass over the data."""
    on_missing_slope: str = "loss"
    """What to do if the slope cannot be measured: "loss" (default) follows the loss window with one WARNING, "raise" is
    an error."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start_scale is not None:
            check(check_number("start_scale", self.start_scale) > 0, "start_scale", self.start_scale, "above 0")
        if self.doubling is not None:
            check(check_number("doubling", self.doubling) >= 1, "doubling", self.doubling, "at least 1")
        check_choice("on_missing_slope", self.on_missing_slope, ("loss", "raise"))

    def searches(self, horizon: int | None, first_pass: int | None) -> bool:
        return min(horizon or ASSUMED_LENGTH, first_pass or ASSUMED_LENGTH) >= SHORTEST

    def without_slope(self) -> ControllerConfig:
        if self.on_missing_slope == "raise":
            raise RuntimeError(
                "on_missing_slope='raise', and no gradients are seen before the optimizer's steps (as with DeepSpeed's"
                " ZeRO, an optimizer fused into backward, a step with a closure, or another metric than the training"
                " loss): use GreedyConfig(), which follows the loss alone"
            )
        return GreedyConfig(
            **self.shared(),
            min_scale=self.min_scale,
            max_scale=self.max_scale,
            min_lr=self.min_lr,
            max_lr=self.max_lr,
        )

    def plan(self, horizon: int | None, first_pass: int | None = None) -> str:
        if not self.searches(horizon, first_pass):
            return "leaves the LR as it is"
        return f"searches for the LR by the slope, from {self.first_scale(horizon):g} x the base LR"

    def concern(self, horizon: int | None, first_pass: int | None) -> str | None:
        if self.searches(horizon, first_pass):
            return None
        more = "; a smaller every_n_steps gives more" if self.every_n_steps > 1 else ""
        return f"the LR is left as it is: {too_short(horizon, first_pass)}{more}"

    def first_scale(self, horizon: int | None) -> float:
        return self.start_scale or (0.03 if (horizon or ASSUMED_LENGTH) < SHORT else 0.02)

    def rule(self, base_lrs: Sequence[float], horizon: int | None, first_pass: int | None = None) -> SlopeRule:
        return SlopeRule(self, base_lrs, horizon, first_pass)


def too_short(horizon: int | None, first_pass: int | None) -> str:
    """Why such a run cannot be searched in."""
    needs = f"a search needs {SHORTEST} decisions"
    if first_pass is not None and first_pass < SHORTEST and first_pass < (horizon or ASSUMED_LENGTH):
        return f"{needs} in one pass over the data, and this one has {first_pass}; a smaller batch gives more"
    return f"{needs}, and the run has {horizon}"


class SlopeRule(OneScaleRule):
    """The rule of `SlopeConfig`.

    Args:
        config (SlopeConfig): its settings.
        base_lrs (sequence of float): base LR of each parameter group.
        horizon (int): decisions of the run. Default None: unknown.
        first_pass (int): decisions of the first pass over the data. Default None: all data is new.
    """

    def __init__(
        self,
        config: SlopeConfig,
        base_lrs: Sequence[float],
        horizon: int | None = None,
        first_pass: int | None = None,
    ) -> None:
        super().__init__(base_lrs, config.scale_bounds)
        length = horizon or ASSUMED_LENGTH
        measured = min(length, first_pass or length)
        short = length < SHORT
        doubling = min(3.0 if short else min(max(4.0, 0.006 * length), 6.0), max(3.0, measured / 20))
        doubling = config.doubling or doubling
        self._fast = 2 ** (1 / doubling)
        steps = doubling * config.every_n_steps
        self._near, self._far = NEARBY * steps, FAR_AWAY * steps
        self._longer = max(2 * NEWEST, int(0.02 * length))
        self._until = min(LONGEST_SHARE * length, measured) if config.searches(horizon, first_pass) else 0
        self._count = 0  # decisions so far
        self._searching = True
        self._slopes: deque[float] = deque(maxlen=self._longer)  # since the search began, or ended
        self._all = Average()  # of all slopes
        self._losses = RollingMean(self._longer)  # since the LR went back, if it did
        self._best = (math.inf, 0.0)  # lowest mean of a full window of losses, and its standard error
        self._risen = 0  # decision in which the LR rose last
        self._seen = False  # whether the slope has ever said anything
        self.wants_slope = self._until > 0
        if self.wants_slope:
            self.set_scale(config.first_scale(horizon))

    @property
    def settled(self) -> bool:
        """Whether an LR is held, and a whole window of slopes has not asked for another."""
        held = not self._searching and len(self._slopes) == self._longer
        return held and (self._seen or self._scale >= 1.0)

    def update(self, loss: float, slope: float | None = None, distance: float | None = None) -> Decision:
        if not self.wants_slope:
            return Decision(HOLD, HOLDING if self._until else TOO_SHORT, self.scales, loss)
        self._count += 1
        if self._count >= self._until:
            self.wants_slope = False
        newest: list[float] = []
        if slope is not None and slope == slope:
            self._slopes.append(slope)
            self._look(slope)
            newest = list(self._slopes)[-NEWEST:] if self._searching else list(self._slopes)
        mean = sum(newest) / len(newest) if newest else None
        if not self.wants_slope or mean is None:  # at the first step, the weights have not moved yet
            reason = SEARCHING if self._searching else HOLDING
            return Decision(HOLD, reason, self.scales, loss, mean, None, slope, distance)
        growth, reason = self._search(newest, distance) if self._searching else self._hold(distance)
        if self._overshot(loss, held=not self._searching):
            action = self._go_back()
            reason = FLOOR if action is HOLD else WORSENED
            return Decision(action, reason, self.scales, loss, mean, None, slope, distance)
        if growth == 1.0:
            return Decision(HOLD, reason, self.scales, loss, mean, None, slope, distance)
        action = self.move(self._scale * growth)
        if growth > 1:
            self._risen = self._count
        reason = CEILING if action is HOLD and growth > 1 else reason
        return Decision(action, reason, self.scales, loss, mean, None, slope, distance)

    def _look(self, slope: float) -> None:
        """Whether the slope has said anything yet: clearly negative on the whole, or clearly positive while held."""
        self._all.push(slope)
        if not self._seen:
            held = list(self._slopes)[-2 * NEWEST :]
            self._seen = (self._all.count >= NEWEST and self._all.in_errors < -3) or (
                not self._searching and len(held) == 2 * NEWEST and average(held).in_errors > 2
            )

    def _search(self, newest: Sequence[float], distance: float | None) -> tuple[float, Reason]:
        """Factor on the scale, and why."""
        if len(newest) < NEWEST:
            return self._fast, SEARCHING
        found = FOUND
        if self._is_far(distance):
            found = FAR_ENOUGH
        else:
            near = not self._seen and distance is not None and distance < self._near
            if self._all.in_errors_of(newest) <= (0 if near else -1):
                return self._fast, SEARCHING
        self._searching = False
        self._slopes.clear()
        return 2**-BELOW, found

    def _hold(self, distance: float | None) -> tuple[float, Reason]:
        """Factor on the scale, and why."""
        if len(self._slopes) == self._longer and self._all.in_errors_of(self._slopes) < -CLEARLY:
            self._slopes.clear()
            return 2**ON, SEARCHING_ON
        if not self._seen and self._scale < 1.0 and not self._is_far(distance):
            return math.sqrt(self._fast), CLIMBING  # the base LR is likely to be about right
        return 1.0, HOLDING

    def _is_far(self, distance: float | None) -> bool:
        return distance is not None and distance > self._far

    def _overshot(self, loss: float, held: bool) -> bool:
        """Whether the slope is positive and the mean loss far above the lowest that it has been."""
        mean = self._losses.push(loss)
        if not self._losses.full or mean - mean != 0.0:
            return False
        error, (best, error_of_best) = self._losses.standard_error(), self._best
        # a low mean caused by an outlier is no best; if it was the first one, it is dropped once the outlier has left
        lower = mean < best and (error < OUTLIER * error_of_best or not error_of_best)
        if error < math.inf and (lower or OUTLIER * error < error_of_best):  # squares may overflow
            self._best = (mean, error)
        late = self._count - self._risen > LATE * self._longer
        far = mean - best > (LATE_FAR if late else FAR) * math.hypot(error, error_of_best)
        return far and held and average(self._slopes).in_errors > 1

    def lower(self) -> None:
        self._go_back()

    def _go_back(self) -> Action:
        """Go back to 0.3 of the scale, and hold it; the search may go on from there."""
        self._searching = False
        self._slopes.clear()
        self._losses = RollingMean(self._longer)
        return self.move(self._scale * BACK)

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "count": self._count,
            "searching": self._searching,
            "risen": self._risen,
            "seen": self._seen,
            "slopes": list(self._slopes),
            "all": self._all.state_dict(),
            "losses": self._losses.state_dict(),
            "best": None if self._best[0] == math.inf else list(self._best),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_state(state, SLOPE_RULE_STATE, "slope rule")
        self._count, self._risen, self._seen = state["count"], state["risen"], state["seen"]
        self._searching = state["searching"]
        self._slopes = deque(state["slopes"], maxlen=self._longer)
        self._all = Average(*state["all"])
        self._losses = RollingMean(self._longer)
        self._losses.load_state_dict(state["losses"])
        self._best = (math.inf, 0.0) if state["best"] is None else tuple(state["best"])
        self.wants_slope = self._count < self._until
        self.set_scale(state["scale"])


SLOPE_RULE_STATE = {
    "scale": is_scale,
    "count": is_count,
    "searching": is_flag,
    "risen": is_count,
    "seen": is_flag,
    "slopes": is_list_of(lambda value: is_finite(value) and -1 <= value <= 1),  # type: ignore[operator]
    "all": lambda value: is_average(value) and abs(value[1]) <= value[0] and abs(value[3]) <= 1,  # of slopes
    "losses": is_window,
    "best": lambda value: value is None or (is_numbers(value) and len(value) == 2 and value[1] >= 0),
}
