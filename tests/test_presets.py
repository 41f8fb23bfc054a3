"""The presets against their sources: transformers' class, and the paper's pseudocode written down again here."""

import dataclasses
import inspect
import json
import random
from fractions import Fraction

import pytest
import torch

from greedylr_integrations import GreedyController, PaperConfig, TransformersConfig
from greedylr_integrations.decision import Action, Reason

SEQUENCES = pytest.mark.parametrize("sequences", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])


def random_case(rng, modes=("min", "max")):
    groups = rng.choice([1, 1, 2, 3])
    lrs = [10 ** rng.uniform(-9, 1) for _ in range(groups)]
    low, high = sorted(10 ** rng.uniform(-9, 1) for _ in range(2))
    each = rng.random() < 0.3
    fields = {
        "mode": rng.choice(modes),
        "factor": rng.uniform(0.3, 0.999),
        "patience": rng.choice([0, 0, 1, 2, 5]),
        "threshold": rng.choice([0.0, 1e-6, 1e-2, 0.3]),
        "threshold_mode": rng.choice(["rel", "abs"]),
        "cooldown": rng.choice([0, 0, 1, 4]),
        "warmup": rng.choice([0, 0, 1, 4]),
        "min_lr": [low * rng.uniform(0.1, 1) for _ in lrs] if each else low,
        "max_lr": [high * rng.uniform(1, 10) for _ in lrs] if each else high,
        "eps": rng.choice([0.0, 1e-8, 1e-5]),
        "smooth": rng.random() < 0.5,
        "window_size": rng.choice([1, 2, 3, 10]),
        "reset_start": rng.choice([1, 2, 5, 30]),
    }
    level, slope, noise = 10 ** rng.uniform(-3, 3), rng.uniform(-0.05, 0.05), rng.choice([0, 1e-3, 0.1, 1])
    losses, sign = [], rng.choice([1, 1, -1])
    for _ in range(rng.randrange(1, 80)):
        level *= 1 + slope
        losses.append(sign * level * (1 + noise * rng.gauss(0, 1)))
        if rng.random() < 0.2:
            losses.append(losses[-1])  # ties
    return lrs, fields, losses


def optimizer_of(lrs):
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs], lr=1.0)


@SEQUENCES
def test_transformers_gives_the_lrs_of_transformers(sequences):
    source = pytest.importorskip("transformers.optimization")
    if not hasattr(source, "GreedyLR"):
        pytest.skip("this transformers has no GreedyLR")
    rng = random.Random(0)
    moves = 0
    for _ in range(sequences):
        lrs, fields, losses = random_case(rng)
        theirs = source.GreedyLR(optimizer_of(lrs), **fields)
        ours = GreedyController(TransformersConfig(**fields), lrs)
        for loss in losses:
            theirs.step(loss)
            decision = ours.observe(loss)
            moves += decision.action is not Action.HOLD
            got = [lr * scale for lr, scale in zip(lrs, decision.scales, strict=True)]
            assert got == pytest.approx(theirs.get_last_lr(), rel=1e-9, abs=0), (lrs, fields, losses)
    assert moves > sequences  # the cases do move the LR


