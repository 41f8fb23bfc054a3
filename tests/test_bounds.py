"""Bounds as LRs and as multiples of the base LR."""

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greedylr_integrations import GreedyConfig, SlopeConfig
from greedylr_integrations.bounds import BoundedConfig, check_bounds, per_group


@dataclass(frozen=True, kw_only=True)
class Bounded(BoundedConfig):
    def rule(self, base_lrs, horizon, first_pass=None):
        raise NotImplementedError


def test_the_defaults_are_multiples_of_the_base_lr():
    assert Bounded().scale_bounds([0.1, 3.0]) == ([0.01] * 2, [10.0] * 2)
    assert SlopeConfig().scale_bounds([0.1]) == ([0.001], [100.0])
    assert GreedyConfig(min_scale=0.5, max_scale=2).scale_bounds([0.1]) == ([0.5], [2])


def test_lrs_take_their_place_one_or_one_a_group():
    lows, highs = Bounded(min_lr=0.05, max_lr=[0.2, 9.0]).scale_bounds([0.1, 3.0])
    assert lows == pytest.approx([0.5, 0.05 / 3])
    assert highs == pytest.approx([2.0, 3.0])
    assert Bounded(min_lr=0.0).scale_bounds([0.1])[0] == [0.0]


def test_a_frozen_group_has_no_bounds_of_its_own():
    assert Bounded(min_lr=0.05, max_lr=0.2).scale_bounds([0.0, 0.1]) == ([0.01, 0.5], [10.0, 2.0])


@given(st.floats(1e-12, 1e3), st.floats(1e-9, 1.0), st.floats(1.0, 1e9))
def test_rounding_does_not_carry_an_lr_over_its_bound(base, down, up):
    low, high = base * down, base * up
    (lowest,), (highest,) = Bounded(min_lr=low, max_lr=high).scale_bounds([base])
    assert low <= base * lowest <= low * (1 + 1e-12)
    assert high * (1 - 1e-12) <= base * highest <= high


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"min_lr": 0.2, "max_lr": 0.1}, "min_lr=0.2 is not allowed: it must be at most max_lr=0.1"),
        ({"min_lr": [0.1, 0.3], "max_lr": 0.2}, r"min_lr=\[0.1, 0.3\] is not allowed: it must be at most max_lr=0.2"),
        ({"min_scale": 0.1, "min_lr": 0.1}, "min_scale=0.1 is not allowed: it must be None if min_lr is given"),
        ({"max_scale": 2, "max_lr": 0.1}, "max_scale=2 is not allowed: it must be None if max_lr is given"),
        ({"min_scale": 20}, "min_scale=20 is not allowed: it must be at most 10"),
        ({"max_scale": 0.001}, "max_scale=0.001 is not allowed: it must be at least 0.01"),
        ({"max_lr": []}, r"max_lr=\[\] is not allowed: it must be a number or a list"),
        ({"min_lr": -1e-9}, "min_lr=-1e-09 is not allowed: it must be at least 0"),
        ({"max_lr": math.inf}, "max_lr=inf is not allowed: it must be finite"),
    ],
)
def test_bounds_that_cannot_be(fields, says):
    with pytest.raises(ValueError, match=f"^{says}"):
        Bounded(**fields)


def test_bounds_that_do_not_fit_the_base_lrs():
    with pytest.raises(ValueError, match=r"^max_lr=\[0.1\] is not allowed: it must be a number or a list of 2, one"):
        Bounded(max_lr=[0.1]).scale_bounds([0.1, 0.1])
    with pytest.raises(ValueError, match="lower bound 20 x base LR is above upper bound 10 x base LR for base LRs"):
        Bounded(min_lr=1e-3).scale_bounds([5e-5])


def test_one_or_one_a_group():
    assert per_group(0.5, 3) == [0.5] * 3
    assert per_group((1, 2), 2) == [1.0, 2.0]
    check_bounds("x", (0.1, 0.2), 2)
