import json
import math
from itertools import pairwise
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greedylr_integrations.rolling import Pace, RecentBest, RollingMean, is_pace

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


# ---- the pace ----


def shares(losses, size=12):
    rolling, pace = RollingMean(size), Pace(size)
    return [pace.push(rolling.push(loss), loss) for loss in losses]


def test_pace_is_the_share_of_the_largest_fall():
    falling = [100.0 - i for i in range(60)] + [40.0 - i / 4 for i in range(60)]
    assert shares(falling)[40:60] == [1.0] * 20
    assert shares(falling)[-10:] == pytest.approx([0.25] * 10)
    assert shares([1.0] * 50) == [0.0] * 50
    assert shares([100.0 + i for i in range(60)]) == [0.0] * 60


@pytest.mark.parametrize("at", [0, 2, 11, 12, 30, 47])
@pytest.mark.parametrize("outlier", [1e5, 1e8, 1e300])
def test_one_far_outlier_does_not_hold_every_later_fall_back(outlier, at):
    falling = [100.0 - i for i in range(200)]
    hit = falling.copy()
    hit[at] = outlier
    assert shares(hit)[at + 30 :] == pytest.approx(shares(falling)[at + 30 :])


@given(sizes, values, st.integers(0, 150))
def test_the_state_of_the_pace_goes_through_json_and_continues_identically(size, values, cut):
    pace = Pace(size)
    for value in values[:cut]:
        pace.push(value, value)
    state = json.loads(json.dumps(pace.state_dict(), allow_nan=False))
    assert is_pace(state)
    other = Pace(size)
    other.load_state_dict(state)
    assert [other.push(v, v) for v in values] == [pace.push(v, v) for v in values]


def test_a_state_of_the_pace_without_what_it_covered_loads():
    state = {"skip": 0, "largest": 5.0, "means": [3.0, 2.0]}
    assert is_pace(state)
    pace = Pace(12)
    pace.load_state_dict(state)
    assert pace.push(1.0, 1.0) == 2 / 5
