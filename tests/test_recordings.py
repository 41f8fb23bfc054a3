"""Every recorded learning rate comes out again, bit for bit, and what was saved then still loads. See recordings/."""

import functools
import gzip
import json

import pytest
from recordings import make

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
]

CASES = {(kind, name): run for kind, name, run in make.cases()}


@functools.cache
def recorded(name):
    return json.loads(gzip.decompress((make.HERE / f"{name}.json.gz").read_bytes()))


def state(name):
    return json.loads((make.HERE / f"state-{name}.json").read_text())


@functools.cache
def exact():
    """Whether this machine's `pow` rounds as that of the recording; if not, LRs can be equal to the last bits only."""
    return json.loads((make.HERE / "fingerprint.json").read_text()) == make.fingerprint()


def assert_same_decisions(got, then):
    """The recorded code said "raise" and "lower" even if no LR moved; it is "hold" now, for the same reason."""
    for now, before in zip(make.unrolled(got), make.unrolled(then), strict=True):
        assert now == before or now.split() == ["hold", *before.split()[1:]]


def assert_same(got, then):
    assert got["steps"] == then["steps"]
    assert_same_decisions(got["decisions"], then["decisions"])
    assert got["means"] == then["means"]
    if exact():
        marks, expected = make.unrolled(got["marks"]), make.unrolled(then["marks"])
        differ = [step for step, (now, before) in enumerate(zip(marks, expected, strict=True)) if now != before]
        assert not differ, f"the LR of step {differ[0]} is the first of {len(differ)} that are not as recorded"
        assert got["lrs"] == then["lrs"]
        assert got["digest"] == then["digest"]
    for now, before in zip(got["lrs"], then["lrs"], strict=True):
        assert list(map(float.fromhex, now)) == pytest.approx(list(map(float.fromhex, before)), rel=1e-9)


def test_every_recording_is_replayed():
    assert {kind: set(recorded(kind)) for kind in make.KINDS} == {
        kind: {name for other, name in CASES if other == kind} for kind in make.KINDS
    }


@pytest.mark.parametrize(
    ("kind", "name"),
    [key for key in CASES if key[0] != "frameworks" and key[1] != "paper, huge" and not key[1].endswith("group added")],
)
def test_the_lrs_are_as_recorded(kind, name, tmp_path):
    assert_same(CASES[kind, name](tmp_path), recorded(kind)[name])


def test_a_mean_that_overflows_no_longer_lowers_the_papers_lr(tmp_path):
    """The recorded code took it for the best or the worst loss of all time, for good."""
    got, then = CASES["controller", "paper, huge"](tmp_path), recorded("controller")["paper, huge"]
    now, before = make.unrolled(got["decisions"]), make.unrolled(then["decisions"])
    first = next(step for step, pair in enumerate(zip(now, before, strict=True)) if pair[0] != pair[1])
    assert now[first] == "hold NONFINITE"
    assert make.unrolled(got["marks"])[:first] == make.unrolled(then["marks"])[:first]


@pytest.mark.parametrize("behaviour", ["loss", "paper", "transformers"])
def test_the_lrs_are_as_recorded_until_a_group_is_added(behaviour, tmp_path):
    """From then on, the LR that a group is given is what it has; the recorded code multiplied it by the scale."""
    got, then = (
        run["marks"]
        for run in (
            CASES["scheduler", f"{behaviour}, group added"](tmp_path),
            recorded("scheduler")[f"{behaviour}, group added"],
        )
    )
    assert make.unrolled(got)[:90] == make.unrolled(then)[:90]


@pytest.mark.parametrize("name", [name for kind, name in CASES if kind == "frameworks"])
def test_the_lrs_of_the_frameworks_are_as_recorded(name, tmp_path):
    pytest.importorskip(name.split(",")[0])
    got, then = CASES["frameworks", name](tmp_path), recorded("frameworks")[name]
    assert got["used"]["steps"] == make.OPTIMIZER_STEPS
    assert_same(got["used"], then["used"])
    assert_same(got["history"], then["history"])
    assert got["at"] == then["at"]


@pytest.mark.parametrize("name", make.SETTINGS)
def test_the_three_frameworks_use_the_same_lrs(name):
    used = [recorded("frameworks")[f"{framework}, {name}"]["used"]["digest"] for framework in make.FRAMEWORKS]
    assert used[0] == used[1] == used[2]


@pytest.mark.parametrize("name", make.SAVED)
def test_a_state_that_was_saved_then_goes_on(name):
    assert_same(make.continued(name, state(name)), recorded("followed")[name]["followed"])


@pytest.mark.parametrize("name", make.SAVED)
def test_a_resumed_run_is_the_one_that_was_not_interrupted(name, tmp_path):
    case, at = make.SAVED[name]
    whole = make.drive(make.build(case), case, 0, case.steps)
    assert make.trace(whole[at:]) == make.continued(name, make.save(started(case, at)))


def started(case, at):
    scheduler = make.build(case)
    make.drive(scheduler, case, 0, at)
    return scheduler


def assert_same_history(got, then):
    assert_same(got["rows"], then["rows"])
    compared = got.keys() - {"rows"} - (set() if exact() else {"scales"})
    assert {key: got[key] for key in compared} == {key: then[key] for key in compared}


@pytest.mark.parametrize("name", make.WITH_HISTORY)
def test_a_history_that_was_written_then_is_read_and_goes_on(name, tmp_path):
    then, path = recorded("followed")[name], tmp_path / "history.jsonl"
    path.write_bytes((make.HERE / f"history-{name}.jsonl").read_bytes())
    assert_same_history(make.history_trace(path), then["read"])
    assert_same(make.continued(name, state(name), path), then["followed"])
    assert_same_history(make.history_trace(path), then["read_after"])


def test_commands_are_kept_with_their_steps():
    case = make.SCHEDULED["loss"]["commands"]
    scheduler = started(case, case.steps)
    names = {"start_decay": "decay"}
    expected = [(step, names.get(c[0], c[0]), (*c, None)[1]) for step, c in case.script.items()]
    assert make.commands_of(scheduler) == expected


@pytest.mark.parametrize("restored", [False, True], ids=["", "callbacks restored"])
@pytest.mark.parametrize("name", make.CALLBACK_CASES)
def test_a_trainer_goes_on_from_the_callback_state_that_was_saved_then(name, restored, tmp_path):
    pytest.importorskip("transformers")
    checkpoint = make.trained_with_checkpoint(name, tmp_path)
    path = checkpoint / "trainer_state.json"
    trainer_state = json.loads(path.read_text())
    trainer_state["stateful_callbacks"]["GreedyLRCallback"] = state("trainer")[name]
    path.write_text(json.dumps(trainer_state))
    got = make.train_on(name, checkpoint, restore_callback_states_from_checkpoint=restored)
    assert_same(got, recorded("followed")[f"trainer, {name}"]["followed"])
