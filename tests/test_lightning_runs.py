"""What one run with Lightning leaves to the next, how long a run is taken to be, and what is refused."""

import copy
import gc
import pickle
import weakref

import pytest
import tiny
import torch

pl = pytest.importorskip("lightning.pytorch")

from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint, StochasticWeightAveraging
from test_lightning import FAST, SCHEDULES, Manual, Module, fit, loader, pytestmark  # noqa: F401

from greedylr_integrations.decision import Reason
from greedylr_integrations.lightning import GreedyLRCallback


class WithTest(Module):
    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.model(**batch)["loss"])


# ---- the state of another run ----


@pytest.mark.filterwarnings("ignore")
def test_a_fresh_fit_after_a_tested_or_validated_checkpoint_starts_from_nothing(tmp_path):
    callback, used = GreedyLRCallback(**FAST), []
    for fold in range(2):
        module, best = WithTest(), ModelCheckpoint(dirpath=tmp_path / str(fold), monitor="val_loss")
        trainer = fit(tmp_path, module, callback, best, val=True, max_epochs=2, enable_checkpointing=True)
        trainer.test(ckpt_path="best", dataloaders=loader(8), verbose=False)
        used.append(module.used)
    trainer.validate(module, loader(8), ckpt_path=best.best_model_path, verbose=False)
    fit(tmp_path, again := WithTest(), callback, val=True, max_epochs=2)
    assert used[0] == used[1] == again.used


@pytest.mark.parametrize("schedule", [None, "exponential"])
def test_a_second_fit_of_the_same_trainer_goes_on(tmp_path, schedule, warnings_of):
    callback, module = GreedyLRCallback(**FAST, decay_ratio=0), Module(SCHEDULES.get(schedule))
    trainer = fit(tmp_path, module, callback)
    scale = callback.scheduler.scale
    trainer.fit_loop.max_epochs = 2
    first = 0.05  # `configure_optimizers` is called again
    trainer.fit(module, loader())
    assert module.used[12] == pytest.approx(first * scale)
    assert [record.step for record in callback.history][-1] == 24
    assert warnings_of() == []


def test_another_module_in_the_same_trainer_does_not_take_over_the_scale(tmp_path):
    callback = GreedyLRCallback(**FAST)
    trainer = fit(tmp_path, Module(), callback)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module := Module(), loader())
    assert module.used[0] == 0.05


@pytest.mark.parametrize("policy", ["checkpoint", "config"])
def test_a_changed_learning_rate_is_seen_on_resume(tmp_path, policy, warnings_of):
    save = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1)
    fit(tmp_path, Module(lr=0.05), GreedyLRCallback(window_size=1000), save, enable_checkpointing=True)
    warned = len(warnings_of())
    callback = GreedyLRCallback(window_size=1000, on_resume=policy)
    fit(tmp_path, Module(lr=0.01), callback, ckpt_path=str(tmp_path / "epoch=0.ckpt"), max_epochs=2)
    assert callback.scheduler.base_lrs == [{"checkpoint": 0.05, "config": 0.01}[policy]]
    assert "base_lrs: [0.05] there, [0.01] here" in warnings_of()[warned]


def test_a_finished_run_lets_go_of_the_module(tmp_path):
    callback, module = GreedyLRCallback(**FAST), Module()
    trainer = fit(tmp_path, module, callback)
    alive = weakref.ref(module), weakref.ref(trainer.optimizers[0])
    del trainer, module
    gc.collect()
    assert [reference() for reference in alive] == [None] * 2
    assert len(callback.history) == 12


def test_a_callback_can_be_pickled_and_copied(tmp_path):
    class Try(pl.Callback):
        def on_train_batch_end(self, *args):
            copies.append(pickle.loads(pickle.dumps(callback)))

    callback, copies = GreedyLRCallback(**FAST), []
    copies.append(copy.deepcopy(callback))
    fit(tmp_path, Module(), callback, Try())
    for each in copies:
        assert (each.settings, each.optimizer_index) == (callback.settings, 0)
        assert len(each.history) == 0
    after = pickle.loads(pickle.dumps(callback))
    assert list(after.history) == list(callback.history)


