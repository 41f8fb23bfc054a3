import copy
import io
import json
import math
import random
import re
import statistics

import pytest
import torch
from processes import run
from torch.optim.lr_scheduler import ChainedScheduler, CosineAnnealingLR, ExponentialLR, LambdaLR, SequentialLR
from transformers import get_cosine_schedule_with_warmup

from greedylr_integrations import GreedyConfig, GreedyController, GreedyLR, PaperConfig, SlopeConfig
from greedylr_integrations.callbacks import SharedCallback
from greedylr_integrations.decision import Action
from greedylr_integrations.envelope import Envelope
from greedylr_integrations.loss import LossMeter

SMALL = {"window_size": 2}
FALLING = [10 - i / 20 for i in range(100)]


def optimizer_of(*lrs, kind=torch.optim.SGD, **kwargs):
    return kind([{"params": [torch.nn.Parameter(torch.ones(2))], "lr": lr} for lr in lrs], **kwargs)


def lrs_of(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def losses(n=60):
    return [3 - i / 50 + 0.3 * math.sin(i * 1.7) for i in range(n)]


# ---- one number after another ----


def test_lr_is_base_lr_x_scale_x_envelope():
    optimizer = optimizer_of(0.1, 0.02)
    scheduler = GreedyLR(optimizer, window_size=3, linear_warmup_steps=5, total_steps=60)
    controller = GreedyController(GreedyConfig(window_size=3), [0.1, 0.02], horizon=55)
    envelope = Envelope(linear_warmup_steps=5, total_steps=60)
    scales = controller.scales
    for step, loss in enumerate(losses()):
        expected = [base * scale * envelope(step) for base, scale in zip([0.1, 0.02], scales, strict=True)]
        assert lrs_of(optimizer) == scheduler.get_last_lr() == pytest.approx(expected, rel=1e-15)
        optimizer.step()
        decision = scheduler.step(loss)
        if step < 5:
            assert decision is None
        else:
            assert decision == controller.observe(loss)
            scales = decision.scales
    assert scales[0] != 1.0


def test_constructing_neither_steps_nor_decides():
    optimizer = optimizer_of(0.1)
    scheduler = GreedyLR(optimizer, GreedyConfig())
    assert scheduler.last_epoch == 0
    assert scheduler.get_last_lr() == lrs_of(optimizer) == [0.1]
    assert len(scheduler.history) == 0


def test_the_default_begins_its_search_at_start_scale():
    optimizer = optimizer_of(0.1, 0.02)
    assert GreedyLR(optimizer).get_last_lr() == lrs_of(optimizer) == pytest.approx([0.002, 0.0004])
    GreedyLR(optimizer := optimizer_of(0.1), start_scale=0.5)
    assert lrs_of(optimizer) == [0.05]


def test_a_field_that_only_the_loss_window_has_chooses_it():
    assert isinstance(GreedyLR(optimizer_of(0.1)).controller.config, SlopeConfig)
    assert isinstance(GreedyLR(optimizer_of(0.1), patience=2).controller.config, GreedyConfig)
    assert isinstance(GreedyLR(optimizer_of(0.1), max_scale=2).controller.config, SlopeConfig)


def test_a_step_without_a_loss_moves_the_envelope_alone():
    scheduler = GreedyLR(optimizer_of(1.0), GreedyConfig(), total_steps=10, decay_ratio=1.0)
    seen = []
    for _ in range(10):
        seen.append(scheduler.get_last_lr()[0])
        assert scheduler.step() is None
    assert seen == pytest.approx([1 - t / 10 for t in range(10)])
    assert scheduler.get_last_lr() == [0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_tensor_is_a_loss(dtype):
    scheduler, same = (GreedyLR(optimizer_of(0.1), window_size=2) for _ in range(2))
    for loss in FALLING:
        tensor = torch.tensor(loss, dtype=dtype, requires_grad=True)
        assert scheduler.step(tensor) == same.step(tensor.item())


@pytest.mark.parametrize("loss", ["1.0", True, torch.ones(2), [1.0]])
def test_a_loss_that_is_not_a_number(loss):
    scheduler = GreedyLR(optimizer_of(0.1))
    with pytest.raises(TypeError, match="is not allowed: it must be a"):
        scheduler.step(loss)


def test_one_decision_on_the_mean_of_n_steps():
    every, each = (
        GreedyLR(optimizer_of(0.1), every_n_steps=4, window_size=2),
        GreedyController(GreedyConfig(window_size=2)),
    )
    values = losses(40)
    for start in range(0, 40, 4):
        group = values[start : start + 4]
        assert [every.step(loss) for loss in group[:3]] == [None] * 3
        decision = every.step(group[3])
        assert decision.scales == each.observe(sum(group) / 4).scales
        assert decision.loss == pytest.approx(sum(group) / 4)


def test_with_a_lag_each_loss_counts_one_step_later():
    late, prompt = GreedyLR(optimizer_of(0.1), loss_lag=1, **SMALL), GreedyLR(optimizer_of(0.1), loss_lag=0, **SMALL)
    made = [(late.step(loss), prompt.step(loss)) for loss in losses()]
    assert made[0][0] is None
    assert [a.loss for a, _ in made[1:]] == [b.loss for _, b in made[:-1]]
    assert [a.scales for a, _ in made[1:]] == [b.scales for _, b in made[:-1]]


def test_the_lag_of_a_meter_that_was_passed_counts_too():
    scheduler = GreedyLR(optimizer_of(0.1), meter=LossMeter(lag=1), **SMALL)
    made = [scheduler.step(loss) for loss in losses()]
    assert [decision.loss for decision in made[1:]] == losses()[:-1]


def test_the_horizon_counts_decisions():
    scheduler = GreedyLR(optimizer_of(0.1), total_steps=1000, linear_warmup_steps=200, every_n_steps=8)
    assert scheduler.controller.horizon == 100


def test_a_function_is_told_of_each_decision():
    told = []
    optimizer = optimizer_of(0.1, 0.01)

    def tell(record):
        assert scheduler.history[-1] == record
        assert list(record.lrs) == lrs_of(optimizer)
        told.append(record)

    scheduler = GreedyLR(optimizer, GreedyConfig(window_size=1), every_n_steps=2, on_decision=tell)
    for loss in FALLING[:9]:
        scheduler.step(loss)
    scheduler.observe(1.0)
    assert [record.step for record in told] == [2, 4, 6, 8, 9]
    assert told == list(scheduler.history)


def test_what_a_function_raises_comes_through():
    def stop(record):
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        GreedyLR(optimizer_of(0.1), GreedyConfig(), on_decision=stop).step(1.0)


@pytest.mark.parametrize("value", ["print", 3, []])
def test_what_is_no_function(value):
    says = f"^on_decision={re.escape(repr(value))} is not allowed: it must be a function that takes a history.Record$"
    for make in (lambda: GreedyLR(optimizer_of(0.1), on_decision=value), lambda: SharedCallback(on_decision=value)):
        with pytest.raises(TypeError, match=says):
            make()


def test_observe_decides_without_a_step():
    scheduler = GreedyLR(optimizer_of(0.1), window_size=1, factor=0.5)
    scheduler.observe(2.0)
    assert scheduler.observe(1.0).action is Action.RAISE
    assert (scheduler.last_epoch, scheduler.get_last_lr()) == (0, [0.2])


def test_start_decay():
    optimizer = optimizer_of(0.1)
    scheduler = GreedyLR(optimizer, window_size=1, factor=0.5)
    for loss in (3.0, 2.0):
        scheduler.step(loss)
    scheduler.start_decay(4)
    seen = []
    for _ in range(5):
        seen.append(lrs_of(optimizer)[0])
        scheduler.step()
    assert seen == pytest.approx([0.2, 0.15, 0.1, 0.05, 0.0])


def test_a_decay_after_a_resume_begins_where_the_lr_stood_whatever_the_new_length():
    trunk = GreedyLR(optimizer_of(0.1), window_size=1000, total_steps=200)
    for loss in losses(100):
        trunk.step(loss)
    branch = GreedyLR(optimizer_of(0.1), window_size=1000, total_steps=110)  # by that, the decay would be far on
    branch.load_state_dict(through_json(trunk.state_dict()))
    branch.start_decay(10)
    seen = []
    for loss in losses(10):
        seen.append(lrs_of(branch.optimizer)[0])
        branch.step(loss)
    assert seen == pytest.approx([0.1 * left / 10 for left in range(10, 0, -1)])
    assert lrs_of(branch.optimizer) == [0.0]


def test_a_branch_from_the_middle_ends_as_a_run_that_was_planned_to_end_there():
    """Loss on 597 unseen digits, 10 seeds, paired: within two standard errors; without the decay far outside."""
    digits = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed").load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    planned, middle, decay, lr = 400, 200, 80, 0.1

    def start(seed, **kwargs):
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
        return model, optimizer, GreedyLR(optimizer, GreedyConfig(), **kwargs)

    def train(run, seed, first, last):
        model, optimizer, scheduler = run
        for step in range(first, last):
            rows = torch.randint(0, 1200, (16,), generator=torch.Generator().manual_seed(100_000 * seed + step))
            loss = torch.nn.functional.cross_entropy(model(x[rows]), y[rows], label_smoothing=0.1)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step(loss.item())

    def validation_loss(run):
        with torch.no_grad():
            return torch.nn.functional.cross_entropy(run[0](x[1200:]), y[1200:]).item()

    branched, undecayed = [], []  # minus the loss of the planned run
    for seed in range(10):
        trunk, branch = start(seed, total_steps=planned), start(seed, total_steps=middle + decay)
        train(trunk, seed, 0, middle)
        for part, other in zip(trunk, branch, strict=True):
            other.load_state_dict(copy.deepcopy(part.state_dict()))
        branch[2].start_decay(decay)
        whole = start(seed, total_steps=middle + decay, decay_ratio=decay / (middle + decay))
        train(trunk, seed, middle, middle + decay)
        train(branch, seed, middle, middle + decay)
        train(whole, seed, 0, middle + decay)
        branched.append(validation_loss(branch) - validation_loss(whole))
        undecayed.append(validation_loss(trunk) - validation_loss(whole))

    def in_standard_errors(differences):
        return statistics.mean(differences) / (statistics.stdev(differences) / len(differences) ** 0.5)

    assert abs(in_standard_errors(branched)) < 2
    assert in_standard_errors(undecayed) > 3


def test_shadow_leaves_the_optimizer_alone():
    optimizer = optimizer_of(0.1)
    scheduler = GreedyLR(optimizer, window_size=1, shadow=True)
    decisions = [scheduler.step(loss) for loss in FALLING]
    assert decisions[-1].scales[0] > 1
    assert scheduler.get_last_lr()[0] > 0.1
    assert lrs_of(optimizer) == [0.1]


# ---- optimizers ----


@pytest.mark.parametrize("kwargs", [{"capturable": False}, {"fused": True}, {"foreach": False}])
def test_tensor_lrs_are_written_in_place(kwargs):
    lr = torch.tensor(0.1, dtype=torch.float64)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=lr, **kwargs)
    scheduler = GreedyLR(optimizer, window_size=1, factor=0.5)
    for loss in (3.0, 2.0):
        optimizer.param_groups[0]["params"][0].sum().backward()
        optimizer.step()
        scheduler.step(loss)
    assert optimizer.param_groups[0]["lr"] is lr
    assert float(lr) == pytest.approx(0.2)
    assert scheduler.base_lrs == [0.1]
    assert all(type(value) is float for value in scheduler.get_last_lr())


def test_a_tensor_lr_that_was_replaced_by_loading_is_written_too():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=torch.tensor(0.1))
    scheduler = GreedyLR(optimizer, window_size=1, factor=0.5)
    optimizer.load_state_dict(optimizer.state_dict())
    for loss in (3.0, 2.0):
        scheduler.step(loss)
    assert lrs_of(optimizer) == pytest.approx([0.2])


