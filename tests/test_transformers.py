import json
import logging
import math
import sys

import forked
import pytest
import tiny
import torch
import transformers
from accelerate.optimizer import AcceleratedOptimizer
from hf_worker import GPU_PATHS, PATHS
from processes import ON_CPU, TESTS, run
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LambdaLR
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Trainer, TrainerCallback, get_cosine_schedule_with_warmup

from greedylr_integrations import GreedyLR, PaperConfig, history, steering
from greedylr_integrations.decision import Action, Reason
from greedylr_integrations.transformers import GreedyLRCallback

FAST = {"window_size": 2, "factor": 0.8}
# transformers 4 rounds the logged loss to 4 digits
TOLERANCE = 1e-5 if int(transformers.__version__.split(".")[0]) >= 5 else 6e-5


def scales(callback):
    return [record.decision.scales[0] for record in callback.history]


# ---- every loss path, one process and two ----


@pytest.fixture(scope="module", params=[1, 2])
def runs(request, tmp_path_factory):
    """All paths in one launch, since the imports take longer than the training."""
    out = tmp_path_factory.mktemp(f"world{request.param}")
    done = forked.run([TESTS / "hf_worker.py", out], request.param, env=ON_CPU)
    assert done.returncode == 0, done.stderr[-4000:]
    return request.param, out


@pytest.mark.parametrize("path", list(PATHS))
def test_the_loss_seen_is_the_trainers_own_and_the_lr_is_one(runs, path):
    world, out = runs
    ranks = [json.loads((out / f"{path}-{rank}.json").read_text()) for rank in range(world)]
    for result in ranks:
        assert result["world"] == world
        assert len(result["seen"]) == 12
        assert result["seen"] == pytest.approx(result["logged"], abs=TOLERANCE)
        assert [lrs[0] for lrs in result["used"]] == result["logged_lr"]
        assert result["used"] == ranks[0]["used"]  # bit for bit
    assert len({lrs[0] for lrs in ranks[0]["used"][:8]}) > 2  # it moved


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("path", list(GPU_PATHS))
def test_sharded_training_on_gpus(path, tmp_path):
    if path == "deepspeed":
        pytest.importorskip("deepspeed")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    done = run([*launch, TESTS / "hf_worker.py", tmp_path, path])
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads((tmp_path / f"{path}-0.json").read_text())
    # with loss_lag=1, the default on CUDA, each decision is on the loss of the step before
    assert result["seen"] == pytest.approx(result["logged"][:-1], rel=1e-3)
    assert [lrs[0] for lrs in result["used"]] == result["logged_lr"]


# ---- which schedule ----


def test_the_six_lines_of_the_readme(tmp_path):
    callback = GreedyLRCallback()
    # the default rule searches in the first pass over the data, if it has at least 60 steps
    trainer = tiny.trainer(tmp_path, [callback], max_steps=60, data=tiny.regression_data(120))
    trainer.train()
    assert len(callback.history) == 60
    assert len(set(scales(callback))) > 10


def test_it_replaces_a_built_in_schedule_and_says_so(tmp_path, caplog):
    caplog.set_level(logging.INFO, "greedylr_integrations")
    callback, spy = GreedyLRCallback(window_size=1000), tiny.LRSpy()  # never decides: the envelope alone
    tiny.trainer(tmp_path, [callback, spy], lr_scheduler_type="cosine", warmup_steps=4, max_steps=20).train()
    expected = [0.01 * t / 4 for t in range(4)] + [0.01] * 10 + [0.01 * (20 - t) / 6 for t in range(14, 20)]
    assert [lrs[0] for lrs in spy.used] == pytest.approx(expected)
    assert caplog.text.count("lr_scheduler_type 'cosine' is set aside") == 1


def test_no_decision_in_the_ramp(tmp_path):
    callback = GreedyLRCallback(**FAST)
    tiny.trainer(tmp_path, [callback], warmup_steps=5).train()
    assert [record.step for record in callback.history] == list(range(6, 13))


