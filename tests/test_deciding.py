"""From losses to decisions: what a run is told once, how long it is, and how a state goes on."""

import math
import warnings

import pytest
import torch

from greedylr_integrations import GreedyConfig, GreedyLR, PaperConfig, SlopeConfig
from greedylr_integrations.deciding import SKIPPED, RunLength


def scheduler_of(config=None, **kwargs):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    return GreedyLR(optimizer, config, **kwargs)


@pytest.mark.parametrize(
    ("length", "every", "decisions", "first_pass"),
    [
        ((None, None, None), 1, None, None),
        ((100, None, None), 1, 100, None),
        ((100, None, 30), 8, 13, 4),
        ((100, 7, 30), 8, 7, 4),
        ((None, 7, 1), 8, 7, 1),
        ((100, 0, None), 1, None, None),  # unknown, for example of a metric that comes at any time
    ],
)
def test_the_length_of_a_run_in_decisions(length, every, decisions, first_pass):
    length, config = RunLength(*length), GreedyConfig(every_n_steps=every)
    assert (length.decisions(config), length.first_pass(config)) == (decisions, first_pass)


def test_data_is_new_in_the_first_pass():
    assert [RunLength(None, None, 3).is_new(step) for step in range(5)] == [True] * 3 + [False] * 2
    assert RunLength(None, None, None).is_new(10**9)


# ---- said once ----


def test_a_run_without_a_loss_is_told_once(warnings_of):
    scheduler = scheduler_of(GreedyConfig())
    for _ in range(10):
        assert scheduler.step() is None
    (message,) = warnings_of()
    assert message.startswith("GreedyLR was stepped 3 times without a loss, so the LR follows nothing: ")


def test_steps_that_are_to_have_no_loss_are_not_told(warnings_of):
    scheduler = scheduler_of(GreedyConfig(), monitor="eval_loss", linear_warmup_steps=2)
    for _ in range(10):
        scheduler.advance()
    assert scheduler.last_epoch == 10
    scheduler.observe(1.0)
    for _ in range(10):
        scheduler.step()
    assert warnings_of() == []


def test_the_wrong_order_of_steps_is_told_once():
    scheduler = scheduler_of(GreedyConfig())
    scheduler.step(1.0)
    with pytest.warns(UserWarning, match=r"^scheduler.step\(loss\) was called before optimizer.step\(\)"):
        scheduler.optimizer.step()
    scheduler.step(1.0)
    scheduler.optimizer.step()  # a warning would be an error


def test_the_right_order_and_a_resume_are_told_nothing():
    scheduler, other = scheduler_of(GreedyConfig()), scheduler_of(GreedyConfig())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            scheduler.optimizer.step()
            scheduler.step(1.0)
        other.load_state_dict(scheduler.state_dict())
        other.optimizer.step()
        other.step(1.0)


# ---- the controller of a run and of a checkpoint ----


def test_the_loss_window_that_takes_the_place_of_the_slope_has_the_bounds_and_the_command():
    scheduler = scheduler_of(SlopeConfig(min_scale=0.5, max_scale=2, on_nonfinite="hold"), total_steps=1000)
    scheduler.cap(1.5)
    scheduler.step(3.0)
    config = scheduler.controller.config
    assert (type(config), config.min_scale, config.max_scale) == (GreedyConfig, 0.5, 2)
    assert config.on_nonfinite == "hold"
    assert scheduler.controller.horizon == 1000
    for i in range(400):
        scheduler.step(3.0 - i / 200)
    assert scheduler.scale == 1.5


@pytest.mark.parametrize("missing", ["loss", "raise"])
def test_a_run_that_measures_the_slope_is_resumed_whatever_is_to_be_done_without_one(missing):
    def run_of():
        weight = torch.nn.Parameter(torch.ones(2))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        return weight, GreedyLR(optimizer, SlopeConfig(on_missing_slope=missing), total_steps=400)

    def train(weight, scheduler, steps):
        for _ in range(steps):
            loss = weight.square().sum()
            scheduler.optimizer.zero_grad()
            loss.backward()
            scheduler.optimizer.step()
            scheduler.step(loss)
        return scheduler.get_last_lr()

    weight, scheduler = run_of()
    train(weight, scheduler, 5)
    other_weight, other = run_of()
    other.load_state_dict(scheduler.state_dict())
    other_weight.data.copy_(weight.data)
    assert train(other_weight, other, 20) == train(weight, scheduler, 20)


