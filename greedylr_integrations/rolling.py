"""What a rule remembers of the values it has seen: a rolling mean with its noise, the recent best, and the pace.

Every call is amortized O(1) for a window of any size. Values must be finite. Each class has a check of its state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import accumulate, islice, pairwise
from math import inf, sqrt

from greedylr_integrations.checks import fits, is_count, is_finite, is_list_of, is_none_or, is_numbers


class RollingMean:
    """Mean of the last `size` values, and the standard error of that mean.

    Nothing is ever subtracted, so an outlier that has left the window leaves nothing behind. The values are in two
    parts. For the older part, the sums from each value to the youngest of the part are kept, so that dropping the
    oldest value removes the last sum; the sum of the recent part grows by addition. When no older values are left, the
    recent ones become the older part.

    The standard error comes from successive differences (von Neumann's estimator: half their mean square is the noise
    variance), so a steady trend does not count as noise. It is 0 for fewer than two values.

    While the window fills, both are of the values that have arrived.

    Args:
        size (int): number of values, at least 1.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.full = False
        self._values: deque[float] = deque(maxlen=size)
        self._older_sums: list[float] = []
        self._older_squares: list[float] = []  # of the differences between the same values
        self._recent_sum = 0.0
        self._recent_squares = 0.0
        self._bridge = 0.0  # squared difference between the youngest older and the first recent value

    def push(self, value: float) -> float:
        """Add a value, drop the oldest of a full window, return the mean."""
        if not self.full:
            return self._fill(value)
        values, older = self._values, self._older_sums
        difference = value - values[-1]
        if older:
            older.pop()
            self._older_squares.pop()
            self._recent_sum = total = self._recent_sum + value
            self._recent_squares += difference * difference
        else:
            older = self._age(self.size - 1)
            self._recent_sum = total = value
            self._recent_squares, self._bridge = 0.0, difference * difference
        values.append(value)
        return (total + older[-1] if older else total) / self.size

    def _fill(self, value: float) -> float:
        count = len(self._values)
        if count:
            difference = value - self._values[-1]
            if count == len(self._older_sums):
                self._bridge = difference * difference
            else:
                self._recent_squares += difference * difference
        self._values.append(value)
        self._recent_sum += value
        self.full = count + 1 == self.size
        return (self._recent_sum + self._older_sums[-1] if self._older_sums else self._recent_sum) / (count + 1)

    def _age(self, count: int) -> list[float]:
        """Make the `count` youngest values the older part; return their sums."""
        youngest_first = list(islice(reversed(self._values), count))
        squares = ((young - old) * (young - old) for young, old in pairwise(youngest_first))
        self._older_sums = list(accumulate(youngest_first))
        self._older_squares = list(accumulate(squares, initial=0.0)) if count else []
        return self._older_sums

    def standard_error(self) -> float:
        """Standard error of the mean, in the unit of the values; infinite if squares overflow."""
        count = len(self._values)
        if count < 2:
            return 0.0
        squares = self._recent_squares
        if self._older_squares:
            squares += self._bridge + self._older_squares[-1]
        return sqrt(squares / (2 * (count - 1) * count))

    def state_dict(self) -> dict:
        return {"losses": list(self._values), "older": len(self._older_sums)}

    def load_state_dict(self, state: Mapping) -> None:
        """Continue from what `state_dict` gave: from its newest values, if the window takes fewer."""
        losses = state["losses"][-self.size :]
        older = max(state["older"] - len(state["losses"]) + len(losses), 0)
        self._values.extend(losses[:older])
        self._age(older)
        for loss in losses[older:]:
            self.push(loss)


