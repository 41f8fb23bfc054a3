import json
import math
from itertools import pairwise
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greedylr_integrations.rolling import RecentBest, RollingMean

values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=150)
sizes = st.integers(1, 40)


def assert_within_rounding(mean, window):
    """One rounding error for each addition, as for any sum of doubles that is not compensated."""
    exact = math.fsum(window) / len(window)
    assert abs(mean - exact) <= len(window) * 2**-52 * fmean(map(abs, window))


@given(sizes, values)
def test_mean_and_noise_are_those_of_the_window(size, values):
    rolling = RollingMean(size)
    for i, value in enumerate(values):
        mean = rolling.push(value)
        window = values[max(0, i + 1 - size) : i + 1]
        assert_within_rounding(mean, window)
        n = len(window)
        squares = math.fsum((b - a) ** 2 for a, b in pairwise(window))
        expected = math.sqrt(squares / (2 * (n - 1) * n)) if n > 1 else 0.0
        assert rolling.standard_error() == pytest.approx(expected, rel=1e-9, abs=1e-300)
        assert rolling.full == (n == size)


@pytest.mark.parametrize("outlier", [1e16, -1e16, 1e300, 1e308])
@pytest.mark.parametrize("size", [1, 2, 3, 50])
@pytest.mark.parametrize("position", [0, 1, 49, 73])
def test_an_outlier_that_has_left_leaves_nothing(outlier, size, position):
    values = [2.0 + math.sin(i) for i in range(200)]
    values[position] = outlier
    rolling = RollingMean(size)
    for i, value in enumerate(values):
        mean = rolling.push(value)
        window = values[max(0, i + 1 - size) : i + 1]
        if outlier not in window:
            assert_within_rounding(mean, window)
            n = len(window)
            variance = math.fsum((b - a) ** 2 for a, b in pairwise(window)) / 2
            expected = math.sqrt(variance / ((n - 1) * n)) if n > 1 else 0
            assert rolling.standard_error() == pytest.approx(expected, rel=1e-9)


@given(sizes, values, st.integers(0, 100))
def test_state_goes_through_json_and_continues_identically(size, values, cut):
    rolling = RollingMean(size)
    for value in values[:cut]:
        rolling.push(value)
    other = RollingMean(size)
    other.load_state_dict(json.loads(json.dumps(rolling.state_dict())))
    for value in values[cut:] + values:
        assert other.push(value) == rolling.push(value)
        assert other.standard_error() == rolling.standard_error()


def test_a_smaller_window_takes_up_the_newest():
    rolling = RollingMean(10)
    for value in range(25):
        rolling.push(float(value))
    for size in (3, 10, 30):
        other = RollingMean(size)
        other.load_state_dict(rolling.state_dict())
        window = [*map(float, range(15, 25)), 7.0][-size:]
        assert other.push(7.0) == pytest.approx(fmean(window), rel=1e-12)


def test_cost_does_not_grow_with_the_window():
    """Amortized: list operations counted, not seconds."""
    aged = []

    class Counting(RollingMean):
        def _age(self, count):
            aged.append(count)
            return super()._age(count)

    for size in (10, 1000):
        rolling = Counting(size)
        aged.clear()
        for i in range(20_000):
            rolling.push(float(i % 7))
        assert sum(aged) <= 20_000


@given(sizes, values)
def test_recent_best_is_the_minimum_before(size, values):
    recent = RecentBest(size)
    for i, value in enumerate(values):
        before = values[max(0, i - size) : i]
        assert recent.push(value) == (min(before) if before else None)
