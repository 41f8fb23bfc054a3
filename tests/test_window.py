"""The project's own rule: what it does with losses, and none of the defects that the transformers version has."""

import math
import random

import pytest

from greedylr_integrations import GreedyConfig, GreedyController
from greedylr_integrations.decision import Action, Reason


def observe(controller, losses):
    return [controller.observe(loss) for loss in losses]


def noisy(levels, noise=0.05, seed=0):
    rng = random.Random(seed)
    return [level * (1 + noise * rng.gauss(0, 1)) for level in levels]


def simple(**fields):
    """No smoothing: each loss is compared with the best of those before it."""
    return GreedyController(GreedyConfig(**{"window_size": 1, "best_window": 100, "factor": 0.5, **fields}))


def actions(decisions):
    return "".join({Action.RAISE: "+", Action.LOWER: "-", Action.HOLD: "."}[d.action] for d in decisions)


# ---- raising, lowering, holding ----


@pytest.mark.parametrize("mode", ["abs", "rel", "se"])
def test_a_loss_that_does_not_change_moves_nothing(mode):
    decisions = observe(simple(threshold=0.0, threshold_mode=mode), [3.0] * 20)
    assert actions(decisions) == "." * 20
    assert {decision.reason for decision in decisions[1:]} == {Reason.INSIGNIFICANT}


def test_a_nonfinite_loss_ends_a_warmup():
    controller = simple(warmup=5, max_scale=100)
    assert actions(observe(controller, [5, 4, 4, math.nan, 4, 4])) == ".++-.."


def test_raise_on_a_new_best_lower_on_a_worse_loss():
    decisions = observe(simple(max_scale=100), [5, 4, 3, 4, 4, 2])
    assert actions(decisions) == ".++--+"
    assert [d.scales[0] for d in decisions] == [1, 2, 4, 2, 1, 2]
    assert [d.reason for d in decisions[1:4]] == [Reason.IMPROVED, Reason.IMPROVED, Reason.WORSENED]
    assert [d.best for d in decisions] == [None, 5, 4, 3, 3, 3]


def test_nothing_moves_while_the_window_fills():
    decisions = observe(simple(window_size=4), [5, 4, 3, 2, 1])
    assert [d.reason for d in decisions[:4]] == [Reason.FILLING] * 4
    assert decisions[4].action is Action.RAISE
    assert decisions[4].best == 3.5  # the mean of a whole window, not of the first few


def test_patience_is_the_number_of_calls_before_the_one_that_moves():
    assert actions(observe(simple(patience=2), [9, 8, 7, 6, 5, 4, 3])) == "...+..+"
    assert actions(observe(simple(patience=2), [1, 2, 2, 2, 2, 2, 2])) == "...-..-"


def test_a_break_in_the_streak_starts_patience_over():
    assert actions(observe(simple(patience=1), [9, 8, 8.5, 7, 6])) == "....+"


def test_warmup_keeps_rising_after_the_trend_reverses():
    decisions = observe(simple(warmup=2, max_scale=100), [5, 4, 9, 9, 9])
    assert actions(decisions) == ".+++-"
    assert decisions[2].reason is Reason.WARMUP


def test_cooldown_keeps_falling_after_the_trend_reverses():
    decisions = observe(simple(cooldown=2, min_scale=1e-3), [5, 6, 4, 3, 2])
    assert actions(decisions) == ".---+"
    assert decisions[2].reason is Reason.COOLDOWN


@pytest.mark.parametrize(
    ("mode", "threshold", "losses", "expected"),
    [
        ("abs", 1.0, [10, 9.5, 10.4, 10.6, 8.4], "...-+"),
        ("rel", 0.1, [10, 9.5, 10.4, 10.5, 8.5], "...-+"),
        ("rel", 0.1, [-10, -10.5, -9.6, -9.4, -11.6], "...-+"),
    ],
)
def test_changes_within_the_threshold_do_nothing(mode, threshold, losses, expected):
    # 9.5 and -10.5 are new bests for the comparison, though too small to raise
    assert actions(observe(simple(threshold_mode=mode, threshold=threshold), losses)) == expected


def test_noise_on_a_plateau_is_held_by_the_standard_error():
    losses = noisy([2.0] * 2000)
    lowered = {}
    for threshold in (0.0, 1.0, 3.0):
        controller = GreedyController(GreedyConfig(threshold=threshold, min_scale=1e-30))
        lowered[threshold] = actions(observe(controller, losses)).count("-")
    assert lowered[0.0] > lowered[1.0] > lowered[3.0]


