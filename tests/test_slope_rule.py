"""The default rule: search by the slope, hold, search on, climb, go back."""

import math
import random

import pytest

from greedylr_integrations import Action, GreedyConfig, Reason, SlopeConfig
from greedylr_integrations.controller import GreedyController
from greedylr_integrations.rolling import Average

STEP_BACK = 2**-0.5


def rule_of(horizon=1000, first_pass=None, **fields):
    return SlopeConfig(**fields).rule((1.0,), horizon, first_pass)


def slopes(mean, noise=0.01, seed=0):
    """Without end."""
    rng = random.Random(seed)
    while True:
        yield rng.gauss(mean, noise)


def feed(rule, values, loss=1.0):
    """The decisions; `loss` may be a function of the number of the decision."""
    return [rule.update(loss(i) if callable(loss) else loss, value) for i, value in enumerate(values)]


def below(crossing, rule, noise=0.02, seed=0):
    """Slopes of a task whose LR fits at this scale: negative below it, slightly positive above."""
    rng = random.Random(seed)
    while True:
        doublings = math.log2(rule.scales[0] / crossing)
        yield rng.gauss(0.03 if doublings > 0 else max(-0.4, 0.2 * doublings), noise)


def steady(i):
    return 1.0 + 0.01 * (i % 2)


def until_found(rule, values):
    decisions = []
    for i, value in enumerate(values):
        decisions.append(rule.update(steady(i), value))
        if decisions[-1].reason is Reason.FOUND:
            return decisions
    raise AssertionError("not found")


# ---- the search ----


@pytest.mark.parametrize(
    ("horizon", "first_pass", "start", "doubling"),
    [
        (1000, None, 0.02, 6.0),
        (300, None, 0.02, 4.0),  # not fewer
        (5000, None, 0.02, 6.0),  # not more
        (199, None, 0.03, 3.0),  # a short run
        (200, None, 0.02, 4.0),
        (5000, 100, 0.02, 5.0),  # a twentieth of the first pass
        (5000, 60, 0.02, 3.0),
        (None, None, 0.02, 6.0),  # as if it had 1,000
    ],
)
def test_it_starts_low_and_doubles_every_few_decisions(horizon, first_pass, start, doubling):
    rule = rule_of(horizon, first_pass)
    assert rule.scales == (start,)
    decisions = feed(rule, [math.nan, *[-0.5 - 0.01 * (i % 2) for i in range(10)]])
    assert decisions[0].action is Action.HOLD  # the weights have not moved
    assert {decision.reason for decision in decisions} == {Reason.SEARCHING}
    assert rule.scales[0] == pytest.approx(start * 2 ** (10 / doubling))


def test_its_own_start_and_speed():
    rule = rule_of(start_scale=0.5, doubling=2.0)
    assert rule.scales == (0.5,)
    feed(rule, [-0.5, -0.4])
    assert rule.scales[0] == pytest.approx(1.0)