class RecentBest:
    """Smallest of the last `size` values, by a queue in which nothing is worse than what comes after it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._count = 0
        self._queue: deque[tuple[int, float]] = deque()  # (number of the value, value), values rising

    def push(self, value: float) -> float | None:
        """Add a value; return the smallest of the `size` before it, None if there are none."""
        queue = self._queue
        self._count = count = self._count + 1
        if not queue:
            queue.append((count, value))
            return None
        while queue[0][0] + self.size < count:  # several, if a resumed run has a smaller window
            queue.popleft()
        best = queue[0][1]
        while queue and queue[-1][1] >= value:
            queue.pop()
        queue.append((count, value))
        return best

    def clear(self) -> None:
        self._queue.clear()

    def state_dict(self) -> dict:
        return {"count": self._count, "queue": [list(entry) for entry in self._queue]}

    def load_state_dict(self, state: Mapping) -> None:
        self._count = state["count"]
        self._queue = deque((number, value) for number, value in state["queue"])


class Average:
    """Mean of all values so far, and their noise by von Neumann's estimator.

    Args:
        count (int), total, squares, last (float): from `state_dict`. Default: no values.
    """

    def __init__(self, count: int = 0, total: float = 0.0, squares: float = 0.0, last: float = 0.0) -> None:
        self.count = count
        self._total = total
        self._squares = squares  # sum over neighbours of their squared difference
        self._last = last

    def push(self, value: float) -> None:
        """Add a value."""
        if self.count:
            difference = value - self._last
            self._squares += difference * difference
        self.count += 1
        self._total += value
        self._last = value

    @property
    def mean(self) -> float:
        return self._total / self.count if self.count else 0.0

    @property
    def in_errors(self) -> float:
        """The mean in units of its standard error."""
        return self.mean * sqrt(self.count) / self._noise()

    def in_errors_of(self, values: Collection[float]) -> float:
        """The mean of some of the values, in units of its standard error, which is computed from the noise of all."""
        return sum(values) / sqrt(max(1, len(values))) / self._noise()

    def _noise(self) -> float:
        return sqrt(self._squares / (2 * max(1, self.count - 1))) + 1e-12

    def state_dict(self) -> list[float]:
        return [self.count, self._total, self._squares, self._last]


def is_average(value: object) -> bool:
    return is_numbers(value) and len(value) == 4 and is_count(value[0]) and value[2] >= 0  # type: ignore


def average(values: Iterable[float]) -> Average:
    """Mean and noise of a few values."""
    of = Average()
    for value in values:
        of.push(value)
    return of


class Pace:
    """How fast a rolling mean falls: its fall over the last `size` values as a share of the largest such fall so far.

    The first sixth of the values is skipped: their means are of only a few losses, so noise would look like a fall.

    When a far outlier leaves the mean, the mean falls steeply. Such a fall does not count as the largest, or every
    later fall would look small beside it. It is recognized by its size: more than 3 times the range of the values so
    far, and so much that a single value must have changed by more than 240 times that range.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._skip = size // 6
        self._largest = 0.0
        self._means: deque[float] = deque(maxlen=size + 1)
        self._covered = _Covered() if self._skip else None  # a window of fewer values follows single losses anyway
        self._judged_from = size - self._skip  # means after which the values have covered enough to compare with
        self._too_far = max(3.0, 240 / size)

    def push(self, mean: float, value: float) -> float:
        """Add a mean and the newest value in it.

        Returns:
            The share, from 0 (does not fall) to 1 (falls as fast as it ever has).
        """
        covered, limit = self._covered, inf
        if covered is not None:
            covered.push(value)
        if self._skip:
            self._skip -= 1
            return 0.0
        means = self._means
        means.append(mean)
        if covered is not None and len(means) >= self._judged_from:
            limit = self._too_far * covered.distance
            if self._largest > limit:
                self._largest = 0.0
        fall = means[0] - mean
        if fall <= 0.0:
            return 0.0
        if fall < self._largest:
            return fall / self._largest
        if fall <= limit and fall < inf:  # of two values at the ends of the floats
            self._largest = fall
        return 1.0

    def clear(self) -> None:
        self._largest = 0.0
        self._means.clear()

    def state_dict(self) -> dict:
        covered = None if self._covered is None else self._covered.state_dict()
        return {"skip": self._skip, "largest": self._largest, "means": list(self._means), "covered": covered}

    def load_state_dict(self, state: Mapping) -> None:
        self._skip, self._largest = state["skip"], state["largest"]
        self._means = deque(state["means"], maxlen=self.size + 1)
        covered = state.get("covered")  # earlier versions did not have it
        self._covered = None if covered is None else _Covered(*covered)


class _Covered:
    """How far apart values have been, single outliers left out: the range of the medians of three in a row."""

    def __init__(self, low: float | None = None, high: float | None = None, last: Sequence[float] = ()) -> None:
        self._low = inf if low is None else low
        self._high = -inf if high is None else high
        self._first, self._second = (None, None, *last)[-2:]

    def push(self, value: float) -> None:
        first, second = self._first, self._second
        self._first, self._second = second, value
        if first is None or second is None:
            return
        if first > second:
            first, second = second, first
        median = first if value < first else second if value > second else value
        if median < self._low:
            self._low = median
        if median > self._high:
            self._high = median

    @property
    def distance(self) -> float:
        return max(self._high - self._low, 0.0)

    def state_dict(self) -> list:
        last = [value for value in (self._first, self._second) if value is not None]
        return [None if self._low > self._high else self._low, None if self._low > self._high else self._high, last]


def is_window(value: object) -> bool:
    # the older part never fills the window: the newest value is always recent
    return _WINDOW(value) and value["older"] <= max(len(value["losses"]) - 1, 0)  # type: ignore[index]


_WINDOW = fits({"losses": is_numbers, "older": is_count})
_ENTRIES = is_list_of(
    lambda entry: isinstance(entry, list) and len(entry) == 2 and is_count(entry[0]) and is_finite(entry[1])
)
_RECENT = fits({"count": is_count, "queue": _ENTRIES})


def is_recent(value: object) -> bool:
    if not _RECENT(value):
        return False
    numbers = [number for number, _ in value["queue"]]  # type: ignore[index]
    # the newest value is always in the queue
    return numbers == sorted(set(numbers)) and (not numbers or numbers[-1] == value["count"])  # type: ignore[index]


_PACE_1 = {"skip": is_count, "largest": is_finite, "means": is_numbers}
_COVERED = is_none_or(
    lambda value: (
        isinstance(value, list)
        and len(value) == 3
        and all(map(is_none_or(is_finite), value[:2]))
        and is_numbers(value[2])
        and len(value[2]) <= 2
    )
)
_PACE = {**_PACE_1, "covered": _COVERED}


def is_pace(value: object) -> bool:
    return fits(_PACE)(value) or fits(_PACE_1)(value)
