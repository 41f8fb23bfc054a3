"""Commands: what each does to the LR, that it survives a resume, and that the control file brings it to all ranks."""

import json
import math
import os

import pytest
import torch
from processes import spawn

from greedylr_integrations import (
    ControllerConfig,
    GreedyConfig,
    GreedyLR,
    OneScaleRule,
    PaperConfig,
    TransformersConfig,
)
from greedylr_integrations import steering as module
from greedylr_integrations.decision import Action, Decision, Reason
from greedylr_integrations.loss import LossMeter

FALLING = [10 - i / 20 for i in range(100)]
RISING = FALLING[::-1]
CONFIGS = {
    "own": GreedyConfig(window_size=1, factor=0.9, pace=0),
    "groups with bounds of their own": GreedyConfig(window_size=1, factor=0.9, pace=0, min_lr=0.001, max_lr=[0.3, 1.0]),
    "paper": PaperConfig(patience=0, factor=0.9, min_lr=0.001, max_lr=1.0),
    "transformers": TransformersConfig(patience=0, factor=0.9, min_lr=0.001, max_lr=1.0),
}


class OwnRule(OneScaleRule):
    """A rule of the user's: up a step if the loss is below the one before, else down a step."""

    def __init__(self, base_lrs, horizon):
        super().__init__(base_lrs)
        self.before = None

    def update(self, loss, slope=None, distance=None):
        before, self.before = self.before, loss
        if before is None:
            return Decision(Action.HOLD, Reason.FILLING, self.scales, loss)
        action = self.move(self.scale / 0.9 if loss < before else self.scale * 0.9)
        return Decision(action, Reason.IMPROVED if loss < before else Reason.WORSENED, self.scales, loss)

    def state_dict(self):
        return {"scale": self.scale, "before": self.before}

    def load_state_dict(self, state):
        self.set_scale(state["scale"])
        self.before = state["before"]


class OwnConfig(ControllerConfig):
    def rule(self, base_lrs, horizon, first_pass=None):
        return OwnRule(base_lrs, horizon)


CONFIGS["own rule"] = OwnConfig()


def optimizer_of(*lrs):
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.ones(2))], "lr": lr} for lr in lrs], lr=0.1)


def scheduler_of(name="own", **kwargs):
    return GreedyLR(optimizer_of(0.1, 0.02), CONFIGS[name], **kwargs)


def train(scheduler, losses):
    return [scheduler.step(loss) for loss in losses]


def lrs_of(scheduler):
    return [group["lr"] for group in scheduler.optimizer.param_groups]


every_rule = pytest.mark.parametrize("name", list(CONFIGS))


# ---- what each command does ----


@every_rule
def test_hold_keeps_the_lr_through_everything(name):
    scheduler = scheduler_of(name)
    train(scheduler, FALLING[:12])
    before = lrs_of(scheduler)
    scheduler.hold()
    decisions = train(scheduler, [*FALLING[12:40], *RISING[:40], math.nan])
    assert lrs_of(scheduler) == before
    assert {decision.action for decision in decisions} == {Action.HOLD}
    assert {decision.reason for decision in decisions} >= {Reason.ORDERED, Reason.NONFINITE}


@every_rule
def test_pin_acts_at_once_and_stays(name):
    scheduler = scheduler_of(name)
    train(scheduler, FALLING[:5])
    scheduler.pin(2.5)
    assert lrs_of(scheduler) == scheduler.get_last_lr() == pytest.approx([0.25, 0.05])
    decisions = train(scheduler, FALLING[5:30] + RISING[:30])
    assert lrs_of(scheduler) == pytest.approx([0.25, 0.05])
    assert {decision.action for decision in decisions} == {Action.HOLD}


@every_rule
def test_cap_lets_it_fall_and_come_back_no_further(name):
    scheduler = scheduler_of(name)
    train(scheduler, FALLING[:12])
    scheduler.cap(1.5)
    assert scheduler.scale == pytest.approx(1.5)
    up = train(scheduler, FALLING[12:20])
    assert {decision.reason for decision in up} == {Reason.ORDERED}
    train(scheduler, RISING[70:100])
    assert scheduler.scale < 1.2
    seen = [decision.scales[0] for decision in train(scheduler, [loss - 9 for loss in FALLING[:60]])]
    assert max(seen) == pytest.approx(1.5)
    assert len(set(seen)) > 3


@every_rule
def test_after_a_release_the_scale_goes_on_from_where_it_is(name):
    scheduler = scheduler_of(name)
    scheduler.pin(2.0)
    train(scheduler, FALLING[:50])
    scheduler.release()
    assert scheduler.scale == pytest.approx(2.0)
    (decision,) = train(scheduler, FALLING[50:51])
    assert decision.action is Action.RAISE
    assert decision.scales[0] == pytest.approx(2.0 / 0.9)


