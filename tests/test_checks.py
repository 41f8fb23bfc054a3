"""What is let in, and what the one sentence about the rest says."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from greedylr_integrations import GreedyConfig, GreedyLR, PaperConfig, SlopeConfig, TransformersConfig, history
from greedylr_integrations import checks as c
from greedylr_integrations.rules import config_from_dict


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), True * 3])
def test_an_integer_comes_back_as_a_plain_one(value):
    assert c.check_integer("n", value) == 3
    assert type(c.check_integer("n", value)) is int


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.float64(0.5), np.int16(2), 7])
def test_a_number_comes_back_as_a_plain_one(value):
    assert c.check_number("x", value) == value
    assert type(c.check_number("x", value)) in (int, float)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.array([1, 2]), [1, 2]),
        (torch.tensor(0.25), 0.25),
        (Fraction(1, 4), 0.25),
        ([np.int8(3), 0.5], [3, 0.5]),
        ((np.float32(0.5),), (0.5,)),
        ("text", "text"),
        (None, None),
    ],
)
def test_numbers_of_other_libraries_become_pythons_own(value, expected):
    made = c.plain(value)
    assert made == expected
    assert type(made) is type(expected)
    assert json.dumps(made) == json.dumps(expected)


@pytest.mark.parametrize(
    "config",
    [
        SlopeConfig(start_scale=np.float32(0.25), doubling=np.int64(5), min_lr=[np.float32(0.5)], max_scale=np.int8(3)),
        GreedyConfig(factor=np.float32(0.5), threshold=np.float16(1), pace=torch.tensor(0.5), max_lr=np.array([1.0])),
        PaperConfig(factor=np.float32(0.5), eps=np.float32(0), min_lr=np.float32(0), smooth=np.bool_(True)),
        TransformersConfig(threshold=np.float32(0), max_lr=(np.float32(1),), cooldown=np.int64(1)),
    ],
)
def test_a_configuration_of_other_librarys_numbers_is_written_as_json(config):
    assert config_from_dict(json.loads(json.dumps(config.to_dict()))).to_dict() == config.to_dict()


@pytest.mark.parametrize("value", ["3", True, None, [3], 1j, np.bool_(True), math.nan, math.inf, 10**400])
def test_what_is_not_a_number(value):
    with pytest.raises((TypeError, ValueError), match="^x=.* is not allowed: it must be (a number|finite)$"):
        c.check_number("x", value)


@pytest.mark.parametrize("value", [2.0, "2", True, None, np.float64(2)])
def test_what_is_not_an_integer(value):
    with pytest.raises(TypeError, match="^n=.* is not allowed: it must be an integer$"):
        c.check_integer("n", value)


def test_too_small():
    with pytest.raises(ValueError, match="^n=0 is not allowed: it must be at least 1$"):
        c.check_integer("n", 0, least=1)


@pytest.mark.parametrize(
    ("value", "loss"), [(3, 3.0), (np.float32(0.5), 0.5), (torch.tensor(2.0), 2.0), (10**400, math.inf)]
)
def test_a_loss(value, loss):
    assert c.as_loss(value) == loss
    assert type(c.as_loss(value)) is float


def test_numpy_integers_are_taken_and_written_as_json():
    parameter = torch.nn.Parameter(torch.ones(2))
    config = GreedyConfig(patience=np.int64(2), window_size=np.int32(3))
    assert type(config.hyperparameters()["patience"]) is int
    scheduler = GreedyLR(torch.optim.SGD([parameter], lr=0.1), config, total_steps=np.int64(1000))
    assert scheduler.controller.horizon == 1000
    assert type(scheduler.envelope.total_steps) is int


def test_a_run_of_numpys_numbers_has_plain_lrs_and_a_history(tmp_path):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    scheduler = GreedyLR(
        optimizer,
        total_steps=np.int64(8),
        decay_ratio=np.float32(0.5),
        factor=np.float32(0.5),
        history_file=tmp_path / "h.jsonl",
    )
    for _ in range(7):
        scheduler.step(1.0)
        scheduler.pin(np.float32(0.5))
    assert type(optimizer.param_groups[0]["lr"]) is float
    json.dumps(scheduler.state_dict())
    assert history.read(tmp_path / "h.jsonl")[0]["config"]["factor"] == 0.5


@pytest.mark.parametrize("field", ["patience", "warmup", "cooldown", "every_n_steps"])
def test_none_is_not_an_integer(field):
    with pytest.raises(TypeError, match=f"^{field}=None is not allowed: it must be an integer"):
        GreedyConfig(**{field: None})


def test_all_faults_of_a_state_in_one_sentence():
    schema = {
        "a": c.is_count,
        "b": c.is_none_or(c.is_share),
        "c": c.is_list_of(c.is_flag),
        "d": c.fits({"e": c.is_finite}),
    }
    c.check_state({"a": 1, "b": None, "c": [True], "d": {"e": 1.0}}, schema, "x")
    with pytest.raises(ValueError) as error:  # noqa: PT011
        c.check_state({"a": -1, "b": 2, "d": {"e": math.nan}, "f": 0}, schema, "x")
    assert str(error.value) == (
        "x state does not load, nothing was changed: c is missing; f is unknown; a=-1 is not allowed; b=2 is not"
        " allowed; d={'e': nan} is not allowed"
    )


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (c.is_integer, [0, -3], [True, 1.0, "1", None]),
        (c.is_count, [0, 3], [-1, True, 1.0]),
        (c.is_positive, [0.1, 3], [0, -1, math.inf, math.nan, True]),
        (c.is_share, [0, 1, 0.5], [-0.1, 1.1, math.nan, "1"]),
        (c.is_finite, [0, -1e308], [math.inf, math.nan, 10**400, None]),
        (c.is_number, [0.5, "nan", "inf", "-inf"], [math.nan, "x", None]),
        (c.is_base_lr, [0, 0.1, 1e30], [-0.1, 1e31, math.nan, math.inf]),
        (c.is_numbers, [[], [1, 2.5]], [(1, 2), ["1"], [math.nan], None]),
    ],
)
def test_values_of_a_state(check, good, bad):
    assert all(map(check, good))
    assert not any(map(check, bad))


def test_an_integer_beyond_the_floats_is_refused():
    assert c.check_integer("n", 2**53) == 2**53
    with pytest.raises(ValueError, match=r"n=9223372036854775807 is not allowed: it must be at most 9007199254740992"):
        c.check_integer("n", 2**63 - 1)