@pytest.mark.parametrize("explicit", [None, "multiply"])
@pytest.mark.parametrize("make", ["lambda", "cosine", "exponential", "transformers"])
def test_it_multiplies_a_scheduler_that_was_passed_in(tmp_path, make, explicit):
    def schedule(optimizer):
        return {
            "lambda": lambda: LambdaLR(optimizer, lambda t: 1 / (1 + t)),
            "cosine": lambda: CosineAnnealingLR(optimizer, 12, eta_min=1e-4),
            "exponential": lambda: ExponentialLR(optimizer, 0.9),
            "transformers": lambda: get_cosine_schedule_with_warmup(optimizer, 3, 12),
        }[make]()

    alone = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.05)
    reference, theirs = schedule(alone), []
    for _ in range(12):
        theirs.append(reference.get_last_lr()[0])
        alone.step()
        reference.step()

    model = tiny.Regressor()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    callback, spy = GreedyLRCallback(**FAST, base_schedule=explicit), tiny.LRSpy()
    trainer = tiny.trainer(
        tmp_path, [callback, spy], model=model, trainer_kwargs={"optimizers": (optimizer, schedule(optimizer))}
    )
    trainer.train()
    before = dict.fromkeys(range(13), 1.0) | {record.step: record.decision.scales[0] for record in callback.history}
    assert [lrs[0] for lrs in spy.used] == pytest.approx([lr * before[i] for i, lr in enumerate(theirs)], rel=1e-9)
    assert tiny.logged(trainer, "learning_rate") == [lrs[0] for lrs in spy.used]
    assert len(set(before.values())) > 2  # it moved


def test_a_passed_scheduler_can_be_replaced(tmp_path):
    model = tiny.Regressor()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    callback, spy = GreedyLRCallback(window_size=1000, base_schedule="replace"), tiny.LRSpy()
    pair = {"optimizers": (optimizer, ExponentialLR(optimizer, 0.5))}
    tiny.trainer(tmp_path, [callback, spy], model=model, trainer_kwargs=pair, max_steps=10).train()
    assert [lrs[0] for lrs in spy.used][:7] == [0.05] * 7


def test_what_the_user_passes_wins(tmp_path):
    callback, spy = (
        GreedyLRCallback(window_size=1000, total_steps=100, linear_warmup_steps=2, decay_ratio=0.95),
        tiny.LRSpy(),
    )
    tiny.trainer(tmp_path, [callback, spy], warmup_steps=5, max_steps=10).train()
    assert callback.scheduler.controller.horizon == 98
    expected = [0.0, 0.005] + [0.01] * 4 + [0.01 * (100 - t) / 95 for t in range(6, 10)]
    assert [lrs[0] for lrs in spy.used] == pytest.approx(expected)


def test_shadow_changes_nothing(tmp_path):
    runs = []
    for callbacks in ([], [GreedyLRCallback(**FAST, shadow=True)]):
        spy = tiny.LRSpy()
        trainer = tiny.trainer(tmp_path, [*callbacks, spy], warmup_steps=2, lr_scheduler_type="cosine")
        trainer.train()
        weights = [p.detach().clone() for p in trainer.model.parameters()]
        runs.append((spy.used, tiny.logged(trainer), tiny.logged(trainer, "learning_rate"), weights))
    (callback,) = callbacks
    assert len(set(scales(callback))) > 2
    assert runs[0][:3] == runs[1][:3]
    assert all(torch.equal(a, b) for a, b in zip(runs[0][3], runs[1][3], strict=True))


