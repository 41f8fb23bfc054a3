"""LR = base LR x scale x envelope, in one place."""

import pytest
import torch

from greedylr_integrations import GreedyConfig, GreedyLR, SlopeConfig
from greedylr_integrations.envelope import Envelope
from greedylr_integrations.learning_rates import LearningRates


def optimizer_of(*lrs):
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr, "initial_lr": lr} for lr in lrs]
    return torch.optim.SGD(groups)


def rates_of(optimizer, schedule=None, *, shadow=False, **envelope):
    return LearningRates(optimizer, Envelope(**envelope), schedule, shadow=shadow)


def lrs_of(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def test_what_is_written():
    optimizer = optimizer_of(0.1, 0.02)
    rates = rates_of(optimizer, linear_warmup_steps=10)
    rates.write((2.0, 3.0), 5)
    assert lrs_of(optimizer) == rates.of((2.0, 3.0), 5) == pytest.approx([0.1, 0.03])
    assert (rates.factor, rates.written) == (0.5, (2.0, 3.0))


def test_a_tensor_is_written_in_place():
    optimizer = optimizer_of(0.1)
    lr = optimizer.param_groups[0]["lr"] = torch.tensor(0.1, dtype=torch.float64)
    rates_of(optimizer).write((2.0,), 0)
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr.item() == 0.2


def test_a_shadow_writes_nothing():
    optimizer = optimizer_of(0.1)
    rates = rates_of(optimizer, shadow=True)
    rates.write((2.0,), 0)
    assert lrs_of(optimizer) == [0.1]
    assert rates.of((2.0,), 0) == [0.2]


@pytest.mark.parametrize("envelope", [{}, {"linear_warmup_steps": 10}])
def test_a_group_that_is_added_has_the_lr_that_it_was_given(envelope):
    optimizer = optimizer_of(0.1)
    rates = rates_of(optimizer, **envelope)
    rates.write((4.0,), 5)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.01})
    (base,) = rates.new_groups((4.0,))
    rates.write((4.0, 4.0), 5)
    assert lrs_of(optimizer)[1] == pytest.approx(0.01)
    assert rates.base_lrs == [0.1, base]
    assert optimizer.param_groups[1]["initial_lr"] == base


def test_where_the_lr_is_zero_the_given_lr_is_the_base_lr():
    optimizer = optimizer_of(0.1)
    rates = rates_of(optimizer, linear_warmup_steps=10)
    rates.write((4.0,), 0)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.01})
    assert rates.new_groups((4.0,)) == [0.01]


def test_the_lr_of_the_first_group_that_is_not_frozen_is_shown():
    assert rates_of(optimizer_of(0.0, 0.0, 0.1)).speaker == 2
    assert rates_of(optimizer_of(0.0)).speaker == 0
    optimizer = optimizer_of(0.0, 0.1, 0.2)
    optimizer.param_groups[1]["params"][0].requires_grad_(False)
    rates = rates_of(optimizer)
    assert rates.speaker == 2
    optimizer.param_groups[1]["params"][0].requires_grad_(True)  # as in gradual unfreezing
    assert rates.speaker == 1
    optimizer.param_groups[1]["params"][0].requires_grad_(False)
    rates.detach(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))]))
    assert rates.speaker == 2


def test_a_decay_from_where_the_lr_is():
    optimizer = optimizer_of(0.1)
    rates = rates_of(optimizer, total_steps=100, decay_ratio=0.5)
    rates.start_decay(75, 10)
    seen = []
    for step in (75, 80, 85):
        rates.write((1.0,), step)
        seen.append(lrs_of(optimizer)[0])
    assert seen == pytest.approx([0.05, 0.025, 0.0])


def test_with_another_schedule_its_lrs_take_the_place_of_base_and_envelope():
    optimizer = optimizer_of(0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    rates = rates_of(optimizer, schedule, total_steps=4)
    optimizer.step()
    rates.schedule.advance()
    rates.write((3.0,), 1)
    assert lrs_of(optimizer) == pytest.approx([0.1 * 0.5 * 3])
    with pytest.raises(ValueError, match="^linear_warmup_steps=3 is not allowed: it must be 0 with a base_schedule"):
        rates_of(optimizer, schedule, linear_warmup_steps=3)


# ---- what else may set them ----


class Second:
    """What sets the LR after GreedyLR does, in each step or once."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def lambda_lr(self):
        return torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 0.5).step

    def cosine(self):
        return torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 100).step

    def code(self):
        return lambda: self.optimizer.param_groups[0].update(lr=0.01)

    def another_greedy(self):
        other = GreedyLR(self.optimizer, GreedyConfig(), total_steps=100)
        other.pin(0.5)
        return lambda: other.step(1.0)


@pytest.mark.parametrize("what", ["lambda_lr", "cosine", "code", "another_greedy"])
def test_another_that_sets_the_lr_is_told_once(what, warnings_of):
    optimizer = optimizer_of(0.1)
    scheduler = GreedyLR(optimizer, SlopeConfig(), total_steps=300)
    other = getattr(Second(optimizer), what)()
    for _ in range(40):
        optimizer.param_groups[0]["params"][0].grad = torch.ones(1)
        optimizer.step()
        scheduler.step(1.0)
        other()
    (message,) = [text for text in warnings_of() if "something else sets the LR too" in text]
    assert message.startswith("something else sets the LR too: GreedyLR set ")


@pytest.mark.parametrize("what", ["nothing", "base_schedule", "shadow", "pin", "tensor", "resume", "once"])
def test_no_other_sets_the_lr(what, warnings_of):
    optimizer = optimizer_of(0.1)
    schedule = {"base_schedule": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)}
    if what == "tensor":
        optimizer.param_groups[0]["lr"] = torch.tensor(0.1)
    arguments = schedule if what == "base_schedule" else {"total_steps": 300, "shadow": what == "shadow"}
    scheduler = GreedyLR(optimizer, SlopeConfig(), **arguments)
    for step in range(100):
        if what == "shadow":
            optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        if step == 50 and what == "pin":
            scheduler.pin(0.3)
        if step == 50 and what == "once":
            optimizer.param_groups[0]["lr"] = 1.0
        if step == 50 and what == "resume":
            states = scheduler.state_dict(), optimizer.state_dict()
            scheduler.load_state_dict(states[0])
            optimizer.load_state_dict(states[1])
        optimizer.param_groups[0]["params"][0].grad = torch.ones(1)
        optimizer.step()
        scheduler.step(1.0)
    assert not [text for text in warnings_of() if "something else sets the LR" in text]


@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_a_run_that_goes_on_after_its_end_is_told_once(warmup, warnings_of):
    optimizer = optimizer_of(0.1)
    scheduler = GreedyLR(optimizer, GreedyConfig(window_size=2), total_steps=50, linear_warmup_steps=warmup)
    for _ in range(50):
        scheduler.step(1.0)
    assert warnings_of() == []
    for _ in range(10):
        scheduler.step(1.0)
    (message,) = warnings_of()
    assert message.startswith("the LR has decayed to 0, and the run goes on: nothing is learned from step 51 on. ")