def test_a_checkpoint_of_another_rule_is_refused():
    state = scheduler_of(PaperConfig()).state_dict()
    scheduler = scheduler_of(GreedyConfig())
    before = scheduler.state_dict()
    with pytest.raises(ValueError, match="the checkpoint was written with PaperConfig, this run has GreedyConfig"):
        scheduler.load_state_dict(state)
    assert scheduler.state_dict() == before


@pytest.mark.parametrize("base_lr", [-0.1, 1e308, float("nan"), "0.1"])
def test_a_base_lr_in_a_checkpoint_that_cannot_be(base_lr):
    scheduler = scheduler_of(GreedyConfig())
    state = scheduler.state_dict()
    for place in (state, state["controller"]):
        before, place["base_lrs"] = place["base_lrs"], [base_lr]
        with pytest.raises(ValueError, match="base_lrs=.* is not allowed"):
            scheduler_of(GreedyConfig()).load_state_dict(state)
        place["base_lrs"] = before


# ---- steps that the optimizer skipped ----


def skipping(policy, loss, count, before=30):
    """The scheduler after a few steps and so many that were skipped."""
    scheduler = scheduler_of(GreedyConfig(on_nonfinite=policy), total_steps=1000)
    for _ in range(before):
        scheduler.step(3.0)
    for _ in range(count):
        scheduler.skip_step(loss)
    return scheduler


def test_a_few_skipped_steps_are_normal(warnings_of):
    scheduler = skipping("raise", math.nan, SKIPPED - 1)
    scheduler.step(3.0)
    assert (len(scheduler.history), scheduler.last_epoch) == (31, 31)
    for _ in range(SKIPPED - 1):
        scheduler.meter.update(math.nan)
        scheduler.skip_step()
    assert warnings_of() == []


def test_steps_that_are_skipped_now_and_then_are_normal(warnings_of):
    scheduler = scheduler_of(GreedyConfig(), monitor="eval_loss")
    for _ in range(3 * SKIPPED):
        scheduler.skip_step()
        scheduler.advance()
    assert warnings_of() == []


def test_many_skipped_steps_are_told_once(warnings_of):
    scheduler = skipping("raise", 3.0, 3 * SKIPPED)
    (message,) = warnings_of()
    assert message.startswith("20 steps in a row were skipped, so nothing is learned: with a gradient scaler, ")
    assert (len(scheduler.history), scheduler.last_epoch) == (30, 30)


@pytest.mark.parametrize(("policy", "more", "what"), [("raise", 0, "is nan"), ("reduce", 2, "3 times in a row")])
def test_a_loss_that_is_nan_in_skipped_steps_is_an_error(policy, more, what):
    skipping(policy, math.nan, SKIPPED + more - 1)
    with pytest.raises(FloatingPointError, match=f"^step 30: the loss .*{what}"):
        skipping(policy, math.nan, SKIPPED + more)


def test_a_metric_decides_on_nothing_in_skipped_steps():
    scheduler = scheduler_of(GreedyConfig(on_nonfinite="raise"), monitor="eval_loss")
    for _ in range(2 * SKIPPED):
        assert scheduler.skip_step() is None


def test_a_command_that_comes_in_skipped_steps_is_followed(tmp_path):
    path = tmp_path / "control.json"
    scheduler = scheduler_of(GreedyConfig(), total_steps=1000, control_file=path)
    path.write_text('{"order": "pin", "value": 0.5, "id": 7}')
    for _ in range(SKIPPED):
        scheduler.skip_step(3.0)
    assert scheduler.controller.scales == (0.5,)
    assert [str(record) for record in scheduler.commands] == ["pin 0.5"]
    assert not scheduler.history
