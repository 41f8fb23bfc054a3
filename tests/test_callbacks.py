"""The constructor that the callbacks of both Trainers share."""

import dataclasses
import inspect
from typing import get_type_hints

import pytest

from greedylr_integrations import GreedyConfig, PaperConfig, SlopeConfig
from greedylr_integrations.callbacks import CallbackArguments, Settings, SharedCallback, mode_of
from greedylr_integrations.rules import ConfigFields


class Plain(SharedCallback):
    _starts_in = "on_start"


def test_the_arguments_that_lightning_passes_on_are_those_of_the_constructor():
    parameters = inspect.signature(SharedCallback.__init__).parameters
    named = {name for name, each in parameters.items() if each.kind is each.KEYWORD_ONLY}
    assert named == get_type_hints(CallbackArguments).keys() - get_type_hints(ConfigFields).keys()
    assert named | {"config"} == {"controller"} | {field.name for field in dataclasses.fields(Settings)}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Settings)])
def test_each_argument_is_documented(name):
    assert f"        {name} (" in SharedCallback.__doc__


@pytest.mark.parametrize(
    ("options", "config"),
    [
        ({}, SlopeConfig()),
        ({"window_size": 5}, GreedyConfig(window_size=5)),
        ({"monitor": "eval_loss"}, GreedyConfig()),  # a metric has no slope
        ({"monitor": "accuracy", "mode": "max"}, GreedyConfig(mode="max")),
        ({"config": PaperConfig(), "patience": 3}, PaperConfig(patience=3)),
        ({"config": {"window_size": 5}}, GreedyConfig(window_size=5)),
        ({"config": {}, "monitor": "accuracy", "mode": "max"}, GreedyConfig(mode="max")),
    ],
)
def test_the_rule_that_the_arguments_mean(options, config):
    assert Plain(**options).config == config


def test_the_arguments_make_the_same_callback_again():
    callback = Plain(window_size=5, monitor="val_loss", decay_ratio=0.5, history_file="h.jsonl", prog_bar=True)
    assert Plain(**callback.settings.arguments()).settings == callback.settings


@pytest.mark.parametrize(
    ("told", "better", "mode"), [("max", False, "max"), (None, True, "max"), (None, False, "min"), (None, None, None)]
)
def test_which_way_is_better(told, better, mode):
    if mode is None:
        assert mode_of("val_loss", told, better) == "min"
        with pytest.raises(ValueError, match="^mode is not known for monitor='f1'"):
            mode_of("f1", told, better)
    else:
        assert mode_of("f1", told, better) == mode
