import json
import math

import pytest
import torch
from processes import spawn
from torch.utils._python_dispatch import TorchDispatchMode

from greedylr_integrations.loss import LossMeter


def test_mean_over_micro_batches_and_steps():
    meter = LossMeter()
    for step in ([1.0, 2.0, 6.0], [5.0]):
        for loss in step:
            meter.update(torch.tensor(loss))
        meter.end_step()
    assert meter.steps == 2
    assert meter.compute() == 4.0
    assert meter.steps == 0


def test_pre_divided_losses_are_summed_within_a_step():
    meter = LossMeter(pre_divided=True)
    for step in ([1.0, 2.0], [5.0]):
        for loss in step:
            meter.update(torch.tensor(loss))
        meter.end_step()
    assert meter.compute() == 4.0


def test_a_skipped_step_leaves_nothing():
    meter = LossMeter()
    meter.update(100.0)
    meter.discard_step()
    meter.update(1.0)
    meter.end_step()
    assert meter.compute() == 1.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_low_precision_losses_are_summed_in_float32_or_better(dtype):
    meter = LossMeter(pre_divided=True)
    for _ in range(1000):
        meter.update(torch.tensor(0.5, dtype=dtype))
    meter.end_step()
    assert meter.compute() == 500.0


def test_no_host_read_before_compute_and_one_in_it(monkeypatch):
    reads = []
    tolist = torch.Tensor.tolist  # of a whole vector at once, which torch does not dispatch
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: reads.append("tolist") or tolist(tensor))

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "_local_scalar_dense" in str(func) or "item" in str(func):
                reads.append(str(func))
            return func(*args, **(kwargs or {}))

    losses = [torch.tensor(float(i), requires_grad=True) for i in range(8)]
    meter = LossMeter()
    with Reads():
        for loss in losses:
            meter.update(loss)
            meter.end_step()
        assert reads == []
        meter.compute()
    assert reads == ["tolist"]


def test_it_does_not_alias_or_hold_the_graph():
    loss = torch.tensor(1.0, requires_grad=True) * 2
    meter = LossMeter()
    meter.update(loss)
    with torch.no_grad():
        loss.fill_(100.0)
    meter.end_step()
    assert not meter._total.requires_grad
    assert meter.compute() == 2.0


@pytest.mark.parametrize("loss", [torch.zeros(2), torch.zeros(0)])
def test_a_loss_that_is_not_one_number(loss):
    with pytest.raises(TypeError, match="must be a single number"):
        LossMeter().update(loss)


def test_other_numbers_travel_with_the_loss():
    meter = LossMeter()
    for loss in (3.0, 5.0):
        meter.update(loss)
        meter.end_step()
    assert meter.read([7.0, torch.tensor(0.5), 0.0]) == [4.0, 2.0, 7.0, 0.5, 0.0]
    (mean, losses, extra) = meter.read([1.0])
    assert math.isnan(mean)
    assert (losses, extra) == (0.0, 1.0)


def test_with_a_lag_they_come_with_their_loss():
    meter, seen = LossMeter(lag=1), []
    for i in range(3):
        meter.update(float(i))
        meter.end_step()
        seen.append(meter.read([10.0 * i]))
    assert seen == [None, [0.0, 1.0, 0.0], [1.0, 1.0, 10.0]]


def test_state():
    meter = LossMeter()
    meter.update(3.0)
    meter.end_step()
    other = LossMeter()
    other.load_state_dict(meter.state_dict())
    for m in (meter, other):
        m.update(5.0)
        m.end_step()
    assert other.compute() == meter.compute() == 4.0


def _ranks(rank, world, out):
    meter, seen = LossMeter(), []
    for losses in ([1.0, 3.0], [math.nan, 1.0], [1.0, math.inf], [0.1, 100.0]):
        meter.update(losses[rank])
        meter.end_step()
        seen.append(meter.compute())
    meter.update(float(rank))
    meter.end_step()
    meter.synchronize()
    seen.append(meter.state_dict()["total"])
    if rank == 1:  # one rank has run out of data
        meter.compute()
    else:
        meter.update(7.0)
        meter.end_step()
        seen.append(meter.compute())
    torch.save(seen, f"{out}/{rank}")


def test_ranks_see_the_same_number(tmp_path):
    spawn(_ranks, 2, tmp_path)
    first, second = (torch.load(tmp_path / str(rank)) for rank in range(2))
    assert first[0] == 2.0
    assert math.isnan(first[1])
    assert first[2] == math.inf
    assert first[3] == pytest.approx(50.05, rel=1e-12)
    assert first[4] == 0.5
    assert first[5] == pytest.approx((0.5 + 7.0 + 0.5) / 3)
    assert str(first[:5]) == str(second[:5])


# ---- one step later ----


def test_with_a_lag_each_reading_is_handed_over_one_later():
    meter, seen = LossMeter(lag=1), []
    for loss in (1.0, 2.0, math.nan, 4.0):
        meter.update(loss)
        meter.end_step()
        seen.append(meter.compute())
    assert str(seen) == str([None, 1.0, 2.0, math.nan])


@pytest.mark.parametrize("waiting", [2.0, math.nan, math.inf])
def test_the_reading_that_waits_is_in_the_state(waiting):
    meter = LossMeter(lag=1)
    meter.update(waiting)
    meter.end_step()
    meter.compute()
    other = LossMeter(lag=1)
    other.load_state_dict(json.loads(json.dumps(meter.state_dict(), allow_nan=False)))
    for m in (meter, other):
        m.update(7.0)
        m.end_step()
    assert str(other.compute()) == str(meter.compute()) == str(waiting)


@pytest.mark.parametrize("lag", [2, -1, "1"])
def test_another_lag(lag):
    with pytest.raises(ValueError, match=f"^loss_lag={lag!r} is not allowed: it must be 0 or 1"):
        LossMeter(lag=lag)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_lag_adds_no_synchronization():
    meter, seen = LossMeter(), []
    losses = [torch.tensor(float(i), device="cuda") for i in range(5)]
    meter.update(losses[0])
    meter.end_step()
    assert meter.compute() is None
    torch.cuda.set_sync_debug_mode("error")
    try:
        for loss in losses[1:]:
            meter.update(loss)
            meter.end_step()
            seen.append(meter.compute())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert seen == [0.0, 1.0, 2.0, 3.0]


# ---- ranks that share or lack a loss ----


def _parallel(rank, world, out):
    dist = torch.distributed
    # pipeline: ranks 2 and 3 hold the last stage and the loss, data-parallel; 0 and 1 have none
    last_stage = dist.new_group([2, 3])
    pipeline = LossMeter(process_group=last_stage, source=2)
    # tensor parallel: ranks 0, 1 and 2, 3 each share a batch, and hold its loss alike but for rounding
    groups = [dist.new_group(ranks) for ranks in ([0, 2], [1, 3])]
    tensor = LossMeter(process_group=groups[rank % 2])
    seen = []
    for step in range(3):
        if rank >= 2:
            pipeline.update(float(rank) + step)
            pipeline.end_step()
        tensor.update((1.0 if rank < 2 else 5.0) + step + 1e-9 * (rank % 2))
        tensor.end_step()
        seen.append((pipeline.compute(), tensor.compute()))
    torch.save(seen, f"{out}/{rank}")


def test_no_rank_decides_alone(tmp_path):
    spawn(_parallel, 4, tmp_path)
    ranks = [torch.load(tmp_path / str(rank)) for rank in range(4)]
    assert ranks[0] == [(2.5, 3.0), (3.5, 4.0), (4.5, 5.0)]
    assert ranks == [ranks[0]] * 4
