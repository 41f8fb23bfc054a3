"""What a loss spike is: a loss far above those before it, in their own noise. Standard library only."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Mapping
from itertools import pairwise
from math import ceil, inf, log, sqrt
from typing import Any

from greedylr_integrations.checks import fits, is_count, is_numbers

REMEMBERED = 64  # losses that a loss is compared with
FEWEST = 16  # of these below which nothing is a spike
FAR = 8.0  # standard deviations above the median at which a loss is a spike
RISEN = 10.0  # standard errors above it at which the mean of the newest has risen
ABOVE = 5.0  # the same, if nearly all of the newest are above nearly all of the others,
PAIRS = 0.97  # in this share of the pairs of a newest and another
NEWEST = 8  # losses in that mean
FINEST = 1e-3  # least standard deviation, of the median: losses that are nearly constant have no spikes
SPIKES = 3  # in a row that are more than the fault of one odd batch,
CHANCE = 2e-4  # unless this is less likely than so many in a row, given how many outliers there were
OUTLIER = 4.0  # standard deviations above the median of an outlier


class SpikeDetector:
    """Finds loss spikes.

    A spike is a loss that lies 8 standard deviations above the median of the 64 losses before the last 8. The
    standard deviation is that of a normal distribution with the same median absolute deviation or, if that gives
    more, with the same distance between the median and the 90th percentile, since many losses have a longer tail
    above than below. So outliers hardly affect it.

    The loss *has risen* if there were three spikes in a row, or more if some of the 64 are outliers too, as with data
    of which a part is harder; or if the mean of the last 8 losses, in which a spike counts as 8 standard deviations,
    lies 10 of its standard errors above that median, where the outliers add to the standard error. Five are enough if
    the newer loss is the higher one in 97% of all pairs of one of the 8 and one of the 64, as happens with independent
    noise of any distribution once in ten million decisions; in this case, the standard error allows for the
    correlation between successive losses.

    Args:
        larger_is_better (bool): whether a spike lies below the others.

    Attributes:
        in_a_row (int): spikes in a row, up to the last loss.
        limit (float): beyond it, the last loss is a spike. None if there were fewer than 16 losses to compare it with.
    """

    def __init__(self, larger_is_better: bool = False) -> None:
        self._sign = -1.0 if larger_is_better else 1.0
        self._values: deque[float] = deque(maxlen=REMEMBERED)
        self._newest: deque[float] = deque(maxlen=NEWEST)  # spikes too
        self._sorted: list[float] = []
        self._median, self._error = 0.0, inf
        self._enough = SPIKES  # in a row
        self.in_a_row = 0
        self.limit: float | None = None

    def is_spike(self, loss: float) -> bool:
        """Add a finite loss. Returns whether it is a spike."""
        self._set_limits()
        highest = inf if self.limit is None else self._sign * self.limit
        value = self._sign * loss
        if len(self._newest) == NEWEST:
            self._remember(self._newest[0])  # not before, or a rise would be compared with itself
        self._newest.append(min(value, highest))  # a single spike, however high, must not raise the mean too far
        self.in_a_row = self.in_a_row + 1 if value > highest else 0
        return self.in_a_row > 0

    def _remember(self, value: float) -> None:
        if len(self._values) == REMEMBERED:
            del self._sorted[bisect_left(self._sorted, self._values[0])]
        self._values.append(value)
        insort(self._sorted, value)

    @property
    def has_risen(self) -> bool:
        """Whether the losses, up to the last one, are more than the fault of one odd batch."""
        if self.in_a_row >= self._enough:
            return True
        if len(self._newest) < NEWEST:
            return False
        highest = inf if self.limit is None else self._sign * self.limit  # those before may have had a higher limit
        rise = sum(min(value, highest) for value in self._newest) / NEWEST - self._median
        if rise > RISEN * self._error:
            return True
        if rise <= ABOVE * self._error or len(self._values) < REMEMBERED:
            return False
        pairs = sum(bisect_left(self._sorted, value) for value in self._newest)
        return pairs > PAIRS * NEWEST * REMEMBERED and rise > ABOVE * self._error * self._error_factor()

    def _error_factor(self) -> float:
        """The factor by which the correlation between successive losses increases the standard error of a mean."""
        mean = sum(self._values) / REMEMBERED
        apart = [value - mean for value in self._values]
        together, alone = sum(a * b for a, b in pairwise(apart)), sum(a * a for a in apart)
        correlation = min(max(together / alone, 0.0), 0.9) if alone else 0.0
        return sqrt((1 + correlation) / (1 - correlation))

    def _set_limits(self) -> None:
        self.limit, self._error = None, inf
        if len(self._values) >= FEWEST:
            count = len(self._sorted)
            median, high = self._sorted[count // 2], self._sorted[int(0.9 * count)]
            deviations = sorted(abs(value - median) for value in self._sorted)
            deviation = max(1.4826 * deviations[count // 2], (high - median) / 1.2816, FINEST * abs(median))
            self.limit = self._sign * (median + FAR * deviation)
            outliers = count - bisect_right(self._sorted, median + OUTLIER * deviation)
            self._enough = max(SPIKES, ceil(log(CHANCE) / log((outliers + 1) / (count + 1))))
            apart = [min(each / deviation, FAR) for each in deviations] if outliers and deviation else [1.0]
            factor = max(1.0, sqrt(sum(each * each for each in apart) / len(apart)))
            self._median, self._error = median, factor * deviation / sqrt(NEWEST)

    def accept(self) -> None:
        """Accept the new level of the losses: forget the earlier ones."""
        self._values.clear()
        self._sorted.clear()
        self.go_back()

    def go_back(self) -> None:
        """Forget the newest losses, since the weights that had them are gone."""
        self._newest.clear()
        self.in_a_row = 0

    def state_dict(self) -> dict[str, Any]:
        return {"values": list(self._values), "newest": list(self._newest), "in_a_row": self.in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._values, self._newest = deque(state["values"], REMEMBERED), deque(state["newest"], NEWEST)
        self._sorted = sorted(self._values)
        self.in_a_row = state["in_a_row"]


def _at_most(count: int) -> Callable[[Any], bool]:
    return lambda value: is_numbers(value) and len(value) <= count


is_detector = fits({"values": _at_most(REMEMBERED), "newest": _at_most(NEWEST), "in_a_row": is_count})
