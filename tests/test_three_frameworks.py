"""The same training written three times, on several processes: one number, one decision, one LR everywhere."""

import json
import os

import pytest
from processes import ON_CPU, TESTS, run, torchrun

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
    command = [*torchrun(world), TESTS / "three_worker.py", out, accumulate, steps]
    done = run(command, timeout=400, env={**os.environ, **ON_CPU, **env})
    assert done.returncode == 0, done.stderr[-4000:]
    return {
        name: [json.loads((out / f"{name}-{rank}.json").read_text()) for rank in range(world)] for name in FRAMEWORKS
    }


@pytest.fixture(scope="module", params=CASES)
def results(request, tmp_path_factory):
    world, accumulate = request.param
    return world, accumulate, train_all(tmp_path_factory.mktemp("three"), world, accumulate, STEPS)


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_the_loss_is_the_mean_of_all_ranks_and_the_lr_is_one(results, name):
    world, accumulate, ranks = results
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
    _, _, ranks = results
    first = ranks["accelerate"][0]
    for name in FRAMEWORKS[1:]:
        other = ranks[name][0]
        assert other["actions"] == first["actions"]
        assert other["used"] == first["used"]
        assert other["seen"] == pytest.approx(first["seen"], rel=1e-9)
        assert other["parameters"] == pytest.approx(first["parameters"], rel=1e-9)


def test_a_nonfinite_loss_on_one_rank_is_the_same_decision_on_all(tmp_path):
    for name, (first, second) in train_all(tmp_path, 2, 1, 40, FAULTS="1").items():
        assert first["used"] == second["used"], name
        assert first["reasons"] == second["reasons"]
        assert [i for i, reason in enumerate(first["reasons"]) if reason == "NONFINITE"] == [10, 20]
        assert first["actions"][10] == first["actions"][20] == "lower"
        assert first["used"][11] < first["used"][10]
