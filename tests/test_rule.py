"""A rule of a user's own in 20 lines, and what `OneScaleRule` gives it."""

import json
from dataclasses import dataclass

import pytest
import torch

from greedylr_integrations import ControllerConfig, Decision, GreedyController, GreedyLR, OneScaleRule, Reason, Rule
from greedylr_integrations.checks import check_state, is_finite, is_none_or
from greedylr_integrations.decision import Action
from greedylr_integrations.rule import LARGEST, SMALLEST, is_scale, moved


@dataclass(frozen=True, kw_only=True)
class BoldConfig(ControllerConfig):
    """The bold driver: 5% up if the loss fell, half if it rose."""

    up: float = 1.05

    def rule(self, base_lrs, horizon, first_pass=None):
        return BoldDriver(self, base_lrs)


class BoldDriver(OneScaleRule):
    def __init__(self, config, base_lrs):
        super().__init__(base_lrs)
        self.up, self.before = config.up, None

    def update(self, loss, slope=None, distance=None):
        fell, self.before = self.before is None or loss < self.before, loss
        action = self.move(self.scale * (self.up if fell else 0.5))
        return Decision(action, Reason.IMPROVED if fell else Reason.WORSENED, self.scales, loss)

    def state_dict(self):
        return {**super().state_dict(), "before": self.before}

    def load_state_dict(self, state):
        check_state(state, {"scale": is_scale, "before": is_none_or(is_finite)}, "bold driver")
        self.set_scale(state["scale"])
        self.before = state["before"]


def scheduler_of(**kwargs):
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    groups = [{"params": [p], "lr": lr} for p, lr in zip(parameters, (0.1, 0.01), strict=True)]
    return GreedyLR(torch.optim.SGD(groups), BoldConfig(), **kwargs)


def test_it_drives_a_scheduler():
    scheduler = scheduler_of(linear_warmup_steps=1)
    actions = [scheduler.step(loss) for loss in (9.0, 3.0, 2.0, 4.0)]
    assert actions[0] is None  # the ramp
    assert [decision.action for decision in actions[1:]] == [Action.RAISE, Action.RAISE, Action.LOWER]
    assert scheduler.get_last_lr() == pytest.approx([0.1 * 1.05**2 / 2, 0.01 * 1.05**2 / 2])


def test_it_follows_commands_and_survives_a_nan_and_a_resume():
    scheduler, other = scheduler_of(), scheduler_of()
    scheduler.step(3.0)
    scheduler.cap(1.0)
    assert scheduler.step(2.0).reason is Reason.ORDERED
    assert scheduler.step(float("nan")).scales == (0.5, 0.5)
    other.load_state_dict(json.loads(json.dumps(scheduler.state_dict())))
    for loss in (1.0, 5.0, 4.0):
        assert other.step(loss) == scheduler.step(loss)


def test_its_fields_are_fields_of_the_scheduler():
    parameter = torch.nn.Parameter(torch.ones(2))
    scheduler = GreedyLR(torch.optim.SGD([parameter], lr=0.1), BoldConfig(), up=2.0)
    scheduler.step(1.0)
    assert scheduler.get_last_lr() == [0.2]
    with pytest.raises(TypeError, match="^patience is not a field of BoldConfig: it has mode, .*, up"):
        GreedyLR(torch.optim.SGD([parameter], lr=0.1), BoldConfig(), patience=2)


def test_a_faulty_state_of_it_changes_nothing():
    controller = GreedyController(BoldConfig())
    controller.observe(1.0)
    before = controller.state_dict()
    with pytest.raises(ValueError, match="bold driver state does not load, nothing was changed: before='x' is not"):
        controller.load_state_dict({**before, "rule": {"scale": 1.0, "before": "x"}})
    assert controller.state_dict() == before


def test_a_rule_must_have_an_update():
    with pytest.raises(TypeError, match="abstract"):
        OneScaleRule([1.0])
    with pytest.raises(TypeError, match="abstract"):
        Rule()


# ---- one scale for all ----


class Still(OneScaleRule):
    def update(self, loss, slope=None, distance=None):
        raise NotImplementedError


def bounded(lows, highs):
    return Still([1.0] * len(lows), lambda base_lrs: (list(lows), list(highs)))


def test_each_group_is_cut_to_its_own_bounds_and_finds_the_ratio_again():
    rule = bounded([0.5, 0.1], [2.0, 8.0])
    seen = []
    for scale in (1.0, 4.0, 100.0, 0.2, 0.001, 1.0):
        rule.set_scale(scale)
        seen.append((rule.scale, rule.scales))
    assert seen == [
        (1.0, (1.0, 1.0)),
        (4.0, (2.0, 4.0)),
        (8.0, (2.0, 8.0)),
        (0.2, (0.5, 0.2)),
        (0.1, (0.5, 0.1)),
        (1.0, (1.0, 1.0)),
    ]


def test_a_move_that_moves_nothing_is_a_hold():
    rule = bounded([0.5], [2.0])
    assert [rule.move(scale) for scale in (3.0, 4.0, 1.0, 1.0, 0.1, 0.05)] == [
        *(Action.RAISE, Action.HOLD, Action.LOWER, Action.HOLD, Action.LOWER, Action.HOLD)
    ]


def test_without_bounds_there_is_a_way_back_from_both_ends():
    rule = Still([1.0])
    for scale, end in ((0.0, SMALLEST), (float("inf"), LARGEST)):
        rule.set_scale(scale)
        assert rule.scales == (end,)
    rule.position = 3.0
    assert rule.position == rule.scale == 3.0
    rule.clamp(0.0, 2.0)
    assert rule.scale == 2.0
    rule.lower()
    assert rule.scale == 1.0


def test_a_minimum_of_zero_does_not_freeze_the_lr():
    rule = bounded([0.0], [10.0])
    for _ in range(2000):
        rule.move(rule.scale / 2)
    assert rule.scale == SMALLEST
    for _ in range(200):
        rule.move(rule.scale * 2)
    assert rule.scale == 10.0


def test_moved():
    assert moved((1.0, 1.0), (1.0, 1.0)) is Action.HOLD
    assert moved((1.0, 1.0), (1.0, 2.0)) is Action.RAISE
    assert moved((1.0, 1.0), (1.0, 0.5)) is Action.LOWER


@pytest.mark.parametrize(("scale", "allowed"), [(0, True), (0.0, True), (1e30, True), (-1e-9, False), (1.1e30, False)])
def test_what_a_state_may_have_for_a_scale(scale, allowed):
    assert is_scale(scale) is allowed