def test_start_decay(tmp_path):
    class Ask(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                callback.start_decay(5)

    callback, spy = GreedyLRCallback(window_size=1000), tiny.LRSpy()
    tiny.trainer(tmp_path, [callback, Ask(), spy], max_steps=12).train()
    assert [lrs[0] for lrs in spy.used] == pytest.approx([0.01] * 6 + [0.008, 0.006, 0.004, 0.002, 0.0, 0.0])


class At(TrainerCallback):
    """Does something at the end of a step."""

    def __init__(self, **steps):
        self.steps = {int(name[1:]): act for name, act in steps.items()}

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in self.steps:
            self.steps[state.global_step]()


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("passed", [True, False])
def test_steering(tmp_path, first, passed):
    """Whether the one who steers comes before us or after, and whatever owns the schedule."""
    model = tiny.Regressor()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    schedule = ExponentialLR(optimizer, 0.9) if passed else None
    callback, spy = GreedyLRCallback(**FAST, decay_ratio=0), tiny.LRSpy()
    at = At(_4=lambda: callback.pin(0.5), _7=callback.hold, _9=lambda: callback.cap(0.25), _11=callback.release)
    callbacks = [at, callback, spy] if first else [callback, at, spy]
    tiny.trainer(
        tmp_path, callbacks, model=model, max_steps=14, trainer_kwargs={"optimizers": (optimizer, schedule)}
    ).train()
    base = [0.01 * (0.9**i if passed else 1) for i in range(14)]
    used = [lrs[0] / lr for lrs, lr in zip(spy.used, base, strict=True)]
    assert used[4:9] == pytest.approx([0.5] * 5)
    assert max(used[9:11]) <= 0.25 + 1e-9
    ordered = [(order.order, order.value) for order in callback.scheduler.commands]
    assert ordered == [("pin", 0.5), ("hold", None), ("cap", 0.25), ("release", None)]


def test_steering_before_training():
    with pytest.raises(RuntimeError, match="training has not begun"):
        GreedyLRCallback().hold()


@pytest.mark.parametrize("monitor", ["loss", "eval_loss"])
def test_orders_by_file(tmp_path, monitor, monkeypatch):
    monkeypatch.setattr(steering, "LOOK_EVERY", 0.0)
    path = tmp_path / "control.json"
    order = At(_5=lambda: path.write_text('{"order": "pin", "value": 0.5, "id": 1}'))
    callback, spy = GreedyLRCallback(**FAST, monitor=monitor, control_file=path, decay_ratio=0), tiny.LRSpy()
    tiny.trainer(
        tmp_path, [callback, order, spy], eval_data=tiny.regression_data(4), eval_strategy="steps", eval_steps=4
    ).train()
    step = 6 if monitor == "loss" else 8  # the next decision
    assert list(callback.scheduler.commands) == [(step, "pin", 0.5)]
    assert [lrs[0] for lrs in spy.used[step:]] == pytest.approx([0.005] * (12 - step))


def test_the_end_of_a_run_and_nothing_else_is_said(tmp_path, caplog):
    caplog.set_level(logging.INFO, "greedylr_integrations")

    def said(**kwargs):
        caplog.clear()
        tiny.trainer(tmp_path, [GreedyLRCallback(**FAST, **kwargs)], max_steps=30).train()
        return [r.getMessage() for r in caplog.records if r.name == "greedylr_integrations"]

    replaced, start, end = said()
    assert replaced.startswith("GreedyLR is the schedule")
    assert start == "GreedyLR follows the loss by GreedyConfig (base LR 0.01); decays to 0 over the last 9 of 30 steps"
    assert end.startswith("GreedyLR settled on the LR ")
    start, shadow = said(shadow=True)
    assert start.endswith("; shadow: leaves the LR alone")
    assert shadow.startswith("GreedyLR in shadow: would have taken the LR from 0.01 to ")


def test_a_history_of_another_run_is_kept_under_another_name(tmp_path, warnings_of):
    path, runs = tmp_path / "history.jsonl", []
    for _ in range(2):
        callback = GreedyLRCallback(**FAST, history_file=path)
        tiny.trainer(tmp_path, [callback]).train()
        assert history.read(path)[1] == list(callback.history)
        runs.append(path.read_text())
    (message,) = warnings_of()
    assert message.startswith("GreedyLR renamed the history of an earlier run to ")
    assert (tmp_path / "history-2.jsonl").read_text() == runs[0]


def test_a_history_of_a_run_that_failed_and_was_started_again(tmp_path):
    def fail():
        at.steps = {}
        raise KeyboardInterrupt

    at, path = At(_7=fail), tmp_path / "history.jsonl"
    callback = GreedyLRCallback(**FAST, history_file=path)
    trainer = tiny.trainer(tmp_path, [callback, at])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.train()
    assert history.read(path)[1] == list(callback.history)
    assert len(callback.history) == 12


def test_any_config(tmp_path):
    callback = GreedyLRCallback(PaperConfig(patience=0, min_lr=1e-6, max_lr=0.1))
    trainer = tiny.trainer(tmp_path, [callback])
    trainer.train()
    first = scales(callback)
    assert len(set(first)) > 3
    fresh = tiny.trainer(tmp_path, [callback])
    fresh.train()
    assert scales(callback) == first  # a fresh train() starts over


# ---- two controllers ----


@pytest.mark.parametrize("kind", ["greedy", "reduce_lr_on_plateau"])
def test_a_second_controller_is_refused(tmp_path, kind):
    if kind not in set(transformers.SchedulerType):
        pytest.skip(f"this transformers has no {kind} schedule")
    with pytest.raises(ValueError, match=rf"lr_scheduler_type='{kind}' follows a metric too"):
        tiny.trainer(
            tmp_path,
            [GreedyLRCallback()],
            eval_data=tiny.regression_data(),
            lr_scheduler_type=kind,
            eval_strategy="epoch",
        )


@pytest.mark.parametrize("make", [GreedyLR, torch.optim.lr_scheduler.ReduceLROnPlateau])
def test_a_second_controller_object_is_refused(tmp_path, make):
    model = tiny.Regressor()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    trainer = tiny.trainer(
        tmp_path, [GreedyLRCallback()], model=model, trainer_kwargs={"optimizers": (optimizer, make(optimizer))}
    )
    with pytest.raises(ValueError, match=rf"was given a {make.__name__}, which follows a metric too"):
        trainer.train()


def test_two_callbacks_are_refused(tmp_path):
    trainer = tiny.trainer(tmp_path, [GreedyLRCallback(), GreedyLRCallback()])
    with pytest.raises(ValueError, match="more than one GreedyLRCallback"):
        trainer.train()


# ---- other metrics ----


class Evals(TrainerCallback):
    def __init__(self):
        self.losses, self.lrs = [], []

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.losses.append(metrics["eval_loss"])


@pytest.mark.parametrize("monitor", ["eval_loss"])
def test_the_validation_loss_once_an_epoch(tmp_path, monitor):
    callback, evals, spy = GreedyLRCallback(monitor=monitor), Evals(), tiny.LRSpy()
    trainer = tiny.trainer(
        tmp_path,
        [callback, evals, spy],
        eval_data=tiny.regression_data(16),
        eval_strategy="epoch",
        max_steps=-1,
        num_train_epochs=10,
        per_device_train_batch_size=8,
    )
    trainer.train()
    assert callback.scheduler.controller.horizon == 10
    assert [record.decision.loss for record in callback.history] == evals.losses
    assert [record.step for record in callback.history] == list(range(6, 61, 6))
    assert {record.decision.action for record in callback.history} >= {Action.RAISE}
    # a raise is used in the very next step
    assert spy.used[12][0] == pytest.approx(0.01 * callback.history[1].decision.scales[0])
    assert tiny.logged(trainer, "learning_rate") == [lrs[0] for lrs in spy.used]


def accuracy(prediction):
    return {"accuracy": float((abs(prediction.predictions - prediction.label_ids) < 0.5).mean())}


@pytest.mark.parametrize("name", ["accuracy", "eval_accuracy"])
@pytest.mark.parametrize(
    "settings", [{"mode": "max"}, {"metric_for_best_model": "accuracy", "greater_is_better": True}]
)
def test_a_metric_with_or_without_eval_and_which_way_is_better(tmp_path, name, settings):
    callback = GreedyLRCallback(
        monitor=name, window_size=1, best_window=99, **({"mode": "max"} if "mode" in settings else {})
    )
    settings = {} if "mode" in settings else settings
    tiny.trainer(
        tmp_path,
        [callback],
        eval_data=tiny.regression_data(40),
        eval_strategy="steps",
        eval_steps=4,
        max_steps=40,
        trainer_kwargs={"compute_metrics": accuracy},
        **settings,
    ).train()
    values = [record.decision.loss for record in callback.history]
    raised = [record.decision.reason is Reason.IMPROVED for record in callback.history]
    assert len(values) == 10
    assert raised[1:] == [b > max(values[: i + 1]) for i, b in enumerate(values[1:])]
    assert any(raised)


def test_mode_is_required_where_nothing_tells_it(tmp_path):
    trainer = tiny.trainer(
        tmp_path, [GreedyLRCallback(monitor="accuracy")], eval_data=tiny.regression_data(4), eval_strategy="epoch"
    )
    with pytest.raises(ValueError, match="mode is not known for monitor='accuracy': pass mode='min' .* or mode='max'"):
        trainer.train()


def test_a_metric_that_does_not_exist_lists_those_that_do(tmp_path):
    trainer = tiny.trainer(
        tmp_path,
        [GreedyLRCallback(monitor="eval_f1", mode="max")],
        eval_data=tiny.regression_data(4),
        eval_strategy="steps",
        eval_steps=2,
    )
    with pytest.raises(
        ValueError, match=r"monitor='eval_f1' is neither logged nor evaluated: there are .*eval_loss.*grad_norm"
    ):
        trainer.train()
    assert trainer.state.global_step == 2


def test_an_evaluation_before_training_is_ignored(tmp_path):
    callback = GreedyLRCallback(monitor="eval_loss", window_size=1)
    trainer = tiny.trainer(
        tmp_path, [callback], eval_data=tiny.regression_data(8), eval_strategy="steps", eval_steps=4, eval_on_start=True
    )
    trainer.evaluate()
    trainer.train()
    assert [record.step for record in callback.history] == [4, 8, 12]


def test_a_logged_metric(tmp_path):
    callback = GreedyLRCallback(monitor="grad_norm", mode="min", window_size=1)
    trainer = tiny.trainer(tmp_path, [callback], logging_steps=3)
    trainer.train()
    assert [record.decision.loss for record in callback.history] == pytest.approx(tiny.logged(trainer, "grad_norm"))


# ---- what the Trainer does to it ----


def test_a_trainer_in_which_no_loss_can_be_seen_falls_back_to_the_logged_one(tmp_path, warnings_of, monkeypatch):
    monkeypatch.setattr("greedylr_integrations._hf_trainer.find", lambda callback: (None, None))
    callback = GreedyLRCallback(window_size=1, factor=0.8)
    trainer = tiny.trainer(tmp_path, [callback], logging_steps=2)
    trainer.train()
    (message,) = warnings_of()
    assert "follows the logged one instead (logging_strategy 'steps', logging_steps 2)" in message
    assert [record.decision.loss for record in callback.history] == tiny.logged(trainer)
    assert callback.scheduler.controller.horizon == 6
    assert len(set(scales(callback))) > 1


class Poisoned(Trainer):
    """NaN losses in the steps of `nan_steps`."""

    nan_steps = (4,)

    def compute_loss(self, model, inputs, **kwargs):
        loss = super().compute_loss(model, inputs, **kwargs)
        return loss * math.nan if self.state.global_step in self.nan_steps else loss


class Survive(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        for parameter in model.parameters():
            parameter.grad.nan_to_num_(0.0)


@pytest.mark.parametrize("filtered", [True, False])
def test_a_nan_lowers_once_and_leaves_nothing(tmp_path, filtered):
    callback = GreedyLRCallback(**FAST)
    tiny.trainer(
        tmp_path,
        [callback, Survive()],
        kind=Poisoned,
        model=tiny.llama(),
        data=tiny.text_data(),
        logging_nan_inf_filter=filtered,
        max_steps=40,
        learning_rate=1e-3,
    ).train()
    nan = [record for record in callback.history if record.decision.reason is Reason.NONFINITE]
    assert [record.step for record in nan] == [5]
    assert nan[0].decision.action is Action.LOWER
    assert callback.history[5].decision.smoothed > 0  # the Trainer logs the NaN as 0.0: that must not be the best
    assert max(scales(callback)[5:]) > nan[0].decision.scales[0]


def test_a_dead_run_is_stopped(tmp_path):
    class Dead(Poisoned):
        nan_steps = range(3, 100)

    trainer = tiny.trainer(tmp_path, [GreedyLRCallback(**FAST)], kind=Dead)
    with pytest.raises(FloatingPointError, match="the run is dead"):
        trainer.train()
    assert trainer.state.global_step == 6


def test_a_skipped_step_is_no_step(tmp_path, monkeypatch):
    """As the fp16 scaler skips one on an overflow; it needs a GPU, so the flag is set by hand."""
    step, seen = AcceleratedOptimizer.step, []

    def skipping(self, closure=None):
        seen.append(1)
        self._is_overflow = len(seen) in (3, 4)
        if not self._is_overflow:
            step(self, closure)

    monkeypatch.setattr(AcceleratedOptimizer, "step", skipping)
    monkeypatch.setattr(AcceleratedOptimizer, "step_was_skipped", property(lambda self: self._is_overflow))
    for kwargs in ({}, {"optimizers": True}):
        seen.clear()
        model = tiny.Regressor()
        if kwargs:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
            kwargs = {"optimizers": (optimizer, ExponentialLR(optimizer, 0.9))}
        callback, spy = GreedyLRCallback(**FAST), tiny.LRSpy()
        trainer = tiny.trainer(tmp_path, [callback, spy], model=model, trainer_kwargs=kwargs)
        trainer.train()
        losses = tiny.logged(trainer)
        skipped = losses[:2] + losses[4:]
        seen = [record.decision.loss for record in callback.history]
        assert seen == pytest.approx(skipped[bool(kwargs) :], abs=TOLERANCE)
        assert len(spy.used) == 10
        if kwargs:
            before = [1.0, 1.0, *scales(callback)]  # no decision before the schedule is known not to rise
            assert [lrs[0] for lrs in spy.used] == pytest.approx([0.05 * 0.9**i * before[i] for i in range(10)])


def test_training_twice_starts_over(tmp_path):
    callback, spy = GreedyLRCallback(**FAST), tiny.LRSpy()
    trainer = tiny.trainer(tmp_path, [callback, spy])
    trainer.train()
    first = spy.used
    assert "training_step" not in vars(trainer)
    trainer.train()
    assert spy.used[0] == first[0] == [0.01, 0.01]
    assert len(callback.history) == 12


def test_training_twice_with_a_passed_schedule_does_not_scale_twice(tmp_path):
    model = tiny.Regressor()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    callback, spy = GreedyLRCallback(**FAST), tiny.LRSpy()
    pair = {"optimizers": (optimizer, ExponentialLR(optimizer, 0.9))}
    trainer = tiny.trainer(tmp_path, [callback, spy], model=model, trainer_kwargs=pair)
    trainer.train()
    trainer.train()
    assert spy.used[0] == pytest.approx([0.05 * 0.9**12])


def test_an_interrupted_train_can_be_followed_by_another(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 7 and not self.stopped:
                self.stopped = True
                raise KeyboardInterrupt

        stopped = False

    model = tiny.Regressor()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    callback, spy = GreedyLRCallback(**FAST), tiny.LRSpy()
    pair = {"optimizers": (optimizer, ExponentialLR(optimizer, 0.9))}
    trainer = tiny.trainer(tmp_path, [callback, spy, Stop()], model=model, trainer_kwargs=pair)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    spy.handle.remove()
    trainer.train()
    assert len(callback.history) == 11
    assert spy.used[0] == pytest.approx([0.05 * 0.9**7])


def test_auto_find_batch_size(tmp_path):
    class TooLarge(Trainer):
        def training_step(self, model, inputs, *args, **kwargs):
            if len(inputs["labels"]) > 2:
                raise RuntimeError("CUDA out of memory.")
            return super().training_step(model, inputs, *args, **kwargs)

    callback, spy = GreedyLRCallback(**FAST), tiny.LRSpy()
    trainer = tiny.trainer(
        tmp_path, [callback, spy], kind=TooLarge, auto_find_batch_size=True, per_device_train_batch_size=8
    )
    trainer.train()
    assert [record.decision.loss for record in callback.history] == pytest.approx(tiny.logged(trainer), abs=TOLERANCE)


def test_host_reads(tmp_path, monkeypatch):
    """With the Trainer's own reads off, the callback adds one read a decision and none between."""
    tolist = torch.Tensor.tolist

    def counted(tensor):
        mode.count += 1
        return tolist(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", counted)

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += "_local_scalar_dense" in str(func)
            return func(*args, **(kwargs or {}))

    mode = Reads()

    def reads(callbacks):
        trainer = tiny.trainer(
            tmp_path,
            callbacks,
            logging_nan_inf_filter=False,
            logging_steps=1000,
            gradient_accumulation_steps=4,
            max_steps=16,
            max_grad_norm=0,
        )
        mode.count = 0
        with mode:
            trainer.train()
        return mode.count

    without = reads([])
    assert reads([GreedyLRCallback()]) - without == 16
    assert reads([GreedyLRCallback(every_n_steps=4)]) - without == 4


def test_eight_bit_optimizers(tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    callback, spy = GreedyLRCallback(**FAST), tiny.LRSpy()
    model = tiny.Regressor(hidden=2048)  # large enough that the optimizer's state is in 8 bits
    trainer = tiny.trainer(tmp_path, [callback, spy], model=model, optim="adamw_bnb_8bit", learning_rate=1e-4)
    trainer.train()
    states = trainer.optimizer.optimizer.state.values()
    assert any(state["state1"].dtype is torch.uint8 for state in states)
    assert len({lrs[0] for lrs in spy.used[:8]}) > 2


# ---- wrong arguments ----


def test_wrong_arguments_are_named_when_constructed():
    with pytest.raises(ValueError, match="^factor=2 is not allowed"):
        GreedyLRCallback(factor=2)
    with pytest.raises(
        ValueError, match="^base_schedule='add' is not allowed: it must be one of 'replace', 'multiply'"
    ):
        GreedyLRCallback(base_schedule="add")
    with pytest.raises(TypeError, match="^monitor=3 is not allowed"):
        GreedyLRCallback(monitor=3)
    with pytest.raises(TypeError, match="^warmup_steps is ambiguous"):
        GreedyLRCallback(warmup_steps=3)
    with pytest.raises(TypeError, match="^window is not a field of GreedyConfig"):
        GreedyLRCallback(window=3)
    with pytest.raises(RuntimeError, match="training has not begun"):
        GreedyLRCallback().start_decay(10)
