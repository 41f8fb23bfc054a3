"""Bounds on the LR of each parameter group, as LRs or as multiples of the base LR."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from greedylr_integrations.checks import check, check_number
from greedylr_integrations.controller import ControllerConfig


def check_bounds(field: str, value: object, groups: int | None = None) -> None:
    """An absolute bound: a number of at least 0, or a sequence of them, one for each parameter group."""
    if isinstance(value, (list, tuple)):
        check(len(value) > 0, field, value, "a number or a list with one number per parameter group")
        if groups is not None:
            check(len(value) == groups, field, value, f"a number or a list of {groups}, one for each parameter group")
        for item in value:
            check_bounds(field, item)
    else:
        number = check_number(field, value)
        check(number >= 0, field, value, "at least 0")


def per_group(value: float | Sequence[float], groups: int) -> list[float]:
    """The bound of each parameter group."""
    return [float(v) for v in value] if isinstance(value, (list, tuple)) else [float(value)] * groups  # type: ignore[arg-type]


def check_order(min_lr: float | Sequence[float] | None, max_lr: float | Sequence[float] | None) -> None:
    """Check two absolute bounds, either of which may be None: each is valid, and the lower is not above the upper."""
    for field, value in (("min_lr", min_lr), ("max_lr", max_lr)):
        if value is not None:
            check_bounds(field, value)
    if min_lr is not None and max_lr is not None:
        groups = max(len(v) if isinstance(v, (list, tuple)) else 1 for v in (min_lr, max_lr))
        for low, high in zip(per_group(min_lr, groups), per_group(max_lr, groups), strict=False):
            check(low <= high, "min_lr", min_lr, f"at most max_lr={max_lr!r}")


@dataclass(frozen=True, kw_only=True)
class BoundedConfig(ControllerConfig):
    """A configuration with bounds on the LR."""

    MIN_SCALE: ClassVar[float] = 0.01
    MAX_SCALE: ClassVar[float] = 10.0

    min_scale: float | None = None
    """Lower bound on LR / base LR. Default None: 0.01."""
    max_scale: float | None = None
    """Upper bound on LR / base LR. Default None: 10."""
    min_lr: float | Sequence[float] | None = None
    """Lower bound on the LR, in place of `min_scale`: one value, or one per parameter group. Groups keep their ratios
    until one of them reaches its bound, and regain them when it leaves the bound. Default None."""
    max_lr: float | Sequence[float] | None = None
    """Upper bound on the LR in place of `max_scale`, likewise. Default None."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order(self.min_lr, self.max_lr)
        for bound, scale, lr in (("min", self.min_scale, self.min_lr), ("max", self.max_scale, self.max_lr)):
            if scale is not None:
                check(check_number(bound + "_scale", scale) > 0, bound + "_scale", scale, "above 0")
                check(lr is None, bound + "_scale", scale, f"None if {bound}_lr is given ({lr!r})")
        if self.max_lr is None:
            check((self.min_scale or 0) <= self._high, "min_scale", self.min_scale, f"at most {self._high}")
        if self.min_lr is None:
            check(self._low <= self._high, "max_scale", self.max_scale, f"at least {self._low}")

    @property
    def _low(self) -> float:
        return self.MIN_SCALE if self.min_scale is None else self.min_scale

    @property
    def _high(self) -> float:
        return self.MAX_SCALE if self.max_scale is None else self.max_scale

    def scale_bounds(self, base_lrs: Sequence[float]) -> tuple[list[float], list[float]]:
        """Lowest and highest scale of each parameter group."""
        groups = len(base_lrs)
        lows, highs = [self._low] * groups, [self._high] * groups
        for field, value, bounds, inward in (
            ("min_lr", self.min_lr, lows, math.inf),
            ("max_lr", self.max_lr, highs, 0.0),
        ):
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
