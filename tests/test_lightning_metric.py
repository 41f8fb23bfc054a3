"""A metric of Lightning's Trainer that is waited for, without a Trainer."""

import pytest

from greedylr_integrations._lightning_metric import MonitoredMetric


def test_a_validation_metric_is_read_after_each_validation():
    metric = MonitoredMetric("val_loss")
    assert metric.after_validation({"val_loss": 1.0})
    assert not metric.after_epoch({"val_loss": 1.0}, validates=True)
    assert metric.after_validation({"val_loss": 1.0})


def test_a_metric_of_training_epochs_is_read_at_their_end():
    metric = MonitoredMetric("train_loss")
    assert not metric.after_validation({"val_loss": 1.0})
    assert metric.by_epoch is None
    assert metric.after_epoch({"val_loss": 1.0, "train_loss": 2.0}, validates=True)
    assert not metric.after_validation({"val_loss": 1.0, "train_loss": 2.0})  # that of the epoch before
    assert metric.after_epoch({"val_loss": 1.0, "train_loss": 2.0}, validates=True)


def test_epochs_may_end_before_the_first_validation():
    metric = MonitoredMetric("val_loss")
    assert not metric.after_epoch({"train_loss": 1.0}, validates=True)
    assert metric.after_validation({"val_loss": 1.0})


@pytest.mark.parametrize("validates", [True, False])
def test_a_metric_that_does_not_come(validates):
    metric = MonitoredMetric("f1")
    if validates:
        metric.after_validation({"val_loss": 1.0})
    with pytest.raises(ValueError, match="monitor='f1' is not logged: there are val_loss. Log it with `self.log`, or"):
        metric.after_epoch({"val_loss": 1.0}, validates)


@pytest.mark.parametrize(
    ("name", "validations", "never"),
    [("val_loss", 0, True), ("val_loss", 2, False), ("val_loss", None, False), ("train_loss", 0, False)],
)
def test_a_validation_metric_without_validation_is_a_warning_and_no_error(name, validations, never, warnings_of):
    metric = MonitoredMetric(name)
    metric.warn_at_start(validations)
    assert metric.never == never == bool(warnings_of())
    if never:
        assert not metric.after_epoch({}, validates=False)


def test_a_metric_that_came_once_may_stay_away():
    metric = MonitoredMetric("train_loss")
    assert metric.after_epoch({"train_loss": 1.0}, validates=False)
    assert not metric.after_epoch({}, validates=False)