def test_lora_plus_groups_keep_their_ratio():
    optimizer = optimizer_of(1e-4, 16e-4)
    scheduler = GreedyLR(optimizer, window_size=2)
    for loss in losses():
        scheduler.step(loss)
        a, b = lrs_of(optimizer)
        assert b / a == pytest.approx(16, rel=1e-14)


@pytest.mark.parametrize(
    "config", [GreedyConfig(window_size=1, factor=0.5, best_window=99), PaperConfig(patience=0, factor=0.5)]
)
def test_a_group_added_later(config):
    optimizer = optimizer_of(0.1)
    scheduler = GreedyLR(optimizer, config)
    for loss in (3.0, 2.0):
        scheduler.step(loss)
    before = lrs_of(optimizer)[0]
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.01})
    assert scheduler.get_last_lr() == [before, 0.01]  # the LR that it was given is what it has
    for loss in (3.0, 1.0):
        scheduler.step(loss)
        first, second = lrs_of(optimizer)
        assert second / 0.01 == pytest.approx(first / before)  # and from then on it moves with the others
        assert first == pytest.approx(before / (2 if loss == 3.0 else 1))
    assert scheduler.base_lrs == pytest.approx([0.1, 0.01 * 0.1 / before])
    assert GreedyLR(optimizer, config).state_dict().keys() == scheduler.state_dict().keys()


