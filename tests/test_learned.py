import json
import math
import os
import pickle
import statistics
import struct
import sys
import time

import numpy as np
import pytest
import safetensors.numpy
import torch
from processes import TESTS, run
from test_three_frameworks import train_all

from greedylr_integrations import GreedyController, GreedyLR, history
from greedylr_integrations.decision import Action, Reason
from greedylr_integrations.learned import OBSERVED, Policy, PolicyConfig, PolicyController, PolicyError
from greedylr_integrations.learned.policy import FORMAT, SHIPPED

SETTINGS = {
    "observed": list(OBSERVED),
    "blocks": 20,
    "max_factor": 2.0,
    "min_scale": 0.01,
    "max_scale": 10.0,
    "decay_ratio": 0.0,
    "trained": {"family": "test"},
}


def layers(seed=0, width=16):
    rng = np.random.default_rng(seed)
    shapes = [(width, len(OBSERVED)), (width, width), (1, width)]
    return [
        ((0.2 * rng.normal(size=shape)).astype(np.float32), (0.1 * rng.normal(size=shape[0])).astype(np.float32))
        for shape in shapes
    ]


def constant(action, **settings):
    """A policy that always chooses the same."""
    made = [(0 * weight, 0 * bias) for weight, bias in layers()]
    made[-1] = (made[-1][0], np.array([action], np.float32))
    return Policy(made, SETTINGS | settings)


def config(policy=None, **fields):
    return PolicyConfig(policy=policy or Policy(layers(), SETTINGS), **fields)


def controller(policy=None, horizon=200, **fields):
    return GreedyController(config(policy, **fields), horizon=horizon)


def losses(count=200, seed=0):
    rng = np.random.default_rng(seed)
    return [2 / (1 + i / 30) + 0.1 * rng.normal() for i in range(count)]


# ---- the file ----


def tensors(**changes):
    made = {
        f"{i}.{name}": array
        for i, layer in enumerate(layers())
        for name, array in zip(("weight", "bias"), layer, strict=True)
    }
    return {name: array for name, array in (made | changes).items() if array is not None}


def file_of(path, settings=None, metadata=None, **changes):
    told = metadata or {FORMAT: json.dumps({"version": 1, **SETTINGS} | (settings or {}))}
    path.write_bytes(safetensors.numpy.save(tensors(**changes), told))
    return path


def test_a_policy_survives_its_file(tmp_path):
    policy = Policy(layers(), SETTINGS)
    policy.save(tmp_path / "p.safetensors")
    loaded = Policy.load(tmp_path / "p.safetensors")
    assert loaded.digest == policy.digest
    assert loaded.settings == SETTINGS
    observation = np.random.default_rng(1).uniform(-1, 1, len(OBSERVED)).tolist()
    assert loaded(observation) == policy(observation)
    assert os.listdir(tmp_path) == ["p.safetensors"]
    assert (tmp_path / "p.safetensors").read_bytes() == Policy(layers(), SETTINGS).to_bytes()


