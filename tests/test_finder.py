"""The LR finder: it finds what a run finds first, and leaves no trace."""

import json
import random
from pathlib import Path

import numpy
import pytest
import small
import torch
from processes import spawn

import greedylr_integrations
from greedylr_integrations import FoundLR, GreedyConfig, GreedyLR, SlopeConfig, find_lr
from greedylr_integrations.decision import Reason

ROWS = 400


class Net(small.Regressor):
    """With a buffer that moves, random numbers, and weights that are not trained."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(4)
        self.frozen = torch.nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x, labels=None):
        random.random(), numpy.random.rand()
        return super().forward(torch.nn.functional.dropout(self.norm(x), 0.1, self.training), labels)


def loader():
    return torch.utils.data.DataLoader(small.regression_data(ROWS), batch_size=4, shuffle=True)


def everything(net, optimizer):
    state = optimizer.state_dict()
    numbers = torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist()
    weights = {name: value.tolist() for name, value in net.state_dict().items()}
    modes = [part.training for part in net.modules()]
    return weights, modes, str(state), sorted(vars(optimizer)), numbers


def plain(lr=0.001):
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    return net, optimizer, lambda batch: net(**batch)["loss"]


# ---- a loop of one's own ----


@pytest.mark.parametrize("trained", [False, True])
def test_a_plain_loop_is_as_it_was(trained):
    net, optimizer, step = plain()
    if trained:
        step(next(iter(loader()))).backward()
        optimizer.step()
        net.zero_grad()
    net.norm.eval()
    before = everything(net, optimizer)
    found = find_lr(net, loader(), optimizer, step)
    assert everything(net, optimizer) == before
    assert all(p.grad is None for p in net.parameters())
    assert found.lr == found.suggestion() > 0.001 == found.base_lr
    assert 20 < found.steps == len(found.history) <= 100


def test_it_is_as_it_was_after_an_error():
    net, optimizer, step = plain()
    before = everything(net, optimizer)

    def fails(batch):
        if optimizer.state:
            raise KeyError("batch")
        return step(batch)

    with pytest.raises(KeyError):
        find_lr(net, loader(), optimizer, fails)
    assert everything(net, optimizer) == before


@pytest.mark.parametrize("total_steps", [200, 1000])
def test_the_lrs_are_those_of_a_run_of_that_length(total_steps):
    net, optimizer, step = plain()
    torch.manual_seed(5)
    found = find_lr(net, loader(), optimizer, step, total_steps=total_steps)
    torch.manual_seed(5)
    batches = loader()
    scheduler = GreedyLR(optimizer, total_steps=total_steps, steps_per_epoch=len(batches))
    for batch, _ in zip(batches, range(found.steps), strict=False):
        optimizer.zero_grad()
        loss = step(batch)
        loss.backward()
        optimizer.step()
        scheduler.step(loss)
    assert list(found.history) == list(scheduler.history)
    assert found.lr == scheduler.lr
    reasons = [record.decision.reason for record in found.history]
    assert {Reason.FOUND, Reason.FAR_ENOUGH} & set(reasons)
    assert reasons[-12:] == [Reason.HOLDING] * 12


def test_it_does_not_say_that_it_found_what_it_did_not(caplog):
    net, optimizer, step = plain()
    found = find_lr(net, loader(), optimizer, step, config=SlopeConfig(max_scale=0.1))
    assert found.lr is None
    assert found.suggestion() is None
    assert found.history[-1].decision.reason is Reason.CEILING
    (message,) = caplog.messages
    assert message.startswith(
        f"no LR was found in {found.steps} steps from the base LR 0.001; the search ended at 0.0001"
    )


def test_what_is_too_short_or_has_no_slope_is_refused():
    net, optimizer, step = plain()
    batches = list(loader())
    before = everything(net, optimizer)
    with pytest.raises(ValueError, match="total_steps=59 is not allowed"):
        find_lr(net, batches, optimizer, step, total_steps=59)
    with pytest.raises(
        ValueError,
        match="find_lr cannot search: a search needs 60 decisions in one pass over the data, and this one has",
    ):
        find_lr(net, batches[:59], optimizer, step)
    with pytest.raises(TypeError, match="only the search by the slope"):
        find_lr(net, batches, optimizer, step, config=GreedyConfig())
    elsewhere = torch.ones((), requires_grad=True)
    with pytest.raises(RuntimeError, match="no gradients are seen"):
        find_lr(net, batches, optimizer, lambda batch: step(batch).detach() * elsewhere)
    assert everything(net, optimizer) == before


def test_the_result_shows_itself():
    pytest.importorskip("matplotlib")
    net, optimizer, step = plain()
    found = find_lr(net, iter(loader()), optimizer, step, config=SlopeConfig(max_scale=50.0))
    assert repr(found) == f"FoundLR(lr={found.lr!r}, base_lr=0.001, steps={found.steps})"
    assert len(found.plot().axes) >= 2
    assert isinstance(found, FoundLR)
    assert "find_lr" in dir(greedylr_integrations)


# ---- Hugging Face's Trainer ----


def trainer_of(out, *callbacks, **kwargs):
    import tiny

    settings = {"max_steps": 30, "learning_rate": 0.002, "eval_steps": 10, "eval_strategy": "steps", **kwargs}
    data = {"data": small.regression_data(ROWS), "eval_data": small.regression_data(8)}
    return tiny.trainer(out, list(callbacks), model=Net(), **data, **settings)


def logged(trainer):
    clock = ("runtime", "per_second", "total_flos")
    rows = trainer.state.log_history
    return [{name: row[name] for name in row if not any(word in name for word in clock)} for row in rows]


@pytest.mark.parametrize(
    "settings", [{}, {"lr_scheduler_type": "cosine", "warmup_steps": 10}, {"bf16": True}, {"save_strategy": "steps"}]
)
def test_training_after_a_search_is_training_without_one(tmp_path, settings):
    import tiny

    from greedylr_integrations import transformers

    runs = []
    for search in (False, True):
        spy = tiny.LRSpy()
        trainer = trainer_of(tmp_path / str(search), spy, **settings)
        if search:
            optimizer = torch.optim.SGD(trainer.model.parameters())  # to compare the rest
            before, attributes = everything(trainer.model, optimizer), dict(vars(trainer))
            found = transformers.find_lr(trainer)
            assert everything(trainer.model, optimizer) == before
            assert vars(trainer) == attributes
            assert trainer.optimizer is None
            assert trainer.state.log_history == spy.used == list(tmp_path.glob("True/*")) == []
            assert 40 < found.steps <= 200
            assert found.base_lr == 0.002
            assert found.lr == found.history[-1].lrs[0] != 0.002
        trainer.train()
        runs.append((logged(trainer), spy.used, everything(trainer.model, trainer.optimizer.optimizer)))
    assert runs[0] == runs[1]


def test_a_trainer_with_an_optimizer_that_has_trained_already(tmp_path):
    from greedylr_integrations import transformers
    from greedylr_integrations.transformers import GreedyLRCallback

    trainer = trainer_of(tmp_path, GreedyLRCallback(), max_steps=3)
    optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=0.002)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    trainer.optimizer, trainer.lr_scheduler = optimizer, schedule
    trainer.train()
    before = everything(trainer.model, optimizer)
    steps = trainer.state.global_step
    assert transformers.find_lr(trainer).base_lr == 0.002
    assert everything(trainer.model, optimizer) == before
    assert trainer.lr_scheduler is schedule
    assert trainer.state.global_step == steps == 3


def test_a_trainer_is_as_it_was_after_an_error(tmp_path):
    from greedylr_integrations import transformers

    trainer = trainer_of(tmp_path)
    trainer.train_dataset = trainer.train_dataset[:100]
    attributes = dict(vars(trainer))
    with pytest.raises(ValueError, match="find_lr cannot search: a search needs 60 decisions in one pass"):
        transformers.find_lr(trainer)
    assert vars(trainer) == attributes


# ---- Lightning ----


def module_of(schedule=None):
    pl = pytest.importorskip("lightning.pytorch")

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = Net()
            self.used = []

        def training_step(self, batch, batch_idx):
            loss = self.model(**batch)["loss"]
            self.log("train", loss)
            self.logger.log_metrics({"mine": float(loss)}, step=self.global_step)
            self.used.append((float(loss), self.optimizers().param_groups[0]["lr"]))
            return loss

        def validation_step(self, batch, batch_idx):
            self.log("valid", self.model(**batch)["loss"])

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.002, momentum=0.9)
            return optimizer if schedule is None else ([optimizer], [schedule(optimizer)])

    return Module()


SCHEDULES = {
    "none": None,
    "exponential": lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_fit_after_a_search_is_a_fit_without_one(tmp_path, schedule):
    pl = pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.callbacks import EarlyStopping
    from lightning.pytorch.loggers import CSVLogger

    from greedylr_integrations import lightning

    runs = []
    for search in (False, True):
        small.seed_all(0)
        trainer = pl.Trainer(
            default_root_dir=tmp_path,
            max_epochs=3,
            min_epochs=2,
            limit_train_batches=70,
            accelerator="cpu",
            logger=CSVLogger(tmp_path, name=str(search)),
            callbacks=[EarlyStopping("valid")],
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1,
        )
        module, data = module_of(SCHEDULES[schedule]), (loader(), loader())
        if search:
            optimizer = torch.optim.SGD(module.parameters())  # to compare the rest
            before, attributes = everything(module, optimizer), dict(vars(trainer))
            found = lightning.lr_find(trainer, module, *data)
            assert everything(module, optimizer) == before
            assert {name: vars(trainer)[name] for name in attributes} == attributes
            assert (trainer.global_step, trainer.current_epoch, trainer.callback_metrics) == (0, 0, {})
            assert not (tmp_path / "True").exists()
            assert found.lr > found.base_lr == 0.002
            assert len(module.used) == found.steps
            module.used.clear()
        trainer.fit(module, *data)
        rows = (tmp_path / str(search) / "version_0" / "metrics.csv").read_text()
        runs.append((module.used, rows, {name: value.tolist() for name, value in module.state_dict().items()}))
    assert runs[0] == runs[1]
    assert len(runs[0][0]) in (140, 210)


# ---- several processes ----


def search(rank, world, out):
    """A plain loop with DDP, and Hugging Face's Trainer."""
    from greedylr_integrations import transformers

    net, optimizer, _ = plain()
    parallel = torch.nn.parallel.DistributedDataParallel(net)
    before = everything(net, optimizer)
    data = small.regression_data(ROWS)
    batches = torch.utils.data.DataLoader(data[rank::world], batch_size=2)
    found = [find_lr(parallel, batches, optimizer, lambda batch: parallel(**batch)["loss"])]
    same = [everything(net, optimizer) == before]
    trainer = trainer_of(Path(out) / "trainer")
    before = everything(trainer.model, optimizer)
    found.append(transformers.find_lr(trainer))
    same += [everything(trainer.model, optimizer) == before, trainer.model_wrapped is trainer.model]
    trainer.train()  # wraps the model anew
    lrs = [[record.lrs for record in each.history] for each in found]
    Path(out, f"{rank}.json").write_text(json.dumps([same, [each.lr for each in found], lrs]))


def test_all_ranks_find_the_same_and_are_as_they_were(tmp_path):
    spawn(search, 2, tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    same, lrs, _ = first
    assert same == [True, True, True]
    assert all(lrs)
