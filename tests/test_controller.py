"""What holds for every behaviour: any float, non-finite losses, state, resuming."""

import json
import logging
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greedylr_integrations import Decision, GreedyConfig, GreedyController, PaperConfig, SlopeConfig, TransformersConfig
from greedylr_integrations.decision import Action, Reason

any_floats = st.lists(
    st.floats() | st.sampled_from([math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324, 0.0, -0.0]), max_size=80
)
finite = st.lists(st.floats(-100, 100), max_size=80)


@st.composite
def configs(draw):
    kind = draw(st.sampled_from([GreedyConfig, PaperConfig, TransformersConfig]))
    fields = {
        "mode": draw(st.sampled_from(["min", "max", None])),
        "factor": draw(st.floats(0.01, 0.999)),
        "patience": draw(st.integers(0, 3)),
        "window_size": draw(st.integers(1, 12)),
        "warmup": draw(st.integers(0, 3)),
        "cooldown": draw(st.integers(0, 3)),
        "threshold": draw(st.floats(0, 0.9)),
        "threshold_mode": draw(st.sampled_from(["rel", "abs"])),
        "min_lr": draw(st.sampled_from([1e-12, 1e-5, 0.01])),
        "max_lr": draw(st.sampled_from([0.1, 5.0, 1e6])),
        "reset_start": draw(st.integers(1, 20)),
    }
    if kind is GreedyConfig:
        fields["best_window"] = draw(st.integers(1, 30))
        fields["pace"] = draw(st.sampled_from([0, 0.5, 1, 2]))
        fields["threshold_mode"] = draw(st.sampled_from(["se", "rel", "abs"]))
    else:
        fields["smooth"] = draw(st.booleans())
    return kind(**fields, on_nonfinite="hold")


BASES = [0.1, 0.02, 0.05]


@given(configs(), any_floats)
def test_lr_is_finite_and_within_bounds_whatever_comes(config, losses):
    controller = GreedyController(config, BASES)
    for loss in losses:
        decision = controller.observe(loss)
        for base, scale in zip(BASES, decision.scales, strict=True):
            assert config.min_lr <= base * scale <= config.max_lr * (1 + 1e-15)
        json.dumps(controller.state_dict(), allow_nan=False)


@given(any_floats)
def test_the_default_too(losses):
    controller = GreedyController(GreedyConfig(on_nonfinite="hold"), [1e-3], horizon=40)
    for loss in losses:
        assert 1e-5 <= 1e-3 * controller.observe(loss).scales[0] <= 1e-2
    json.dumps(controller.state_dict(), allow_nan=False)


@given(configs(), finite, finite)
def test_state_goes_through_json_and_continues_identically(config, before, after):
    controller = GreedyController(config, BASES)
    for loss in before:
        controller.observe(loss)
    state = json.loads(json.dumps(controller.state_dict(), allow_nan=False))
    other = GreedyController(config, BASES)
    other.load_state_dict(state)
    assert other.state_dict() == controller.state_dict()
    for loss in after:
        assert other.observe(loss) == controller.observe(loss)


@given(configs(), finite, st.sampled_from([math.nan, math.inf, -math.inf]), st.integers(0, 80))
def test_a_nonfinite_loss_leaves_no_trace(config, losses, nonfinite, position):
    clean, hit = GreedyController(config, BASES), GreedyController(config, BASES)
    for i, loss in enumerate(losses):
        if i == position:
            assert hit.observe(nonfinite).reason is Reason.NONFINITE
        assert hit.observe(loss) == clean.observe(loss)
    if losses and position < len(losses):
        assert hit.state_dict() == clean.state_dict()


# ---- non-finite losses ----


def test_reduce_lowers_once_and_gives_up_at_the_third():
    controller = GreedyController(GreedyConfig(factor=0.5))
    assert [controller.observe(math.nan).scales, controller.observe(math.inf).scales] == [(0.5,), (0.5,)]
    with pytest.raises(FloatingPointError, match="3 times in a row: the run is dead"):
        controller.observe(math.nan)