# ---- the length of a run ----


@pytest.mark.parametrize("monitor", ["loss", "val_loss"])
@pytest.mark.parametrize(
    "settings",
    [
        {"max_epochs": 4},
        {"max_epochs": 3, "accumulate_grad_batches": 5},
        {"max_epochs": -1, "max_steps": 30},
        {"max_epochs": 1000, "max_steps": 30},
        {"max_epochs": 7, "check_val_every_n_epoch": 3},
        {"max_epochs": 2, "val_check_interval": 0.25},
        {"max_epochs": -1, "max_steps": 30, "check_val_every_n_epoch": None, "val_check_interval": 7},
        {"max_epochs": 4, "check_val_every_n_epoch": None, "val_check_interval": 7},
        {"max_epochs": -1, "max_steps": 9, "accumulate_grad_batches": 5, "val_check_interval": 4},
        {"max_epochs": 2, "limit_train_batches": 5},
    ],
)
def test_the_number_of_decisions_is_known(tmp_path, settings, monitor):
    callback = GreedyLRCallback(monitor=monitor)
    fit(tmp_path, Module(lr=1e-3), callback, val=True, **settings)
    assert callback.scheduler.controller.horizon == len(callback.history)


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(tiny.regression_data(48))


def test_a_stream_has_no_known_length(tmp_path, warnings_of):
    callback, module = GreedyLRCallback(**FAST), Module()
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[callback],
        default_root_dir=tmp_path,
    )
    trainer.fit(module, torch.utils.data.DataLoader(Stream(), batch_size=4))
    assert callback.scheduler.controller.horizon is None
    assert len(callback.history) == 24
    (message,) = warnings_of()
    assert "does not know the length of this run and makes no final decay" in message


def test_an_accumulation_that_changes_is_counted(tmp_path, warnings_of):
    callback, module = GreedyLRCallback(**FAST), Module()
    fit(tmp_path, module, callback, GradientAccumulationScheduler({0: 1, 1: 4, 3: 2}), max_epochs=5)
    assert callback.scheduler.controller.horizon == len(module.used) == 12 + 3 + 3 + 6 + 6
    assert callback.scheduler.get_last_lr() == [0.0]
    assert warnings_of() == []


@pytest.mark.parametrize("optimizers", [1, 2])
def test_the_steps_of_manual_optimization_are_not_known(tmp_path, optimizers, warnings_of):
    module = Manual(optimizers=optimizers)
    callbacks = [GreedyLRCallback(**FAST, optimizer_index=index) for index in range(optimizers)]
    fit(tmp_path, module, *callbacks, max_epochs=2)
    assert all(callback.scheduler.controller.horizon is None for callback in callbacks)
    why = "the module decides how often" if optimizers == 1 else "counts the steps of all optimizers together"
    assert [why in message for message in warnings_of()] == [True] * optimizers


def test_max_steps_counts_the_steps_of_the_only_optimizer(tmp_path, warnings_of):
    callback, module = GreedyLRCallback(**FAST), Manual()
    fit(tmp_path, module, callback, max_epochs=-1, max_steps=20)
    assert callback.scheduler.controller.horizon == len(module.used) == 20
    assert warnings_of() == []


def test_several_steps_of_manual_optimization_in_a_batch_are_counted(tmp_path):
    class Twice(Manual):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            return super().training_step(batch, batch_idx)

    callback, module = GreedyLRCallback(**FAST, total_steps=24), Twice()
    fit(tmp_path, module, callback)
    assert callback.scheduler.last_epoch == len(module.used) == 24
    assert len(callback.history) == 12