def test_the_network_is_torchs():
    made = layers(3)
    modules = []
    for weight, bias in made:
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
        linear.weight.data, linear.bias.data = torch.tensor(weight), torch.tensor(bias)
        modules += [linear, torch.nn.Tanh()]
    network = torch.nn.Sequential(*modules[:-1])
    policy = Policy(made, SETTINGS)
    chosen = []
    for observation in np.random.default_rng(2).uniform(-1, 1, (50, len(OBSERVED))):
        expected = network(torch.tensor(observation, dtype=torch.float32)).clamp(-1, 1).item()
        chosen.append(policy(observation.tolist()))
        assert chosen[-1] == pytest.approx(expected, abs=1e-5)
    assert len(set(chosen)) > 20


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"settings": {"version": 2}}, "version=2 is not allowed: it must be 1"),
        ({"settings": {"observed": ["loss"]}}, r"observed=\['loss'\] is not allowed"),
        ({"settings": {"blocks": 0}}, "blocks=0 is not allowed"),
        ({"settings": {"max_factor": math.nan}}, "max_factor=nan is not allowed"),
        ({"settings": {"decay_ratio": 2}}, "decay_ratio=2 is not allowed"),
        ({"settings": {"min_scale": 20.0}}, "min_scale=20.0 is not allowed: it must be below max_scale"),
        ({"settings": {"more": 1}}, "more is unknown"),
        ({"metadata": {"other": "{}"}}, r"metadata=\['other'\] is not allowed"),
        ({"metadata": {FORMAT: "[]"}}, r"greedylr_policy=\[\] is not allowed: it must be an object"),
        ({"metadata": {FORMAT: "{"}}, "Expecting property name"),
        ({"metadata": {FORMAT: "[" * 100_000}}, "recursion|nested"),
        ({"0.weight": np.full((16, len(OBSERVED)), np.nan, np.float32)}, "0.weight='NaN or infinite weights'"),
        ({"2.bias": np.full(1, np.inf, np.float32)}, "2.bias='NaN or infinite weights'"),
        (
            {"0.weight": np.ones((16, 3), np.float32)},
            r"0.weight=\(16, 3\) is not allowed: it must be of shape \(16, 11\)",
        ),
        ({"1.weight": np.ones((8, 16), np.float32)}, r"1.weight=\(8, 16\) is not allowed"),
        ({"2.weight": np.ones((2, 16), np.float32)}, r"2.weight=\(2, 16\) is not allowed"),
        ({"1.bias": np.ones((16, 1), np.float32)}, r"1.bias=\(16, 1\) is not allowed: it must be of 1 dimensions"),
        ({"1.bias": np.ones(16)}, r"dtypes=\['F32', 'F64'\] is not allowed"),
        ({"1.bias": None}, "tensors=.* is not allowed: it must be exactly"),
        ({"3.bias": np.ones(1, np.float32)}, "tensors=.* is not allowed"),
        ({"0.weight": np.ones((30_000, len(OBSERVED)), np.float32)}, "its size=.* at most 1000000 bytes"),
    ],
)
def test_a_file_that_is_no_policy_of_this_version(tmp_path, changes, told):
    path = file_of(tmp_path / "p.safetensors", **changes)
    with pytest.raises(PolicyError, match=f"^.*p.safetensors cannot be used as a policy: .*({told})"):
        PolicyConfig.load(path)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def damaged(kind, whole):
    if kind == "pickle":
        return pickle.dumps(Evil())
    if kind == "torch's pickle":
        torch.save({"0.weight": Evil()}, "evil.pt")
        with open("evil.pt", "rb") as file:
            return file.read()
    if kind == "pickle in place of the tensors":
        return whole[:-200] + pickle.dumps(Evil()).ljust(200)[:200]
    return {
        "empty": b"",
        "truncated": whole[:-1],
        "half": whole[: len(whole) // 2],
        "trailing junk": whole + b"\0",
        "a header beyond the file": struct.pack("<Q", 2**62) + whole[8:],
        "no JSON": whole[:8] + b"?" + whole[9:],
        "text": b"{}",
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        *("empty", "truncated", "half", "trailing junk", "a header beyond the file", "no JSON", "text", "pickle"),
        "torch's pickle",
    ],
)
def test_a_damaged_file_is_refused_and_nothing_in_it_runs(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    whole = file_of(tmp_path / "whole.safetensors").read_bytes()
    path = tmp_path / "p.safetensors"
    path.write_bytes(damaged(kind, whole))
    with pytest.raises(PolicyError, match="cannot be used as a policy"):
        Policy.load(path)
    assert not (tmp_path / "evil").exists()


def test_bytes_in_place_of_weights_stay_numbers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = file_of(tmp_path / "p.safetensors").read_bytes()
    (tmp_path / "p.safetensors").write_bytes(damaged("pickle in place of the tensors", whole))
    Policy.load(tmp_path / "p.safetensors")
    assert not (tmp_path / "evil").exists()


def test_a_file_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="networks does not exist: give a policy file, or the name of a"):
        PolicyConfig.load("networks")
    (tmp_path / "folder").mkdir()
    with pytest.raises(PolicyError):
        PolicyConfig.load(tmp_path / "folder")