def test_the_initial_lr_of_a_group_that_is_added_is_its_base_lr():
    optimizer = optimizer_of(0.1)
    scheduler = GreedyLR(optimizer, window_size=1, factor=0.5)
    for loss in (3.0, 2.0):
        scheduler.step(loss)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.3, "initial_lr": 0.01})
    assert scheduler.get_last_lr() == [0.2, 0.02]


@pytest.mark.parametrize("first", ["step", "observe", "hold", "take_over", "state_dict", "get_last_lr", "load"])
def test_a_group_that_was_added_is_taken_up_wherever_it_is_met(first):
    optimizer = optimizer_of(0.1, 0.01)
    scheduler = GreedyLR(optimizer, window_size=2, factor=0.8)
    for loss in (3.0, 2.0, 1.0):
        scheduler.step(loss)
    before = lrs_of(optimizer)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "lr": 0.01})
    if first == "load":
        other = GreedyLR(optimizer_of(*scheduler.base_lrs, 0.01), window_size=2, factor=0.8)
        other.load_state_dict(through_json(scheduler.state_dict()))
        assert other.get_last_lr() == scheduler.get_last_lr()
    else:
        getattr(scheduler, first)(*([3.0] if first in ("step", "observe") else []))
    assert lrs_of(optimizer)[2] == pytest.approx(0.01 * lrs_of(optimizer)[0] / before[0])
    assert len(scheduler.base_lrs) == len(scheduler.state_dict()["base_lrs"]) == 3


