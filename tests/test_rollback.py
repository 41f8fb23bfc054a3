"""Rollback to the run's own checkpoints: `snapshot_every=None`. `test_snapshots.py` is about copies in memory."""

import copy
import math
import pickle
import random
import shutil

import lightning.pytorch as pl
import pytest
import torch
from processes import spawn
from small import regression_data
from test_snapshots import BROKEN, OPTIMIZERS, STEPS, Net, accelerate, batch, break_, everything, same
from torch.utils.data import DataLoader

from greedylr_integrations import GreedyConfig, GreedyLR, SlopeConfig
from greedylr_integrations.decision import Action, Reason
from greedylr_integrations.guard import SpikeError

FIELDS = {"on_spike": "rollback", "on_nonfinite": "rollback", "snapshot_every": None}
CONFIG = GreedyConfig(**FIELDS)
EVERY = 20


class Loop:
    """A loop that saves everything every `every` steps, and loads everything with one function."""

    def __init__(self, folder, optimizer="sgd", every=EVERY, path="step-{}", config=CONFIG, with_schedule=False):
        self.net, self.folder, self.every, self.path = Net(), folder, every, path
        self.optimizer = OPTIMIZERS[optimizer](self.net.parameters())
        self.base = torch.optim.lr_scheduler.LinearLR(self.optimizer, 1.0, 0.1, STEPS) if with_schedule else None
        schedule = {"base_schedule": self.base} if with_schedule else {"total_steps": STEPS}
        self.scheduler = GreedyLR(self.optimizer, config, **schedule, module=self.net, restore=self.load)
        self.decisions, self.states, self.lrs, self.loaded = [], [], [], []

    @property
    def parts(self):
        return [part for part in (self.net, self.optimizer, self.scheduler, self.base) if part is not None]

    def load(self, path):
        self.loaded.append(path)
        for part, state in zip(self.parts, torch.load(path, weights_only=True), strict=True):
            part.load_state_dict(state)

    def save(self, step):
        path = self.folder / self.path.format(step)
        torch.save([part.state_dict() for part in self.parts], path)
        self.scheduler.saved(path)

    def run(self, how=None, at=BROKEN, until=STEPS, after_step=lambda step: None):
        for step in range(len(self.decisions), until):
            if step == at and how is not None:
                break_(self.net, how)
            x, y = batch(step)
            loss = torch.nn.functional.mse_loss(self.net(x), y)
            self.optimizer.zero_grad()
            loss.backward()
            self.lrs.append(self.optimizer.param_groups[0]["lr"])
            self.optimizer.step()
            self.decisions.append(self.scheduler.step(loss))
            self.states.append(everything(self.net, self.optimizer))
            if (step + 1) % self.every == 0:
                self.save(step + 1)
            after_step(step)
        return self

    def rolled_back(self):
        return [i for i, decision in enumerate(self.decisions) if decision and decision.reason is Reason.ROLLED_BACK]


