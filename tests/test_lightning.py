import inspect
import logging
import math
import shutil

import pytest
import tiny
import torch
from processes import run
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LambdaLR, ReduceLROnPlateau

pl = pytest.importorskip("lightning.pytorch")

from greedylr_integrations import GreedyConfig, GreedyLR, PaperConfig, history, steering
from greedylr_integrations.decision import Action, Reason
from greedylr_integrations.lightning import GreedyLRCallback

pytestmark = [
    pytest.mark.filterwarnings("ignore:`training_step` returned `None`"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed from"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
]
FAST = {"window_size": 2, "factor": 0.8}


class Module(pl.LightningModule):
    """Regression; what the optimizer used and what the losses were is kept."""

    def __init__(self, schedule=None, interval="step", returns="tensor", lr=0.05):
        super().__init__()
        self.model = tiny.Regressor()
        self.schedule, self.interval, self.returns, self.lr = schedule, interval, returns, lr
        self.losses, self.used = [], []

    def training_step(self, batch, batch_idx):
        loss = self.model(**batch)["loss"]
        if self.returns == "nan" and batch_idx == 4:
            loss = loss * math.nan
        if self.returns == "none" and batch_idx == 3:
            return None
        self.losses.append(loss.item())
        self.log("train_loss", loss)
        return {"loss": loss, "other": 1} if self.returns == "dict" else loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.model(**batch)["loss"])

    def on_before_optimizer_step(self, optimizer):
        if self.returns == "nan":
            for parameter in self.parameters():
                parameter.grad.nan_to_num_(0.0)  # so that the model survives

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.model.parameters(), lr=self.lr)
        optimizer.register_step_pre_hook(lambda o, a, k: self.used.append(float(o.param_groups[0]["lr"])))
        if self.schedule is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": self.schedule(optimizer),
                "interval": self.interval,
                "monitor": "val_loss",
            },
        }


def loader(n=48, batch=4):
    return torch.utils.data.DataLoader(tiny.regression_data(n), batch_size=batch)


def fit(tmp_path, module, *callbacks, ckpt_path=None, val=False, **kwargs):
    defaults = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "default_root_dir": tmp_path,
        "num_sanity_val_steps": 0,
    }
    trainer = pl.Trainer(callbacks=list(callbacks), **{**defaults, **kwargs})
    loaders = {"train_dataloaders": loader(), "val_dataloaders": loader(8) if val else None}
    resume = {} if ckpt_path is None else {"ckpt_path": ckpt_path}
    if resume and "weights_only" in inspect.signature(trainer.fit).parameters:
        resume["weights_only"] = True
    trainer.fit(module, **loaders, **resume)
    return trainer


def scales(callback):
    return [record.decision.scales[0] for record in callback.history]


# ---- the loss ----


def test_it_is_the_schedule_where_there_is_none(tmp_path):
    callback, module = GreedyLRCallback(**FAST), Module()
    fit(tmp_path, module, callback, max_epochs=2)
    assert [record.decision.loss for record in callback.history] == pytest.approx(module.losses, rel=1e-6)
    assert callback.scheduler.controller.horizon == 24
    envelope = callback.scheduler.envelope
    before = [1.0, *scales(callback)]
    assert module.used == pytest.approx([0.05 * before[i] * envelope(i) for i in range(24)])
    assert len(set(before)) > 3


@pytest.mark.parametrize(("given", "measured"), [(None, 0), (30, 0), (60, 60)])
def test_the_slope_is_measured_in_the_first_pass_over_the_data(tmp_path, given, measured):
    """The loader has 12 steps; a longer pass is for a loader that repeats parts of its data."""
    callback = GreedyLRCallback(steps_per_epoch=given, max_scale=1.0)
    fit(tmp_path, Module(lr=1e-3), callback, max_epochs=16)
    slopes = [record.decision.slope for record in callback.history]
    assert len(slopes) == 192
    assert sum(slope is not None for slope in slopes[1:]) == max(0, measured - 1)  # none before the first step


@pytest.mark.parametrize("accumulate", [2, 5])
def test_accumulation_is_averaged_also_in_a_partial_window(tmp_path, accumulate):
    callback, module = GreedyLRCallback(**FAST), Module()
    fit(tmp_path, module, callback, accumulate_grad_batches=accumulate)
    groups = [module.losses[i : i + accumulate] for i in range(0, 12, accumulate)]
    expected = [sum(group) / len(group) for group in groups]
    assert [record.decision.loss for record in callback.history] == pytest.approx(expected, rel=1e-6)
    assert len(module.used) == len(expected)


