import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_constant_schedule_with_warmup, get_linear_schedule_with_warmup, get_wsd_schedule

from greedylr_integrations.envelope import Envelope


def schedule(make, steps, **kwargs):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer, **kwargs)
    factors = []
    for _ in range(steps):
        factors.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return factors


def test_ramp_is_that_of_transformers():
    envelope = Envelope(linear_warmup_steps=7)
    assert [envelope(t) for t in range(20)] == schedule(get_constant_schedule_with_warmup, 20, num_warmup_steps=7)


def test_ramp_and_decay_are_those_of_warmup_stable_decay():
    envelope = Envelope(linear_warmup_steps=7, total_steps=100, decay_ratio=0.25)
    expected = schedule(
        get_wsd_schedule, 101, num_warmup_steps=7, num_decay_steps=25, num_training_steps=100, decay_type="linear"
    )
    assert [envelope(t) for t in range(101)] == pytest.approx(expected, abs=1e-12)


def test_decay_over_everything_is_the_linear_schedule():
    envelope = Envelope(total_steps=50, decay_ratio=1.0)
    expected = schedule(get_linear_schedule_with_warmup, 51, num_warmup_steps=0, num_training_steps=50)
    assert [envelope(t) for t in range(51)] == pytest.approx(expected, abs=1e-12)


def test_no_decay():
    envelope = Envelope(total_steps=10, decay_ratio=0.0)
    assert [envelope(t) for t in (0, 9, 10, 11)] == [1.0, 1.0, 0.0, 0.0]


@given(st.integers(0, 30), st.integers(1, 300), st.floats(0, 1), st.integers(0, 400))
def test_within_zero_and_one_and_constant_where_it_says(ramp, total, ratio, step):
    envelope = Envelope(linear_warmup_steps=ramp, total_steps=total, decay_ratio=ratio)
    assert 0.0 <= envelope(step) <= 1.0
    start, end = envelope.constant()
    if start <= step < end:
        assert envelope(step) == 1.0


def test_decay_by_hand_starts_where_the_factor_is():
    envelope = Envelope(total_steps=100, decay_ratio=0.5).decaying(75, 10)
    assert [envelope(t) for t in (75, 80, 85, 90)] == pytest.approx([0.5, 0.25, 0.0, 0.0])
    assert envelope.constant() == (0, 0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("linear_warmup_steps", -1),
        ("total_steps", 0),
        ("decay_ratio", 1.5),
        ("decay_ratio", math.nan),
        ("decay_steps", 0),
    ],
)
def test_wrong_values_are_named(field, value):
    with pytest.raises(ValueError, match=rf"^{field}={value!r} is not allowed: it must be "):
        Envelope(**{field: value})


@pytest.mark.parametrize("field", ["linear_warmup_steps", "total_steps", "decay_ratio"])
@pytest.mark.parametrize("value", ["10", True, [1]])
def test_wrong_types_are_named(field, value):
    with pytest.raises(TypeError, match=rf"^{field}="):
        Envelope(**{field: value})


def test_a_decay_by_hand_begins_at_1_and_needs_both_of_its_fields():
    assert [Envelope(decay_start=2, decay_steps=4)(step) for step in (2, 4, 6, 7)] == [1.0, 0.5, 0.0, 0.0]
    assert Envelope(decay_start=2)(5) == Envelope(decay_steps=4)(5) == 1.0
