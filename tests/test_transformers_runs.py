"""What one run with Hugging Face's Trainer leaves to the next, what is said about a run, and what is refused."""

import copy
import gc
import pickle
import weakref

import pytest
import tiny
import torch
from transformers import Trainer, TrainerCallback
from transformers.optimization import Adafactor

from greedylr_integrations.transformers import GreedyLRCallback

FAST = {"window_size": 2, "factor": 0.8}
LR = 3e-3  # where the TrainingArguments say 1e-2


def train(out, *callbacks, resume=None, **kwargs):
    spy = tiny.LRSpy()
    trainer = tiny.trainer(out, [*callbacks, spy], **kwargs)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, spy


def test_a_metric_whose_number_of_values_is_not_known_has_no_horizon(tmp_path, warnings_of):
    callback = GreedyLRCallback(monitor="reward", mode="max")  # logged by the user's own code
    train(tmp_path, callback, logging_strategy="no")
    assert callback.scheduler.controller.horizon is None
    assert any(message.startswith("GreedyLR does not know how often 'reward' will come") for message in warnings_of())


# ---- the state of another run ----


def test_one_callback_in_two_trainers(tmp_path):
    def start(callback, lr):
        model = tiny.Regressor()
        pair = {"optimizers": (torch.optim.SGD(model.parameters(), lr=lr), None)}
        spy = tiny.LRSpy()
        return tiny.trainer(tmp_path, [callback, spy], model=model, trainer_kwargs=pair), spy

    alone = []
    for lr in (0.05, 0.005):
        trainer, spy = start(GreedyLRCallback(**FAST), lr)
        trainer.train()
        alone.append(spy.used)
    callback = GreedyLRCallback(**FAST)
    both = [start(callback, lr) for lr in (0.05, 0.005)]
    for (trainer, spy), used in zip(both, alone, strict=True):
        trainer.train()
        assert spy.used == used
        assert "training_step" not in vars(trainer)


class Own(Trainer):
    def create_optimizer(self, model=None):
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LR)
        return self.optimizer


def own(out, *callbacks, **kwargs):
    return tiny.trainer(out, list(callbacks), kind=Own, **kwargs)


def by_class(out, *callbacks, **kwargs):
    pair = {"optimizer_cls_and_kwargs": (torch.optim.AdamW, {"lr": LR})}
    return tiny.trainer(out, list(callbacks), trainer_kwargs=pair, **kwargs)


def added_later(out, *callbacks, **kwargs):
    model = tiny.Regressor()
    pair = {"optimizers": (torch.optim.AdamW(model.parameters(), lr=LR), None)}
    trainer = tiny.trainer(out, [], model=model, trainer_kwargs=pair, **kwargs)
    for callback in callbacks:
        trainer.add_callback(callback)
    return trainer


@pytest.mark.parametrize("make", [own, by_class, added_later])
@pytest.mark.parametrize("policy", ["checkpoint", "config", "error"])
def test_the_base_lr_of_an_optimizer_that_was_made_otherwise(tmp_path, make, policy, warnings_of):
    used = []
    for resume in (None, str(tmp_path / "checkpoint-6")):
        spy = tiny.LRSpy()
        callback = GreedyLRCallback(**FAST, on_resume=policy)
        trainer = make(tmp_path, callback, spy, save_strategy="steps", save_steps=6)
        trainer.train(resume_from_checkpoint=resume)
        used.append(spy.used)
    assert used[1] == used[0][6:]
    assert warnings_of() == []


def test_groups_with_lrs_of_their_own_keep_them_when_the_default_changes(tmp_path):
    def once(lr, resume=None):
        class Grouped(Trainer):
            def create_optimizer(self, model=None):
                first, second = self.model.net[0], self.model.net[2]
                groups = [{"params": first.parameters()}, {"params": second.parameters(), "lr": 0.5}]
                self.optimizer = torch.optim.SGD(groups, lr=lr)
                return self.optimizer

        callback = GreedyLRCallback(**FAST, on_resume="config")
        train(tmp_path, callback, kind=Grouped, resume=resume, save_strategy="steps", save_steps=6)
        return callback.scheduler.base_lrs

    assert once(0.1) == [0.1, 0.5]
    assert once(0.01, str(tmp_path / "checkpoint-6")) == [0.01, 0.5]


def test_a_finished_run_lets_go_of_the_model(tmp_path):
    callback = GreedyLRCallback(**FAST)
    trainer, spy = train(tmp_path, callback)
    alive = weakref.ref(trainer.model), weakref.ref(trainer.callback_handler), weakref.ref(trainer.optimizer)
    del trainer, spy
    gc.collect()
    assert [reference() for reference in alive] == [None] * 3
    assert len(callback.history) == 12
    assert callback.scheduler.scale != 1
    assert callback.scheduler.get_last_lr()[0] == pytest.approx(0.0)