def test_a_step_between_adding_a_group_and_a_hold():
    optimizer = optimizer_of(0.1)
    scheduler = GreedyLR(optimizer, window_size=50)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.01})
    scheduler.step(3.0)
    assert lrs_of(optimizer) == scheduler.get_last_lr() == [0.1, 0.01]


# ---- state ----


def through_json(state):
    return json.loads(json.dumps(state, allow_nan=False))


@pytest.mark.parametrize("cut", range(0, 60, 3))
@pytest.mark.parametrize("fields", [{}, {"every_n_steps": 4}, {"loss_lag": 1}])
def test_it_continues_where_it_was_saved(cut, fields):
    def make():
        optimizer = optimizer_of(0.1, 0.01)
        return GreedyLR(optimizer, total_steps=60, linear_warmup_steps=5, **fields), optimizer

    (whole, _), (first, optimizer) = make(), make()
    expected = []
    for i, loss in enumerate(losses()):
        whole.step(loss)
        if i < cut:
            first.step(loss)
        else:
            expected.append(whole.get_last_lr())
    (second, other), saved = make(), (through_json(first.state_dict()), optimizer.state_dict())
    other.load_state_dict(saved[1])
    second.load_state_dict(saved[0])
    got = []
    for loss in losses()[cut:]:
        second.step(loss)
        got.append(second.get_last_lr())
    assert got == expected
    assert second.state_dict() == whole.state_dict()


