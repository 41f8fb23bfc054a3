"""The plain scheduler and Accelerate's on two gloo processes: sharded models, uneven inputs, faults on one rank."""

import math

import pytest
import small
import torch
from processes import spawn

FAST = {"window_size": 2, "factor": 0.8}


def _fully_sharded(rank, world, out):
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    from greedylr_integrations import GreedyLR

    model = small.Regressor()
    for layer in model.net:
        if list(layer.parameters()):
            fully_shard(layer)
    fully_shard(model)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = GreedyLR(optimizer, total_steps=20, **FAST)
    data = small.regression_data(80)[rank::world]
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
    from accelerate.utils import DataLoaderConfiguration
    from torch.distributed.algorithms.join import Join

    from greedylr_integrations.accelerate import GreedyLR

    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(even_batches=False))
    model = small.Regressor()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    # 11 batches: the first rank has one more than the second
    loader = torch.utils.data.DataLoader(small.regression_data(44), batch_size=4)
    scheduler = GreedyLR(optimizer, **FAST)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    lrs, batches = [], 0
    for _ in range(3):
        with Join([model, scheduler]):  # accelerator.join_uneven_inputs does it on GPUs only
            for batch in loader:
                batches += 1
                loss = model(**batch)["loss"]
                accelerator.backward(loss)
                optimizer.step()
                scheduler.step(loss)
                optimizer.zero_grad()
        lrs.append((scheduler.get_last_lr(), scheduler.last_epoch, scheduler.state_dict()["controller"]))
    assert batches == 3 * (6 - rank)
    torch.save(lrs, f"{out}/{rank}")


@pytest.mark.filterwarnings("ignore")
def test_a_rank_that_runs_out_of_data(tmp_path):
    spawn(_uneven, 2, tmp_path)
    first, second = (torch.load(tmp_path / str(rank)) for rank in range(2))
    assert first == second
    assert [epoch[1] for epoch in first] == [6, 12, 18]


def _nonfinite(rank, world, out):
    from greedylr_integrations import GreedyLR

    scheduler = GreedyLR(torch.optim.SGD(small.Regressor().parameters(), lr=1e-2), **FAST)
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


def _lightning(rank, world, out):
    """The same training twice: whole weights on each rank, then a shard on each."""
    pl = pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    from greedylr_integrations.lightning import GreedyLRCallback

    class Module(pl.LightningModule):
        def __init__(self, sharded):
            super().__init__()
            self.model, self.sharded = small.Regressor(), sharded

        def configure_model(self):
            if self.sharded and not any(isinstance(weight, DTensor) for weight in self.parameters()):
                fully_shard(self.model, mesh=self.device_mesh["data_parallel"])

        def training_step(self, batch, batch_idx):
            return self.model(**batch)["loss"]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-2)

    found = []
    for sharded in (False, True):
        strategy = ModelParallelStrategy(world, 1) if sharded else DDPStrategy()
        callback, module = GreedyLRCallback(), Module(sharded)
        trainer = pl.Trainer(
            max_steps=100,
            accelerator="cpu",
            devices=world,
            strategy=strategy,
            callbacks=[callback],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        data = small.regression_data(100 * 2 * world)
        trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=2))
        assert sharded == any(isinstance(weight, DTensor) for weight in module.parameters())
        found.append([(record.decision.slope, record.lrs, record.decision.reason.name) for record in callback.history])
    torch.save(found, f"{out}/{rank}")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_lightning_measures_the_slope_of_sharded_weights_as_of_whole_ones(world, tmp_path):
    spawn(_lightning, world, tmp_path)
    (whole, sharded), *others = (torch.load(tmp_path / str(rank)) for rank in range(world))
    assert all(str(other) == str([whole, sharded]) for other in others)
    slopes = [[slope for slope, *_ in run if slope is not None] for run in (whole, sharded)]
    assert len(slopes[0]) > 20
    assert slopes[1][1:] == pytest.approx(slopes[0][1:], abs=1e-5)
    assert [row[1][0] for row in sharded] == pytest.approx([row[1][0] for row in whole])
    assert [row[2] for row in sharded] == [row[2] for row in whole]