def test_a_finite_loss_between_starts_the_count_over():
    controller = GreedyController(GreedyConfig(factor=0.5, min_scale=1e-3))
    for _ in range(5):
        controller.observe(math.nan)
        controller.observe(math.nan)
        controller.observe(1.0)
    assert controller.scales == (0.5**5,)


def test_hold_and_raise():
    controller = GreedyController(GreedyConfig(on_nonfinite="hold"))
    for _ in range(10):
        assert controller.observe(math.nan)[:3] == (Action.HOLD, Reason.NONFINITE, (1.0,))
    with pytest.raises(FloatingPointError, match="^the loss is inf, and on_nonfinite='raise'$"):
        GreedyController(GreedyConfig(on_nonfinite="raise")).observe(math.inf)


@pytest.mark.parametrize("loss", ["1.0", None, True, [1.0], object(), 1j])
def test_a_loss_that_is_not_a_number(loss):
    controller = GreedyController(GreedyConfig())
    with pytest.raises(TypeError, match="^loss=.* is not allowed: it must be a"):
        controller.observe(loss)


@pytest.mark.parametrize("seen", [{"slope": 1.5}, {"slope": -math.inf}, {"slope": 1e308}, {"distance": -0.1}])
def test_a_slope_or_distance_that_cannot_be(seen):
    controller = GreedyController(SlopeConfig(), (1.0,), 1000)
    with pytest.raises(ValueError, match="is not allowed: it must be"):
        controller.observe(1.0, **seen)
    controller.observe(1.0, math.nan, math.nan)  # could not be computed
    json.dumps(controller.state_dict(), allow_nan=False)


def test_an_error_names_the_metric():
    controller = GreedyController(GreedyConfig(on_nonfinite="raise"))
    controller.monitor = "eval_f1"
    with pytest.raises(FloatingPointError, match="^'eval_f1' is nan, and on_nonfinite='raise'$"):
        controller.observe(math.nan)


@pytest.mark.parametrize("base_lr", [-0.1, 1e31, math.nan, math.inf])
def test_a_base_lr_whose_state_would_not_load(base_lr):
    with pytest.raises(ValueError, match="^base_lrs="):
        GreedyController(GreedyConfig(), (base_lr,))


@pytest.mark.parametrize("loss", [3, 10**400])
def test_integers_are_numbers(loss):
    assert isinstance(GreedyController(GreedyConfig()).observe(loss), Decision)


# ---- state ----


def used(config=None, bases=(0.1, 0.2), horizon=None):
    controller = GreedyController(config or GreedyConfig(window_size=3), bases, horizon)
    for i in range(20):
        controller.observe(5 + math.sin(i))
    return controller


def faults(path, value):
    """The state of a used controller with one fault in it."""
    state = json.loads(json.dumps(used().state_dict()))
    place = state
    for key in path[:-1]:
        place = place[key]
    if value is KeyError:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return state


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (["version"], 2, "version=2 is not allowed"),
        (["version"], "1", "version='1' is not allowed"),
        (["rule"], KeyError, "rule is missing"),
        (["extra"], 1, "extra is unknown"),
        (["nonfinite"], 0.5, "nonfinite=0.5 is not allowed"),
        (["config", "factor"], KeyError, "factor is missing"),
        (["config", "faktor"], 0.5, "faktor is unknown"),
        (["rule", "scale"], None, "scale=None is not allowed"),
        (["rule", "scale"], math.nan, "scale=nan is not allowed"),
        (["rule", "window"], {}, "window={} is not allowed"),
        (["rule", "window", "losses"], ["a"], "is not allowed"),
        (["rule", "streak"], True, "streak=True is not allowed"),
        (["rule", "recent", "queue"], [[1, 2, 3]], "is not allowed"),
        (["rule", "stage"], KeyError, "stage is missing"),
        (["base_lrs"], [0.1], "the checkpoint has 1 parameter groups, this run has 2"),
        (["behaviour"], "PaperConfig", "the checkpoint was written with PaperConfig, this run has GreedyConfig"),
    ],
)
def test_a_faulty_state_is_refused_and_changes_nothing(path, value, says):
    controller = used()
    before = controller.state_dict()
    with pytest.raises(ValueError) as error:  # noqa: PT011
        controller.load_state_dict(faults(path, value))
    assert says in str(error.value)
    assert controller.state_dict() == before