def test_shipped_policies_are_small_and_load_by_name():
    files = list(SHIPPED.glob("*.safetensors"))
    assert {file.stem for file in files} == {"network", "nmf"}
    for file in files:
        assert file.stat().st_size < 200_000
        assert PolicyConfig.load(file.stem).policy.digest == Policy.load(file).digest


def test_no_torch_is_needed():
    done = run(
        [sys.executable, "-c", "import sys, greedylr_integrations.learned; sys.exit('torch' in sys.modules)"],
        cwd=TESTS.parent,
    )
    assert done.returncode == 0, done.stderr


# ---- decisions ----


def test_one_choice_a_block():
    made = controller(constant(0.5))
    decisions = [made.observe(loss) for loss in losses()]
    chosen = [
        i for i, decision in enumerate(decisions) if decision.reason is not Reason.HELD and decision.scales != (1.0,)
    ]
    assert [d.reason for d in decisions[:9]] == [Reason.FILLING] * 9
    assert decisions[9][:3] == (Action.RAISE, Reason.POLICY, (2**0.5,))
    assert decisions[9].smoothed == pytest.approx(statistics.mean(losses()[:10]))
    assert decisions[12][:3] == (Action.HOLD, Reason.HELD, (2**0.5,))
    assert chosen == list(range(9, 200, 10))
    assert decisions[-1][:3] == (Action.HOLD, Reason.CEILING, (10.0,))


def test_bounds():
    made = controller(constant(-1.0))
    decisions = [made.observe(loss) for loss in losses()]
    assert decisions[-1][:3] == (Action.HOLD, Reason.FLOOR, (0.01,))
    made = controller(constant(1.0))
    for i, loss in enumerate(losses()):
        limit = 0.3 + 0.2 * math.sin(i)
        made.rule.limit = limit
        assert made.observe(loss).scales[0] <= limit
        assert made.scales[0] == min(made.scales[0], limit)
    made.rule.limit = 0.001  # below the lower bound too
    assert made.scales == (0.001,)
    with pytest.raises(ValueError, match=r"^limit=-1 is not allowed: it must be above 0"):
        made.rule.limit = -1


def test_the_observation_is_blind_to_the_unit_and_stays_between_its_bounds():
    def seen(values):
        rule = controller().rule
        return [observation for value in values if (observation := rule.push(value)) is not None]

    values = losses()
    plain = seen(values)
    assert np.abs(plain).max() <= 1
    assert len(plain) == 20
    assert np.array(seen([1000 * value for value in values])) == pytest.approx(np.array(plain), abs=1e-9)
    for odd in ([0.0] * 200, [1.0] * 200, [(-1) ** i * 1e300 for i in range(200)], [-value for value in values]):
        assert np.isfinite(seen(odd)).all()
        assert np.abs(seen(odd)).max() <= 1


def test_trend_and_noise_say_what_they_are_called():
    def last(values):
        rule = controller(horizon=20).rule
        return dict(zip(OBSERVED, [rule.push(value) for value in values][-1], strict=True))

    falling, rising = [10.0 - i for i in range(10)], [1.0 + i for i in range(10)]
    assert last(falling)["trend"] == pytest.approx(-1)
    assert last(rising)["trend"] == pytest.approx(1)
    assert last(falling)["noise"] == pytest.approx(0, abs=1e-9)
    zigzag = last([5.0 + (-1) ** i for i in range(10)])
    assert abs(zigzag["trend"]) < 0.3
    assert zigzag["noise"] > 0.3
    assert zigzag["progress"] == 0.5


def test_a_better_metric_is_a_lower_loss():
    low, high = controller(), controller(mode="max")
    for loss in losses():
        one, other = low.observe(loss), high.observe(-loss)
        assert one[:3] == other[:3]
        assert one.smoothed == -other.smoothed
    assert len({low.observe(1.0).scales}) == 1


