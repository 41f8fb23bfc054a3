"""Another schedule of the same optimizer: it gets its own LRs back whenever it steps."""

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LambdaLR, ReduceLROnPlateau

from greedylr_integrations.base_schedule import BaseSchedule, write_lr


def optimizer_of(*lrs):
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr} for lr in lrs])


def lrs_of(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def scale(optimizer, factor):
    for group in optimizer.param_groups:
        write_lr(group, float(group["lr"]) * factor)


@pytest.mark.parametrize("make", [lambda o: ExponentialLR(o, 0.9), lambda o: CosineAnnealingLR(o, 20)])
def test_it_steps_from_its_own_lrs_whatever_is_written_over_them(make):
    optimizer, alone = optimizer_of(0.1, 0.02), optimizer_of(0.1, 0.02)
    base, reference = BaseSchedule(make(optimizer), optimizer, shadow=False), make(alone)
    for i in range(10):
        scale(optimizer, 3.0 + i)
        optimizer.step()
        alone.step()
        base.advance()
        reference.step()
        assert base.lrs == reference.get_last_lr()


def test_while_lent_its_owner_steps_it():
    optimizer = optimizer_of(0.1)
    schedule = ExponentialLR(optimizer, 0.5)
    base = BaseSchedule(schedule, optimizer, shadow=False)
    scale(optimizer, 7.0)
    base.lend()
    base.lend()
    assert (base.lent, lrs_of(optimizer)) == (True, [0.1])
    optimizer.step()
    schedule.step()
    base.advance()  # the owner has stepped it
    assert (base.lent, base.lrs) == (False, [0.05])
    base.take_back()
    assert base.lrs == [0.05]


def test_its_first_rise():
    optimizer = optimizer_of(0.1)
    base = BaseSchedule(LambdaLR(optimizer, lambda t: [1, 2, 3, 3, 5][min(t, 4)]), optimizer, shadow=False)
    seen = []
    for _ in range(4):
        optimizer.step()
        base.advance()
        seen.append(base.ramping)
    assert seen == [True, True, False, False]


def test_a_group_that_is_added_leaves_the_lrs_that_were_read_alone():
    optimizer = optimizer_of(0.1)
    base = BaseSchedule(ExponentialLR(optimizer, 0.5), optimizer, shadow=False)
    before = base.lrs
    base.add_group(0.3)
    assert (before, base.lrs) == ([0.1], [0.1, 0.3])


def test_a_schedule_that_does_not_fit():
    optimizer = optimizer_of(0.1)
    for schedule in (ReduceLROnPlateau(optimizer), ExponentialLR(optimizer_of(0.1), 0.9), object()):
        with pytest.raises(ValueError, match="^base_schedule=.* is not allowed: it must be a schedule of the same"):
            BaseSchedule(schedule, optimizer, shadow=False)
