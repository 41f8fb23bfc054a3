"""LR = base LR x scale x envelope, in one place."""

import pytest
import torch

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