def test_a_metric_of_training_epochs_in_a_run_with_validations(tmp_path):
    class Epochs(Module):
        def training_step(self, batch, batch_idx):
            loss = self.model(**batch)["loss"]
            self.log("train_loss", loss, on_step=False, on_epoch=True)
            return loss

    callback = GreedyLRCallback(monitor="train_loss", window_size=1)
    fit(tmp_path, Epochs(), callback, val=True, max_epochs=4, val_check_interval=0.5)
    assert [record.step for record in callback.history] == [12, 24, 36, 48]
    assert callback.scheduler.controller.horizon == 4


# ---- nothing ever arrives, and whose turn it is ----


def test_manual_optimization_that_returns_nothing(tmp_path, warnings_of):
    class Silent(Manual):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)

    callback = GreedyLRCallback(**FAST, total_steps=24)
    fit(tmp_path, Silent(), callback, max_epochs=2)
    assert len(callback.history) == 0
    early, end = warnings_of()
    assert early.startswith("GreedyLR was stepped 3 times without a loss")
    assert "training_step must return the loss" in early
    assert end.startswith("GreedyLR made no decision in 24 optimizer steps")


def test_validating_outside_of_a_fit_decides_nothing(tmp_path):
    callback, module = GreedyLRCallback(monitor="val_loss", window_size=1), Module()
    trainer = fit(tmp_path, module, callback, val=True, max_epochs=3)
    trainer.validate(module, loader(8), verbose=False)
    assert len(callback.history) == 3
    fresh = GreedyLRCallback(monitor="f1", mode="max")
    trainer.callbacks[:] = [fresh]
    trainer.validate(module, loader(8), verbose=False)
    assert len(fresh.history) == 0


# ---- stacking ----


def test_two_callbacks_on_one_optimizer_are_refused(tmp_path):
    first, second = GreedyLRCallback(), GreedyLRCallback(monitor="val_loss")
    with pytest.raises(ValueError, match="more than one GreedyLRCallback for optimizer 0"):
        fit(tmp_path, Module(), first, second, val=True)
    fit(tmp_path, Module(), first, GreedyLRCallback(monitor="val_loss", shadow=True), val=True)


@pytest.mark.filterwarnings("ignore")
def test_weight_averaging_with_its_own_schedule_is_warned_about(tmp_path, warnings_of):
    averaging = StochasticWeightAveraging(swa_lrs=0.02, swa_epoch_start=2, annealing_epochs=1)
    fit(tmp_path, Module(), GreedyLRCallback(**FAST), averaging, max_epochs=4)
    (message,) = warnings_of()
    assert "swa_lrs of StochasticWeightAveraging are not used" in message


@pytest.mark.parametrize("base_schedule", ["replace", "multiply"])
def test_a_function_is_called_with_each_decision_when_its_lr_is_there(tmp_path, base_schedule):
    told, there = [], []

    def tell(record):
        told.append(record)
        there.append([group["lr"] for group in module.trainer.optimizers[0].param_groups])

    module = Module(SCHEDULES["exponential"])
    callback = GreedyLRCallback(**FAST, base_schedule=base_schedule, on_decision=tell)
    fit(tmp_path, module, callback)
    assert told == list(callback.history)
    assert told
    assert [list(record.lrs) for record in told] == there


def test_a_window_that_never_fills_is_said(tmp_path, warnings_of):
    callback = GreedyLRCallback(window_size=1000)
    fit(tmp_path, Module(), callback)
    assert {record.decision.reason for record in callback.history} == {Reason.FILLING}
    assert warnings_of() == ["GreedyLR: the LR will not move: window_size=1000, and the run has 12 decisions"]


def test_a_window_that_does_not_fill_in_a_run_of_unknown_length_is_said_at_the_end(tmp_path, warnings_of):
    fit(tmp_path, Manual(), GreedyLRCallback(window_size=1000))
    assert any(message.startswith("GreedyLR's window never filled in the ") for message in warnings_of())