class PaperPseudocode:
    """Algorithms 2 and 3 of arXiv 2512.14527, step by step."""

    def __init__(self, lrs, *, mode, factor, patience, threshold, threshold_mode, cooldown, warmup, min_lr, max_lr):
        self.lrs, self.mode, self.factor, self.patience = list(lrs), mode, factor, patience
        self.threshold, self.threshold_mode = threshold, threshold_mode
        self.cooldown, self.warmup = cooldown, warmup
        self.min_lr = min_lr if isinstance(min_lr, list) else [min_lr] * len(lrs)
        self.max_lr = max_lr if isinstance(max_lr, list) else [max_lr] * len(lrs)

    def start(self, smooth, window_size, eps, reset_start):
        self.smooth, self.window_size, self.eps = smooth, window_size, eps
        self.reset_start = self.reset_start_original = reset_start
        self.window = []
        self.reset()

    def reset(self):
        self.best = float("inf") if self.mode == "min" else float("-inf")
        self.num_bad = self.num_good = self.cooldown_counter = self.warmup_counter = 0

    def is_better(self, current):
        if self.best in (float("inf"), float("-inf")):
            return True
        sign = 1 if self.mode == "min" else -1
        bar = self.best * (1 - sign * self.threshold)
        if self.threshold_mode == "abs":
            bar = self.best - sign * self.threshold
        return current < bar if self.mode == "min" else current > bar

    def step(self, metric):
        current = metric
        if self.smooth:
            self.window = [*self.window, metric][-self.window_size :]
            current = float(sum(map(Fraction, self.window)) / len(self.window))
        if self.is_better(current):
            self.best, self.num_bad, self.num_good = current, 0, self.num_good + 1
        else:
            self.num_bad, self.num_good = self.num_bad + 1, 0
        if self.cooldown_counter > 0:
            self.cooldown_counter, self.num_bad = self.cooldown_counter - 1, 0
        if self.warmup_counter > 0:
            self.warmup_counter, self.num_good = self.warmup_counter - 1, 0
        if self.num_bad > self.patience:
            self.set([max(lr * self.factor, low) for lr, low in zip(self.lrs, self.min_lr, strict=True)], -1)
            self.cooldown_counter, self.num_bad = self.cooldown, 0
        if self.num_good > self.patience:
            self.set([min(lr / self.factor, high) for lr, high in zip(self.lrs, self.max_lr, strict=True)], 1)
            self.warmup_counter, self.num_good = self.warmup, 0
        if self.reset_start == 0:
            self.reset()
            self.reset_start = self.reset_start_original
        if all(lr == self.lrs[0] for lr in self.lrs):
            self.reset_start -= 1

    def set(self, new, sign):
        self.lrs = [b if sign * (b - a) > self.eps else a for a, b in zip(self.lrs, new, strict=True)]


@SEQUENCES
def test_paper_gives_the_lrs_of_the_pseudocode(sequences):
    rng = random.Random(1)
    moves = 0
    for _ in range(sequences):
        lrs, fields, losses = random_case(rng)
        if rng.random() < 0.5:
            lrs = lrs[:1] * len(lrs)  # so that the reset counts down
        later = {name: fields[name] for name in ("smooth", "window_size", "eps", "reset_start")}
        source = PaperPseudocode(lrs, **{name: value for name, value in fields.items() if name not in later})
        source.start(**later)
        ours = GreedyController(PaperConfig(**fields), lrs)
        for loss in losses:
            source.step(loss)
            decision = ours.observe(loss)
            moves += decision.action is not Action.HOLD
            got = [lr * scale for lr, scale in zip(lrs, decision.scales, strict=True)]
            assert got == pytest.approx(source.lrs, rel=1e-9, abs=0), (lrs, fields, losses)
    assert moves > sequences


def test_paper_is_relative_and_transformers_absolute_by_default():
    assert PaperConfig().threshold_mode == "rel"
    assert TransformersConfig().threshold_mode == "abs"


@pytest.mark.parametrize("preset", [PaperConfig, TransformersConfig])
def test_state_goes_through_json_and_continues_identically(preset):
    rng = random.Random(2)
    for _ in range(300):
        lrs, fields, losses = random_case(rng)
        fields["reset_start"] = 3
        ours = GreedyController(preset(**fields), lrs)
        cut = rng.randrange(len(losses))
        for loss in losses[:cut]:
            ours.observe(loss)
        other = GreedyController(preset(**fields), lrs)
        other.load_state_dict(json.loads(json.dumps(ours.state_dict(), allow_nan=False)))
        for loss in losses[cut:]:
            assert other.observe(loss) == ours.observe(loss)