def test_the_configured_bounds_hold_and_a_new_command_takes_the_place_of_the_old():
    scheduler = scheduler_of()
    scheduler.pin(1000.0)
    assert scheduler.scale == 10.0
    scheduler.pin(1e-9)
    assert scheduler.scale == 0.01
    scheduler.cap(5.0)
    train(scheduler, FALLING[:60])
    assert scheduler.scale == 5.0


def test_a_command_beyond_the_bounds_holds_for_a_group_that_is_added():
    config = GreedyConfig(window_size=1, factor=0.9, min_lr=0.0, max_lr=0.5)
    scheduler, other = GreedyLR(optimizer_of(0.1), config), GreedyLR(optimizer_of(0.1, 0.2), config)
    scheduler.pin(1000.0)
    scheduler.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "lr": 0.0001})
    assert scheduler.get_last_lr() == lrs_of(scheduler) == pytest.approx([0.5, 0.02])
    other.load_state_dict(json.loads(json.dumps(scheduler.state_dict())))
    assert other.get_last_lr() == scheduler.get_last_lr()
    assert train(other, FALLING[:3]) == train(scheduler, FALLING[:3])


def test_a_command_in_the_ramp_and_with_a_base_schedule_multiplies():
    scheduler = GreedyLR(optimizer_of(0.1), GreedyConfig(), linear_warmup_steps=4)
    train(scheduler, FALLING[:2])
    scheduler.pin(3.0)
    assert lrs_of(scheduler) == pytest.approx([0.15])
    optimizer = optimizer_of(0.1)
    base = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    scheduler = GreedyLR(optimizer, GreedyConfig(), base_schedule=base)
    for loss in FALLING[:3]:
        optimizer.step()
        scheduler.step(loss)
    scheduler.hand_over()
    scheduler.pin(3.0)  # while the optimizer has the schedule's own LRs
    assert lrs_of(scheduler) == [0.1 * 0.5**3]
    base.step()
    scheduler.step(FALLING[3])
    assert lrs_of(scheduler) == pytest.approx([0.1 * 0.5**4 * 3])


def test_shadow_follows_commands_in_its_records_only():
    scheduler = scheduler_of(shadow=True)
    scheduler.pin(3.0)
    train(scheduler, FALLING[:5])
    assert lrs_of(scheduler) == [0.1, 0.02]
    assert scheduler.history[-1].decision.scales == (3.0, 3.0)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("order", ["cap", "pin"])
def test_a_scale_that_cannot_be(order, value):
    scheduler = scheduler_of()
    with pytest.raises(ValueError, match="^scale=.* is not allowed: it must be (above 0|finite)"):
        getattr(scheduler, order)(value)
    assert scheduler.scale == 1.0
    assert list(scheduler.commands) == []


@every_rule
@pytest.mark.parametrize("order", [("hold",), ("cap", 1.2), ("pin", 0.7), ("release",)])
def test_under_a_command_it_continues_where_it_was_saved(name, order):
    def give(scheduler):
        getattr(scheduler, order[0])(*order[1:])

    whole, first, second = (scheduler_of(name) for _ in range(3))
    for scheduler in (whole, first):
        train(scheduler, FALLING[:10])
        give(scheduler)
        train(scheduler, FALLING[10:20])
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    assert second.get_last_lr() == whole.get_last_lr()
    rest = [*FALLING[20:40], *RISING[:20]]
    assert train(second, rest) == train(whole, rest)
    assert second.state_dict() == whole.state_dict()
    second.release()
    assert second.step(1.0).reason is not Reason.ORDERED


@pytest.mark.parametrize("order", ["hold", ["stop", None], ["cap", None], ["cap", -1], ["decay", 3], 5])
def test_a_faulty_command_in_a_state_is_refused(order):
    scheduler = scheduler_of()
    with pytest.raises(ValueError, match="order=.* is not allowed"):
        scheduler.load_state_dict({**scheduler.state_dict(), "order": order})


# ---- the control file ----