@pytest.mark.parametrize("crossing", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("seed", range(3))
def test_it_finds_the_crossing_from_any_base_lr(crossing, seed):
    rule = rule_of()
    decisions = until_found(rule, below(crossing, rule, seed=seed))
    assert decisions[-1].action is Action.LOWER
    assert rule.scales[0] == pytest.approx(decisions[-2].scales[0] * STEP_BACK)
    assert abs(math.log2(rule.scales[0] / crossing)) < 1
    assert [decision.reason for decision in decisions[:-1]] == [Reason.SEARCHING] * (len(decisions) - 1)


def test_the_search_ends_with_its_share_of_the_run():
    rule = rule_of(200)
    feed(rule, [-0.5, -0.4] * 39)
    feed(rule, [-0.5])
    assert rule.wants_slope  # 79 of 80
    feed(rule, [-0.4])
    assert not rule.wants_slope


@pytest.mark.parametrize(("doubling", "allowed"), [(1, True), (1.5, True), (0.99, False)])
def test_the_least_doubling(doubling, allowed):
    if allowed:
        SlopeConfig(doubling=doubling)
        return
    with pytest.raises(ValueError, match="doubling=0.99"):
        SlopeConfig(doubling=doubling)


def test_three_standard_errors_of_all_slopes_are_a_signal():
    """Fewer than 6 slopes, or 3 errors or less, say nothing: the LR goes on climbing to the base LR."""
    for mean, climbs in ((-0.045, False), (-0.028, True)):  # of a noise of 0.03 by neighbours: 3.9 and 2.4 errors
        rule = rule_of(1000)
        feed(rule, [mean + 0.02, mean - 0.02] * 3)
        decisions = feed(rule, [0.5, 0.51] * 3)
        assert Reason.FOUND in {decision.reason for decision in decisions}
        assert rule._seen != climbs


def test_it_climbs_at_half_the_speed():
    rule = rule_of(doubling=4.0)
    feed(rule, [0.3, -0.3] * 3)
    before = rule.scales[0]
    assert feed(rule, [0.3])[0].reason is Reason.CLIMBING
    assert rule.scales[0] == pytest.approx(before * 2 ** (1 / 8))


@pytest.mark.parametrize(("doubling", "every", "far"), [(4, 1, 0.16), (40, 1, 1.6), (4, 3, 0.48)])
def test_the_first_search_ends_when_the_weights_have_moved_far(doubling, every, far):
    rule, values = rule_of(doubling=doubling, every_n_steps=every), slopes(-0.3)
    for _ in range(20):
        assert rule.update(1.0, next(values), far - 0.001).reason is Reason.SEARCHING
    before = rule.scales[0]
    decision = rule.update(1.0, next(values), far + 0.001)
    assert (decision.reason, decision.action, decision.distance) == (Reason.FAR_ENOUGH, Action.LOWER, far + 0.001)
    assert rule.scales[0] == pytest.approx(before * STEP_BACK)
    # it holds for a whole window, then the slope asks for more: the distance grows on, and says nothing about the LR
    rest = [rule.update(1.0, next(values), 0.2 + i / 100).reason for i in range(40)]
    assert rest == [*[Reason.HOLDING] * 19, Reason.SEARCHING_ON] * 2


@pytest.mark.parametrize("distance", [None, math.nan])
def test_without_a_distance_the_slope_alone_ends_the_search(distance):
    rule = rule_of()
    decisions = [rule.update(1.0, value, distance) for value in [-0.3, -0.31] * 20 + [0.1] * 6]
    assert [decision.reason for decision in decisions[:40]] == [Reason.SEARCHING] * 40
    assert Reason.FOUND in {decision.reason for decision in decisions[40:]}


@pytest.mark.parametrize(("distance", "found"), [(0.044, False), (0.046, True)])
def test_nearby_a_slope_that_is_negative_at_all_does_not_end_the_search(distance, found):
    rule = rule_of()
    values = [-0.01 + 0.1 * (-1) ** i for i in range(12)]  # -0.25 of the standard error of six
    decisions = [rule.update(1.0, value, distance) for value in values]
    assert (Reason.FOUND in {decision.reason for decision in decisions}) == found


def test_nearby_a_slope_that_has_been_clearly_negative_ends_the_search_as_elsewhere():
    rule = rule_of()  # pretrained weights that hardly move, even at an LR that is far too high
    values = [-0.3, -0.31] * 6 + [-0.01 + 0.1 * (-1) ** i for i in range(6)]
    decisions = [rule.update(1.0, value, 0.001) for value in values]
    assert {decision.reason for decision in decisions[:12]} == {Reason.SEARCHING}
    assert decisions[-1].reason is Reason.FOUND


def test_six_slopes_are_needed():
    rule = rule_of()
    decisions = feed(rule, [0.1, 0.2] * 3)
    assert [decision.reason for decision in decisions[:5]] == [Reason.SEARCHING] * 5
    assert decisions[5].reason is Reason.FOUND


def test_the_noise_is_that_of_all_slopes():
    """Six slopes in a row may differ little from each other by chance."""
    noisy = [-0.6, 0.2, -0.6, 0.2, -0.7, 0.1, -0.6, 0.2, -0.6, 0.2]
    rule = rule_of()
    decisions = feed(rule, [*noisy, *[-0.1, -0.11] * 3])
    assert decisions[-1].reason is not Reason.SEARCHING  # a mean of -0.1 is well within the noise of 0.6
    rule = rule_of()
    decisions = feed(rule, [*[-0.3, -0.31] * 5, *[-0.1, -0.11] * 3])
    assert decisions[-1].reason is Reason.SEARCHING  # and far from 0 by a noise of 0.01


def test_the_decision_has_the_slope_and_the_mean_that_it_looked_at():
    rule = rule_of()
    *_, decision = feed(rule, [-0.9, -0.8, -0.1, -0.2, -0.3, -0.1, -0.2, -0.3])
    assert (decision.slope, decision.smoothed) == (-0.3, pytest.approx(-0.2))


def test_a_step_without_a_slope_moves_nothing():
    rule = rule_of()
    feed(rule, [-0.5, -0.4])
    scale = rule.scales
    for nothing in (None, math.nan):
        decision = rule.update(1.0, nothing)
        assert (decision.action, decision.scales) == (Action.HOLD, scale)


def test_the_upper_bound_ends_the_climb_and_says_so():
    rule = rule_of(max_scale=0.05)
    decisions = feed(rule, next_of(slopes(-0.5), 30))
    assert decisions[-1].reason is Reason.CEILING
    assert rule.scales == (0.05,)


def test_the_step_back_stays_above_the_lower_bound():
    rule = rule_of(min_scale=0.02)
    decision = feed(rule, [0.1, 0.2] * 3)[-1]
    assert decision.reason is Reason.FOUND
    assert rule.scales[0] >= 0.02


def next_of(values, count):
    return [next(values) for _ in range(count)]


# ---- hold and search on ----


@pytest.mark.parametrize(("horizon", "window"), [(1000, 20), (300, 12), (5000, 100)])  # 2%, at least 12
def test_a_stop_too_early_is_mended_half_a_doubling_for_each_window(horizon, window):
    rule = rule_of(horizon)
    until_found(rule, below(1.0, rule))
    found = rule.scales[0]
    held = feed(rule, next_of(slopes(-0.2), window - 1))
    assert {decision.reason for decision in held} == {Reason.HOLDING}
    assert rule.scales[0] == found
    (decision,) = feed(rule, next_of(slopes(-0.2), 1))
    assert (decision.reason, decision.action) == (Reason.SEARCHING_ON, Action.RAISE)
    assert rule.scales[0] == pytest.approx(found * 2**0.5)
    feed(rule, next_of(slopes(-0.2), window))  # the window begins anew
    assert rule.scales[0] == pytest.approx(found * 2)


@pytest.mark.parametrize(("errors", "rises"), [(-1.4, False), (-1.6, True)])
def test_it_takes_a_slope_that_is_clearly_negative(errors, rises):
    rule = rule_of(300)
    until_found(rule, below(1.0, rule))
    found = rule.scales[0]
    spread = 0.05 * math.sqrt(12)  # standard error 0.05
    rule._all = Average(10**6 + 1, 0.0, 2 * 10**6 * spread**2)  # of so many slopes that 12 more do not matter
    values = [errors * 0.05] * 12
    assert rule._all.in_errors_of(values) == pytest.approx(errors, rel=0.001)
    feed(rule, values)
    assert (rule.scales[0] > found) == rises


def test_slopes_about_zero_are_held():
    rule = rule_of()
    until_found(rule, below(1.0, rule))
    found = rule.scales[0]
    feed(rule, [0.001, -0.001] * 100)
    assert rule.scales[0] == found


# ---- climb ----


def test_without_a_signal_it_climbs_to_the_base_lr_and_stays():
    rule = rule_of()
    decisions = feed(rule, [0.3, -0.3] * 150)
    assert Reason.CLIMBING in {decision.reason for decision in decisions}
    assert rule.scales[0] == pytest.approx(1.0, rel=0.1)
    assert rule.scales[0] >= 1.0


@pytest.mark.parametrize(("distance", "climbs"), [(0.23, True), (0.25, False)])  # 0.04 for each step of a doubling
def test_it_does_not_climb_once_the_weights_have_moved_far(distance, climbs):
    rule = rule_of()
    feed(rule, [0.3, -0.3] * 3)
    found = rule.scales[0]
    decision = rule.update(1.0, 0.3, distance)
    assert decision.reason is (Reason.CLIMBING if climbs else Reason.HOLDING)
    assert (rule.scales[0] > found) == climbs


def test_a_clearly_positive_slope_is_a_signal_too():
    rule = rule_of()
    feed(rule, [0.1, 0.12] * 3)
    found = rule.scales[0]
    feed(rule, [0.1, 0.12] * 6)
    climbed = rule.scales[0]  # until the window said so
    feed(rule, [0.1, 0.12] * 50)
    assert rule.scales[0] == climbed < 8 * found


# ---- overshoot ----


def test_it_goes_back_if_the_slope_is_positive_and_the_loss_far_above_its_best():
    rule = rule_of()
    until_found(rule, below(1.0, rule))
    feed(rule, next_of(slopes(0.0), 30), steady)
    found = rule.scales[0]
    decisions = feed(rule, next_of(slopes(0.2), 15), lambda i: 2.0 + steady(i))
    (back,) = [decision for decision in decisions if decision.reason is Reason.WORSENED]
    assert back.action is Action.LOWER
    assert rule.scales[0] == pytest.approx(0.3 * found)


def test_at_the_lower_bound_nothing_moves():
    rule = rule_of(min_scale=0.019)
    feed(rule, next_of(slopes(0.2), 40), steady)
    decisions = feed(rule, next_of(slopes(0.2), 30), lambda i: 2.0 + steady(i))
    moves = [(decision.action, decision.reason) for decision in decisions if decision.reason is not Reason.HOLDING]
    assert moves == [(Action.LOWER, Reason.WORSENED), (Action.HOLD, Reason.FLOOR)]
    assert rule.scales == (0.019,)


@pytest.mark.parametrize(("slope", "loss"), [(0.2, 0.0), (-0.02, 2.0)])
def test_neither_alone_is_an_overshoot(slope, loss):
    rule = rule_of()
    until_found(rule, below(1.0, rule))
    feed(rule, next_of(slopes(0.0), 30), steady)
    decisions = feed(rule, next_of(slopes(slope, 0.1), 40), lambda i: loss + steady(i))
    assert Reason.WORSENED not in {decision.reason for decision in decisions}


@pytest.mark.parametrize(("held", "goes_back"), [(60, True), (140, False)])
def test_an_overshoot_shows_soon(held, goes_back):
    """The best of many windows is low by chance, so a loss that is a little above it says nothing."""
    rule = rule_of()
    rng = random.Random(0)
    until_found(rule, below(1.0, rule))
    feed(rule, next_of(slopes(0.0), held), lambda i: rng.gauss(1.0, 0.1))
    decisions = feed(rule, next_of(slopes(0.2), 20), lambda i: rng.gauss(1.17, 0.1))
    assert (Reason.WORSENED in {decision.reason for decision in decisions}) == goes_back


@pytest.mark.parametrize("outlier", [0.0, -10.0, -1e4, -1e8, -1e150, 1e2, 1e8, 1e150])
@pytest.mark.parametrize("at", [0, 5, 20, 25])
def test_an_outlier_does_not_hide_a_later_overshoot(outlier, at):
    """At first in the very first window, at last in the one in which the loss rises."""
    rule = rule_of()
    rng = random.Random(0)
    until_found(rule, below(1.0, rule))
    losses = [rng.gauss(1.0 + 2.0 * (i >= 30), 0.05) for i in range(80)]
    losses[at] = outlier
    feed(rule, next_of(slopes(0.0), 30), lambda i: losses[i])
    decisions = feed(rule, next_of(slopes(0.2), 50), lambda i: losses[30 + i])
    assert Reason.WORSENED in {decision.reason for decision in decisions}


def test_no_overshoot_while_it_searches():
    rule = rule_of()
    decisions = feed(rule, next_of(slopes(-0.3), 60), lambda i: 1.0 + (i > 30) * 5)
    assert {decision.reason for decision in decisions} == {Reason.SEARCHING}


def test_a_nonfinite_loss_lowers_and_holds():
    controller = GreedyController(SlopeConfig(), (1.0,), 1000)
    for value in next_of(slopes(-0.3), 20):
        controller.observe(1.0, value)
    scale = controller.scales[0]
    controller.observe(math.nan, -0.3)
    assert controller.scales[0] == pytest.approx(0.3 * scale)
    assert controller.observe(1.0, -0.3).reason is Reason.HOLDING


# ---- the end ----


@pytest.mark.parametrize(("horizon", "first_pass", "last"), [(500, None, 200), (500, 100, 100), (None, None, 400)])
def test_after_40_percent_or_the_first_pass_nothing_moves(horizon, first_pass, last):
    rule = rule_of(horizon, first_pass)
    feed(rule, next_of(slopes(-0.3), last - 1))
    assert rule.wants_slope
    before = rule.scales
    feed(rule, next_of(slopes(-0.3), 20))
    assert not rule.wants_slope
    assert rule.scales == before
    assert rule.update(1.0, None).reason is Reason.HOLDING


@pytest.mark.parametrize(("horizon", "first_pass"), [(59, None), (1000, 59), (59, 59)])
def test_a_run_that_is_too_short_keeps_the_base_lr(horizon, first_pass):
    rule = rule_of(horizon, first_pass)
    assert not rule.wants_slope
    decision = rule.update(1.0, None)
    assert (decision.scales, decision.reason) == ((1.0,), Reason.TOO_SHORT)


def test_60_decisions_are_enough():
    assert rule_of(60).wants_slope
    assert rule_of(1000, 60).wants_slope


# ---- state ----


@pytest.mark.parametrize("at", [0, 3, 40, 70, 120, 200, 450])
def test_the_state_goes_on_exactly(at):
    def task(rule):
        return below(0.4, rule, noise=0.1)

    def losses(i):
        return 2.0 - i / 500 + (i % 7) / 20

    whole = rule_of()
    values = task(whole)
    used = []
    for i in range(500):
        used.append(next(values))
        whole.update(losses(i), used[-1])
    first, second = rule_of(), rule_of()
    for i in range(at):
        first.update(losses(i), used[i])
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
    for i in range(at, 500):
        assert first.update(losses(i), used[i]) == second.update(losses(i), used[i])
    assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("count", -1),
        ("searching", 1),
        ("seen", "yes"),
        ("risen", -1),
        ("slopes", [math.nan]),
        ("all", [1, 2.0]),
        ("losses", {}),
        ("best", [1.0]),
        ("scale", -1.0),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(field, value):
    rule = rule_of()
    feed(rule, next_of(slopes(-0.3), 20))
    before = rule.state_dict()
    with pytest.raises(ValueError, match=field):
        rule.load_state_dict({**before, field: value})
    assert rule.state_dict() == before


# ---- settings ----


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"start_scale": 0.0}, "start_scale=0.0 is not allowed"),
        ({"start_scale": math.nan}, "start_scale=nan is not allowed"),
        ({"doubling": 0.5}, "doubling=0.5 is not allowed"),
        ({"on_missing_slope": "ignore"}, "on_missing_slope='ignore'"),
    ],
)
def test_wrong_settings(fields, says):
    with pytest.raises((TypeError, ValueError)) as error:
        SlopeConfig(**fields)
    assert says in str(error.value)


def test_without_a_slope_it_is_the_loss_window_with_the_same_bounds():
    config = SlopeConfig(min_scale=0.1, max_scale=2.0, every_n_steps=3, mode="min")
    other = config.without_slope()
    assert type(other) is GreedyConfig
    assert (other.min_scale, other.max_scale, other.every_n_steps, other.mode) == (0.1, 2.0, 3, "min")
    with pytest.raises(RuntimeError, match="on_missing_slope='raise'"):
        SlopeConfig(on_missing_slope="raise").without_slope()