def test_mode_max_mirrors_mode_min():
    losses = noisy([3 - i / 100 for i in range(100)] + [2 + i / 100 for i in range(100)])
    low = observe(GreedyController(GreedyConfig(window_size=5)), losses)
    high = observe(GreedyController(GreedyConfig(window_size=5, mode="max")), [-loss for loss in losses])
    assert [d.scales for d in low] == [d.scales for d in high]
    assert [d.smoothed for d in low] == [-d.smoothed for d in high]


def test_reset_start_forgets_the_best():
    decisions = observe(simple(reset_start=3), [5, 4, 3, 9, 8])
    assert actions(decisions) == ".++.+"


# ---- the best is a recent one ----


def test_it_rises_again_after_a_spike():
    level = [3 - i / 200 for i in range(200)]
    spike = [10 - 0.08 * i for i in range(100)]
    after = [2 - i / 400 for i in range(400)]
    controller = GreedyController(GreedyConfig(window_size=20))
    observe(controller, noisy(level))
    high = controller.scales[0]
    decisions = observe(controller, noisy(spike + after, seed=1))
    lowest = min(range(len(decisions)), key=lambda i: decisions[i].scales[0])
    assert decisions[lowest].scales[0] < high
    assert controller.scales[0] > 1.5 * decisions[lowest].scales[0]


def test_it_rises_again_after_a_change_of_data_to_a_higher_loss():
    controller = GreedyController(GreedyConfig(window_size=20))
    observe(controller, noisy([2 - i / 400 for i in range(400)]))
    decisions = observe(controller, noisy([6 - i / 200 for i in range(800)], seed=1))  # never as low as before
    lowest = min(d.scales[0] for d in decisions[:200])
    assert min(d.loss for d in decisions) > 1.5
    assert controller.scales[0] > 1.5 * lowest


def test_it_rises_again_after_a_nan():
    controller = GreedyController(GreedyConfig(window_size=5))
    observe(controller, [10 - i / 100 for i in range(100)])
    before = controller.scales[0]
    assert controller.observe(math.nan).scales[0] < before
    observe(controller, [9 - i / 100 for i in range(20)])
    assert controller.scales[0] > before


# ---- horizon ----


@pytest.mark.parametrize(("horizon", "window"), [(1, 1), (10, 1), (100, 8), (1000, 80), (100_000, 8000)])
def test_window_and_rate_fit_the_horizon(horizon, window):
    fitted = GreedyConfig().fitted(horizon)
    assert fitted.window_size == window
    assert fitted.best_window == 2 * window
    assert fitted.factor == max(0.5, math.exp(-8 / horizon))


def test_what_the_user_set_is_not_fitted():
    fitted = GreedyConfig(factor=0.9, window_size=7, best_window=9).fitted(1000)
    assert (fitted.factor, fitted.window_size, fitted.best_window) == (0.9, 7, 9)


# ---- pace ----


def test_a_raise_is_the_smaller_the_more_slowly_the_loss_falls():
    losses = [20, 16, 14, 13, 14, 6]  # falls of 4, 2, 1; a rise; a fall of 8, the largest so far
    scales = [d.scales[0] for d in observe(simple(max_scale=1e9), losses)]
    assert scales == pytest.approx([1, 2, 2**1.5, 2**1.75, 2**0.75, 2**1.75])
    whole = [d.scales[0] for d in observe(simple(max_scale=1e9, pace=0), losses)]
    assert whole == pytest.approx([1, 2, 4, 8, 4, 8])
    root = [d.scales[0] for d in observe(simple(max_scale=1e9, pace=0.5), losses)]
    assert root[2] == pytest.approx(2 ** (1 + 0.5**0.5))


def test_the_lr_rises_while_the_loss_keeps_its_pace_and_stays_where_it_flattens():
    def end(losses, **fields):
        controller = GreedyController(GreedyConfig(**fields), horizon=1000)
        observe(controller, losses)
        return controller.scales[0]

    assert end([10 - i / 100 for i in range(700)]) == 10
    flattening = [10 / (1 + i / 20) for i in range(700)]
    assert end(flattening, pace=0) == 10
    assert 1 < end(flattening) < 3