@pytest.mark.parametrize("returns", ["dict", "none"])
def test_what_training_step_may_return(tmp_path, returns):
    callback, module = GreedyLRCallback(**FAST), Module(returns=returns)
    fit(tmp_path, module, callback)
    assert [record.decision.loss for record in callback.history] == pytest.approx(module.losses, rel=1e-6)


def test_bf16_mixed(tmp_path):
    callback, module = GreedyLRCallback(**FAST), Module()
    fit(tmp_path, module, callback, precision="bf16-mixed")
    assert [record.decision.loss for record in callback.history] == pytest.approx(module.losses, rel=1e-6)


def test_a_nan_lowers_once_and_leaves_nothing(tmp_path):
    callback = GreedyLRCallback(**FAST)
    fit(tmp_path, Module(returns="nan", lr=1e-3), callback)
    reasons = [record.decision.reason for record in callback.history]
    assert [i for i, reason in enumerate(reasons) if reason is Reason.NONFINITE] == [4]
    assert callback.history[4].decision.action is Action.LOWER
    assert callback.history[-1].decision.smoothed > 0


class Manual(Module):
    def __init__(self, optimizers=1, **kwargs):
        super().__init__(**kwargs)
        self.automatic_optimization = False
        self.count = optimizers
        self.other_used = []

    def training_step(self, batch, batch_idx):
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        loss = self.model(**batch)["loss"]
        self.losses.append(loss.item())
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        optimizers[0].step()
        if self.count > 1 and batch_idx % 2:
            optimizers[1].step()
        return {"loss": loss.detach()}

    def configure_optimizers(self):
        first, second = self.model.net[0], self.model.net[2]
        optimizers = [torch.optim.SGD(first.parameters(), lr=0.05)]
        optimizers[0].register_step_pre_hook(lambda o, a, k: self.used.append(float(o.param_groups[0]["lr"])))
        if self.count > 1:
            optimizers.append(torch.optim.SGD(second.parameters(), lr=0.01))
            optimizers[1].register_step_pre_hook(lambda o, a, k: self.other_used.append(float(o.param_groups[0]["lr"])))
        return optimizers


def test_manual_optimization(tmp_path):
    callback, module = GreedyLRCallback(**FAST), Manual()
    fit(tmp_path, module, callback)
    assert [record.decision.loss for record in callback.history] == pytest.approx(module.losses, rel=1e-6)
    assert len(set(module.used)) > 3


def test_two_optimizers_and_two_instances(tmp_path):
    first, second = GreedyLRCallback(**FAST), GreedyLRCallback(**FAST, optimizer_index=1)
    module = Manual(optimizers=2)
    logger = pl.loggers.CSVLogger(tmp_path)
    trainer = fit(tmp_path, module, first, second, max_epochs=2, logger=logger, log_every_n_steps=1)
    assert len(first.history) == 24
    assert len(second.history) == 12  # the second optimizer steps on every other batch
    pairs = [(module.losses[i] + module.losses[i + 1]) / 2 for i in range(0, 24, 2)]
    assert [record.decision.loss for record in second.history] == pytest.approx(pairs, rel=1e-6)
    assert module.other_used[0] == 0.01
    assert len(set(module.other_used)) > 2
    assert first.state_key != second.state_key
    assert {"greedylr/scale", "greedylr/scale/1"} <= trainer.logged_metrics.keys()
    assert trainer.optimizers[0].param_groups[0]["lr"] != trainer.optimizers[1].param_groups[0]["lr"]


@pytest.mark.parametrize("callbacks", ["one", "both", "one back", "checkpoints", "no rollback", "shadow"])
def test_a_rollback_that_leaves_an_optimizers_weights_is_said_once(tmp_path, callbacks, warnings_of):
    back = {**FAST, "on_spike": "rollback"}
    first = FAST if callbacks == "no rollback" else back
    if callbacks == "checkpoints":
        first = {**back, "snapshot_every": None}
    made = [GreedyLRCallback(**first, shadow=callbacks == "shadow")]
    if callbacks in ("both", "one back"):
        made.append(GreedyLRCallback(**(back if callbacks == "both" else FAST), optimizer_index=1))
    fit(tmp_path, Manual(optimizers=2), *made)
    said = [text for text in warnings_of() if "a rollback leaves the weights of optimizer 1 as they are" in text]
    assert len(said) == (callbacks in ("one", "one back"))


