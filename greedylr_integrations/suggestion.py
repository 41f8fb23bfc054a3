"""Where to start the next such run, from the scales of this one."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median


def suggested_lr(scales: Sequence[float], base_lr: float) -> float | None:
    """The LR to start the next such run at: base LR x the scale that this run settled on.

    Args:
        scales (sequence of float): scale of the first parameter group after each decision between warmup and decay.
        base_lr (float): its base LR.

    Returns:
        Base LR x the median over the later half of the scales; None with fewer than 10 of them.
    """
    if len(scales) < 10:
        return None
    return base_lr * median(scales[len(scales) // 2 :])