@pytest.mark.parametrize("state", [None, [], "x"])
def test_a_state_that_is_no_dictionary(state):
    with pytest.raises(ValueError, match="not a dictionary"):
        GreedyController(GreedyConfig()).load_state_dict(state)


def test_all_faults_are_named_at_once():
    state = used().state_dict()
    del state["rule"]
    state["extra"] = state["nonfinite"] = "x"
    with pytest.raises(ValueError, match="rule is missing; extra is unknown; nonfinite='x' is not allowed"):
        used().load_state_dict(state)


def test_on_resume_checkpoint_is_the_default_and_says_what_differs(warnings_of):
    new = GreedyController(GreedyConfig(factor=0.5, window_size=3), (0.1, 0.2))
    new.load_state_dict(used(GreedyConfig(factor=0.9, window_size=3)).state_dict())
    assert new.config.factor == 0.9
    assert warnings_of() == ["GreedyLR resumes with the checkpoint's hyperparameters (factor: 0.9 there, 0.5 here)"]


def test_on_resume_config(warnings_of):
    new = GreedyController(GreedyConfig(factor=0.5, window_size=2, on_resume="config"), (0.3, 0.2))
    new.load_state_dict(used(GreedyConfig(factor=0.9, window_size=3)).state_dict())
    assert (new.config.factor, new.config.window_size, new.base_lrs) == (0.5, 2, (0.3, 0.2))
    assert "base_lrs: [0.1, 0.2] there, [0.3, 0.2] here" in warnings_of()[0]


def test_on_resume_error():
    new = GreedyController(GreedyConfig(factor=0.5, window_size=3, on_resume="error"), (0.1, 0.2))
    before = new.state_dict()
    with pytest.raises(ValueError, match=r"factor: 0.9 there, 0.5 here\): make them equal, or set on_resume"):
        new.load_state_dict(used(GreedyConfig(factor=0.9, window_size=3)).state_dict())
    assert new.state_dict() == before


def test_another_horizon_is_adopted_and_logged(caplog):
    caplog.set_level(logging.INFO, "greedylr_integrations")
    old = used(GreedyConfig(), horizon=100)
    new = GreedyController(GreedyConfig(on_resume="error"), (0.1, 0.2), horizon=1000)
    new.load_state_dict(old.state_dict())
    assert new.scales == old.scales
    assert "run length of 1000 decisions, was 100" in caplog.text
    smaller = GreedyController(GreedyConfig(on_resume="error"), (0.1, 0.2), horizon=10)
    smaller.load_state_dict(old.state_dict())
    smaller.observe(5.0)


def test_a_config_goes_through_json():
    from greedylr_integrations.rules import config_from_dict

    for config in (GreedyConfig(factor=0.3, max_lr=[1.0, 2.0]), PaperConfig(), TransformersConfig(eps=0)):
        assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(("rank", "logs"), [("0", True), ("", True), ("1", False)])
def test_only_rank_0_logs(warnings_of, monkeypatch, rank, logs):
    monkeypatch.setenv("RANK", rank)
    controller = GreedyController(GreedyConfig(window_size=1))
    for i in range(600):
        controller.observe(1000 - i)
    assert controller.scales == (10.0,)
    assert len(warnings_of()) == logs


def test_a_run_of_one_decision_resumes():
    state = GreedyController(GreedyConfig(), (0.1,), 1).state_dict()
    GreedyController(GreedyConfig(), (0.1,), 1).load_state_dict(state)
    with pytest.raises(ValueError, match="horizon=0"):
        GreedyController(GreedyConfig(), (0.1,), 1).load_state_dict({**state, "horizon": 0})
