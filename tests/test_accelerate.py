import json
import math
import sys

import pytest
import tiny
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DataLoaderConfiguration
from processes import run

import greedylr_integrations
from greedylr_integrations import history
from greedylr_integrations.accelerate import GreedyLR
from greedylr_integrations.decision import Reason

FAST = {"window_size": 2, "factor": 0.8}


@pytest.fixture(autouse=True)
def fresh_state():
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


class Run:
    """A loop as people write it, with what it did kept."""

    def __init__(self, steps=12, accumulate=1, skip=(), **kwargs):
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
        model = tiny.Regressor()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        loader = torch.utils.data.DataLoader(tiny.regression_data(), batch_size=4)
        self.given = GreedyLR(optimizer, total_steps=steps, **{**FAST, **kwargs})
        prepared = self.accelerator.prepare(model, optimizer, loader, self.given)
        self.model, self.optimizer, self.loader, self.scheduler = prepared
        self.used, self.losses, self.decisions = [], [], []
        optimizer.register_step_pre_hook(lambda o, a, k: self.used.append(o.param_groups[0]["lr"]))

    def train(self, start=0, stop=None):
        for i, batch in enumerate(self.loader):
            if i < start or (stop is not None and i >= stop):
                continue
            with self.accelerator.accumulate(self.model):
                loss = self.model(**batch)["loss"]
                self.losses.append(loss.item())
                self.accelerator.backward(loss)
                self.optimizer.step()
                self.decisions.append(self.scheduler.step(loss))
                self.optimizer.zero_grad()
        return self

    def made(self):
        return [decision for decision in self.decisions if decision is not None]


def test_prepare_keeps_it():
    run = Run()
    assert run.scheduler is run.given
    assert run.accelerator._schedulers == [run.given]


@pytest.mark.parametrize("accumulate", [1, 4, 5])
def test_one_decision_a_real_step_on_the_mean_of_its_micro_batches(accumulate):
    run = Run(accumulate=accumulate).train()
    groups = [run.losses[i : i + accumulate] for i in range(0, 12, accumulate)]
    assert [decision.loss for decision in run.made()] == pytest.approx([sum(g) / len(g) for g in groups], rel=1e-6)
    assert len(run.used) == len(groups)
    assert run.scheduler.last_epoch == len(groups)


def test_in_a_plain_loop_it_is_the_plain_one():
    def train(make):
        model = tiny.Regressor()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        scheduler = make(optimizer, total_steps=12, **FAST)
        lrs = []
        for batch in torch.utils.data.DataLoader(tiny.regression_data(), batch_size=4):
            loss = model(**batch)["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step(loss)
            lrs.append(scheduler.get_last_lr())
        return lrs

    assert train(GreedyLR) == train(greedylr_integrations.GreedyLR)


def test_prepared_it_decides_as_the_plain_one():
    run = Run().train()
    plain = greedylr_integrations.GreedyLR(
        torch.optim.SGD(tiny.Regressor().parameters(), lr=0.02), total_steps=12, **FAST
    )
    assert [plain.step(loss) for loss in run.losses] == run.decisions


def test_a_skipped_step_is_no_step(monkeypatch):
    """The fp16 scaler calls the optimizer's own step only if the gradients are finite; that needs a GPU."""
    run, calls = Run(), []
    step = run.optimizer.step

    def skipping(closure=None):
        calls.append(1)
        if len(calls) not in (3, 4):
            step(closure)

    monkeypatch.setattr(run.optimizer, "step", skipping)
    run.train()
    assert [decision is None for decision in run.decisions] == [i in (2, 3) for i in range(12)]
    assert [decision.loss for decision in run.made()] == pytest.approx(run.losses[:2] + run.losses[4:], rel=1e-6)


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("fields", [{}, {"every_n_steps": 2}])
def test_save_state_and_load_state_continue_exactly(tmp_path, accumulate, fields):
    def start():
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        return Run(accumulate=accumulate, **fields)

    whole = start().train()
    first = start().train(stop=8)
    first.accelerator.save_state(str(tmp_path))
    second = start()
    second.accelerator.load_state(str(tmp_path))
    second.train(start=8)
    assert second.used == whole.used[8 // accumulate :]
    assert second.losses == whole.losses[8:]


def test_a_folder_saved_without_it_says_so(tmp_path):
    accelerator = Accelerator(cpu=True)
    model = tiny.Regressor()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.02))
    accelerator.save_state(str(tmp_path))
    scheduler = accelerator.prepare(GreedyLR(optimizer))
    with pytest.raises(FileNotFoundError, match=r"scheduler\.bin"):
        accelerator.load_state(str(tmp_path))
    assert scheduler.last_epoch == 0


