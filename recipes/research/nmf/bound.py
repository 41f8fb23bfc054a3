"""The learning rate below which a step on one factor is stable, as derived in docs/nmf-bound.md."""

from __future__ import annotations

import numpy as np

FLOOR = 1e-9  # smallest entry of the power iteration's vector, relative to the largest
TINY = 1e-300  # eigenvalue for all-zero factors: their gradient is 0, so any LR is stable


class LargestEigenvalue:
    """Upper bound on the largest eigenvalue of a non-negative symmetric matrix that changes from call to call.

    Power iteration that continues where the last call ended. The Rayleigh quotient approaches the eigenvalue from
    below. For a non-negative matrix G and any positive vector v, max_i (Gv)_i / v_i approaches it from above (Collatz
    and Wielandt; Horn and Johnson, Matrix Analysis, 8.1.26), so that the LR is on the safe side after any number of
    iterations.
    """

    def __init__(self, size: int) -> None:
        self._v = np.ones(size)

    def __call__(self, matrix: np.ndarray, iterations: int = 2) -> float:
        v = self._v
        for _ in range(iterations):
            image = matrix @ v
            bound = float((image / v).max())
            largest = image.max()
            if not 0 < largest < np.inf:  # all-zero factors, or a run that has diverged
                return max(bound, TINY)
            v = np.maximum(image / largest, FLOOR)
        self._v = v
        return bound


def sampled_smoothness(smoothness: float, largest_row: float, rows: int, batch: int) -> float:
    """Expected smoothness of a sum over rows, of which `batch` are drawn without replacement.

    Args:
        smoothness (float): smoothness of the sum: the largest eigenvalue of W^T W.
        largest_row (float): largest smoothness of a single row: the largest squared norm of a row of W.
        rows, batch (int): number of rows, and how many of them are drawn.

    Source: Gower et al., SGD: General Analysis and Improved Rates (2019), b-nice sampling; derived in
    docs/nmf-bound.md.
    """
    if rows == batch:
        return smoothness
    both = rows * (batch - 1) / (batch * (rows - 1))
    one = rows * (rows - batch) / (batch * (rows - 1))
    return both * smoothness + one * largest_row
