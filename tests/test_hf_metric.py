"""A metric of Hugging Face's Trainer that is waited for, without a Trainer."""

import sys
from types import SimpleNamespace

import pytest

from greedylr_integrations._hf_metric import MonitoredMetric, is_evaluation


def args(**kwargs):
    defaults = {
        "eval_strategy": "no",
        "logging_strategy": "steps",
        "metric_for_best_model": None,
        "eval_delay": 0,
    }
    return SimpleNamespace(**{**defaults, **kwargs})


def state(max_steps=100, epochs=5, eval_steps=10, logging_steps=5):
    return SimpleNamespace(
        max_steps=max_steps, num_train_epochs=epochs, eval_steps=eval_steps, logging_steps=logging_steps
    )


@pytest.mark.parametrize(
    ("name", "settings", "count"),
    [
        ("eval_loss", {"eval_strategy": "epoch"}, 5),
        ("eval_loss", {"eval_strategy": "steps"}, 10),
        ("eval_loss", {"eval_strategy": "steps", "eval_delay": 40}, 7),  # at 40, 50, ... 100
        ("eval_loss", {"eval_strategy": "steps", "eval_delay": 41}, 6),
        ("eval_loss", {"eval_strategy": "epoch", "eval_delay": 2}, 4),
        ("eval_loss", {"eval_strategy": "no"}, 0),
        ("eval_loss", {"eval_strategy": "steps", "eval_delay": 1000}, 0),
        ("grad_norm", {}, 20),
        ("grad_norm", {"logging_strategy": "epoch"}, 5),
        ("grad_norm", {"logging_strategy": "no"}, None),
        ("loss", {}, 20),
        ("accuracy", {"eval_strategy": "steps"}, 20),  # it may be either
        ("accuracy", {"eval_strategy": "steps", "metric_for_best_model": "eval_accuracy"}, 10),
    ],
)
def test_how_many_values_a_run_will_have(name, settings, count):
    assert MonitoredMetric(name, args(**settings)).count(state()) == count


def test_a_stream_has_any_number_of_epochs():
    metric = MonitoredMetric("eval_loss", args(eval_strategy="epoch"))
    assert metric.count(state(max_steps=100, epochs=sys.maxsize)) is None


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"eval_strategy": "no"}, "eval_strategy is 'no': set eval_strategy to 'steps' or 'epoch'"),
        (
            {"eval_strategy": "steps", "eval_delay": 1000},
            "the first evaluation comes after the 100 steps of this run: lower eval_steps=10 or eval_delay=1000",
        ),
    ],
)
def test_a_metric_that_is_known_not_to_come(settings, why, warnings_of):
    metric = MonitoredMetric("eval_loss", args(**settings))
    metric.warn_at_start(state())
    assert metric.never
    assert warnings_of() == [
        f"monitor='eval_loss' will not appear on its own, because {why}; otherwise, the LR will not follow it"
    ]


def test_a_name_that_is_wrong_is_said_without_logs_too(warnings_of):
    metric = MonitoredMetric("acc", args(eval_strategy="steps", logging_strategy="no"))
    metric.warn_at_start(state())
    metric.look_for()
    assert warnings_of() == []
    metric.expect_evaluation(True)
    metric.evaluated({"eval_loss": 1.0})
    metric.look_for()
    (message,) = warnings_of()
    assert message.startswith("monitor='acc' is neither logged nor evaluated: there are eval_loss so far")


def test_logs_of_an_evaluation_are_told_from_those_of_training():
    assert is_evaluation({"eval_loss": 1.0})
    assert is_evaluation({"test_loss": 1.0, "test_runtime": 2.0})
    assert not is_evaluation({"loss": 1.0, "learning_rate": 0.1, "reward": 3.0})


def test_an_evaluation_that_is_not_the_trainers_own_does_not_end_the_run():
    metric = MonitoredMetric("eval_loss", args(eval_strategy="steps"))
    metric.expect_evaluation(False)
    assert metric.evaluated({"test_loss": 1.0}) is None
    metric.look_for()  # the first one is not due yet
    metric.expect_evaluation(True)
    assert metric.evaluated({"eval_loss": 1.0}) == "eval_loss"
    metric.look_for()


def test_a_metric_that_a_due_evaluation_did_not_bring_ends_the_run():
    metric = MonitoredMetric("eval_f1", args(eval_strategy="steps"))
    metric.logged({"loss": 1.0})
    metric.look_for()
    metric.expect_evaluation(True)
    metric.evaluated({"eval_loss": 1.0})
    with pytest.raises(ValueError, match="'eval_f1' is neither logged nor evaluated: there are eval_loss, loss"):
        metric.look_for()


def test_a_logged_metric_may_come_late(warnings_of):
    metric = MonitoredMetric("probe", args())
    for _ in range(3):
        metric.logged({"loss": 1.0})
        metric.look_for()
    (message,) = warnings_of()
    assert message.startswith("monitor='probe' is neither logged nor evaluated: there are loss so far")
    assert metric.logged({"probe": 1.0})
    metric.look_for()