@pytest.mark.parametrize("how", ["spike", "nan"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weights_and_optimizer_go_back_and_nothing_else(tmp_path, optimizer, how, caplog):
    loop, clean = Loop(tmp_path, optimizer), Loop(tmp_path, optimizer)
    for each in (loop, clean):
        each.scheduler.pin(1.0)
    (at,) = loop.run(how).rolled_back()
    assert BROKEN < at <= BROKEN + 2
    assert same(loop.states[at], loop.states[39])  # that of 40 steps, at least 10 before
    assert loop.scheduler.last_epoch == len(loop.scheduler.history) == STEPS
    assert f"went back to the weights of step 40 at step {at + 1}, from {tmp_path / 'step-40'}" in caplog.text
    assert loop.lrs == clean.run().lrs


@pytest.mark.parametrize("how", ["spike", "nan"])
def test_the_base_schedule_goes_on(tmp_path, how):
    loop, clean = (Loop(tmp_path, with_schedule=True, config=SlopeConfig(**FIELDS)) for _ in range(2))
    for each in (loop, clean):
        each.scheduler.pin(1.0)
    assert loop.run(how).rolled_back()
    assert loop.lrs == clean.run().lrs
    assert loop.base.state_dict() == clean.base.state_dict()


def test_a_checkpoint_that_is_too_new_is_not_taken(tmp_path):
    loop = Loop(tmp_path, every=24).run("spike")
    (at,) = loop.rolled_back()
    assert at == 52
    assert loop.loaded == [(tmp_path / "step-24")]  # not that of 48 steps


def test_the_newest_that_is_there(tmp_path):
    loop = Loop(tmp_path, every=10).run(until=BROKEN)
    for step in (20, 30, 40):
        (tmp_path / f"step-{step}").unlink()
    loop.run("spike")
    assert loop.loaded == [(tmp_path / "step-10")]


def test_a_file_that_is_written_over_is_the_last_one_only(tmp_path):
    loop = Loop(tmp_path, every=10, path="last").run("spike")
    (at,) = loop.rolled_back()
    assert same(loop.states[at], loop.states[49])  # too new, but there is no other
    assert loop.scheduler._rollback._kept[-1].place == (tmp_path / "last")


def test_one_of_broken_weights_is_not_taken(tmp_path, caplog):
    loop = Loop(tmp_path, every=10).run("nan", until=BROKEN + 1)
    loop.save(BROKEN + 1)
    assert (
        f"GreedyLR will not go back to {tmp_path / 'step-51'}: some of the weights are NaN or infinite" in caplog.text
    )
    loop.run()
    assert loop.loaded == [(tmp_path / "step-40")]


def test_none_is_there_any_more(tmp_path):
    loop = Loop(tmp_path / "gone", every=10)
    loop.folder.mkdir()
    loop.run(until=BROKEN)
    shutil.rmtree(loop.folder)
    with pytest.raises(
        SpikeError,
        match="^step 53: GreedyLR has to go back to earlier weights, and can use none of this run's checkpoints",
    ):
        loop.run("spike")


def test_one_that_cannot_be_loaded_is_the_loaders_error(tmp_path):
    loop = Loop(tmp_path).run(until=BROKEN)
    (tmp_path / "step-40").write_bytes(b"broken")
    with pytest.raises((RuntimeError, IndexError, pickle.UnpicklingError)):
        loop.run("spike")
    assert not loop.scheduler._rollback.restoring


def test_the_lr_goes_down_until_there_is_a_checkpoint(tmp_path):
    loop = Loop(tmp_path, every=1000).run("spike")
    assert not loop.rolled_back()
    lower = [
        i
        for i, decision in enumerate(loop.decisions)
        if decision.reason is Reason.SPIKE and decision.action is Action.LOWER
    ]
    assert lower == [BROKEN + 2]
    loop = Loop(tmp_path, every=1000).run(until=BROKEN)
    with pytest.raises(FloatingPointError, match="^step 53: the loss was NaN or infinite 3 times in a row"):
        loop.run("nan")


def test_a_checkpoint_with_the_spike_in_it_is_not_taken(tmp_path):
    loop = Loop(tmp_path, every=1).run("nan")  # saved at each step, also with NaN in the weights
    assert loop.loaded == [(tmp_path / f"step-{BROKEN + 2 - 10}")]


def test_another_rollback_goes_further_back(tmp_path):
    loop = Loop(tmp_path)
    loop.run("spike", until=BROKEN + 5).run("spike", at=BROKEN + 6)
    assert loop.loaded == [(tmp_path / "step-40")] * 2
    assert [each.step for each in loop.scheduler._rollback._kept] == [20, 40, 60, 80]


def test_a_resumed_run_goes_back_to_its_checkpoint(tmp_path):
    Loop(tmp_path).run(until=40)
    loop = Loop(tmp_path)
    loop.load(tmp_path / "step-40")
    loop.scheduler.saved(tmp_path / "step-40")
    loop.decisions = [None] * 40
    loop.run(until=60)
    loop.decisions = loop.decisions[40:]
    assert not loop.rolled_back()
    other = Loop(tmp_path)
    other.load(tmp_path / "step-40")
    other.scheduler.saved(tmp_path / "step-40")
    for step in range(40, 44):
        break_(other.net, "spike") if step == 41 else None
        x, y = batch(step)
        loss = torch.nn.functional.mse_loss(other.net(x), y)
        other.optimizer.zero_grad()
        loss.backward()
        other.optimizer.step()
        reason = other.scheduler.step(loss).reason
    assert reason is Reason.ROLLED_BACK
    assert other.loaded == [tmp_path / "step-40", (tmp_path / "step-40")]


@pytest.mark.parametrize("made", [copy.deepcopy, lambda scheduler: pickle.loads(pickle.dumps(scheduler))])
def test_a_copy_of_the_scheduler_has_no_way_back(tmp_path, made):
    loop = Loop(tmp_path).run(until=50)
    other = made(loop.scheduler)
    assert other._rollback is other._restore is None
    seen = [other.step(loss) for loss in (50.0, 60.0, 70.0)]
    assert [decision.reason for decision in seen] == [Reason.SPIKE] * 3  # as with "reduce"
    assert seen[2].action is Action.LOWER
    loop.scheduler.detach()
    assert loop.scheduler._rollback is loop.scheduler._restore is None


def test_with_rare_decisions_it_goes_back_before_the_fault(tmp_path):
    config = GreedyConfig(**FIELDS, every_n_steps=4)
    loop = Loop(tmp_path, config=config, every=5).run("nan", at=78)  # seen after 80 steps, and again after 84
    assert [decision.step for decision in loop.scheduler.history if decision.decision.reason is Reason.ROLLED_BACK] == [
        84
    ]
    assert loop.loaded == [tmp_path / "step-45"]  # 10 decisions before


def test_another_scheduler_of_the_same_checkpoint_stays(tmp_path):
    loop, other_net = Loop(tmp_path), Net()
    other = GreedyLR(torch.optim.SGD(other_net.parameters(), lr=0.1), GreedyConfig(), total_steps=STEPS)
    load, states = loop.load, []

    def load_both(path):
        load(path)
        other.load_state_dict(states[0])

    loop.scheduler._rollback._restore = load_both
    loop.run("nan", after_step=lambda step: (states.append(other.state_dict()), other.step(1.0)))
    assert loop.loaded
    assert other.last_epoch == STEPS


def test_random_numbers_go_on(tmp_path):
    loop = Loop(tmp_path)
    load, drawn = loop.load, []

    def load_and_seed(path):
        load(path)
        torch.manual_seed(0), random.seed(0)

    loop.scheduler._rollback._restore = load_and_seed
    torch.manual_seed(1), random.seed(1)
    loop.run("nan", after_step=lambda step: drawn.append((float(torch.rand(())), random.random())))
    assert len(loop.loaded) == 1
    torch.manual_seed(1), random.seed(1)
    assert drawn == [(float(torch.rand(())), random.random()) for _ in range(STEPS)]


def test_a_checkpoint_from_before_a_group_was_added_is_not_taken(tmp_path):
    loop = Loop(tmp_path, every=10)
    head = torch.nn.Linear(2, 1)

    def add(step):
        if step == 25:
            loop.optimizer.add_param_group({"params": head.parameters(), "lr": 0.01})

    with pytest.raises(FloatingPointError, match="no earlier weights to go back to"):
        loop.run("nan", at=26, after_step=add)
    loop = Loop(tmp_path, every=10)
    loop.run("nan", at=32, after_step=add)
    assert loop.loaded == [tmp_path / "step-30"]  # too new, but the only one with two groups


def test_a_checkpoint_without_the_optimizer_is_not_taken(tmp_path, warnings_of):
    loop = Loop(tmp_path).run(until=40)
    loop.scheduler.saved(tmp_path / "step-40", whole=False)  # written over
    loop.run("spike")
    assert loop.loaded == [tmp_path / "step-20"]
    assert any("cannot go back to" in warning and "no optimizer state" in warning for warning in warnings_of())


def test_if_it_cannot_be_loaded_the_lr_stays(tmp_path):
    loop = Loop(tmp_path, with_schedule=True)
    loop.run(until=BROKEN)

    def fail(path):
        loop.load(path)
        raise OSError("the disk is gone")

    loop.scheduler._rollback._restore = fail
    with pytest.raises(OSError, match="the disk is gone"):
        loop.run("nan")
    assert loop.base.last_epoch == BROKEN + 1
    assert loop.optimizer.param_groups[0]["lr"] == loop.lrs[-1]


def test_what_is_refused(tmp_path):
    optimizer = torch.optim.SGD(Net().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="^snapshot_every=None is not allowed without `restore`"):
        GreedyLR(optimizer, CONFIG)
    with pytest.raises(TypeError, match="^restore=3 is not allowed: it must be a function that takes the path"):
        GreedyLR(optimizer, CONFIG, restore=3)
    GreedyLR(optimizer, CONFIG, shadow=True)
    assert GreedyLR(optimizer, snapshot_every=None)._rollback is None  # nothing asks for a rollback


def test_a_restore_that_is_not_used(warnings_of):
    optimizer = torch.optim.SGD(Net().parameters(), lr=0.1)
    GreedyLR(optimizer, CONFIG, restore=print)
    assert not warnings_of()
    GreedyLR(optimizer, CONFIG, snapshot_every=100, restore=print)
    GreedyLR(optimizer, restore=print)
    assert ["does not use `restore`" in warning for warning in warnings_of()] == [True, True]


def test_a_state_that_cannot_be_followed_changes_nothing(tmp_path):
    loop = Loop(tmp_path).run(until=50)
    other = GreedyLR(torch.optim.SGD(Net().parameters(), lr=0.02), GreedyConfig(), total_steps=STEPS)
    before = other.state_dict()
    with pytest.raises(ValueError, match="^snapshot_every=None is not allowed without `restore`"):
        other.load_state_dict(loop.scheduler.state_dict())
    assert other.state_dict() == before


# ---- the frameworks ----


def reasons(callback):
    return [record.decision.reason for record in callback.history]


class Net2(Net):
    """As the Trainer calls it."""

    def forward(self, x, labels=None):
        prediction = super().forward(x)
        return {"loss": torch.nn.functional.mse_loss(prediction, labels), "logits": prediction}


def step_of_the_rollback(callback):
    (step,) = [record.step for record in callback.history if record.decision.reason is Reason.ROLLED_BACK]
    return step


class Weights:
    """Copies of a model's weights after each step."""

    def __init__(self):
        self.after = {}

    def take(self, step, model):
        self.after[step] = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    def equal(self, a, b):
        return all(torch.equal(value, self.after[b][name]) for name, value in self.after[a].items())


def in_the_trainer(out, model=None, how="spike", resume=None, callback=None, **kwargs):
    import tiny
    from transformers import TrainerCallback

    from greedylr_integrations.transformers import GreedyLRCallback

    weights = Weights()

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == BROKEN and how is not None:
                break_(model, how)

        def on_step_end(self, args, state, control, model=None, **kwargs):
            weights.take(state.global_step, model)

    callback = callback or GreedyLRCallback(CONFIG, quiet=True)
    save = {"save_strategy": "steps", "save_steps": EVERY, "max_steps": STEPS, **kwargs}
    trainer = tiny.trainer(out, [callback, Watch()], model=model, data=regression_data(256), **save)
    trainer.train(resume_from_checkpoint=resume)
    return callback, weights, trainer


@pytest.mark.parametrize("how", ["spike", "nan"])
def test_in_the_trainer(tmp_path, how, caplog):
    callback, weights, trainer = in_the_trainer(tmp_path, Net2(), how)
    at = step_of_the_rollback(callback)
    assert weights.equal(at, 40)
    assert f"went back to the weights of step 40 at step {at}, from {tmp_path / 'checkpoint-40'}" in caplog.text
    assert trainer.lr_scheduler.last_epoch == trainer.state.global_step == callback.scheduler.last_epoch == STEPS


def test_after_a_resume_in_the_trainer(tmp_path, caplog):
    in_the_trainer(tmp_path, Net2(), None, max_steps=STEPS, save_steps=45)
    callback, *_ = in_the_trainer(tmp_path, Net2(), "nan", resume=str(tmp_path / "checkpoint-45"), save_strategy="no")
    assert reasons(callback).count(Reason.ROLLED_BACK) == 1
    assert f"went back to the weights of step 45 at step 52, from {tmp_path / 'checkpoint-45'}" in caplog.text


@pytest.mark.parametrize("fields", [{}, {"on_spike": "rollback", "snapshot_every": 100}])
def test_a_resume_with_another_setting_follows_the_checkpoints(tmp_path, fields, caplog):
    from greedylr_integrations.transformers import GreedyLRCallback

    in_the_trainer(tmp_path, Net2(), None, max_steps=45, save_steps=45)
    callback, *_ = in_the_trainer(
        tmp_path,
        Net2(),
        "nan",
        resume=str(tmp_path / "checkpoint-45"),
        callback=GreedyLRCallback(GreedyConfig(**fields), quiet=True),
        save_strategy="no",
    )
    assert f"went back to the weights of step 45 at step 52, from {tmp_path / 'checkpoint-45'}" in caplog.text
    assert reasons(callback).count(Reason.ROLLED_BACK) == 1


def test_a_resume_from_a_checkpoint_without_the_optimizer(tmp_path, warnings_of):
    in_the_trainer(tmp_path, Net2(), None, max_steps=45, save_steps=45)
    (tmp_path / "checkpoint-45" / "optimizer.pt").unlink()
    with pytest.raises(FloatingPointError, match="and there are no earlier weights to go back to"):
        in_the_trainer(tmp_path, Net2(), "nan", resume=str(tmp_path / "checkpoint-45"), save_strategy="no")
    assert any("has no optimizer state" in warning for warning in warnings_of())


def test_the_only_checkpoint_was_saved_at_an_odd_batch(tmp_path):
    import tiny

    from greedylr_integrations.transformers import GreedyLRCallback

    data = regression_data(256)
    for row in data[78:80] + data[120:126]:  # the batch of step 40, and those of 61 to 63
        row["labels"] = row["labels"] + 1000
    callback = GreedyLRCallback(CONFIG, quiet=True)
    keep = {"save_strategy": "steps", "save_steps": 40, "save_total_limit": 1, "max_steps": STEPS}
    tiny.trainer(tmp_path, [callback], model=Net2(), data=NotShuffled(data), **keep, learning_rate=1e-4).train()
    seen = reasons(callback)
    assert seen[39] is Reason.SPIKE
    assert seen[62] is Reason.ROLLED_BACK


class NotShuffled(torch.utils.data.IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def test_lora_in_the_trainer(tmp_path, caplog):
    peft = pytest.importorskip("peft")
    import tiny
    from transformers import TrainerCallback

    from greedylr_integrations.transformers import GreedyLRCallback

    weights = Weights()

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == BROKEN:
                with torch.no_grad():
                    for p in model.parameters():
                        p.fill_(math.nan) if p.requires_grad else None

        def on_step_end(self, args, state, control, model=None, **kwargs):
            weights.take(state.global_step, model)

    model = peft.get_peft_model(tiny.llama(), peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    callback = GreedyLRCallback(CONFIG, quiet=True)
    save = {"save_strategy": "steps", "save_steps": EVERY, "max_steps": 60}
    tiny.trainer(tmp_path, [callback, Watch()], model=model, data=tiny.text_data(), **save).train()
    at = step_of_the_rollback(callback)
    assert weights.equal(at, 40)
    assert not weights.equal(at, at + 1)  # the optimizer has the weights that were put back


def test_with_a_schedule_of_the_trainers_own(tmp_path):
    import tiny
    from transformers import TrainerCallback, get_scheduler

    from greedylr_integrations.transformers import GreedyLRCallback

    class Break(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 0:
                callback.pin(1.0)
            if state.global_step == BROKEN:
                break_(model, "nan")

    model = Net2()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = get_scheduler("linear", optimizer, 0, STEPS)
    spy, callback = tiny.LRSpy(), GreedyLRCallback(CONFIG, quiet=True)
    trainer = tiny.trainer(
        tmp_path,
        [callback, Break(), spy],
        model=model,
        data=regression_data(256),
        save_strategy="steps",
        save_steps=EVERY,
        max_steps=STEPS,
        trainer_kwargs={"optimizers": (optimizer, schedule)},
    )
    trainer.train()
    assert reasons(callback).count(Reason.ROLLED_BACK) == 1
    assert [lrs[0] for lrs in spy.used] == pytest.approx([0.01 * (1 - step / STEPS) for step in range(STEPS)])


def test_checkpoints_that_the_trainer_cannot_go_back_to(tmp_path, warnings_of):
    with pytest.raises(ValueError, match="^snapshot_every=None is not allowed with save_only_model=True"):
        in_the_trainer(tmp_path, save_only_model=True)
    in_the_trainer(tmp_path, how=None, save_strategy="no", max_steps=2)
    assert any("not set to save any" in warning and "save_steps" in warning for warning in warnings_of())


QUIET = ["ignore:.*LeafSpec", "ignore:.*does not have many workers", "ignore:.*`isinstance.treespec"]


@pytest.mark.filterwarnings(*QUIET, "ignore:.*Checkpoint directory")
@pytest.mark.parametrize("checkpoints", ["every 20", "last only", "weights only", "none"])
def test_in_lightning(tmp_path, checkpoints, caplog, warnings_of):
    from greedylr_integrations.lightning import GreedyLRCallback

    weights, loads = Weights(), []

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def training_step(self, rows, step):
            if self.global_step == BROKEN and not loads:
                break_(self.net, "spike")
            return torch.nn.functional.mse_loss(self.net(rows["x"]), rows["labels"])

        def on_train_batch_end(self, *args):  # after the callbacks'
            weights.take(self.global_step, self)

        def on_load_checkpoint(self, checkpoint):
            loads.append(checkpoint["global_step"])

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.02)
            schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, STEPS)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    save = pl.callbacks.ModelCheckpoint
    every = {"dirpath": tmp_path / "saved", "every_n_train_steps": EVERY}
    savers = {
        "every 20": [save(**every, save_top_k=-1)],
        "last only": [save(**every, save_top_k=0, save_last=True)],
        "weights only": [save(**every, save_top_k=-1, save_weights_only=True)],
        "none": [],
    }[checkpoints]
    callback = GreedyLRCallback(CONFIG, quiet=True)
    fit = {"max_steps": STEPS, "enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = pl.Trainer(
        **fit,
        enable_checkpointing=bool(savers),
        accelerator="cpu",
        default_root_dir=tmp_path,
        callbacks=[callback, *savers],
    )
    module = Module()
    trainer.fit(module, DataLoader(regression_data(4 * STEPS), batch_size=4))
    assert "save_checkpoint" not in vars(trainer)
    assert trainer.global_step == STEPS
    if checkpoints in ("weights only", "none"):
        assert Reason.ROLLED_BACK not in reasons(callback)
        assert loads == []
        assert any("not set to save any" in warning for warning in warnings_of()) == (checkpoints == "none")
        return
    at = step_of_the_rollback(callback)
    assert loads == [40]
    assert weights.equal(at, 40)
    assert f"went back to the weights of step 40 at step {at}" in caplog.text
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == STEPS


class TwoOptimizers(pl.LightningModule):
    """The loss is of one network, in turn of either optimizer; the second one's LR falls."""

    def __init__(self, breaks=True):
        super().__init__()
        self.automatic_optimization, self.breaks = False, breaks
        self.net, self.other = Net(), Net()
        self.weights, self.others_lrs = Weights(), []

    def configure_optimizers(self):
        return [OPTIMIZERS["adamw"](net.parameters()) for net in (self.net, self.other)]

    def training_step(self, rows, step):
        if step == BROKEN and self.breaks:
            break_(self.net, "nan")
        first, second = self.optimizers()
        losses = [torch.nn.functional.mse_loss(net(rows["x"]), rows["labels"]) for net in (self.net, self.other)]
        for optimizer, loss in zip((first, second), losses, strict=True):
            optimizer.zero_grad()
            self.manual_backward(loss)
        second.param_groups[0]["lr"] *= 0.97
        self.others_lrs.append(second.param_groups[0]["lr"])
        first.step()
        second.step()
        return losses[0]


def fit(tmp_path, module, callbacks, **kwargs):
    arguments = {
        "max_steps": -1,
        "max_epochs": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        **kwargs,
    }
    save = pl.callbacks.ModelCheckpoint(dirpath=tmp_path / "saved", every_n_train_steps=EVERY, save_top_k=-1)
    off = {"logger": False, "accelerator": "cpu", "default_root_dir": tmp_path}
    trainer = pl.Trainer(**arguments, **off, callbacks=[*callbacks, save])
    trainer.fit(module, DataLoader(regression_data(4 * STEPS), batch_size=4))
    return trainer


@pytest.mark.filterwarnings("ignore")
def test_the_lrs_of_another_optimizer_stay_in_lightning(tmp_path):
    from greedylr_integrations.lightning import GreedyLRCallback

    module, callback = TwoOptimizers(), GreedyLRCallback(CONFIG, quiet=True, total_steps=STEPS)
    fit(tmp_path, module, [callback])
    assert reasons(callback).count(Reason.ROLLED_BACK) == 1
    assert module.others_lrs == pytest.approx([0.01 * 0.97**step for step in range(1, STEPS + 1)])


@pytest.mark.filterwarnings(*QUIET, "ignore:.*Checkpoint directory")
@pytest.mark.skipif(not hasattr(pl.callbacks, "WeightAveraging"), reason="Lightning has no WeightAveraging before 2.6")
def test_it_is_not_the_average_that_goes_back(tmp_path):
    from greedylr_integrations.lightning import GreedyLRCallback

    weights = Weights()

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def training_step(self, rows, step):
            if step == BROKEN:
                break_(self.net, "nan")
            return torch.nn.functional.mse_loss(self.net(rows["x"]), rows["labels"])

        def on_train_batch_end(self, *args):
            weights.take(self.global_step, self)

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=0.02)

    callback = GreedyLRCallback(CONFIG, quiet=True)
    fit(tmp_path, Module(), [callback, pl.callbacks.EMAWeightAveraging()], max_steps=STEPS)
    assert weights.equal(step_of_the_rollback(callback), 40)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("config", [CONFIG, GreedyConfig()])
def test_a_save_of_the_users_own_is_called_and_stays(tmp_path, config):
    from greedylr_integrations.lightning import GreedyLRCallback

    calls = []

    class Own(pl.Callback):
        def setup(self, trainer, module, stage):
            save = trainer.save_checkpoint
            trainer.save_checkpoint = own = lambda *args, **kwargs: (calls.append(args), save(*args, **kwargs))
            self.own = own

    own = Own()
    trainer = fit(tmp_path, TwoOptimizers(breaks=False), [own, GreedyLRCallback(config, quiet=True, total_steps=STEPS)])
    assert len(calls) == 2 * STEPS // EVERY
    assert trainer.save_checkpoint is own.own


def test_in_accelerate(tmp_path):
    weights = Weights()

    def save(accelerator, scheduler, net, done):
        weights.take(done, net)
        if done % EVERY == 0:
            accelerator.save_state(tmp_path / str(done))
            scheduler.saved(tmp_path / str(done))

    scheduler = accelerate("nan", save, config=CONFIG)
    assert weights.equal(step_of_the_rollback(scheduler), 40)
    assert scheduler.last_epoch == STEPS


# ---- several ranks ----


def train_on_a_rank(rank, world, out):
    import tiny
    from transformers import TrainerCallback

    from greedylr_integrations.transformers import GreedyLRCallback

    class Break(TrainerCallback):
        """NaN on one rank only."""

        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == BROKEN and rank == 1:
                break_(model, "nan")

        def on_step_end(self, args, state, control, model=None, **kwargs):
            states.append([p.detach().clone() for p in model.parameters()])

    states, callback = [], GreedyLRCallback(CONFIG, quiet=True)
    save = {"save_strategy": "steps", "save_steps": EVERY, "max_steps": 60}
    tiny.trainer(f"{out}/run", [callback, Break()], model=tiny.llama(), data=tiny.text_data(), **save).train()
    torch.save(([reason.name for reason in reasons(callback)], states), f"{out}/{rank}")


def shard_on_a_rank(rank, world, out):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 15), torch.nn.Tanh(), torch.nn.Linear(15, 1))
    fully_shard(net[0])
    fully_shard(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)

    def load(path):
        weights, moments = get_state_dict(net, optimizer)
        dcp.load({"net": weights, "optimizer": moments}, checkpoint_id=path)
        set_state_dict(net, optimizer, model_state_dict=weights, optim_state_dict=moments)

    scheduler = GreedyLR(optimizer, CONFIG, total_steps=STEPS, restore=load)
    seen, states, lrs = [], [], []
    for step in range(60):
        if step == BROKEN and rank == 1:
            with torch.no_grad():
                next(net.parameters()).to_local().fill_(math.nan)
        x, y = batch(step, rank)
        loss = torch.nn.functional.mse_loss(net(x).squeeze(-1), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(scheduler.step(loss).reason.name)
        lrs.append(optimizer.param_groups[0]["lr"])
        moments = [optimizer.state[p]["exp_avg"] for p in net.parameters()]
        states.append([tensor.full_tensor().detach().clone() for tensor in [*net.parameters(), *moments]])
        if (step + 1) % EVERY == 0:
            weights, moments = get_state_dict(net, optimizer)
            dcp.save({"net": weights, "optimizer": moments}, checkpoint_id=f"{out}/step-{step + 1}")
            scheduler.saved(f"{out}/step-{step + 1}")
    at = seen.index("ROLLED_BACK")
    assert lrs[at] != lrs[39]
    torch.save((seen, states), f"{out}/{rank}")


@pytest.mark.parametrize("train", [train_on_a_rank, shard_on_a_rank])
def test_all_ranks_go_back_together(tmp_path, train):
    spawn(train, 2, tmp_path)
    (seen, states), (others, other_states) = (torch.load(tmp_path / str(rank)) for rank in range(2))
    assert seen == others
    assert seen.count("ROLLED_BACK") == 1
    at = seen.index("ROLLED_BACK")
    assert all(map(torch.equal, states[at], states[39]))
    assert all(map(torch.equal, states[-1], other_states[-1]))
    assert not any(map(torch.equal, states[-1], states[39]))


def lose_on_a_rank(rank, world, out):
    from pathlib import Path

    folder = Path(out, str(rank))
    folder.mkdir()
    loop = Loop(folder, every=10)
    loop.run(until=BROKEN)
    if rank == 1:
        for step in (30, 40):
            (folder / f"step-{step}").unlink()
    loop.run("spike")
    torch.save([str(path) for path in loop.loaded], f"{out}/loaded-{rank}")


def test_a_checkpoint_that_one_rank_lacks_is_taken_by_none(tmp_path):
    spawn(lose_on_a_rank, 2, tmp_path)
    assert [torch.load(tmp_path / f"loaded-{rank}") for rank in range(2)] == [
        [str(tmp_path / f"{rank}" / "step-20")] for rank in range(2)
    ]