@pytest.mark.parametrize("preset", [PaperConfig, TransformersConfig])
def test_nan_does_not_poison(preset):
    ours = GreedyController(preset(patience=0, min_lr=1e-3, max_lr=1.0, smooth=True, window_size=3), [0.1])
    for i in range(10):
        ours.observe(10.0 - i)
    before = ours.observe(0.0).scales[0]
    assert ours.observe(float("nan")).reason is Reason.NONFINITE
    assert all(ours.observe(-1.0 - i).action is Action.RAISE for i in range(5))
    assert ours.scales[0] > before


@pytest.mark.parametrize("preset", [PaperConfig, TransformersConfig])
def test_a_mean_that_overflows_does_not_poison(preset):
    ours = GreedyController(preset(patience=0, min_lr=1e-3, max_lr=1.0, smooth=True, window_size=2), [0.1])
    reasons = [ours.observe(loss).reason for loss in (-1e308, -1e308, -1e308, 3.0, 2.0, 1.0)]
    assert Reason.NONFINITE in reasons[1:3]
    assert reasons[-1] is not Reason.NONFINITE
    json.dumps(ours.state_dict(), allow_nan=False)


@pytest.mark.parametrize("preset", [PaperConfig, TransformersConfig])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[
            ("factor", 0),
            ("factor", 1e-320),
            ("factor", -0.5),
            ("factor", 1.0),
            ("patience", -1),
            ("window_size", 0),
            ("eps", -1),
        ],
        *[("threshold", -1.0), ("min_lr", -1e-3), ("mode", "down"), ("threshold_mode", "se"), ("reset_start", 0)],
    ],
)
def test_wrong_values_are_named(preset, field, value):
    with pytest.raises(ValueError, match=rf"^{field}={value!r} is not allowed: it must be "):
        preset(**{field: value})


def test_the_defaults_are_those_of_transformers():
    source = pytest.importorskip("transformers.optimization")
    if not hasattr(source, "GreedyLR"):
        pytest.skip("this transformers has no GreedyLR")
    theirs = {name: each.default for name, each in inspect.signature(source.GreedyLR.__init__).parameters.items()}
    ours = dataclasses.asdict(TransformersConfig())
    shared = theirs.keys() & ours.keys() - {"mode"}
    assert {"patience", "threshold", "window_size", "reset_start", "min_lr", "max_lr", "eps"} <= shared
    expected = {name: tuple(value) if isinstance(value, list) else value for name, value in theirs.items()}
    assert {name: ours[name] for name in shared} == {name: expected[name] for name in shared}


@pytest.mark.parametrize("preset", [PaperConfig, TransformersConfig])
def test_at_a_bound_nothing_moves_and_the_bound_is_the_reason(preset):
    controller = GreedyController(preset(patience=0, min_lr=0.1, max_lr=0.1, threshold_mode="abs"), (0.1,))
    decisions = [controller.observe(loss) for loss in (3.0, 2.0, 4.0)]
    assert {decision.action for decision in decisions} == {Action.HOLD}
    assert [decision.reason for decision in decisions[1:]] == [Reason.CEILING, Reason.FLOOR]


@pytest.mark.parametrize(("min_lr", "scales"), [(0.0, (0.5, 0.5, 0.5)), ((0.0, 0.08, 0.0), (0.5, 0.8, 1.0))])
def test_an_added_group_has_the_scale_of_the_others_if_they_share_one(min_lr, scales):
    rule = PaperConfig(factor=0.5, min_lr=0.0 if min_lr == 0.0 else min_lr[:2]).rule((0.1, 0.1), None)
    rule.lower()
    rule._config = PaperConfig(factor=0.5, min_lr=min_lr)  # bounds for the group that comes
    rule.add_group(0.02)
    assert rule.scales == pytest.approx(scales)


def test_a_frozen_group_has_scale_1():
    assert PaperConfig(min_lr=0.0).rule((0.0, 0.1), None).scales == (1.0, 1.0)


def test_a_relative_threshold_of_1_is_refused():
    with pytest.raises(ValueError, match="threshold=1"):
        PaperConfig(threshold=1.0, threshold_mode="rel")
    PaperConfig(threshold=1.0, threshold_mode="abs")