@pytest.mark.parametrize("config", [{"split_batches": True}, {"even_batches": False}])
def test_data_loader_configurations(config):
    accelerator = Accelerator(
        cpu=True, dataloader_config=DataLoaderConfiguration(**config), step_scheduler_with_optimizer=False
    )
    model = tiny.Regressor()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    loader = torch.utils.data.DataLoader(tiny.regression_data(), batch_size=4)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, GreedyLR(optimizer, **FAST))
    for batch in loader:
        loss = model(**batch)["loss"]
        accelerator.backward(loss)
        optimizer.step()
        scheduler.step(loss)
        optimizer.zero_grad()
    assert scheduler.last_epoch == 12


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_fp16_on_a_gpu():
    accelerator = Accelerator(mixed_precision="fp16")
    model = tiny.Regressor()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    loader = torch.utils.data.DataLoader(tiny.regression_data(), batch_size=4)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, GreedyLR(optimizer, **FAST))
    skipped = 0
    for batch in loader:
        loss = model(**batch)["loss"]
        accelerator.backward(loss)
        optimizer.step()
        skipped += optimizer.step_was_skipped
        scheduler.step(loss)
        optimizer.zero_grad()
    assert scheduler.last_epoch == 12 - skipped


def test_shadow_changes_nothing():
    def train(**kwargs):
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        accelerator = Accelerator(cpu=True)
        model = tiny.Regressor()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        loader = torch.utils.data.DataLoader(tiny.regression_data(), batch_size=4)
        scheduler = GreedyLR(optimizer, **FAST, **kwargs) if kwargs else None
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        scheduler = accelerator.prepare(scheduler) if scheduler is not None else None
        losses, lrs = [], []
        for batch in loader:
            lrs.append(optimizer.param_groups[0]["lr"])
            loss = model(**batch)["loss"]
            losses.append(loss.item())
            accelerator.backward(loss)
            optimizer.step()
            if scheduler is not None:
                scheduler.step(loss)
            optimizer.zero_grad()
        return losses, lrs, list(model.parameters()), scheduler

    losses, lrs, weights, _ = train()
    with_us = train(shadow=True)
    assert with_us[:2] == (losses, lrs)
    assert all(torch.equal(a, b) for a, b in zip(with_us[2], weights, strict=True))
    assert len({record.decision.scales for record in with_us[3].history}) > 3


def test_the_history_file_goes_on_after_load_state(tmp_path):
    def start(name):
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        return Run(accumulate=2, history_file=tmp_path / name)

    whole = start("whole").train()
    first = start("cut").train(stop=6)
    first.accelerator.save_state(str(tmp_path / "state"))
    first.train(start=6, stop=10)
    first.scheduler.history_file.close()  # as a kill does
    second = start("cut")
    second.accelerator.load_state(str(tmp_path / "state"))
    second.train(start=6)
    (cut, *cut_rows), (header, *rows) = (history.read(tmp_path / name) for name in ("cut", "whole"))
    assert cut_rows == rows
    assert {**cut, "run": ""} == {**header, "run": ""}
    assert history.read(tmp_path / "whole")[1] == list(whole.scheduler.history)


def test_a_nan_lowers_once():
    run = Run()
    run.scheduler.observe(1.0)
    assert run.scheduler.observe(math.nan).reason is Reason.NONFINITE


def test_a_missing_accelerate_names_the_extra():
    code = (
        "import sys; sys.modules['accelerate'] = None\n"
        "try: import greedylr_integrations.accelerate\n"
        "except ImportError as error: print(error)"
    )
    out = run([sys.executable, "-c", code]).stdout
    assert "pip install 'greedylr_integrations[accelerate]'" in out


def test_state_is_json():
    run = Run().train()
    json.dumps(run.scheduler.state_dict(), allow_nan=False)