def test_nonfinite_losses():
    made = controller(constant(0.0))
    for loss in losses(15):
        made.observe(loss)
    assert made.observe(math.nan)[:3] == (Action.LOWER, Reason.NONFINITE, (0.5,))
    assert made.observe(math.nan).action is Action.HOLD
    with pytest.raises(FloatingPointError, match="3 times in a row"):
        made.observe(math.inf)
    made = controller(constant(0.0), horizon=20)
    made.observe(1.0)
    overflow = controller(constant(0.0), horizon=40)
    overflow.observe(1.7e308)
    assert overflow.observe(1.7e308).reason is Reason.NONFINITE
    assert overflow.observe(1.0).reason is Reason.FILLING


def test_without_a_horizon():
    with pytest.raises(ValueError, match="^a learned policy needs the length of the run: pass total_steps"):
        controller(horizon=None).observe(1.0)


def test_a_decision_takes_less_than_50_us():
    made = controller(constant(0.1, blocks=2000), horizon=2000)  # every decision is a choice
    values, best = losses(2000), math.inf
    for _ in range(5):
        start = time.process_time()
        for loss in values:
            made.observe(loss)
        best = min(best, (time.process_time() - start) / len(values))
    assert best < 50e-6


# ---- state ----


@pytest.mark.parametrize("cut", [0, 5, 10, 47, 199])
def test_state_goes_on_as_if_it_had_not_stopped(cut):
    whole, first = controller(), controller()
    expected = [whole.observe(loss) for loss in losses()]
    for loss in losses()[:cut]:
        first.observe(loss)
    second = controller()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [second.observe(loss) for loss in losses()[cut:]] == expected[cut:]
    assert len({decision.scales for decision in expected}) > 10


def test_a_checkpoint_of_another_policy():
    first = controller()
    first.observe(1.0)
    state = first.state_dict()
    other = controller(Policy(layers(1), SETTINGS))
    before = other.state_dict()
    with pytest.raises(ValueError, match=f"written with the policy {first.config.policy.digest}, this run has"):
        other.load_state_dict(state)
    assert other.state_dict() == before
    going_on = controller(Policy(layers(1), SETTINGS), on_resume="config")
    going_on.load_state_dict(state)
    assert going_on.config.policy.digest == other.config.policy.digest
    with pytest.raises(ValueError, match="seen is missing"):
        first.load_state_dict({**state, "rule": {key: v for key, v in state["rule"].items() if key != "seen"}})


def test_a_checkpoint_with_other_hyperparameters():
    first = controller()
    first.observe(1.0)
    other = controller(on_nonfinite="hold")
    other.load_state_dict(first.state_dict())
    assert other.config.on_nonfinite == "reduce"
    assert other.config.policy.digest == first.config.policy.digest


# ---- in the scheduler ----


def optimizer_of(*lrs):
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr} for lr in lrs])


def test_the_scheduler_tells_the_horizon_and_decays_as_in_training():
    policy = constant(0.5)
    scheduler = GreedyLR(optimizer_of(0.1, 0.02), config(policy), total_steps=40, linear_warmup_steps=20)
    assert scheduler.controller.horizon == 20
    for _ in range(20):
        scheduler.step(1.0)
    assert scheduler.get_last_lr() == [0.1, 0.02]
    scheduler.step(1.0)
    assert scheduler.get_last_lr() == pytest.approx([0.1 * 2**0.5, 0.02 * 2**0.5])
    for _ in range(18):
        scheduler.step(1.0)
    assert scheduler.get_last_lr() == pytest.approx([1.0, 0.2])
    for policy, given, expected in (
        (constant(0.0, decay_ratio=0.5), None, 0.05),
        (constant(0.0, decay_ratio=0.5), 0.0, 0.1),
        (constant(0.0), 0.5, 0.05),
    ):
        scheduler = GreedyLR(optimizer_of(0.1), config(policy), total_steps=40, decay_ratio=given)
        for _ in range(30):
            scheduler.step(1.0)
        assert scheduler.get_last_lr() == pytest.approx([expected])