def test_state_loads_with_weights_only():
    scheduler = GreedyLR(optimizer_of(0.1), total_steps=60)
    scheduler.step(1.0)
    buffer = io.BytesIO()
    torch.save(scheduler.state_dict(), buffer)
    buffer.seek(0)
    scheduler.load_state_dict(torch.load(buffer, weights_only=True))


def test_a_decay_begun_by_hand_is_in_the_state():
    scheduler = GreedyLR(optimizer_of(0.1), GreedyConfig())
    for _ in range(3):
        scheduler.step(1.0)
    scheduler.start_decay(10)
    scheduler.step(1.0)
    other = GreedyLR(optimizer_of(0.1), GreedyConfig())
    other.load_state_dict(through_json(scheduler.state_dict()))
    assert other.get_last_lr() == scheduler.get_last_lr() == [pytest.approx(0.09)]


@pytest.mark.parametrize("steps", [16, 150, 700])
def test_the_suggestion_survives_a_resume_in_the_final_decay(steps):
    def make():
        return GreedyLR(optimizer_of(0.1, 0.01), total_steps=steps, window_size=2, factor=0.9)

    rng = random.Random(0)
    losses = [3 - i / steps + rng.gauss(0, 0.1) for i in range(steps)]
    whole, resumed = make(), make()
    for step, loss in enumerate(losses):
        whole.step(loss)
        if step == int(0.8 * steps):
            state = through_json(whole.state_dict())
    resumed.load_state_dict(state)
    assert not resumed.history
    for loss in losses[int(0.8 * steps) + 1 :]:
        resumed.step(loss)
    assert resumed.suggested_lr() == whole.suggested_lr() is not None
    assert through_json(resumed.state_dict()) == through_json(whole.state_dict())


def test_a_run_that_is_resumed_at_its_end_has_made_decisions(caplog):
    scheduler = GreedyLR(optimizer_of(0.1), total_steps=3)
    for _ in range(3):
        scheduler.step(1.0)
    other = GreedyLR(optimizer_of(0.1), total_steps=3)
    other.load_state_dict(through_json(scheduler.state_dict()))
    caplog.clear()
    other.finish()
    assert not caplog.records


def test_the_state_of_another_metric_is_refused():
    state = GreedyLR(optimizer_of(0.1), GreedyConfig()).state_dict()
    other = GreedyLR(optimizer_of(0.1), GreedyConfig(), monitor="eval_loss")
    with pytest.raises(ValueError, match="^the checkpoint's run followed 'loss', this one follows 'eval_loss'"):
        other.load_state_dict(through_json(state))
    for key in ("monitor", "settling"):  # the first states of version 2 had neither
        del state[key]
    other.load_state_dict(state)