def test_one_of_two_callbacks_only_watches(tmp_path):
    real, watching = GreedyLRCallback(**FAST), GreedyLRCallback(**FAST, shadow=True)
    logger = pl.loggers.CSVLogger(tmp_path)
    trainer = fit(tmp_path, module := Module(), real, watching, logger=logger, log_every_n_steps=12)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert trainer.logged_metrics["greedylr/lr"] == pytest.approx(module.used[-1])
    assert "greedylr/lr/shadow" in trainer.logged_metrics
    assert len(real.history) == len(watching.history) == 12
    fit(tmp_path, alone := Module(), GreedyLRCallback(**FAST))
    assert module.used == alone.used
    again = GreedyLRCallback(**FAST), GreedyLRCallback(**FAST, shadow=True)
    fit(tmp_path, Module(), *again, max_epochs=2, ckpt_path=tmp_path / "last.ckpt")
    assert [callback.scheduler.last_epoch for callback in again] == [24, 24]


def test_an_optimizer_without_an_lr_is_refused(tmp_path):
    class Own(Module):
        def configure_optimizers(self):
            return pytest.importorskip("transformers.optimization").Adafactor(self.parameters())

    with pytest.raises(ValueError, match=r"^Adafactor computes its own LR \(lr=None\)"):
        fit(tmp_path, Own(), GreedyLRCallback())


def test_an_optimizer_index_beyond(tmp_path):
    with pytest.raises(ValueError, match="optimizer_index=1 is not allowed: it must be below 1"):
        fit(tmp_path, Module(), GreedyLRCallback(optimizer_index=1))


# ---- schedules ----

SCHEDULES = {
    "lambda": lambda optimizer: LambdaLR(optimizer, lambda t: 1 / (1 + t)),
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, 24, eta_min=1e-3),
    "exponential": lambda optimizer: ExponentialLR(optimizer, 0.9),
}


@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize("name", list(SCHEDULES))
def test_it_multiplies_the_modules_schedule(tmp_path, name, interval):
    alone = Module(SCHEDULES[name], interval)
    fit(tmp_path, alone, max_epochs=3)
    callback, module = GreedyLRCallback(**FAST), Module(SCHEDULES[name], interval)
    fit(tmp_path, module, callback, max_epochs=3)
    before = dict.fromkeys(range(37), 1.0) | {record.step: record.decision.scales[0] for record in callback.history}
    assert module.used == pytest.approx([lr * before[i] for i, lr in enumerate(alone.used)], rel=1e-9)
    assert len(set(before.values())) > 3


def test_the_modules_schedule_can_be_replaced(tmp_path):
    callback, module = GreedyLRCallback(window_size=1000, base_schedule="replace"), Module(SCHEDULES["exponential"])
    fit(tmp_path, module, callback)
    assert module.used[:8] == [0.05] * 8


def test_there_is_nothing_to_multiply(tmp_path):
    with pytest.raises(ValueError, match="base_schedule='multiply' is not allowed without a schedule"):
        fit(tmp_path, Module(), GreedyLRCallback(base_schedule="multiply"))


@pytest.mark.parametrize("schedule", [ReduceLROnPlateau, GreedyLR])
def test_a_second_controller_is_refused(tmp_path, schedule):
    with pytest.raises(
        ValueError, match=f"configure_optimizers returns a {schedule.__name__}, which follows a metric too"
    ):
        fit(tmp_path, Module(schedule), GreedyLRCallback(), val=True)


def test_shadow_changes_nothing(tmp_path):
    alone, module, callback = (
        Module(SCHEDULES["cosine"]),
        Module(SCHEDULES["cosine"]),
        GreedyLRCallback(**FAST, shadow=True),
    )
    fit(tmp_path, alone)
    fit(tmp_path, module, callback)
    assert (module.used, module.losses) == (alone.used, alone.losses)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), alone.parameters(), strict=True))
    assert len(set(scales(callback))) > 3


# ---- steering ----


class At(pl.Callback):
    """Does something at the end of a step; Lightning calls its callbacks in order."""

    def __init__(self, **steps):
        self.steps = {int(name[1:]): act for name, act in steps.items()}

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step in self.steps:
            self.steps[trainer.global_step]()


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("schedule", [None, "exponential"])
def test_steering(tmp_path, first, schedule):
    alone = Module(SCHEDULES.get(schedule))
    fit(tmp_path, alone)
    callback, module = GreedyLRCallback(**FAST, decay_ratio=0), Module(SCHEDULES.get(schedule))
    at = At(_4=lambda: callback.pin(0.5), _7=callback.hold, _9=lambda: callback.cap(0.25), _11=callback.release)
    fit(tmp_path, module, *([at, callback] if first else [callback, at]))
    used = [lr / base for lr, base in zip(module.used, alone.used, strict=True)]
    assert used[4:9] == pytest.approx([0.5] * 5)
    assert max(used[9:11]) <= 0.25 + 1e-9
    assert [order.order for order in callback.scheduler.commands] == ["pin", "hold", "cap", "release"]


