import json
import math
from itertools import pairwise
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greedylr_integrations.rolling import Pace, RecentBest, RollingMean, is_average, is_pace, is_recent, is_window

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


@pytest.mark.parametrize(
    ("check", "state"),
    [
        (is_window, {"losses": [1.0, 2.0], "older": 2}),  # the newest is always recent
        (is_window, {"losses": [], "older": 1}),
        (is_recent, {"count": 3, "queue": [[2, 1.0], [1, 2.0]]}),
        (is_recent, {"count": 3, "queue": [[1, 1.0], [1, 2.0]]}),
        (is_recent, {"count": 3, "queue": [[1, 1.0], [2, 2.0]]}),  # the newest is always there
        (is_pace, {"skip": 0, "largest": 1.0, "means": [], "covered": [0.0, 1.0]}),
        (is_pace, {"skip": 0, "largest": 1.0, "means": [], "covered": [0.0, "1", []]}),
        (is_pace, {"skip": 0, "largest": 1.0, "means": [], "covered": [0.0, 1.0, [1.0, 2.0, 3.0]]}),
        (is_pace, {"skip": 0, "largest": 1.0, "means": [], "covered": {}}),
        (is_average, [1, 0.0, -1.0, 0.0]),
        (is_average, [-1, 0.0, 1.0, 0.0]),
        (is_average, [1, 0.0, 1.0]),
    ],
)
def test_a_state_that_cannot_be_is_refused(check, state):
    assert not check(state)


@pytest.mark.parametrize(
    ("check", "state"),
    [
        (is_window, {"losses": [1.0, 2.0], "older": 1}),
        (is_window, {"losses": [], "older": 0}),
        (is_recent, {"count": 0, "queue": []}),
        (is_recent, {"count": 3, "queue": [[1, 1.0], [3, 2.0]]}),
        (is_pace, {"skip": 0, "largest": 1.0, "means": [], "covered": [2.0, 2.0, [1.0, 2.0]]}),
        (is_average, [0, 0.0, 0.0, 0.0]),
    ],
)
def test_a_state_that_can_be_is_taken(check, state):
    assert check(state)


def test_a_single_median_is_kept_in_the_state():
    pace = Pace(12)
    for value in (3.0, 1.0, 2.0):
        pace.push(value, value)
    assert pace.state_dict()["covered"] == [2.0, 2.0, [1.0, 2.0]]


@pytest.mark.parametrize("size", [12, 80, 120])
def test_how_far_an_outlier_may_be_to_count(size):
    """A fall of the mean of more than 3 times the distance covered, or 240 times for a single value, does not count."""
    for distance, counts in ((0.9, True), (1.1, False)):
        pace = Pace(size)
        start = size // 6 + size + 2
        for i in range(start):
            pace.push(1000.0 + i % 2 / 2, 1000.0 + 0.5 * (i % 4 > 1))  # the medians cover 0.5
        largest = pace.state_dict()["largest"]
        fall = max(3.0, 240 / size) * 0.5 * distance
        pace.push(pace.state_dict()["means"][1] - fall, 1000.0)
        assert (pace.state_dict()["largest"] > largest) == counts


def test_a_fall_between_the_ends_of_the_floats_is_no_measure():
    pace = Pace(1)
    pace.push(1e308, 1e308)
    assert pace.push(-1e308, -1e308) == 1.0
    assert pace.state_dict()["largest"] == 0.0
    assert pace.push(-1.1e308, -1.1e308) == 1.0


def test_a_state_of_the_pace_without_what_it_covered_loads():
    state = {"skip": 0, "largest": 5.0, "means": [3.0, 2.0]}
    assert is_pace(state)
    pace = Pace(12)
    pace.load_state_dict(state)
    assert pace.push(1.0, 1.0) == 2 / 5