@pytest.mark.parametrize("monitor", [None, "", 3, "x" * 1001])
def test_a_monitor_that_no_history_could_have(monitor):
    with pytest.raises(ValueError, match="^monitor=.* is not allowed: it must be a name"):
        GreedyLR(optimizer_of(0.1), monitor=monitor)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("settling", {"count": 1, "scales": [-1.0]}, "settling="),
        ("version", 9, "version=9 is not allowed"),
        ("controller", KeyError, "controller is missing"),
        ("x", 1, "x is unknown"),
        ("last_epoch", 1.5, "last_epoch=1.5 is not allowed"),
        ("pending", {}, "pending={} is not allowed"),
        ("base_lrs", [0.1, 0.2], "it must be a list of 1, one for each parameter group"),
    ],
)
def test_a_faulty_state_is_refused_and_changes_nothing(key, value, says):
    scheduler = GreedyLR(optimizer_of(0.1))
    scheduler.step(1.0)
    before = through_json(scheduler.state_dict())
    state = through_json(before)
    if value is KeyError:
        del state[key]
    else:
        state[key] = value
    with pytest.raises(ValueError) as error:  # noqa: PT011
        scheduler.load_state_dict(state)
    assert says in str(error.value)
    assert scheduler.state_dict() == before


def test_on_resume_config_takes_the_new_base_lr():
    old = GreedyLR(optimizer_of(0.1), window_size=1, factor=0.5)
    for loss in (3.0, 2.0):
        old.step(loss)
    for policy, lr in (("checkpoint", 0.2), ("config", 0.8)):
        new = GreedyLR(optimizer_of(0.4), window_size=1, factor=0.5, on_resume=policy)
        new.load_state_dict(through_json(old.state_dict()))
        assert new.get_last_lr() == [lr]


@pytest.mark.parametrize(("policy", "every"), [("checkpoint", 4), ("config", 1)])
def test_another_every_n_steps(policy, every):
    old = GreedyLR(optimizer_of(0.1), total_steps=100, every_n_steps=4, window_size=2)
    for loss in losses()[:6]:
        old.step(loss)
    new = GreedyLR(optimizer_of(0.1), total_steps=100, window_size=2, on_resume=policy)
    new.load_state_dict(through_json(old.state_dict()))
    made = [i for i, loss in enumerate(losses()[6:30]) if new.step(loss) is not None]
    # two losses were waiting
    assert made == list(range(1, 24, 4) if every == 4 else range(24))
    assert new.controller.horizon == 100 // every


def test_a_controller_for_one_group_keeps_the_optimizers_base_lrs():
    def make():
        return GreedyLR(optimizer_of(1e-3, 1e-2), controller=GreedyController(GreedyConfig(window_size=1)))

    old, new = make(), make()
    for loss in FALLING:
        old.step(loss)
    new.load_state_dict(through_json(old.state_dict()))
    assert new.get_last_lr() == old.get_last_lr()
    assert new.base_lrs == [1e-3, 1e-2]


def test_loading_undoes_a_decay_begun_by_hand():
    scheduler = GreedyLR(optimizer_of(0.1), GreedyConfig())
    state = through_json(scheduler.state_dict())
    scheduler.start_decay(10)
    for _ in range(5):
        scheduler.step()
    scheduler.load_state_dict(state)
    assert scheduler.state_dict() == state
    assert scheduler.get_last_lr() == [0.1]


# ---- with other schedules ----


def schedules(optimizer):
    return {
        "lambda": lambda: LambdaLR(optimizer, lambda t: 1 / (1 + t)),
        "cosine": lambda: CosineAnnealingLR(optimizer, 60, eta_min=1e-3),
        "exponential": lambda: ExponentialLR(optimizer, 0.95),
        "cosine with warmup": lambda: get_cosine_schedule_with_warmup(optimizer, 10, 60),
        "sequential": lambda: SequentialLR(
            optimizer, [ExponentialLR(optimizer, 0.9), CosineAnnealingLR(optimizer, 40)], [20]
        ),
    }


