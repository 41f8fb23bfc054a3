"""Anything that a run may bring, in any order: the LR stays within its bounds, and a resume changes nothing.

GREEDYLR_FUZZ=50 tries 50 times as many.
"""

import json
import math

import pytest

pytest.importorskip("hypothesis")
import torch
from damage import fuzzed
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from greedylr_integrations import (
    GreedyConfig,
    GreedyController,
    GreedyLR,
    PaperConfig,
    SlopeConfig,
    SpikeError,
    TransformersConfig,
)
from greedylr_integrations.decision import Action, Reason

ordinary = st.floats(0.1, 10)
outliers = st.builds(lambda value, power: value * 10.0**power, ordinary, st.integers(2, 8))
extremes = st.sampled_from([math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324, 0.0, -0.0, -3.0])
losses = ordinary | ordinary | ordinary | outliers | extremes
distances = st.none() | st.floats(0, 2) | st.sampled_from([math.nan, 0.0, 1e308])
slopes = st.none() | st.floats(-1, 1) | st.sampled_from([math.nan, -1.0, 1.0, 0.0])
horizons = st.none() | st.integers(1, 400)
bounded = {"min_lr": st.sampled_from([0.0, 1e-12, 1e-5]), "max_lr": st.sampled_from([0.5, 1e6])}


@st.composite
def configs(draw, guarded=False):
    kind = draw(st.sampled_from([GreedyConfig, SlopeConfig, PaperConfig, TransformersConfig]))
    fields = {name: draw(values) for name, values in bounded.items()}
    if kind is not SlopeConfig:
        fields["factor"] = draw(st.floats(0.05, 0.999))
        fields["patience"] = draw(st.integers(0, 2))
        fields["window_size"] = draw(st.integers(1, 15))
    if kind is GreedyConfig:
        fields["pace"] = draw(st.sampled_from([0, 1, 2]))
        fields["threshold_mode"] = draw(st.sampled_from(["se", "rel", "abs"]))
        fields["reset_start"] = draw(st.none() | st.integers(1, 20))
    elif kind is not SlopeConfig:
        fields["smooth"] = draw(st.booleans())
        fields["reset_start"] = draw(st.integers(1, 20))
    if guarded:
        fields["on_spike"] = draw(st.sampled_from([None, "hold", "reduce", "rollback"]))
    policies = ["hold", "reduce", *(["rollback"] if guarded else [])]
    return kind(**fields, on_nonfinite=draw(st.sampled_from(policies)))


def through_json(state):
    return json.loads(json.dumps(state, allow_nan=False))


def same(first, second):
    return str(first) == str(second)  # NaN is itself here


BASES = (0.1, 0.02)


def check(decision, before, config, bases=BASES):
    """What holds for every decision."""
    assert len(decision.scales) == len(bases)
    for base, scale in zip(bases, decision.scales, strict=True):
        assert 0 <= scale < math.inf
        assert config.min_lr * (1 - 1e-12) <= base * scale <= config.max_lr * (1 + 1e-12)
    rises = [now > then for now, then in zip(decision.scales, before, strict=True)]
    falls = [now < then for now, then in zip(decision.scales, before, strict=True)]
    assert any(rises) == (decision.action is Action.RAISE)
    assert any(falls) == (decision.action is Action.LOWER)
    if not math.isfinite(decision.loss):
        assert decision.reason in (Reason.NONFINITE, Reason.ROLLED_BACK)


@fuzzed(60)
@given(
    configs(guarded=True),
    st.none() | st.integers(1, 400),
    st.lists(st.tuples(losses, slopes, distances), max_size=120),
    st.integers(0, 120),
)
def test_a_controller_stays_within_its_bounds_and_resumes_exactly(config, horizon, observations, cut):
    controller, other = (GreedyController(config, BASES, horizon) for _ in range(2))
    for i, observation in enumerate(observations):
        if i == cut:
            other.load_state_dict(through_json(controller.state_dict()))
        before = controller.scales
        try:
            decision = controller.observe(*observation)
        except FloatingPointError:
            assert config.on_nonfinite == "reduce"
            return
        except SpikeError:
            assert config.rolls_back
            return
        check(decision, before, config)
        assert controller.scales == decision.scales
        if i >= cut:
            assert same(other.observe(*observation), decision)
    assert isinstance(controller.wants_slope, bool)
    through_json(controller.state_dict())


# ---- a whole schedule ----


