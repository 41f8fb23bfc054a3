"""Confidence intervals for statistics of a few runs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

DRAWS = 10_000


def interval(values: np.ndarray, statistic: Callable) -> tuple[float, float, float]:
    """A statistic (`np.mean` or `np.median`) of the values, and the ends of its 95% bootstrap interval."""
    drawn = np.random.default_rng(0).choice(values, (DRAWS, len(values)))
    low, high = np.percentile(statistic(drawn, axis=1), [2.5, 97.5])
    return float(statistic(values)), float(low), float(high)