@pytest.mark.parametrize("name", ["lambda", "cosine", "exponential", "cosine with warmup", "sequential"])
def test_multiplies_another_schedule(name):
    optimizer, alone = optimizer_of(0.1, 0.01), optimizer_of(0.1, 0.01)
    base, reference = schedules(optimizer)[name](), schedules(alone)[name]()
    scheduler = GreedyLR(optimizer, base_schedule=base, window_size=2)
    scales = [1.0]
    for loss in losses():
        expected = [lr * scales[-1] for lr in reference.get_last_lr()]
        assert lrs_of(optimizer) == scheduler.get_last_lr() == pytest.approx(expected, rel=1e-12)
        optimizer.step()
        alone.step()
        decision = scheduler.step(loss)
        reference.step()
        scales.append(decision.scales[0] if decision else scales[-1])
    assert len(set(scales)) > 5


def test_no_decision_while_the_other_schedule_first_rises():
    optimizer = optimizer_of(0.1)
    scheduler = GreedyLR(optimizer, base_schedule=get_cosine_schedule_with_warmup(optimizer, 10, 60), window_size=1)
    made = []
    for loss in losses():
        optimizer.step()
        made.append(scheduler.step(loss) is not None)
    assert made == [False] * 11 + [True] * 49


def test_handing_over_lets_the_owner_step_the_schedule_and_taking_over_takes_up_a_skipped_step():
    optimizer, alone = optimizer_of(0.1), optimizer_of(0.1)
    base, reference = ExponentialLR(optimizer, 0.9), ExponentialLR(alone, 0.9)
    scheduler = GreedyLR(optimizer, base_schedule=base, window_size=1, factor=0.5)
    scheduler._decides_from = 0
    for i, loss in enumerate([5.0, 4.0, 3.0, 2.0]):
        optimizer.step()
        scheduler.hand_over()
        scheduler.hand_over()
        if i == 2:
            scheduler.take_over()
            continue
        base.step()
        alone.step()
        reference.step()
        scheduler.step(loss)
    assert lrs_of(optimizer) == pytest.approx([reference.get_last_lr()[0] * scheduler.controller.scales[0]])


def test_multiplying_continues_where_it_was_saved():
    def make():
        optimizer = optimizer_of(0.1)
        base = CosineAnnealingLR(optimizer, 60, eta_min=1e-3)
        return optimizer, base, GreedyLR(optimizer, base_schedule=base, window_size=2)

    _, _, whole = make()
    optimizer, base, first = make()
    for loss in losses()[:30]:
        whole.optimizer.step()
        whole.step(loss)
        optimizer.step()
        first.step(loss)
    state = through_json(first.state_dict()), base.state_dict(), optimizer.state_dict()
    optimizer, base, second = make()
    optimizer.load_state_dict(state[2])
    base.load_state_dict(state[1])
    second.load_state_dict(state[0])
    for loss in losses()[30:]:
        whole.step(loss)
        optimizer.step()
        second.step(loss)
        assert second.get_last_lr() == whole.get_last_lr()


def test_it_stands_in_torchs_combinators():
    optimizer = optimizer_of(0.1)
    chained = ChainedScheduler([GreedyLR(optimizer, GreedyConfig(), total_steps=10, decay_ratio=1.0)], optimizer)
    optimizer.step()
    chained.step()
    assert lrs_of(optimizer) == pytest.approx([0.09])
    optimizer = optimizer_of(0.1)
    sequence = SequentialLR(optimizer, [ExponentialLR(optimizer, 0.5), GreedyLR(optimizer, GreedyConfig())], [2])
    seen = []
    for _ in range(5):
        seen.append(lrs_of(optimizer)[0])
        optimizer.step()
        sequence.step()
    assert seen == pytest.approx([0.1, 0.05, 0.1, 0.1, 0.1])


# ---- what is passed as a controller ----