class Run(RuleBasedStateMachine):
    """Steps, commands, groups and resumes in any order, beside a run that is saved and loaded again and again."""

    @initialize(
        config=configs(),
        total=st.none() | st.integers(1, 120),
        ramp=st.integers(0, 5),
        lag=st.integers(0, 1),
        every=st.integers(1, 3),
    )
    def start(self, config, total, ramp, lag, every):
        self.config = config
        self.options = {"total_steps": total, "linear_warmup_steps": ramp, "loss_lag": lag, "every_n_steps": every}
        self.dead = False
        self.added = []
        self.whole, self.cut = self.make(), self.make()

    def make(self):
        groups = [(lr, 3) for lr in BASES] + self.added
        parameters = [torch.nn.Parameter(torch.full((size,), 2.0)) for _, size in groups]
        optimizer = torch.optim.SGD([{"params": [p], "lr": lr} for p, (lr, _) in zip(parameters, groups, strict=True)])
        return GreedyLR(optimizer, self.config, **self.options)

    def both(self, act):
        results = []
        for scheduler in (self.whole, self.cut):
            try:
                results.append(act(scheduler))
            except FloatingPointError:
                self.dead = True
                results.append("dead")
        assert same(*results)
        return results[0]

    @staticmethod
    def train(scheduler, loss, factor):
        optimizer = scheduler.optimizer
        before = scheduler.controller.scales
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if factor is None:
                    parameter.grad = None
                else:
                    parameter.grad = (parameter.detach() - 1.0) * factor
        optimizer.step()
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.detach().nan_to_num_(1.0).clamp_(-3, 3)
        return before, scheduler.step(loss)

    @precondition(lambda self: not self.dead)
    @rule(loss=st.none() | losses, factor=st.none() | st.sampled_from([1.0, -1.0, 0.0, 1e30, math.nan]))
    def step(self, loss, factor):
        result = self.both(lambda scheduler: self.train(scheduler, loss, factor))
        if not self.dead and result[1] is not None and not self.steered():
            before, decision = result
            if type(self.whole.controller.config) is type(self.config):
                check(decision, before, self.config, self.whole.base_lrs)

    def steered(self):
        return self.whole.state_dict()["order"] is not None or bool(self.added)

    @precondition(lambda self: not self.dead)
    @rule(loss=losses)
    def observe(self, loss):
        self.both(lambda scheduler: scheduler.observe(loss))

    @precondition(lambda self: not self.dead)
    @rule(steps=st.integers(1, 3))
    def advance(self, steps):
        def advance(scheduler):
            for _ in range(steps):
                scheduler.optimizer.zero_grad()
                scheduler.optimizer.step()
                scheduler.advance()

        self.both(advance)

    @rule(name=st.sampled_from(["hold", "release"]))
    def order(self, name):
        self.both(lambda scheduler: getattr(scheduler, name)())

    @rule(name=st.sampled_from(["cap", "pin"]), value=st.sampled_from([1e-9, 0.3, 1.0, 2.5, 1e9]))
    def order_scale(self, name, value):
        self.both(lambda scheduler: getattr(scheduler, name)(value))

    @rule(steps=st.integers(1, 20))
    def start_decay(self, steps):
        self.both(lambda scheduler: scheduler.start_decay(steps))

    @rule()
    def skip_step(self):
        self.both(lambda scheduler: scheduler.skip_step())

    @precondition(lambda self: len(self.added) < 2)
    @rule(lr=st.sampled_from([0.0, 1e-4, 0.05]))
    def add_group(self, lr):
        def add(scheduler):
            parameter = torch.nn.Parameter(torch.full((3,), 2.0))
            scheduler.optimizer.add_param_group({"params": [parameter], "lr": lr})
            return scheduler.get_last_lr()

        try:
            self.both(add)
        except ValueError as error:  # bounds that cannot hold for its base LR
            assert "is above upper bound" in str(error)
            self.dead = True
        self.added.append((lr, 3))

    @precondition(lambda self: not self.dead)
    @rule()
    def save_and_resume(self):
        state, optimizer = self.cut.state_dict(), self.cut.optimizer.state_dict()
        slope = state.pop("slope")
        state = {**through_json(state), "slope": slope}
        resumed = self.make()
        resumed.optimizer.load_state_dict(optimizer)
        for ours, theirs in zip(resumed.optimizer.param_groups, self.cut.optimizer.param_groups, strict=True):
            for to, source in zip(ours["params"], theirs["params"], strict=True):
                to.data.copy_(source.data)
        resumed.load_state_dict(state)
        self.cut = resumed

    @invariant()
    def lrs_are_equal_finite_and_not_negative(self):
        if not hasattr(self, "whole") or self.dead:
            return
        lrs = self.whole.get_last_lr()
        assert lrs == self.cut.get_last_lr()
        assert lrs == [float(group["lr"]) for group in self.whole.optimizer.param_groups]
        assert all(0 <= lr < math.inf for lr in lrs)


TestRun = Run.TestCase
TestRun.settings = settings(fuzzed(30), stateful_step_count=40)