def test_the_scheduler_makes_the_decisions_of_the_controller():
    policy = Policy(layers(), SETTINGS)
    scheduler, alone = GreedyLR(optimizer_of(0.1), config(policy), total_steps=200), controller(policy)
    for loss in losses()[:-1]:  # after the last step the LR is 0
        assert scheduler.step(loss) == alone.observe(loss)
    assert scheduler.get_last_lr() == [0.1 * alone.scales[0]] != [0.1]


def test_fields_and_what_is_no_policy():
    loaded = PolicyConfig.load("nmf", mode="max", every_n_steps=4)
    assert (loaded.mode, loaded.every_n_steps, loaded.decay_ratio) == ("max", 4, 0.15)
    with pytest.raises(TypeError, match="every_steps"):
        PolicyConfig.load("nmf", every_steps=4)
    with pytest.raises(TypeError, match="^policy='nmf' is not allowed: it must be a Policy"):
        PolicyConfig(policy="nmf")
    with pytest.raises(TypeError, match="^window_size is not a field of PolicyConfig"):
        GreedyLR(optimizer_of(0.1), loaded, total_steps=10, window_size=4)
    unknown = GreedyLR(optimizer_of(0.1), PolicyConfig.load("nmf"))
    with pytest.raises(ValueError, match="^a learned policy needs the length of the run"):
        unknown.step(1.0)


@pytest.mark.parametrize("losses", [[1.0, 2.0, 1e200, 3.0], [1.7e308, 1.6e308, 1.7e308, 1.5e308], [1e120, -1e120]])
def test_losses_near_the_end_of_the_floats_leave_a_finite_scale(losses):
    controller = PolicyController.load("network", horizon=24)
    for loss in losses * 10:
        controller.observe(loss)
    assert math.isfinite(controller.scales[0])


def test_a_controller_is_taken_for_its_policy():
    optimizer = optimizer_of(0.1, 0.02)
    scheduler = GreedyLR(optimizer, controller=PolicyController.load("network"), total_steps=40)
    same = GreedyLR(optimizer_of(0.1, 0.02), PolicyConfig.load("network"), total_steps=40)
    for step in range(40):
        assert scheduler.step(3 - step / 20) == same.step(3 - step / 20)
    assert scheduler.get_last_lr() == same.get_last_lr()


def test_orders_and_resume():
    def start():
        return GreedyLR(optimizer_of(0.1), config(), total_steps=200)

    whole = start()
    seen = []
    for i, loss in enumerate(losses()):
        if i == 30:
            whole.pin(3.0)
        if i == 60:
            whole.release()
        if i == 90:
            saved = json.loads(json.dumps(whole.state_dict()))
        whole.step(loss)
        seen.append(whole.get_last_lr()[0])
    assert seen[30:60] == pytest.approx([0.1 * 3.0] * 30)
    assert seen[75] != seen[59]
    resumed = start()
    resumed.load_state_dict(saved)
    again = []
    for loss in losses()[90:]:
        resumed.step(loss)
        again.append(resumed.get_last_lr()[0])
    assert again == seen[90:]


@pytest.mark.slow
def test_the_same_policy_file_gives_the_same_lrs_in_the_three_frameworks(tmp_path):
    Policy(layers(), SETTINGS | {"max_factor": 1.3}).save(tmp_path / "p.safetensors")
    steps = 60
    ranks = train_all(tmp_path, 1, 2, steps, POLICY=str(tmp_path / "p.safetensors"))
    first = ranks["accelerate"][0]
    alone = GreedyController(PolicyConfig.load(tmp_path / "p.safetensors"), horizon=steps)
    used = [1.0]
    for loss in first["seen"]:
        used.append(alone.observe(loss).scales[0])
    assert first["used"] == pytest.approx([2e-4 * scale for scale in used[:-1]], rel=1e-12)
    assert len(set(first["used"])) > 15
    for name in ("transformers", "lightning"):
        other = ranks[name][0]
        assert other["used"] == first["used"], name
        assert other["actions"] == first["actions"]
        assert other["seen"] == pytest.approx(first["seen"], rel=1e-9)
    header, records, _ = history.read(tmp_path / "lightning.jsonl")
    assert header["config"]["policy"] == alone.config.policy.digest
    assert [record.decision.reason.name for record in records] == first["reasons"]