@pytest.mark.parametrize("monitor", ["loss", "val_loss"])
def test_orders_by_file(tmp_path, monitor, monkeypatch):
    monkeypatch.setattr(steering, "LOOK_EVERY", 0.0)
    path = tmp_path / "control.json"
    order = At(_5=lambda: path.write_text('{"order": "pin", "value": 0.5, "id": 1}'))
    callback, module = GreedyLRCallback(**FAST, monitor=monitor, control_file=path, decay_ratio=0), Module()
    fit(tmp_path, module, callback, order, val=True, val_check_interval=4)
    step = 6 if monitor == "loss" else 8  # the next decision
    assert list(callback.scheduler.commands) == [(step, "pin", 0.5)]
    assert module.used[step:] == pytest.approx([0.025] * (12 - step))


def test_a_branch_decays_from_a_checkpoint(tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint

    save = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1)
    fit(tmp_path, Module(), GreedyLRCallback(window_size=1000), save, max_epochs=8, enable_checkpointing=True)
    module = Module()
    callback = GreedyLRCallback(window_size=1000, decay_on_resume=5)
    fit(tmp_path, module, callback, ckpt_path=str(tmp_path / "epoch=3.ckpt"), max_steps=53, max_epochs=-1)
    assert module.used == pytest.approx([0.05, 0.04, 0.03, 0.02, 0.01])


# ---- other metrics ----


def test_the_validation_loss_once_an_epoch(tmp_path):
    seen = []

    class Keep(pl.Callback):
        def on_validation_end(self, trainer, pl_module):
            seen.append(float(trainer.callback_metrics["val_loss"]))

    callback = GreedyLRCallback(monitor="val_loss")
    fit(tmp_path, Module(lr=1e-3), callback, Keep(), val=True, max_epochs=10, num_sanity_val_steps=2)
    assert callback.scheduler.controller.horizon == 10
    # the first of `seen` is the sanity check
    assert [record.decision.loss for record in callback.history] == pytest.approx(seen[1:], rel=1e-6)
    assert Action.RAISE in {record.decision.action for record in callback.history}


def test_a_training_metric_once_an_epoch(tmp_path):
    callback = GreedyLRCallback(monitor="train_loss")
    fit(tmp_path, Module(), callback, max_epochs=4)
    assert len(callback.history) == 4


@pytest.mark.parametrize(
    ("val", "settings"),
    [(False, {}), (True, {"limit_val_batches": 0}), (True, {"check_val_every_n_epoch": 5}), (False, {"max_steps": 3})],
)
def test_a_validation_metric_without_validation_is_said_once_before_the_first_step(
    tmp_path, val, settings, warnings_of
):
    module, early = Module(), []

    class Early(pl.Callback):
        def on_train_batch_start(self, *args):
            early.append(len(warnings_of()))

    fit(tmp_path, module, GreedyLRCallback(monitor="val_loss"), Early(), val=val, **settings)
    (message,) = warnings_of()
    assert message.startswith("monitor='val_loss' will not appear on its own, because this run has no validation: ")
    assert early[0] == 1


def test_how_often_a_metric_comes_may_turn_out_late(tmp_path, warnings_of):
    of_training, of_validation = (GreedyLRCallback(monitor=name, window_size=3) for name in ("train_loss", "val_loss"))
    for callback in (of_training, of_validation):
        fit(tmp_path, Module(), callback, val=True, max_epochs=10, check_val_every_n_epoch=5)
    assert [callback.scheduler.controller.horizon for callback in (of_training, of_validation)] == [10, 2]
    assert warnings_of()[0] == "GreedyLR: the LR will not move: window_size=3, and the run has 2 decisions"


@pytest.mark.parametrize(("name", "horizon"), [("error", 2), ("train_loss", 10)])
def test_a_metric_of_validation_may_have_any_name(tmp_path, name, horizon):
    class Other(Module):
        def validation_step(self, batch, batch_idx):
            self.log("error", self.model(**batch)["loss"])

    callback = GreedyLRCallback(monitor=name, mode="min")
    fit(tmp_path, Other(), callback, val=True, max_epochs=10, check_val_every_n_epoch=5)
    assert callback.scheduler.controller.horizon == horizon == len(callback.history)


