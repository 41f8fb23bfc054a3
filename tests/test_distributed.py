"""The plain scheduler and Accelerate's on two gloo processes: sharded models, uneven inputs, faults on one rank."""

import math

import pytest
import tiny
import torch
from processes import spawn

FAST = {"window_size": 2, "factor": 0.8}


def _fully_sharded(rank, world, out):
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    from greedylr_integrations import GreedyLR

    model = tiny.Regressor()
    for layer in model.net:
        if list(layer.parameters()):
            fully_shard(layer)
    fully_shard(model)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = GreedyLR(optimizer, total_steps=20, **FAST)
    data = tiny.regression_data(80)[rank::world]
    own, seen, lrs = [], [], []
    for i in range(20):
        x = torch.stack([row["x"] for row in data[2 * i : 2 * i + 2]])
        y = torch.stack([row["labels"] for row in data[2 * i : 2 * i + 2]])
        loss = model(x=x, labels=y)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(scheduler.step(loss).loss)
        own.append(loss.item())
        lrs.append(scheduler.get_last_lr())
    torch.save((own, seen, lrs), f"{out}/{rank}")


def test_fully_shard(tmp_path):
    spawn(_fully_sharded, 2, tmp_path)
    (own, seen, lrs), (own_1, seen_1, lrs_1) = (torch.load(tmp_path / str(rank)) for rank in range(2))
    assert seen == seen_1 == pytest.approx([(a + b) / 2 for a, b in zip(own, own_1, strict=True)], rel=1e-6)
    assert lrs == lrs_1
    assert len({lr[0] for lr in lrs}) > 3


def _uneven(rank, world, out):
    from accelerate import Accelerator

    from greedylr_integrations.accelerate import GreedyLR

    accelerator = Accelerator(cpu=True)
    model = tiny.Regressor()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    # 11 batches: the first rank has one more than the second
    loader = torch.utils.data.DataLoader(tiny.regression_data(44), batch_size=4)
    scheduler = GreedyLR(optimizer, **FAST)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    lrs = []
    for _ in range(3):
        with accelerator.join_uneven_inputs([model, scheduler], even_batches=False):
            for batch in loader:
                loss = model(**batch)["loss"]
                accelerator.backward(loss)
                optimizer.step()
                scheduler.step(loss)
                optimizer.zero_grad()
        lrs.append((scheduler.get_last_lr(), scheduler.last_epoch, scheduler.state_dict()["controller"]))
    torch.save(lrs, f"{out}/{rank}")


@pytest.mark.filterwarnings("ignore")
def test_a_rank_that_runs_out_of_data(tmp_path):
    spawn(_uneven, 2, tmp_path)
    first, second = (torch.load(tmp_path / str(rank)) for rank in range(2))
    assert first == second
    assert [epoch[1] for epoch in first] == [6, 12, 18]


def _nonfinite(rank, world, out):
    from greedylr_integrations import GreedyLR

    scheduler = GreedyLR(torch.optim.SGD(tiny.Regressor().parameters(), lr=1e-2), **FAST)
    seen = []
    for i in range(12):
        loss = 3.0 - 0.1 * i
        if (i, rank) == (4, 1):
            loss = math.nan
        if (i, rank) == (8, 0):
            loss = math.inf
        decision = scheduler.step(loss)
        seen.append((decision.reason.name, decision.scales, scheduler.get_last_lr()))
    torch.save(seen, f"{out}/{rank}")


def test_a_nonfinite_loss_on_one_rank_is_the_same_decision_on_all(tmp_path):
    spawn(_nonfinite, 2, tmp_path)
    first, second = (torch.load(tmp_path / str(rank)) for rank in range(2))
    assert first == second
    assert [i for i, (reason, *_) in enumerate(first) if reason == "NONFINITE"] == [4, 8]
