"""The same training written three times, on several processes: one number, one decision, one LR everywhere."""

import json

import forked
import pytest
from processes import TESTS

from greedylr_integrations import history

pytest.importorskip("lightning")

FRAMEWORKS = ("accelerate", "transformers", "lightning")
STEPS = 200
CASES = [
    pytest.param((world, accumulate), id=f"{world}-processes-accumulate-{accumulate}", marks=marks)
    for world, accumulate, marks in (
        (1, 1, pytest.mark.slow),
        (1, 4, pytest.mark.slow),
        (2, 1, pytest.mark.slow),
        (2, 4, ()),
        (4, 1, pytest.mark.slow),
        (4, 4, pytest.mark.slow),
    )
]


def train_all(out, world, accumulate, steps, **env):
    """What each rank saw and did, by framework."""
    done = forked.run([TESTS / "three_worker.py", out, accumulate, steps], world, timeout=400, env=env)
    assert done.returncode == 0, done.stderr[-4000:]
    return {
        name: [json.loads((out / f"{name}-{rank}.json").read_text()) for rank in range(world)] for name in FRAMEWORKS
    }


@pytest.fixture(scope="module", params=CASES)
def results(request, tmp_path_factory):
    world, accumulate = request.param
    out = tmp_path_factory.mktemp("three")
    return world, accumulate, train_all(out, world, accumulate, STEPS), out


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_the_loss_is_the_mean_of_all_ranks_and_the_lr_is_one(results, name):
    world, accumulate, ranks, _ = results
    ranks = ranks[name]
    for result in ranks:
        assert len(result["seen"]) == len(result["used"]) == STEPS
        assert result["used"] == ranks[0]["used"]  # bit for bit
        assert result["seen"] == ranks[0]["seen"]
    own = [result["own"] for result in ranks]
    for step in range(STEPS):
        each = [losses[i] for losses in own for i in range(step * accumulate, (step + 1) * accumulate)]
        assert ranks[0]["seen"][step] == pytest.approx(sum(each) / len(each), rel=1e-6)
    assert len(set(ranks[0]["used"])) > STEPS // 4
    if world > 1:
        assert sum(own[-1]) > 20 * sum(own[0])  # one rank's loss alone would have told something else


def test_the_three_decide_the_same(results):
    _, _, ranks, _ = results
    first = ranks["accelerate"][0]
    for name in FRAMEWORKS[1:]:
        other = ranks[name][0]
        assert other["actions"] == first["actions"]
        # the Trainer scales losses before backward, so its own losses differ in the last bit, and LRs may follow
        assert other["used"] == pytest.approx(first["used"], rel=1e-12)
        assert other["seen"] == pytest.approx(first["seen"], rel=1e-9)
        assert other["parameters"] == pytest.approx(first["parameters"], rel=1e-9)


def test_the_three_write_the_same_history(results):
    world, _, ranks, out = results
    histories = {name: history.read(out / f"{name}.jsonl") for name in FRAMEWORKS}
    header, records, orders = histories["accelerate"]
    assert (header["world_size"], header["total_steps"], header["monitor"]) == (world, STEPS, "loss")
    assert [record.decision.loss for record in records] == ranks["accelerate"][0]["seen"]
    assert [record.lrs[0] for record in records[:-1]] == ranks["accelerate"][0]["used"][1:]
    assert orders == []
    for name in FRAMEWORKS[1:]:
        other_header, other, _ = histories[name]
        assert other_header["config"].pop("mode") == "min"  # the callbacks fill it in
        assert other_header == {**header, "config": {k: v for k, v in header["config"].items() if k != "mode"}}
        assert [(r.step, r.envelope, r.decision.action, r.decision.reason) for r in other] == [
            (r.step, r.envelope, r.decision.action, r.decision.reason) for r in records
        ]
        assert [r.lrs[0] for r in other] == pytest.approx([r.lrs[0] for r in records], rel=1e-12)
        assert [r.decision.smoothed for r in other] == pytest.approx([r.decision.smoothed for r in records], rel=1e-9)


@pytest.mark.parametrize("world", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_three_measure_one_slope(world, tmp_path):
    ranks = train_all(tmp_path, world, 2, 120, SLOPE="1")
    first = ranks["accelerate"][0]
    slopes = first["slopes"][1:30]  # there is none before the first step, and none after the search
    assert all(-1 <= slope <= 1 for slope in slopes)
    assert len(set(slopes)) == len(slopes)
    assert len(set(first["used"])) > 30
    for name in FRAMEWORKS:
        for each in ranks[name]:
            assert each["used"] == first["used"]  # bit for bit, over ranks and frameworks
            assert each["reasons"] == first["reasons"]
            assert str(each["slopes"]) == str(ranks[name][0]["slopes"])
            assert each["slopes"][1:30] == pytest.approx(slopes, rel=1e-6)


def test_orders_by_control_file_reach_both_ranks_in_the_same_step(tmp_path):
    ranks = train_all(tmp_path, 2, 1, 40, COMMANDS="1")
    for name, (first, second) in ranks.items():
        assert first["used"] == second["used"], name
        used, reasons = first["used"], first["reasons"]
        # each is written during a forward pass and comes with the loss of that very step
        assert [order[:3] for order in history.read(tmp_path / f"{name}.jsonl")[2]] == [
            (11, "pin", 3.0),
            (21, "release", None),
            (26, "cap", 0.5),
            (33, "decay", 4),
        ]
        assert used[10] != used[11] == pytest.approx(3 * 2e-4)
        assert used[11:21] == [used[11]] * 10
        assert reasons[11:20].count("ORDERED") > 3
        assert max(used[26:]) <= 0.5 * 2e-4
        envelopes = [record.envelope for record in history.read(tmp_path / f"{name}.jsonl")[1][32:37]]
        assert envelopes == pytest.approx([envelopes[0] * left / 4 for left in (4, 3, 2, 1, 0)])
        assert used[37:] == [0.0] * 3


def test_a_nonfinite_loss_on_one_rank_is_the_same_decision_on_all(tmp_path):
    for name, (first, second) in train_all(tmp_path, 2, 1, 40, FAULTS="1").items():
        assert first["used"] == second["used"], name
        assert first["reasons"] == second["reasons"]
        assert [i for i, reason in enumerate(first["reasons"]) if reason == "NONFINITE"] == [10, 20]
        assert first["actions"][10] == first["actions"][20] == "lower"
        assert first["used"][11] < first["used"][10]