def test_a_metric_that_does_not_exist_lists_those_that_do(tmp_path):
    with pytest.raises(ValueError, match="monitor='f1' is not logged: there are train_loss, val_loss"):
        fit(tmp_path, Module(), GreedyLRCallback(monitor="f1", mode="max"), val=True)


def test_mode_is_required_where_nothing_tells_it(tmp_path):
    with pytest.raises(ValueError, match="mode is not known for monitor='f1'"):
        fit(tmp_path, Module(), GreedyLRCallback(monitor="f1"), val=True)


# ---- with the rest of Lightning ----


def test_loggers_and_the_learning_rate_monitor(tmp_path):
    from lightning.pytorch.callbacks import LearningRateMonitor
    from lightning.pytorch.loggers import CSVLogger

    callback, module = GreedyLRCallback(**FAST, prog_bar=True), Module()
    logger = CSVLogger(tmp_path)
    trainer = fit(
        tmp_path, module, callback, LearningRateMonitor("step"), logger=logger, log_every_n_steps=1, max_epochs=1
    )
    import csv
    from pathlib import Path

    rows = list(csv.DictReader(Path(logger.log_dir, "metrics.csv").read_text().splitlines()))
    assert [float(row["lr-SGD"]) for row in rows if row["lr-SGD"]] == pytest.approx(module.used)
    written = [float(row["greedylr/scale"]) for row in rows if row["greedylr/scale"]]
    assert written == pytest.approx([1.0, *scales(callback)[:-1]])  # those that the steps used
    assert [float(row["greedylr/lr"]) for row in rows if row["greedylr/lr"]] == pytest.approx(module.used)
    assert "greedylr/scale" in trainer.progress_bar_metrics


def test_in_pytorch_lightnings_trainer():
    """In a process of its own, in which only that namespace is imported."""
    import sys
    from pathlib import Path

    pytest.importorskip("pytorch_lightning")
    code = f"""
import sys, warnings
sys.path.insert(0, {str(Path(__file__).parent)!r})
warnings.simplefilter("ignore")
import pytorch_lightning as pl, tiny, torch
from greedylr_integrations.lightning import GreedyLRCallback

class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = tiny.Regressor()
    def training_step(self, batch, batch_idx):
        return self.model(**batch)["loss"]
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)

callback = GreedyLRCallback(window_size=2, factor=0.8)
quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
trainer = pl.Trainer(max_epochs=1, accelerator="cpu", callbacks=[callback], **quiet)
trainer.fit(Module(), torch.utils.data.DataLoader(tiny.regression_data(), batch_size=4))
assert len(callback.history) == 12 and len({{r.decision.scales for r in callback.history}}) > 3
assert "lightning.pytorch" not in sys.modules
print("done")
"""
    assert run([sys.executable, "-c", code]).stdout.strip().endswith("done")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # jsonargparse under Lightning 2.6
def test_from_the_command_line_and_yaml(tmp_path):
    cli = pytest.importorskip("jsonargparse") and pytest.importorskip("lightning.pytorch.cli")
    config = tmp_path / "config.yaml"
    config.write_text(
        f"""
trainer:
  max_epochs: 1
  accelerator: cpu
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  enable_checkpointing: false
  default_root_dir: {tmp_path}
  callbacks:
    - class_path: greedylr_integrations.lightning.GreedyLRCallback
      init_args:
        config: {{factor: 0.8, window_size: 2}}
        linear_warmup_steps: 3
"""
    )

    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return loader()

    made = cli.LightningCLI(
        Module, Data, args=["fit", "--config", str(config)], save_config_callback=None, seed_everything_default=False
    )
    (callback,) = [cb for cb in made.trainer.callbacks if isinstance(cb, GreedyLRCallback)]
    assert callback.config == GreedyConfig(factor=0.8, window_size=2)
    assert len(callback.history) == 9


def test_from_plain_yaml_values():
    callback = GreedyLRCallback(config={"factor": 0.9, "window_size": 5}, monitor="val_loss", linear_warmup_steps=10)
    assert callback.config == GreedyConfig(factor=0.9, window_size=5)


