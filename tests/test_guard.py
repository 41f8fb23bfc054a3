"""Loss spikes: what is one, and what is done about it by the controller."""

import json
import math
import random

import pytest
import torch

from greedylr_integrations import GreedyConfig, GreedyController, GreedyLR, PaperConfig, SlopeConfig, history
from greedylr_integrations.decision import Action, Reason
from greedylr_integrations.guard import APART, MOST_ROLLBACKS, SOON, SpikeError
from greedylr_integrations.spikes import FEWEST, NEWEST, REMEMBERED, SpikeDetector


def noisy(count, seed=0, level=3.0, noise=0.1):
    rng = random.Random(seed)
    return [rng.gauss(level, noise) for _ in range(count)]


# ---- what a spike is ----


DISTRIBUTIONS = {
    "normal": lambda rng: rng.gauss(3, 0.3),
    "mean of eight squares": lambda rng: sum(rng.gauss(0, 1) ** 2 for _ in range(8)) / 8,
    "exponential": lambda rng: rng.expovariate(1),
    "lognormal": lambda rng: rng.lognormvariate(0, 0.5),
    "two heavy tails": lambda rng: (
        3 + 0.1 * rng.gauss(0, 1) / max(0.05, sum(rng.gauss(0, 1) ** 2 for _ in range(3)) / 3) ** 0.5
    ),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_loss_that_stays_as_it_is_has_not_risen(name):
    rng, detector = random.Random(0), SpikeDetector()
    for _ in range(20_000):
        detector.is_spike(DISTRIBUTIONS[name](rng))
        assert not detector.has_risen


def test_noise_and_a_falling_loss_are_no_spikes():
    rng = random.Random(0)
    detector = SpikeDetector()
    for step in range(20_000):
        assert not detector.is_spike(2 + 8 / (1 + step / 50) + rng.gauss(0, 0.3))


@pytest.mark.parametrize("larger_is_better", [False, True])
def test_a_loss_far_above_the_others_is_a_spike(larger_is_better):
    sign = -1 if larger_is_better else 1
    detector = SpikeDetector(larger_is_better)
    for loss in noisy(REMEMBERED + NEWEST):
        assert not detector.is_spike(sign * loss)
    assert detector.limit == pytest.approx(sign * (3 + 8 * 0.1), abs=0.25)
    assert not detector.is_spike(sign * 3.3)
    assert [detector.is_spike(sign * 6), detector.is_spike(sign * 6)] == [True, True]
    assert detector.in_a_row == 2
    assert not detector.is_spike(sign * -100.0)
    assert detector.in_a_row == 0


def test_a_few_losses_are_not_enough():
    detector = SpikeDetector()
    for loss in noisy(FEWEST + NEWEST - 1):
        detector.is_spike(loss)
    assert detector.limit is None
    assert not detector.is_spike(1e9)


@pytest.mark.parametrize("outlier", [1e2, 1e4, 1e8, 1e300])
@pytest.mark.parametrize("at", range(FEWEST))
def test_one_early_outlier_hides_no_spike(outlier, at):
    detector = SpikeDetector()
    for i, loss in enumerate(noisy(FEWEST + NEWEST + 4)):
        detector.is_spike(outlier if i == at else loss)
    assert detector.is_spike(6.0)


@pytest.mark.parametrize("level", [0.0, 1e-300, 5.0, -5.0, 1.7e308, -1.7e308])
def test_constant_losses_at_any_level(level):
    detector = SpikeDetector()
    assert not any(detector.is_spike(level) for _ in range(200))


@pytest.mark.parametrize("rise", [0.5, 1.2])
def test_a_rise_within_the_noise_of_single_losses_shows_in_their_mean(rise):
    calm, risen = noisy(500, noise=0.2), noisy(8, 1, level=3 + rise, noise=0.2)
    detector = SpikeDetector()
    for loss in calm:
        assert not detector.is_spike(loss)
        assert not detector.has_risen
    seen = []
    for loss in risen:
        detector.is_spike(loss)
        seen.append(detector.has_risen)
    assert seen[-1] is (rise == 1.2)  # 10 standard errors are about 0.7, 8 standard deviations 1.6


@pytest.mark.parametrize(
    ("newest", "older", "risen"),
    [
        ([3.27] * NEWEST, 500, True),  # about 7.5 standard errors
        ([3.0, 3.54] * (NEWEST // 2), 500, False),  # the same mean, but four are not above the others
        ([3.27] * NEWEST, REMEMBERED - 2, False),  # too few to compare with
        ([3.13] * NEWEST, 500, False),  # not far above
        ([3.45] * NEWEST, REMEMBERED - 2, True),  # 12 standard errors
    ],
)
def test_eight_losses_above_all_others_need_not_be_so_far_above(newest, older, risen):
    detector = SpikeDetector()
    for loss in [*noisy(older), *newest]:
        assert not detector.has_risen
        assert not detector.is_spike(loss)
    assert detector.has_risen is risen


def test_a_step_up_from_constant_losses_has_risen():
    detector = SpikeDetector()
    for loss in [3.0] * 100 + [3.008] * NEWEST:  # 7.5 of the least standard errors
        detector.is_spike(loss)
    assert detector.has_risen


@pytest.mark.parametrize("correlation", [0.3, 0.5])
def test_a_wave_of_correlated_losses_has_not_risen(correlation):
    rng, detector, wave = random.Random(0), SpikeDetector(), 0.0
    for _ in range(20_000):
        wave = correlation * wave + math.sqrt(1 - correlation**2) * rng.gauss(0, 1)
        detector.is_spike(3 + 0.3 * wave)
        assert not detector.has_risen


def test_after_going_back_the_risen_losses_are_forgotten():
    detector = SpikeDetector()
    for loss in [*noisy(100), *[3.6] * NEWEST]:
        detector.is_spike(loss)
    assert detector.has_risen
    detector.go_back()
    for loss in noisy(200):
        assert not detector.is_spike(loss)
        assert not detector.has_risen


def test_what_leaves_the_window_is_forgotten():
    detector = SpikeDetector()
    for loss in noisy(REMEMBERED, level=3.0) + noisy(REMEMBERED + NEWEST, level=2.0):
        detector.is_spike(loss)
    assert detector._sorted == sorted(detector._values)
    assert detector.limit < 3.4  # it was 3.8 at first


# ---- what is done ----


def controller(policy, config=GreedyConfig, **fields):
    made = GreedyController(config(on_spike=policy, **fields), horizon=1000)
    for loss in noisy(100):
        made.observe(loss)
    return made


def test_without_the_argument_a_spike_is_a_loss_like_others():
    plain, other = GreedyController(GreedyConfig(), horizon=1000), controller("hold")
    for loss in noisy(100):
        plain.observe(loss)
    assert "guard" not in plain.state_dict()
    assert "guard" in other.state_dict()
    assert plain.observe(50.0).reason is not Reason.SPIKE


@pytest.mark.parametrize("config", [GreedyConfig, PaperConfig, SlopeConfig])
@pytest.mark.parametrize("policy", ["hold", "reduce", "rollback", "raise"])
def test_two_spikes_are_kept_from_the_rule(policy, config):
    made = controller(policy, config)
    before = made.state_dict()["rule"]
    decisions = [made.observe(50.0), made.observe(60.0)]
    assert [decision.reason for decision in decisions] == [Reason.SPIKE] * 2
    assert [decision.action for decision in decisions] == [Action.HOLD] * 2
    assert 3 < decisions[0].best < 5
    assert not made.guard.calm
    assert made.state_dict()["rule"] == before
    made.observe(3.0)
    assert made.guard.calm


def test_hold_takes_the_third_as_the_new_level():
    made = controller("hold")
    reasons = [made.observe(loss).reason for loss in noisy(60, level=50)]
    assert reasons[:2] == [Reason.SPIKE] * 2
    assert Reason.SPIKE not in reasons[2:]


def test_reduce_lowers_once(caplog):
    made = controller("reduce")
    before = made.scales[0]
    decisions = [made.observe(loss) for loss in noisy(3, level=50)]
    assert (decisions[2].action, decisions[2].reason) == (Action.LOWER, Reason.SPIKE)
    assert made.scales[0] == decisions[2].scales[0] < before
    assert "GreedyLR lowers the LR, since the loss has risen far above what it was (a spike is above 3." in caplog.text
    assert Reason.SPIKE not in [made.observe(loss).reason for loss in noisy(30, level=50)]


def test_raise_is_an_error_that_says_what_to_do():
    made = controller("raise")
    made.observe(50.0), made.observe(51.0)
    with pytest.raises(
        SpikeError, match=r"^the loss has risen to 52, where [34]\.\d+ would be a spike, and on_spike='raise': resume"
    ):
        made.observe(52.0)


def spike(made):
    return [made.observe(loss) for loss in (50.0, 51.0, 52.0)][-1]


def test_rollback_keeps_the_lr_unless_it_comes_back_soon():
    made = controller("rollback")
    first = spike(made)
    assert (first.action, first.reason) == (Action.HOLD, Reason.ROLLED_BACK)
    for loss in noisy(SOON // 2):
        made.observe(loss)
    second = spike(made)
    assert (second.action, second.reason) == (Action.LOWER, Reason.ROLLED_BACK)
    for loss in noisy(SOON + 10):
        made.observe(loss)
    assert spike(made).action is Action.HOLD


def test_a_fourth_rollback_at_once_is_not_made_since_the_data_has_changed():
    made = controller("rollback")
    assert [spike(made).action for _ in range(3)] == [Action.HOLD, Action.HOLD, Action.LOWER]
    reasons = [made.observe(loss).reason for loss in noisy(60, level=50)]
    assert Reason.ROLLED_BACK not in reasons
    assert reasons.count(Reason.SPIKE) == 2


def test_rollbacks_that_are_far_apart_are_no_error():
    made = controller("rollback")
    for _ in range(3 * MOST_ROLLBACKS):
        assert spike(made).reason is Reason.ROLLED_BACK
        for loss in noisy(APART):
            made.observe(loss)


def test_too_many_rollbacks_are_an_error():
    made = controller("rollback")
    for _ in range(MOST_ROLLBACKS):
        assert spike(made).reason is Reason.ROLLED_BACK
        for loss in noisy(30):
            made.observe(loss)
    with pytest.raises(SpikeError, match="^the loss spiked after 5 rollbacks"):
        spike(made)


@pytest.mark.parametrize(
    ("fields", "losses", "message"),
    [
        ({"on_nonfinite": "raise"}, [math.nan], "the loss is nan, and on_nonfinite='raise'"),
        ({}, [math.nan] * 3, "the loss was NaN or infinite 3 times in a row"),
        ({"on_spike": "raise"}, [50.0] * 3, "the loss has risen to 50"),
        (
            {"on_spike": "rollback", "snapshot_every": 1},
            [*[50.0] * 3, *[3.0, 3.1] * 20] * 6,
            "the loss spiked after 5 rollbacks",
        ),
    ],
)
def test_what_ends_a_run_is_in_its_history_and_the_error_has_the_step(tmp_path, fields, losses, message):
    told, path = [], tmp_path / "h.jsonl"
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    scheduler = GreedyLR(optimizer, GreedyConfig(**fields), history_file=path, on_decision=told.append)
    for loss in [3.0, 3.1] * 30:
        scheduler.step(loss)
    with pytest.raises((FloatingPointError, SpikeError)) as raised:
        list(map(scheduler.step, losses))
    text, last = str(raised.value), scheduler.history[-1]
    assert last.step == len(scheduler.history) == scheduler.last_epoch + 1
    assert text.startswith(f"step {last.step}: {message}")
    back = [record.step for record in scheduler.history if record.decision.reason is Reason.ROLLED_BACK]
    assert len(back) == ("rollback" in fields.values()) * MOST_ROLLBACKS
    assert ("The last rollbacks: " in text) == bool(back)
    assert all(f"step {step} (loss 50)" in text for step in back)
    assert last.decision.reason is (Reason.SPIKE if losses[0] == 50 else Reason.NONFINITE)
    _, records, _ = history.read(path)
    assert repr(records) == repr(told) == repr(list(scheduler.history))  # NaN is not equal to itself


@pytest.mark.parametrize("on_spike", [None, "rollback"])
def test_rollback_at_the_second_nonfinite_loss(on_spike):
    made = controller(on_spike, on_nonfinite="rollback")
    reasons = [made.observe(loss).reason for loss in (math.nan, math.inf, 3.0)]
    assert reasons[:2] == [Reason.NONFINITE, Reason.ROLLED_BACK]
    assert reasons[2] is not Reason.NONFINITE


@pytest.mark.parametrize("policy", ["hold", "reduce", "rollback", "raise"])
@pytest.mark.parametrize("cut", range(100, 104))
def test_the_state_goes_on_exactly_in_a_spike(policy, cut):
    def reasons(cut):
        made, seen = controller(policy), []
        for i, loss in enumerate([*noisy(100), 50.0, 51.0, 52.0, 53.0, 54.0]):
            if i == cut:
                state, made = json.loads(json.dumps(made.state_dict())), controller(policy)
                made.load_state_dict(state)
            try:
                seen.append(made.observe(loss).reason)
            except SpikeError as error:
                return [*seen, str(error)]
        return seen

    assert reasons(cut) == reasons(None)


def mixture(rng):
    return rng.gauss(10, 0.5) if rng.random() < 0.08 else rng.gauss(1, 0.05)


@pytest.mark.parametrize("seed", range(4))
def test_data_of_which_a_part_is_harder_does_not_end_a_run(seed):
    rng, made = random.Random(seed), GreedyController(GreedyConfig(on_spike="rollback"), horizon=3000)
    reasons = [made.observe(mixture(rng)).reason for _ in range(3000)]
    assert reasons.count(Reason.ROLLED_BACK) <= 1
    risen = [made.observe(rng.gauss(20, 0.5)).reason for _ in range(8)]
    assert Reason.ROLLED_BACK in risen  # a real rise is still found


def test_giving_up_is_said(caplog):
    made = controller("rollback")
    [spike(made) for _ in range(3)]
    [made.observe(loss) for loss in noisy(60, level=50)]
    assert caplog.text.count("GreedyLR does not go back again: the loss rose right after each rollback") == 1
    made = controller("hold")
    [made.observe(loss) for loss in noisy(60, level=50)]
    assert "GreedyLR compares with new losses from now on, since the loss has risen above 3." in caplog.text


@pytest.mark.parametrize("policy", ["hold", "reduce", "rollback"])
def test_the_state_goes_on_exactly(policy):
    losses = [*noisy(50), 50.0, 51.0, *noisy(40), 50.0, 51.0, 52.0, 53.0, *noisy(60), 50.0, 51.0, 52.0]
    whole = GreedyController(GreedyConfig(on_spike=policy), horizon=1000)
    decisions = [whole.observe(loss) for loss in losses]
    for cut in range(0, len(losses), 7):
        part = GreedyController(GreedyConfig(on_spike=policy), horizon=1000)
        for loss in losses[:cut]:
            part.observe(loss)
        resumed = GreedyController(GreedyConfig(on_spike=policy), horizon=1000)
        resumed.load_state_dict(json.loads(json.dumps(part.state_dict())))
        assert [resumed.observe(loss) for loss in losses[cut:]] == decisions[cut:]


def test_a_checkpoint_from_before_spikes_is_taken(caplog):
    old = GreedyController(GreedyConfig(), horizon=1000)
    state = old.state_dict()
    assert not {"on_spike", "snapshot_every"} & state["config"].keys()
    new = GreedyController(GreedyConfig(on_spike="rollback", on_resume="config"), horizon=1000)
    new.load_state_dict(state)
    assert new.config.on_spike == "rollback"
    assert "on_spike: None there, 'rollback' here" in caplog.text
    kept = GreedyController(GreedyConfig(on_spike="rollback"), horizon=1000)
    kept.load_state_dict(state)
    assert kept.config.on_spike is None


@pytest.mark.parametrize("field", ["spikes", "rollbacks", "close", "since"])
@pytest.mark.parametrize("value", ["x", -1, 1.5, {"values": [], "newest": [0.0] * 9, "in_a_row": 0}])
def test_a_damaged_state_is_refused_and_changes_nothing(field, value):
    made = controller("rollback")
    state = made.state_dict()
    state["guard"] = {**state["guard"], field: value}
    before = made.state_dict()
    with pytest.raises(ValueError, match="guard"):
        made.load_state_dict(state)
    assert made.state_dict() == before


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"on_spike": "stop"},
            "on_spike='stop' is not allowed: it must be one of 'hold', 'reduce', 'rollback', 'raise'",
        ),
        ({"on_nonfinite": "back"}, "on_nonfinite='back' is not allowed"),
        ({"snapshot_every": 0}, "snapshot_every=0 is not allowed: it must be at least 1"),
    ],
)
def test_wrong_settings(fields, says):
    with pytest.raises(ValueError, match=says):
        SlopeConfig(**fields)