def test_a_controller_brings_its_config_and_horizon_alone():
    brought = GreedyController(GreedyConfig(window_size=1, factor=0.5), horizon=77)
    for loss in (3.0, 2.0):
        brought.observe(loss)
    scheduler = GreedyLR(optimizer_of(0.1, 0.01), controller=brought)
    assert scheduler.controller is not brought
    assert scheduler.controller.config == brought.config
    assert scheduler.controller.horizon == 77
    assert scheduler.get_last_lr() == [0.1, 0.01]
    assert GreedyLR(optimizer_of(0.1), controller=brought, horizon=5).controller.horizon == 5


# ---- wrong arguments ----


def test_warmup_steps_names_both_meanings():
    with pytest.raises(TypeError, match="linear_warmup_steps is a ramp .* warmup is the number of decisions"):
        GreedyLR(optimizer_of(0.1), warmup_steps=100)


def test_unknown_field():
    with pytest.raises(TypeError, match=r"^patients is not an argument: did you mean patience\?$"):
        GreedyLR(optimizer_of(0.1), patients=3)
    with pytest.raises(TypeError, match="^patience is not a field of SlopeConfig: it has mode, every_n_steps"):
        GreedyLR(optimizer_of(0.1), SlopeConfig(), patience=3)


def test_config_and_controller():
    controller = GreedyController(GreedyConfig())
    for config, fields in ((GreedyConfig(), {}), (None, {"patience": 3})):
        with pytest.raises(ValueError, match="^controller=.* is not allowed: it must be None if a config or its"):
            GreedyLR(optimizer_of(0.1), config, controller=controller, **fields)
    with pytest.raises(TypeError, match="^config=0.5 is not allowed: it must be a ControllerConfig"):
        GreedyLR(optimizer_of(0.1), 0.5)


def test_ramp_with_a_base_schedule():
    optimizer = optimizer_of(0.1)
    with pytest.raises(ValueError, match="linear_warmup_steps=3 is not allowed: it must be 0 with a base_schedule"):
        GreedyLR(optimizer, base_schedule=ExponentialLR(optimizer, 0.9), linear_warmup_steps=3)


@pytest.mark.parametrize("steps", [0, -1])
def test_a_decay_over_nothing(steps):
    with pytest.raises(ValueError, match=f"^steps={steps} is not allowed: it must be at least 1"):
        GreedyLR(optimizer_of(0.1)).start_decay(steps)


def test_a_base_schedule_that_does_not_fit():
    optimizer, other = optimizer_of(0.1), optimizer_of(0.1)
    for schedule in (torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer), ExponentialLR(other, 0.9)):
        with pytest.raises(ValueError, match="it must be a schedule of the same optimizer that steps without a metric"):
            GreedyLR(optimizer, base_schedule=schedule)


def test_not_an_optimizer():
    with pytest.raises(TypeError, match="is not an Optimizer"):
        GreedyLR(torch.nn.Linear(1, 1))


@pytest.mark.parametrize(("field", "value"), [("total_steps", 0), ("decay_ratio", -0.1), ("linear_warmup_steps", -1)])
def test_wrong_values_are_named(field, value):
    with pytest.raises(ValueError, match=rf"^{field}={value!r} is not allowed"):
        GreedyLR(optimizer_of(0.1), **{field: value})


# ---- the package ----


def test_importing_the_package_imports_neither_torch_nor_a_framework():
    import sys

    code = (
        "import sys, greedylr_integrations as g; g.GreedyConfig; g.GreedyController; g.Decision;"
        " print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert run([sys.executable, "-c", code]).stdout.strip() == "[]"


def test_a_missing_framework_names_the_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "greedylr_integrations.transformers", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'greedylr_integrations\[transformers\]'"):
        import greedylr_integrations.transformers  # noqa: F401


def test_the_root_names_what_it_has():
    import greedylr_integrations

    assert set(greedylr_integrations.__all__) <= set(dir(greedylr_integrations))
    with pytest.raises(AttributeError, match="has no attribute 'GreedyLRCallback'"):
        _ = greedylr_integrations.GreedyLRCallback
