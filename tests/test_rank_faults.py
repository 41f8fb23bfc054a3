"""One rank differs, dies, is slow or runs out of data: all end right, or all end with an error, and soon."""

import json

import forked
import pytest
from processes import TESTS

pytest.importorskip("lightning")

SOON = 60  # seconds; the imports are before
FRAMEWORKS = ("torch", "accelerate", "transformers", "lightning")
WORLDS = [2, pytest.param(4, marks=pytest.mark.slow)]
FAST = {  # of each scenario, one; the rest of the matrix is slow
    ("another setting", "transformers"),
    ("another rule", "lightning"),
    ("a history on one rank", "accelerate"),
    ("orders on one rank", "torch"),
    ("a slow rank", "lightning"),
    ("death", "transformers"),
    ("an exception", "accelerate"),
}


def each(*scenarios):
    cases = [(scenario, framework) for scenario in scenarios for framework in FRAMEWORKS]
    return pytest.mark.parametrize(
        ("scenario", "framework"),
        [pytest.param(*case, marks=() if case in FAST else pytest.mark.slow) for case in cases],
    )


def train(framework, scenario, world, out):
    """Exit code, what was written to stderr, and what each rank that got to its end wrote."""
    done = forked.run([TESTS / "rank_worker.py", framework, scenario, out], world, timeout=SOON)
    ranks = [json.loads(path.read_text()) for path in sorted(out.glob("rank-*.json"))]
    return done.returncode, done.stderr, ranks


@pytest.mark.parametrize("world", WORLDS)
@each("another setting", "another rule")
def test_an_argument_that_differs_is_an_error_on_every_rank(framework, scenario, world, tmp_path):
    code, errors, ranks = train(framework, scenario, world, tmp_path)
    assert code != 0
    assert ranks, errors[-3000:]
    for rank in ranks:  # torchrun ends the ones that are slower to say so
        assert "GreedyLR has different arguments on different ranks" in rank["error"]
        assert len(rank["used"]) <= 1


@pytest.mark.parametrize("world", WORLDS)
@each("a history on one rank", "orders on one rank", "a slow rank")
def test_what_one_rank_may_have_alone_changes_nothing(framework, scenario, world, tmp_path):
    code, errors, ranks = train(framework, scenario, world, tmp_path)
    assert code == 0, errors[-3000:]
    assert len(ranks) == world
    assert all(rank == {"used": ranks[0]["used"], "error": None} for rank in ranks)
    assert len(set(ranks[0]["used"])) > 5


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("framework", ["torch", "accelerate"])
def test_a_step_without_a_loss_on_one_rank(framework, world, tmp_path):
    code, errors, ranks = train(framework, "no loss on one rank", world, tmp_path)
    assert code == 0, errors[-3000:]
    assert all(rank == {"used": ranks[0]["used"], "error": None} for rank in ranks)


@pytest.mark.parametrize("world", WORLDS)
def test_a_rank_without_data_joins(world, tmp_path):
    code, errors, ranks = train("accelerate", "uneven data", world, tmp_path)
    assert code == 0, errors[-3000:]
    lengths = {len(rank["used"]) for rank in ranks}
    assert len(lengths) == 2
    shortest = min(lengths)
    assert all(rank["used"][:shortest] == ranks[0]["used"][:shortest] for rank in ranks)


@pytest.mark.parametrize("world", WORLDS)
@each("death", "an exception")
def test_a_rank_that_ends_ends_all(framework, scenario, world, tmp_path):
    code, errors, ranks = train(framework, scenario, world, tmp_path)
    assert code != 0
    assert "exitcode: -9" in errors if scenario == "death" else any(rank["error"] for rank in ranks)