def test_any_config(tmp_path):
    callback = GreedyLRCallback(PaperConfig(patience=0, min_lr=1e-4, max_lr=0.5))
    fit(tmp_path, Module(), callback)
    assert len(set(scales(callback))) > 3


def test_fitting_twice_starts_over(tmp_path):
    callback = GreedyLRCallback(**FAST)
    for _ in range(2):
        module = Module()
        fit(tmp_path, module, callback)
        assert module.used[0] == 0.05
        assert len(callback.history) == 12


# ---- resume ----


@pytest.mark.parametrize("schedule", [None, "cosine"])
@pytest.mark.parametrize("fields", [{}, {"every_n_steps": 5}])
def test_resume_continues_exactly(tmp_path, schedule, fields):
    from lightning.pytorch.callbacks import ModelCheckpoint

    def run(out, resume=None, epochs=4):
        module = Module(SCHEDULES.get(schedule))
        out.mkdir()
        if resume is not None:
            shutil.copy(tmp_path / "a" / "history.jsonl", out)  # in which steps after the checkpoint stand too
        ramp = 0 if schedule else 5
        callback = GreedyLRCallback(**FAST, **fields, linear_warmup_steps=ramp, history_file=out / "history.jsonl")
        save = ModelCheckpoint(dirpath=out, filename="{epoch}", save_top_k=-1, every_n_epochs=1)
        fit(out, module, callback, save, ckpt_path=resume, max_epochs=epochs, enable_checkpointing=True)
        return module, callback

    whole, _ = run(tmp_path / "a")
    for epoch in range(3):
        module, _ = run(tmp_path / f"b{epoch}", str(tmp_path / "a" / f"epoch={epoch}.ckpt"))
        assert module.used == whole.used[12 * (epoch + 1) :]
        assert module.losses == whole.losses[12 * (epoch + 1) :]
        assert history.read(tmp_path / f"b{epoch}" / "history.jsonl") == history.read(tmp_path / "a" / "history.jsonl")


def test_a_checkpoint_without_the_callback_starts_at_scale_1(tmp_path, warnings_of):
    from lightning.pytorch.callbacks import ModelCheckpoint

    save = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1)
    fit(tmp_path, Module(), save, enable_checkpointing=True)
    callback, module = GreedyLRCallback(**FAST), Module()
    fit(tmp_path, module, callback, ckpt_path=str(tmp_path / "epoch=0.ckpt"), max_epochs=3)
    assert warnings_of() == ["GreedyLR starts anew: the checkpoint was written without it"]
    assert module.used[0] == 0.05
    assert callback.history[0].step == 13


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed_stage_2"])
def test_sharded_training_on_gpus(tmp_path, strategy):
    if strategy.startswith("deepspeed"):
        pytest.importorskip("deepspeed")
    callback, module = GreedyLRCallback(**FAST), Module()
    fit(tmp_path, module, callback, accelerator="gpu", strategy=strategy)
    # with loss_lag=1, the default on CUDA, each decision is on the loss of the step before
    assert [record.decision.loss for record in callback.history] == pytest.approx(module.losses[:-1], rel=1e-3)
    assert len(set(module.used)) > 3


# ---- wrong framework ----


def test_hugging_faces_trainer_is_told_the_right_import(tmp_path):
    with pytest.raises(TypeError, match="import it from greedylr_integrations.transformers"):
        tiny.trainer(tmp_path, [GreedyLRCallback()])


def test_lightnings_trainer_is_told_the_right_import(tmp_path):
    from greedylr_integrations.transformers import GreedyLRCallback as HuggingFaceCallback

    if tuple(map(int, pl.__version__.split(".")[:2])) < (2, 6):
        pytest.skip("before 2.6, Lightning refuses any callback that is not its own, in its own words")
    with pytest.raises(TypeError, match="import it from greedylr_integrations.lightning"):
        fit(tmp_path, Module(), HuggingFaceCallback())


def test_the_end_of_a_run_and_nothing_else_is_said(tmp_path, caplog):
    caplog.set_level(logging.INFO, "greedylr_integrations")
    for kwargs, says in (
        ({}, "GreedyLR settled on the LR "),
        ({"shadow": True}, "GreedyLR in shadow: would have taken"),
    ):
        caplog.clear()
        fit(tmp_path, Module(), GreedyLRCallback(GreedyConfig(), **kwargs), max_epochs=3)
        start, message = [r.getMessage() for r in caplog.records if r.name == "greedylr_integrations"]
        assert start.startswith("GreedyLR follows the loss by GreedyConfig (base LR ")
        assert message.startswith(says)
