"""Where to start the next such run, from the scales of this one."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from greedylr_integrations.checks import fits, is_count, is_list_of
from greedylr_integrations.rule import is_scale

MOST = 128  # scales that are kept


class Settling:
    """The scales of the parameter groups in the decisions between warmup and decay, thinned out evenly to at most 128.

    They are few enough for a checkpoint, so a resumed run suggests the same LR as one that was not interrupted.
    """

    def __init__(self) -> None:
        self.scales: list[Sequence[float]] = []
        self._count, self._every = 0, 1

    def push(self, scales: Sequence[float]) -> None:
        """Take up the scales of one more decision."""
        if self._count % self._every == 0:
            self.scales.append(scales)
            if len(self.scales) > MOST:
                del self.scales[1::2]
                self._every *= 2
        self._count += 1

    def suggested_lr(self, base_lr: float, group: int) -> float | None:
        """As `suggested_lr`, for a parameter group."""
        return suggested_lr([scales[group] for scales in self.scales], base_lr)

    def state_dict(self, group: int) -> dict[str, Any]:
        """The scales of one group, and how many there were."""
        return {"count": self._count, "scales": [scales[group] for scales in self.scales]}

    def load_state_dict(self, state: dict[str, Any], groups: int) -> None:
        """Continue from what `state_dict` gave, with the scale of that group for all."""
        self._count, self._every = state["count"], every(state["count"])
        self.scales = [(scale,) * groups for scale in state["scales"]]


def every(count: int) -> int:
    """One in how many scales is kept if there are `count`."""
    return 1 << (max(count - 1, 0) // MOST).bit_length()


def suggested_lr(scales: Sequence[float], base_lr: float) -> float | None:
    """The LR to start the next such run at: base LR x the scale that this run settled on.

    Args:
        scales (sequence of float): scale of a parameter group after each decision between warmup and decay.
        base_lr (float): its base LR.

    Returns:
        Base LR x the median over the later half of the scales, which are thinned out evenly to at most 128; None with
        fewer than 10 of them, or a base LR of 0.
    """
    if len(scales) < 10 or not base_lr:
        return None
    kept = scales[:: every(len(scales))]
    return base_lr * median(kept[len(kept) // 2 :])


is_settling = fits({"count": is_count, "scales": is_list_of(is_scale)})
NOT_SETTLED: dict[str, Any] = {"count": 0, "scales": []}
