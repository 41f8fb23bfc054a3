"""Loss, slope and command of a decision; the same numbers on all ranks."""

import copy
import gc
import math
import weakref

import pytest
import torch
from processes import spawn

from greedylr_integrations import GreedyLR
from greedylr_integrations.loss import LossMeter
from greedylr_integrations.signals import Signals, watch_steps
from greedylr_integrations.slope import SlopeMeter


def signals_of(**kwargs):
    weight = torch.nn.Parameter(torch.tensor([[2.0, 1.0]]))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    return Signals(LossMeter(**kwargs), SlopeMeter(optimizer)), weight, optimizer


def backward(signals, weight, optimizer):
    optimizer.zero_grad()
    weight.square().sum().backward()
    signals.slopes.measure()
    optimizer.step()


def test_a_loss_with_its_slope():
    signals, *run = signals_of()
    backward(signals, *run)
    first = signals.measure(3.0, 1)
    assert (first.loss, first.command) == (3.0, None)
    assert math.isnan(first.slope)
    backward(signals, *run)
    assert signals.measure(2.0, 1) == (2.0, pytest.approx(-1.0), pytest.approx(0.2), None)
    assert signals.measure(2.0, 1) == (2.0, None, None, None)  # no gradient


def test_one_observation_every_so_many_steps():
    signals, *run = signals_of()
    seen = []
    for i in range(6):
        backward(signals, *run)
        seen.append(signals.measure(float(i), 3))
    assert [observation is None for observation in seen] == [True, True, False] * 2
    assert [seen[2].loss, seen[5].loss] == [1.0, 4.0]


def test_with_a_lag_the_slope_comes_with_its_loss():
    signals, *run = signals_of(lag=1)
    backward(signals, *run)
    assert signals.measure(3.0, 1) is None
    backward(signals, *run)
    observation = signals.measure(2.0, 1)
    assert observation.loss == 3.0
    assert math.isnan(observation.slope)
    observation = signals.measure(1.0, 1)
    assert (observation.loss, observation.slope) == (2.0, pytest.approx(-1.0))


@pytest.mark.parametrize("change", [list.pop, lambda waiting: waiting.append(0.0)])
def test_a_state_with_too_few_or_too_many_waiting_numbers_is_refused_whole(change):
    def scheduler_of():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2, 2))], lr=0.1)
        return GreedyLR(optimizer, total_steps=100, loss_lag=1)

    scheduler = scheduler_of()
    scheduler.optimizer.step()
    scheduler.step(1.0)
    state = scheduler.state_dict()
    change(state["pending"]["waiting"])
    other = scheduler_of()
    before = other.state_dict()
    with pytest.raises(ValueError, match="pending"):
        other.load_state_dict(state)
    assert other.state_dict() == before


def test_without_a_loss_there_is_nothing_to_decide_on_and_the_slope_is_forgotten():
    signals, *run = signals_of()
    backward(signals, *run)
    assert signals.measure(None, 1) == (None, None, None, None)
    assert signals.measure(2.0, 1) == (2.0, None, None, None)


def test_a_skipped_step_leaves_neither_loss_nor_slope():
    signals, *run = signals_of()
    backward(signals, *run)
    signals.meter.update(1e9)
    signals.skip_step()
    assert signals.measure(2.0, 1) == (2.0, None, None, None)


def test_a_loss_of_no_step_leaves_those_that_wait():
    signals, *run = signals_of()
    backward(signals, *run)
    signals.measure(5.0, 2)
    assert signals.agree(1.0) == (1.0, None, None, None)
    assert signals.measure(7.0, 2).loss == 6.0


def test_the_state_goes_on():
    signals, *run = signals_of()
    backward(signals, *run)
    signals.measure(5.0, 2)
    other, *their = signals_of()
    other.load_state_dict(copy.deepcopy(signals.state_dict()))
    their[0].data.copy_(run[0].data)
    for part, (weight, optimizer) in ((signals, run), (other, their)):
        backward(part, weight, optimizer)
    assert other.measure(7.0, 2) == signals.measure(7.0, 2)


# ---- the optimizer's steps ----


class Watcher:
    def __init__(self):
        self.seen = []

    def before(self, complete):
        self.seen.append(complete)


def test_each_step_is_seen_and_a_closure_has_no_gradients_yet():
    optimizer, watcher = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1), Watcher()
    handle = watch_steps(optimizer, watcher.before)
    optimizer.step()
    optimizer.step(lambda: 1.0)
    optimizer.step(closure=lambda: 1.0)
    optimizer.step(closure=None)
    assert watcher.seen == [True, False, False, True]
    handle.remove()
    optimizer.step()
    assert len(watcher.seen) == 4


def test_the_optimizer_does_not_keep_the_watcher_alive():
    optimizer, watcher = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1), Watcher()
    watch_steps(optimizer, watcher.before)
    reference = weakref.ref(watcher)
    del watcher
    gc.collect()
    assert reference() is None
    optimizer.step()


def test_what_is_not_torchs_is_not_watched():
    assert watch_steps(object(), Watcher().before) is None


# ---- several ranks ----


def _ranks(rank, world, out):
    signals, *run = signals_of()
    seen, sizes, reduce = [], [], torch.distributed.all_reduce
    torch.distributed.all_reduce = lambda tensor, **kwargs: (sizes.append(tensor.numel()), reduce(tensor, **kwargs))[1]
    for i in range(6):
        if not (rank == 1 and i == 2):  # one rank without a gradient
            backward(signals, *run)
        loss = None if (rank == 0 and i == 3) or i == 4 else float(i + rank)  # one without a loss, then all
        seen.append(tuple(signals.measure(loss, 1)))
    signals.measure(None, 2)
    signals.synchronize()
    seen.append(signals.measure(3.0, 2).loss)
    torch.save((seen, sizes), f"{out}/{rank}")


def test_every_rank_sees_the_same_by_as_many_numbers_whatever_it_has(tmp_path):
    spawn(_ranks, 2, tmp_path)
    (first, sizes), (second, others) = (torch.load(tmp_path / str(rank)) for rank in range(2))
    assert str(first) == str(second)
    assert sizes == others
    assert sizes[:6] == [10] * 6
    assert [observation[0] for observation in first[:6]] == [0.5, 1.5, 2.5, 4.0, None, 5.5]
    assert -1 <= first[2][1] < 0  # of the rank that has one
    assert first[6] == 3.0  # a step without any loss leaves nothing behind