def test_a_callback_can_be_pickled_and_copied_before_during_and_after_a_run(tmp_path):
    class Try(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            copies.append(pickle.loads(pickle.dumps(callback)))

    callback, copies = GreedyLRCallback(**FAST, monitor="loss", shadow=False), []
    copies.append(copy.deepcopy(callback))
    train(tmp_path, callback, Try())
    for each in copies:
        assert each.settings == callback.settings
        assert len(each.history) == 0
    after = pickle.loads(pickle.dumps(callback))
    assert list(after.history) == list(callback.history)
    _, spy = train(tmp_path, after)
    assert spy.used[0] == [0.01, 0.01]


# ---- whose turn it is ----


class Evaluate(TrainerCallback):
    """Another evaluation than the Trainer's own, after the first step."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.trainer.evaluate(metric_key_prefix="test")


def test_another_evaluation_before_the_first_due_one(tmp_path):
    callback, other = GreedyLRCallback(monitor="eval_loss", window_size=1), Evaluate()
    trainer = tiny.trainer(
        tmp_path, [callback, other], eval_data=tiny.regression_data(8), eval_strategy="steps", eval_steps=4
    )
    other.trainer = trainer
    trainer.train()
    assert [record.step for record in callback.history] == [4, 8, 12]


def test_a_metric_of_another_evaluation_is_one_decision(tmp_path):
    callback, other = GreedyLRCallback(monitor="test_loss", window_size=1), Evaluate()
    trainer = tiny.trainer(tmp_path, [callback, other], eval_data=tiny.regression_data(8))
    other.trainer = trainer
    trainer.train()
    assert len(callback.history) == 1


def test_a_logged_metric_that_comes_more_rarely_than_an_epoch(tmp_path, warnings_of):
    class Probe(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step % 40 == 0:
                trainer.log({"probe": 0.5 + state.global_step / 100})

    callback = GreedyLRCallback(monitor="probe", mode="max", window_size=1)
    trainer = tiny.trainer(tmp_path, [callback, Probe()], max_steps=80)  # an epoch has 24
    trainer.train()
    assert [record.step for record in callback.history] == [40, 80]
    assert "neither logged nor evaluated" in warnings_of()[0]


def test_an_evaluation_after_a_run_that_failed_decides_nothing(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 6:
                raise KeyboardInterrupt

    callback = GreedyLRCallback(monitor="eval_loss", window_size=1)
    trainer = tiny.trainer(
        tmp_path, [callback, Stop()], eval_data=tiny.regression_data(8), eval_strategy="steps", eval_steps=4
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.evaluate()
    assert [record.step for record in callback.history] == [4]


@pytest.mark.parametrize("value", [None, [0.1, 0.2]])
def test_a_metric_that_is_not_a_number_is_named(tmp_path, value):
    trainer = tiny.trainer(
        tmp_path,
        [GreedyLRCallback(monitor="eval_f1", mode="max")],
        eval_data=tiny.regression_data(4),
        eval_strategy="steps",
        eval_steps=4,
        trainer_kwargs={"compute_metrics": lambda prediction: {"f1": value}},
    )
    with pytest.raises(TypeError, match="^monitor='eval_f1' has the value .*: it must be a single number"):
        trainer.train()


# ---- nothing ever arrives ----


def test_an_evaluation_metric_without_evaluation_is_said_at_the_start(tmp_path, warnings_of):
    early = []

    class Early(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            early.append(len(warnings_of()))

    callback = GreedyLRCallback(monitor="eval_loss")
    train(tmp_path, callback, Early())
    assert early[0] == 1
    (message,) = warnings_of()
    assert message.startswith("monitor='eval_loss' will not appear on its own, because eval_strategy is 'no'")
    assert callback.scheduler.controller.horizon is None  # another callback may evaluate


def test_a_run_of_another_length_than_total_steps(tmp_path, warnings_of):
    train(tmp_path, GreedyLRCallback(**FAST, total_steps=100))
    (message,) = warnings_of()
    assert message.startswith("the run ended after 12 of 100 optimizer steps, before its final decay")


def test_a_window_that_never_fills_is_said(tmp_path, warnings_of):
    train(tmp_path, GreedyLRCallback(window_size=1000))
    assert warnings_of() == ["GreedyLR: the LR will not move: window_size=1000, and the run has 12 decisions"]


@pytest.mark.parametrize("base_schedule", ["replace", "multiply"])
def test_a_function_is_called_with_each_decision_when_its_lr_is_there(tmp_path, base_schedule):
    told, there = [], []

    def tell(record):
        told.append(record)
        there.append([group["lr"] for group in trainer.optimizer.param_groups])

    callback = GreedyLRCallback(base_schedule=base_schedule, on_decision=tell)  # of a run that is too short to move
    trainer = tiny.trainer(tmp_path, [callback])
    trainer.train()
    assert told == list(callback.history)
    assert len(told) > 10
    assert [list(record.lrs) for record in told] == there


# ---- silent replacement and stacking ----


@pytest.mark.parametrize(
    ("settings", "options", "warned"),
    [
        ({"lr_scheduler_type": "cosine"}, {}, True),
        ({"lr_scheduler_type": "cosine"}, {"base_schedule": "replace"}, False),
        ({"lr_scheduler_type": "cosine"}, {"base_schedule": "multiply"}, False),
        ({"lr_scheduler_type": "cosine"}, {"shadow": True}, False),
        ({"lr_scheduler_type": "constant"}, {}, False),
        ({}, {}, False),
    ],
)
def test_a_schedule_that_was_chosen_is_not_set_aside_without_a_warning(
    tmp_path, settings, options, warned, warnings_of
):
    train(tmp_path, GreedyLRCallback(**FAST, **options), **settings)
    expected = ["GreedyLR is the schedule; lr_scheduler_type 'cosine' is set aside: pass base_schedule='multiply' to"]
    assert [message[: len(expected[0])] for message in warnings_of()] == expected * warned


@pytest.mark.parametrize(
    ("package", "make"),
    [
        ("schedulefree", lambda module, parameters: module.AdamWScheduleFree(parameters, lr=1e-2)),
        ("prodigyopt", lambda module, parameters: module.Prodigy(parameters, lr=1.0)),
        ("dadaptation", lambda module, parameters: module.DAdaptLion(parameters, lr=1.0)),
        ("mechanic_pytorch", lambda module, parameters: module.mechanize(torch.optim.AdamW)(parameters, lr=1.0)),
        ("dadaptation", lambda module, parameters: module.DAdaptAdam(parameters, lr=1.0)),
        ("transformers.trainer_pt_utils", lambda module, parameters: module.LayerWiseDummyOptimizer(lr=1e-2)),
    ],
)
def test_an_optimizer_that_sets_its_own_lr_is_warned_about(tmp_path, package, make, warnings_of):
    module = pytest.importorskip(package)
    model = tiny.Regressor()
    optimizer = make(module, model.parameters())
    pair = {"optimizers": (optimizer, None)}
    train(tmp_path, GreedyLRCallback(**FAST), model=model, trainer_kwargs=pair, max_grad_norm=0)
    (message,) = warnings_of()
    assert message.startswith(f"GreedyLR: {type(optimizer).__name__} ")
    assert message.endswith(": train with it without GreedyLR")


def test_an_optimizer_without_an_lr_is_refused(tmp_path):
    model = tiny.Regressor()
    pair = {"optimizers": (Adafactor(model.parameters(), relative_step=True, warmup_init=True, lr=None), None)}
    with pytest.raises(ValueError, match=r"^Adafactor computes its own LR \(lr=None\)"):
        tiny.trainer(tmp_path, [GreedyLRCallback()], model=model, trainer_kwargs=pair)


def test_the_loss_of_a_reward_trainer_is_none_to_follow(tmp_path, warnings_of):
    class GRPOTrainer(Trainer):
        """Named like TRL's."""

    train(tmp_path, GreedyLRCallback(**FAST), kind=GRPOTrainer)
    (message,) = warnings_of()
    assert "follow the reward instead, with GreedyLRCallback(monitor='reward', mode='max')" in message


@pytest.mark.filterwarnings("ignore")  # of trl
def test_a_reward_is_followed(tmp_path):
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    callback = GreedyLRCallback(monitor="reward", mode="max", **FAST)
    settings = {"num_generations": 2, "max_completion_length": 4, "bf16": False, "max_steps": 6}
    tokenizer = tiny.tokenizer()
    tokenizer.padding_side = "left"
    trainer = trl.GRPOTrainer(
        tiny.llama(),
        lambda completions, **_: [float(text.count("w1")) for text in completions],
        tiny.arguments(tmp_path, trl.GRPOConfig, **settings),
        datasets.Dataset.from_list([{"prompt": f"w{i} w{i + 1}"} for i in range(20)]),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    trainer.train()
    rewards = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    assert [record.decision.loss for record in callback.history] == pytest.approx(rewards)
    assert len(rewards) == 6


@pytest.mark.parametrize(
    ("steps", "settings", "options", "warmup"),
    [
        (60, {}, {}, 0),  # the search takes its place
        (60, {}, {"linear_warmup_steps": 5}, 5),
        (60, {}, {"window_size": 5}, 5),  # another rule, which does not search
        (40, {}, {}, 5),  # too short to search
        (60, {"per_device_train_batch_size": 4}, {}, 5),  # too short a first pass over the data
        (60, {}, {"steps_per_epoch": 30}, 5),  # the same, as only the user knows
    ],
)
def test_the_warmup_of_the_arguments_and_the_search(tmp_path, steps, settings, options, warmup, warnings_of):
    callback, data = GreedyLRCallback(**options, max_scale=2.0), tiny.regression_data(120)
    train(tmp_path, callback, max_steps=steps, data=data, warmup_steps=5, learning_rate=1e-3, **settings)
    assert callback.scheduler.envelope.linear_warmup_steps == warmup
    said = [
        message for message in warnings_of() if message.startswith("the search for the LR takes the place of the 5")
    ]
    assert len(said) == (warmup == 0)