def test_a_raise_too_small_to_show_is_no_bound(warnings_of):
    decisions = observe(simple(), [1e300, 1, 1 - 1e-9])
    assert [(d.action, d.reason) for d in decisions[1:]] == [
        (Action.RAISE, Reason.IMPROVED),
        (Action.HOLD, Reason.IMPROVED),  # it moves nothing
    ]
    assert warnings_of() == []


# ---- bounds ----


def test_groups_keep_their_ratio_until_one_meets_its_bound_and_find_it_again():
    controller = GreedyController(
        GreedyConfig(window_size=1, best_window=50, factor=0.5, max_lr=[4.0, 100.0], min_lr=1e-6), [1.0, 50.0]
    )
    scales = [d.scales for d in observe(controller, [9, 8, 7, 10, 10, 10])]
    assert scales == [(1, 1), (2, 2), (4, 2), (2, 2), (1, 1), (0.5, 0.5)]


def test_the_scale_does_not_wind_up_beyond_the_widest_bound():
    controller = GreedyController(
        GreedyConfig(window_size=1, best_window=50, factor=0.5, max_lr=[4.0, 8.0]), [1.0, 1.0]
    )
    observe(controller, [100 - i for i in range(50)])
    assert controller.scales == (4, 8)
    assert controller.observe(200).scales == (4, 4)


@pytest.mark.parametrize("base", [0.1, 0.3, 1e-5, 3e-4, 1 / 3])
@pytest.mark.parametrize("bound", [0.7, 0.9, 1e-3, 1 / 7])
def test_rounding_does_not_carry_the_lr_over_a_bound(base, bound):
    low, high = base * bound * 0.99, base / bound * 1.01
    controller = GreedyController(
        GreedyConfig(window_size=1, best_window=50, factor=0.3, min_lr=low, max_lr=high), [base]
    )
    for loss in [9, 8, 7, 6, 5, 4, 3, 2, *range(10, 30)]:
        assert low <= base * controller.observe(loss).scales[0] <= high


def test_a_frozen_group_stays_at_zero():
    controller = GreedyController(GreedyConfig(min_lr=1e-6, max_lr=1.0), [0.0, 0.1])
    assert len(controller.scales) == 2
    assert all(math.isfinite(scale) for scale in controller.scales)


@pytest.mark.parametrize(
    ("bound", "base_lr", "advice"),
    [
        ({"max_lr": 1e-3}, 1e-2, "raise max_lr=0.001"),
        ({"max_lr": 1e-3}, 5e-4, "raise max_lr=0.001"),
        ({"max_scale": 0.1}, 1e-2, "raise max_scale=0.1"),
        ({"max_scale": 2.0}, 1e-2, "the base LR is probably far too low; raise it, or max_scale"),
    ],
)
def test_the_warning_at_the_ceiling_names_what_holds_the_lr(bound, base_lr, advice, warnings_of):
    controller = GreedyController(GreedyConfig(window_size=1, **bound), (base_lr,), horizon=50)
    for step in range(50):
        controller.observe(100.0 - step)
    (message,) = warnings_of()
    assert message.startswith("GreedyLR would raise the LR beyond its upper bound (scale ")
    assert message.endswith(f": {advice}")


def test_the_ceiling_is_ten_times_the_base_lr_and_warns_once(warnings_of):
    controller = GreedyController(GreedyConfig(window_size=1))
    decisions = observe(controller, [1000 - i for i in range(600)])
    assert controller.scales == (10.0,)
    assert decisions[-1].action is Action.HOLD
    assert decisions[-1].reason is Reason.CEILING
    (message,) = warnings_of()
    assert "upper bound" in message


def test_the_floor():
    controller = GreedyController(GreedyConfig(window_size=1, min_scale=0.25, factor=0.5))
    decisions = observe(controller, range(1, 9))
    assert controller.scales == (0.25,)
    assert decisions[-1].reason is Reason.FLOOR


# ---- the defects of the transformers version ----


def test_default_bounds_lie_around_any_lr():
    for base in (1e-12, 5e-5, 1e3):
        controller = GreedyController(GreedyConfig(window_size=1, factor=0.5), [base])
        observe(controller, [1, 2, 3, 4])
        assert controller.scales[0] < 1
        controller = GreedyController(GreedyConfig(window_size=1, factor=0.5), [base])
        observe(controller, [4, 3, 2, 1])
        assert controller.scales[0] > 1


