"""What a rule is: it turns observations into the scale of each parameter group. The rules are in `rules`.

A rule of your own is a subclass of `OneScaleRule` with an `update`, and a `controller.ControllerConfig` that makes it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from greedylr_integrations.checks import check_state, is_finite
from greedylr_integrations.decision import HOLD, LOWER, RAISE, Action, Decision

SMALLEST, LARGEST = 1e-30, 1e30  # scales; from 0 or infinity there would be no way back

Bounds = Callable[[Sequence[float]], tuple[list[float], list[float]]]


class Rule(ABC):
    """How a controller turns observations into scales.

    Attributes:
        scales (tuple of float): scale of each parameter group now. The rule sets it.
        wants_slope (bool): whether the next update can use a slope. A rule may change it during a run; while it is
            False, no slope is measured. Default False.
    """

    scales: tuple[float, ...]
    wants_slope: bool = False

    @abstractmethod
    def update(self, loss: float, slope: float | None = None, distance: float | None = None) -> Decision:
        """Decide on one observation.

        Args:
            loss (float): the raw (unsmoothed) loss, finite.
            slope (float): from -1 to 1, or NaN if it could not be computed; see `slope.SlopeMeter`. None if it was not
                measured.
            distance (float): |w - w0| / |w0| of the weights; NaN and None likewise.
        """

    @abstractmethod
    def lower(self) -> None:
        """Lower the scales once, after a non-finite loss."""

    @property
    @abstractmethod
    def position(self) -> Any:
        """Where the LRs are. Set it to a value that was read earlier to return there."""

    @position.setter
    @abstractmethod
    def position(self, position: Any) -> None: ...

    @abstractmethod
    def clamp(self, low: float, high: float) -> None:
        """Bring the scales into the range from `low` to `high`, as far as the bounds allow."""

    @abstractmethod
    def add_group(self, base_lr: float) -> None:
        """Include a parameter group that was added to the optimizer during the run."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that the next updates depend on, as plain JSON."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` gave, or raise ValueError before anything has changed."""


def unbounded(base_lrs: Sequence[float]) -> tuple[list[float], list[float]]:
    """Lowest and highest scale of each parameter group if there are no bounds."""
    return [SMALLEST] * len(base_lrs), [LARGEST] * len(base_lrs)


class OneScaleRule(Rule):
    """A rule with one scale for all parameter groups. A subclass only needs to define `update`.

    `scales` has this scale clipped to the bounds of each group. So the groups keep their ratios until one of them
    reaches its bound, and regain them when it leaves the bound.

    Args:
        base_lrs (sequence of float): base LR of each parameter group.
        bounds (callable): lowest and highest scale of each group, given the base LRs. Default: no bounds.
    """

    def __init__(self, base_lrs: Sequence[float], bounds: Bounds = unbounded) -> None:
        self._base_lrs = list(base_lrs)
        self._bounds = bounds
        self._fit_bounds()
        self.set_scale(1.0)

    @property
    def scale(self) -> float:
        """The one scale, before it is cut to the bounds of each group."""
        return self._scale

    def set_scale(self, scale: float) -> None:
        """Set the scale of all groups, as far as their bounds allow."""
        if scale < self._floor:
            scale = self._floor
        elif scale > self._ceiling:
            scale = self._ceiling
        self._scale = scale
        if self._alike:
            self.scales = (scale,) * len(self._lows)
        else:
            self.scales = tuple(min(max(scale, low), high) for low, high in zip(self._lows, self._highs, strict=True))

    def move(self, scale: float) -> Action:
        """Set the scale, and say how the scales moved: raise, lower, or hold if none of them has changed."""
        before, old = self.scales, self._scale
        self.set_scale(scale)
        if self.scales == before:
            return HOLD
        return RAISE if self._scale > old else LOWER

    def lower(self) -> None:
        """Halve the scale, after a non-finite loss."""
        self.set_scale(self._scale / 2)

    @property
    def position(self) -> float:
        return self._scale

    @position.setter
    def position(self, position: float) -> None:
        if position != self._scale:
            self.set_scale(position)

    def clamp(self, low: float, high: float) -> None:
        self.set_scale(min(max(self._scale, low), high))

    def add_group(self, base_lr: float) -> None:
        self._base_lrs.append(base_lr)
        self._fit_bounds()
        self.set_scale(self._scale)

    def _fit_bounds(self) -> None:
        self._lows, self._highs = self._bounds(self._base_lrs)
        self._floor, self._ceiling = max(min(self._lows), SMALLEST), min(max(self._highs), LARGEST)
        self._alike = min(self._lows) == max(self._lows) and min(self._highs) == max(self._highs)

    def state_dict(self) -> dict[str, Any]:
        """Here, the scale."""
        return {"scale": self._scale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_state(state, {"scale": is_scale}, type(self).__name__)
        self.set_scale(state["scale"])


def is_scale(value: object) -> bool:
    return is_finite(value) and 0 <= value <= LARGEST  # type: ignore[operator]


def moved(before: Sequence[float], after: Sequence[float]) -> Action:
    """The action that takes one tuple of scales to another."""
    if before == after:
        return HOLD
    return RAISE if sum(after) > sum(before) else LOWER