@pytest.fixture
def clock(monkeypatch):
    """Seconds, as the control file sees them."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


class Sender:
    def __init__(self, path, clock):
        self.path, self.clock, self.count = path, clock, 0

    def order(self, order, value=None, identity=None):
        self.count += 1
        self.write(json.dumps({"order": order, "value": value, "id": identity or self.count}))

    def write(self, text):
        self.path.write_text(text)
        os.utime(self.path, ns=(self.count, id(text)))  # as if time had passed
        self.clock.now += 2


@pytest.fixture
def steering(tmp_path, clock):
    return Sender(tmp_path / "control.json", clock)


def test_commands_by_file(steering):
    scheduler = scheduler_of(control_file=steering.path)
    train(scheduler, FALLING[:3])
    assert scheduler.scale > 1
    steering.order("pin", 2.0)
    train(scheduler, FALLING[3:6])
    assert scheduler.scale == 2.0
    steering.order("release")
    train(scheduler, FALLING[6:9])
    assert scheduler.scale > 2.0
    steering.order("decay", 10)
    train(scheduler, FALLING[9:12])
    assert scheduler.envelope_value == pytest.approx(0.8)
    assert list(scheduler.commands) == [(4, "pin", 2.0), (7, "release", None), (10, "decay", 10)]


def test_a_command_that_was_there_before_counts_from_the_first_decision(steering):
    steering.order("pin", 2.0)
    scheduler = scheduler_of(control_file=steering.path)
    assert [decision.scales[0] for decision in train(scheduler, FALLING[:3])] == [2.0] * 3


def test_an_id_does_not_count_twice_not_even_after_a_resume(steering):
    scheduler = scheduler_of(control_file=steering.path)
    steering.order("pin", 2.0, identity="a")
    train(scheduler, FALLING[:3])
    scheduler.release()
    steering.order("pin", 3.0, identity="a")
    train(scheduler, FALLING[3:6])
    assert len(scheduler.commands) == 2
    resumed = scheduler_of(control_file=steering.path)
    resumed.load_state_dict(json.loads(json.dumps(scheduler.state_dict())))
    train(resumed, FALLING[6:9])
    assert list(resumed.commands) == []
    steering.order("pin", 3.0, identity="b")
    train(resumed, FALLING[9:10])
    assert resumed.scale == 3.0


def test_it_is_looked_at_once_a_second_and_read_when_it_has_changed(steering, clock, monkeypatch):
    looks, reads, real = [], [], os.stat
    monkeypatch.setattr(module.os, "stat", lambda path: looks.append(path) or real(path))
    monkeypatch.setattr("builtins.open", lambda *args, _open=open, **kwargs: reads.append(1) or _open(*args, **kwargs))
    file = module.CommandFile(steering.path)
    steering.order("hold")
    looks.clear(), reads.clear()
    for _ in range(100):
        file.poll()
        clock.now += 0.1
    assert len(looks) == pytest.approx(10, abs=1)
    assert len(reads) == 1


MALFORMED = [
    "",
    "{",
    "[]",
    "nonsense",
    '{"order": "cap", "value": 2.0}',
    '{"order": "cap", "value": 2.0, "id": true}',
    '{"order": "cap", "value": "2", "id": 7}',
    '{"order": "cap", "value": null, "id": 7}',
    '{"order": "cap", "value": NaN, "id": 7}',
    '{"order": "cap", "value": 0, "id": 7}',
    '{"order": "hold", "value": 1, "id": 7}',
    '{"order": "decay", "value": 0, "id": 7}',
    '{"order": "decay", "value": 2.5, "id": 7}',
    '{"order": "stop", "id": 7}',
    '{"order": ["hold"], "id": 7}',
    '{"order": "hold", "id": 7, "when": "now"}',
    "[" * 100_000,
    '{"order": "cap", "value": 1' + "0" * 400 + ', "id": 7}',
]


@pytest.mark.parametrize("text", MALFORMED, ids=[text[:60] for text in MALFORMED])
def test_a_file_that_cannot_be_followed_changes_nothing_and_is_said_once(text, steering, clock, warnings_of):
    scheduler, free = scheduler_of(control_file=steering.path), scheduler_of()
    steering.write(text)
    for loss in FALLING[:10]:
        assert scheduler.step(loss) == free.step(loss)
        clock.now += 5
    (message,) = warnings_of()
    assert message.startswith(f"GreedyLR does not follow control_file {steering.path}: ")
    assert "\n" not in message
    steering.order("pin", 2.0)
    scheduler.step(FALLING[10])
    assert scheduler.scale == 2.0


@pytest.mark.parametrize("what", ["bytes", "folder"])
def test_what_is_no_text_file_is_said_once_too(what, steering, clock, warnings_of):
    scheduler = scheduler_of(control_file=steering.path)
    steering.path.mkdir() if what == "folder" else steering.path.write_bytes(b"\xff\xfe\x00")
    for loss in FALLING[:10]:
        scheduler.step(loss)
        clock.now += 5
    assert len(warnings_of()) == 1


def test_with_a_metric(steering):
    scheduler = scheduler_of(control_file=steering.path, monitor="eval_loss")
    scheduler.observe(3.0)
    steering.order("pin", 4.0)
    decision = scheduler.observe(2.0)
    assert decision.scales == (4.0, 4.0)
    assert lrs_of(scheduler) == pytest.approx([0.4, 0.08])


# ---- several ranks ----


def _write(path, order, value, identity):
    with open(path, "w") as file:
        json.dump({"order": order, "value": value, "id": identity}, file)


def _ranks(rank, world, out):
    module.LOOK_EVERY = 0.0
    path, sizes, reduce = f"{out}/control.json", [], torch.distributed.all_reduce
    torch.distributed.all_reduce = lambda tensor, **kwargs: (sizes.append(tensor.numel()), reduce(tensor, **kwargs))[1]
    result = {}
    for lag in (0, 1):
        scheduler = scheduler_of(control_file=path, loss_lag=lag)
        for i in range(12):
            if rank == 0 and i == 5:
                _write(path, "pin", 3.0, f"pin {lag}")
            if rank == 0 and i == 9:
                _write(path, "decay", 4, f"decay {lag}")
            scheduler.step(10.0 - i - rank)
        result[f"lag {lag}"] = ([r.lrs for r in scheduler.history], list(scheduler.commands), sizes.copy())
        sizes.clear()
    scheduler = scheduler_of(control_file=path)
    for i in range(6):
        if rank == 0 and i == 2:
            _write(path, "cap", 0.5, "metric")
        scheduler.observe(10.0 - i - rank)
    result["metric"] = ([r.decision.scales for r in scheduler.history], list(scheduler.commands), sizes.copy())
    result["state"] = scheduler.state_dict()
    assert result["state"]["slope"].pop("rank") == rank
    sizes.clear()
    train(scheduler_of(), FALLING[:5])
    result["without"] = sizes.copy()
    sizes.clear()
    scheduler = scheduler_of(control_file=f"{out}/one.json" if rank == 0 else None)
    for i in range(12):
        if rank == 0 and i == 5:
            _write(f"{out}/one.json", "pin", 3.0, "one")
        scheduler.step(10.0 - i - rank)
    result["on one rank"] = (list(scheduler.commands), sizes.copy())
    result["group"] = _in_a_group(rank, out)
    torch.save(result, f"{out}/{rank}")


def _in_a_group(rank, out):
    last_stage = torch.distributed.new_group([1, 2])  # the ranks with a loss; rank 1 tells the others, so it reads
    meter = LossMeter(process_group=last_stage, source=1)
    path = f"{out}/control-{rank}.json"
    scheduler = GreedyLR(optimizer_of(0.1), window_size=1, meter=meter, control_file=path)
    lrs = []
    for i in range(6):
        if i == 3:
            _write(path, "pin", 1.0 + rank, "x")
        if rank > 0:
            scheduler.step(5.0 - i)
        else:
            scheduler.step()
        lrs.append(scheduler.get_last_lr()[0])
    return lrs, list(scheduler.commands)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks")
    spawn(_ranks, 3, out)
    return [torch.load(out / str(rank), weights_only=False) for rank in range(3)]


def test_ranks_follow_in_the_same_step_by_the_collective_that_there_is(ranks):
    assert ranks == [ranks[0]] * 3
    first = ranks[0]
    lrs, commands, sizes = first["lag 0"]
    assert commands == [(6, "pin", 3.0), (10, "decay", 4)]
    assert [lr[0] for lr in lrs[5:]] == pytest.approx([0.3] * 5 + [0.225, 0.15])
    # at the start, three numbers to compare the ranks; then one collective a decision, always of as many numbers
    assert sizes == [3] + [10] * 12
    _, commands, sizes = first["lag 1"]
    # the command that was there already comes with the second reading, the others one step later than without a lag
    assert commands == [(2, "decay", 4), (7, "pin", 3.0), (11, "decay", 4)]
    assert sizes == [3] + [10] * 12
    scales, commands, sizes = first["metric"]
    assert commands[-1] == (0, "cap", 0.5)
    assert scales[2:] == [(0.5, 0.5)] * 4
    assert sizes == [3] + [4] * 6
    assert first["without"] == [3] + [10] * 5
    assert first["on one rank"] == ([(6, "pin", 3.0)], [3] + [10] * 12)


def test_in_a_process_group_its_source_reads_the_file(ranks):
    lrs, commands = ranks[0]["group"]
    assert commands == [(4, "pin", 2.0)]
    assert lrs[3:] == pytest.approx([0.2] * 3)


# ---- a decision that was changed says so ----


def test_a_reason_of_its_own_only_if_a_command_made_a_difference():
    capped, free = scheduler_of(), scheduler_of()
    capped.cap(9.0)
    assert train(capped, FALLING[:10]) == train(free, FALLING[:10])
    decision = Decision(Action.HOLD, Reason.ORDERED, (9.0, 9.0), 1.0)
    assert train(capped, FALLING[10:60])[-1][:3] == decision[:3]