def test_tiny_lrs_move_both_ways():
    controller = GreedyController(GreedyConfig(window_size=1, factor=0.999), [1e-12])
    assert controller.observe(2.0).scales == (1.0,)
    assert controller.observe(3.0).scales[0] < 1.0
    assert controller.observe(1.0).scales[0] == pytest.approx(1.0)
    assert controller.observe(0.5).scales[0] > 1.0


def test_an_outlier_that_has_left_the_window_leaves_nothing():
    quiet, shaken = (GreedyController(GreedyConfig(window_size=5, best_window=5)) for _ in range(2))
    observe(shaken, [1e16])
    observe(quiet, [2.0])
    tail = [3 - i / 100 for i in range(100)]
    assert [(d.smoothed, d.best) for d in observe(quiet, tail)[12:]] == [
        (d.smoothed, d.best) for d in observe(shaken, tail)[12:]
    ]


def test_a_constant_negative_metric_is_not_an_improvement():
    controller = simple(threshold_mode="rel", threshold=0.01)
    assert set(actions(observe(controller, [-1.0] * 50))) == {"."}


def test_an_lr_above_its_maximum_is_clamped_at_once():
    controller = GreedyController(GreedyConfig(max_lr=0.1), [0.5, 0.05])
    assert controller.scales == (0.2, 1.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("factor", 0), ("factor", 1e-320), ("factor", 1), ("factor", -0.5), ("factor", 2.0), ("factor", math.nan)],
        *[("patience", -1), ("window_size", 0), ("window_size", -3), ("best_window", 0), ("every_n_steps", 0)],
        ("pace", -0.1),
        *[("threshold", -0.1), ("threshold", math.inf), ("threshold_mode", "relative"), ("mode", "down")],
        *[("warmup", -1), ("cooldown", -1), ("min_scale", 0), ("max_scale", -1), ("min_lr", -1e-5), ("max_lr", [])],
        *[("reset_start", 0), ("on_nonfinite", "skip"), ("on_resume", "both"), ("min_scale", 20), ("max_scale", 1e-3)],
    ],
)
def test_wrong_values_are_named_when_constructed(field, value):
    with pytest.raises(ValueError, match=rf"^{field}=.* is not allowed: it must be ") as error:
        GreedyConfig(**{field: value})
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("field", ["factor", "patience", "window_size", "threshold", "min_scale", "max_lr", "warmup"])
@pytest.mark.parametrize("value", ["0.5", True, {}])
def test_wrong_types_are_named(field, value):
    with pytest.raises(TypeError, match=rf"^{field}=.* is not allowed: it must be "):
        GreedyConfig(**{field: value})


def test_fractional_counts_are_refused():
    with pytest.raises(TypeError, match=r"^patience=2.5 is not allowed: it must be an integer$"):
        GreedyConfig(patience=2.5)


def test_bounds_that_cross():
    with pytest.raises(ValueError, match="min_scale=0.5 is not allowed"):
        GreedyConfig(min_scale=0.5, max_scale=0.1)
    with pytest.raises(ValueError, match="min_lr=0.5 is not allowed: it must be at most max_lr=0.1"):
        GreedyConfig(min_lr=0.5, max_lr=0.1)
    with pytest.raises(ValueError, match=r"min_scale=0.1 is not allowed: it must be None if min_lr is given"):
        GreedyConfig(min_scale=0.1, min_lr=1e-5)
    with pytest.raises(ValueError, match=r"lower bound 20 x base LR is above upper bound 10 x base LR"):
        GreedyController(GreedyConfig(min_lr=1e-3), [5e-5])


def test_a_list_of_the_wrong_length():
    with pytest.raises(ValueError, match=r"^max_lr=\[0.1, 0.2\] is not allowed: it must be .* 3, one for each"):
        GreedyController(GreedyConfig(max_lr=[0.1, 0.2]), [0.01] * 3)


@pytest.mark.parametrize("base_lrs", [[-0.1], [math.nan], []])
def test_base_lrs_that_cannot_be(base_lrs):
    with pytest.raises(ValueError, match="^base_lrs="):
        GreedyController(GreedyConfig(), base_lrs)


def test_unknown_fields():
    with pytest.raises(TypeError, match="patients"):
        GreedyConfig(patients=3)
