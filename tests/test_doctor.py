"""What `greedylr doctor` finds in the record of a run."""

import json
import math

import histories
import numpy as np
import pytest

from greedylr_integrations.columns import CommandRecord
from greedylr_integrations.decision import Reason
from greedylr_integrations.runs import doctor, make_run, read


def record(reasons, *, losses=None, scales=None, steps=None, every_n_steps=1, **more):
    """A run with a decision of each of these reasons."""
    count = len(reasons)
    scales = np.ones(count) if scales is None else np.asarray(scales)
    config = {"behaviour": "SlopeConfig", "every_n_steps": every_n_steps}
    more = {"config": config, "base_lrs": [0.01], "slopes": np.full(count, -0.1), **more}
    more.setdefault("envelope", np.ones(count))
    return make_run(
        "run",
        "history",
        range(1, count + 1) if steps is None else steps,
        np.linspace(3, 1, count) if losses is None else losses,
        lrs=0.01 * scales,
        scales=scales,
        actions=np.zeros(count, int) + 2,
        reasons=[reason.name for reason in reasons],
        lrs_are_next=True,
        **more,
    )


HELD_UP = [Reason.SEARCHING] * 20 + [Reason.ORDERED] * 19 + [Reason.SEARCHING] + [Reason.HOLDING] * 60
FOUND = [Reason.SEARCHING] * 30 + [Reason.FOUND] + [Reason.HOLDING] * 69


def test_a_run_in_which_nothing_is_wrong():
    assert doctor.findings(record(FOUND, total_steps=100)) == []


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (
            lambda: record([Reason.TOO_SHORT] * 39 + [Reason.NONFINITE]),
            "There was no search, and the LR was left as it was: a search needs 60 decisions in the first pass over",
        ),
        (
            lambda: record([Reason.TOO_SHORT] * 40, total_steps=40),
            "There was no search, and the LR was left as it was: a search needs 60 decisions, and the run had 40.",
        ),
        (
            lambda: record([Reason.TOO_SHORT] * 40, steps=range(5, 205, 5), total_steps=200, every_n_steps=5),
            "There was no search, and the LR was left as it was: a search needs 60 decisions, and the run had 40. Lower"
            " every_n_steps=5.",
        ),
        (
            lambda: record([Reason.TOO_SHORT] * 10, steps=range(191, 201), total_steps=200),
            "There was no search, and the LR was left as it was: a search needs 60 decisions, and the run had 10. Lower"
            " linear_warmup_steps=190.",
        ),
        (
            lambda: record([Reason.TOO_SHORT] * 10, steps=range(50, 550, 50), total_steps=500),  # evaluations
            "There was no search, and the LR was left as it was: a search needs 60 decisions, and the run had 10.",
        ),
        (lambda: record([Reason.SEARCHING] * 40 + [Reason.HOLDING] * 60, base_lrs=[0.0]), "The base LR is 0, so"),
        (
            lambda: record([Reason.IMPROVED] * 40, slopes=None),
            "No slope was measured, so the LR followed the loss alone",
        ),
        (lambda: record([Reason.SEARCHING] * 40), "The record ends in the search, after step 40"),
        (
            lambda: record([Reason.SEARCHING] * 40 + [Reason.HOLDING] * 60, scales=[5.0] * 100),
            "The search ran out of time at an LR of 0.05, so the best LR may be higher: start the next run with a base"
            " LR of 0.05.",
        ),
        (
            lambda: record(FOUND, scales=[0.05] * 100),
            "The LR that was found, 0.0005, is far from the base LR, 0.01: start the next such run at 0.0005",
        ),
        (lambda: record([Reason.FILLING] * 40, config={"behaviour": "GreedyConfig"}), "The loss window never filled"),
        (lambda: record([Reason.CEILING] * 20 + FOUND[20:]), "The LR was at its upper bound in 20% of the decisions"),
        (
            lambda: record([Reason.CEILING] * 100, config={"behaviour": "PaperConfig", "max_lr": 1.0}),
            "The LR was at its upper bound in 100% of the decisions: use a larger max_lr.",
        ),
        (
            lambda: record([Reason.SEARCHING] * 40 + [Reason.NONFINITE] + [Reason.HOLDING] * 59),
            "The search ended at step 41 because of a loss that was NaN or infinite",
        ),
        (
            lambda: record([Reason.SEARCHING] * 40 + [Reason.ORDERED] * 60),
            "The search was held up from step 41 on by a command, so the LR may not be the one that fits",
        ),
        (lambda: record([Reason.FLOOR] * 20 + FOUND[20:]), "The LR was at its lower bound in 20% of the decisions"),
        (lambda: record(FOUND, total_steps=200), "The record ends at step 100 of 200: resume the run"),
        (
            lambda: record(FOUND, total_steps=80, scales=[1.0] * 80 + [0.0] * 20),
            "The run went on for 20 steps after its planned end at step 80",
        ),
        (
            lambda: record(FOUND, losses=[*np.linspace(3, 1, 98), math.nan, math.inf]),
            "2 losses are NaN or infinite, first at step 99",
        ),
        (
            lambda: record(
                [*FOUND[:-1], Reason.ROLLED_BACK], config={"behaviour": "SlopeConfig", "on_spike": "rollback"}
            ),
            "Earlier weights were restored at step 100: look at the data before it",
        ),
        (
            lambda: record(FOUND, losses=[*np.tile([3.0, 3.1, 2.9], 30), *[9.0] * 10]),
            'The loss rose at step 93, far above what it had been: on_spike="rollback"',
        ),
        (
            lambda: record(FOUND, losses=np.tile([3.0, 2.9], 50) + np.linspace(0, 0.2, 100)),
            "The mean loss did not improve: 2.959 in the first tenth of the rows, 3.141 in the last",
        ),
    ],
)
def test_each_finding(run, said):
    found = doctor.findings(run())
    assert any(line.startswith(said) for line in found), found
    assert all(line.endswith(".") for line in found)


@pytest.mark.parametrize(
    "run",
    [
        lambda: record([Reason.HOLDING] * 100, slopes=None),  # resumed after its search
        lambda: record(FOUND, scales=[30.0] * 100, config={"behaviour": "GreedyConfig"}),  # which does not search
        lambda: record(FOUND, total_steps=80),  # another schedule goes on
        lambda: record(FOUND, config={"behaviour": "SlopeConfig", "on_spike": "hold"}),
    ],
)
def test_what_is_as_it_should_be(run):
    assert doctor.findings(run()) == []


def test_evaluations_that_are_far_apart():
    run = make_run("run", "history", [400, 800], [2.0, 1.0], actions=[2, 2], reasons=["FILLING"] * 2, total_steps=1000)
    assert doctor.findings(run) == []


def test_a_record_of_nothing_but_nan(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,loss\n1,nan\n2,nan\n")
    (run,) = read(path, finite=False)
    (line,) = doctor.findings(run)
    assert line.startswith("All losses are NaN or infinite, first at step 1")


def test_a_larger_metric_is_better():
    run = record(FOUND, config={"behaviour": "GreedyConfig", "mode": "max"}, losses=np.linspace(1, 3, 100))
    assert doctor.findings(run) == []


def test_a_command_in_force(tmp_path):
    header, *rows, cap = map(json.loads, histories.with_torch().history.read_text().splitlines())
    hold = {"step": 40, "order": "hold", "value": None}
    line = "The command `hold` was in force from step 40 to the end of the record."
    (run,) = read(histories.write(tmp_path / "held.jsonl", [header, *rows[:40], hold, *rows[40:]]))
    assert line in doctor.findings(run)
    (run,) = read(histories.write(tmp_path / "capped.jsonl", [header, *rows[:40], hold, *rows[40:], cap]))
    assert not any("command" in each for each in doctor.findings(run))  # the cap has taken its place


@pytest.mark.parametrize("commands", [[(20, "cap", 0.1)], [(20, "hold", None), (60, "release", None)]])
def test_a_command_during_the_search_is_named_and_not_the_time(commands):
    run = record(HELD_UP, commands=[CommandRecord(*each) for each in commands])
    (line,) = doctor.findings(run)
    assert line.startswith(f"The search was held up from step 21 on by the command `{run.commands[0]}`, so the LR may")


def test_a_command_to_the_end_is_named_once():
    run = record(HELD_UP, commands=[CommandRecord(20, "hold", None)])
    assert doctor.findings(run) == ["The command `hold` was in force from step 20 to the end of the record."]


@pytest.mark.parametrize("end", [Reason.HOLDING, Reason.FOUND])
def test_the_bound_is_the_cause_and_not_the_base_lr(end):
    reasons = [Reason.SEARCHING] + [Reason.CEILING] * 38 + [Reason.SEARCHING, end] + [Reason.HOLDING] * 59
    run = record(reasons, scales=[0.01] * 100, config={"behaviour": "SlopeConfig", "max_scale": 0.01})
    assert doctor.findings(run) == ["The LR was at its upper bound in 38% of the decisions: use a larger max_scale."]


def test_records_of_real_runs():
    trainer, lightning = histories.with_trainer(), histories.with_lightning()
    for place in (histories.with_torch().history, *trainer[:2], *lightning[:2]):
        for run in read(place):
            found = doctor.findings(run)
            assert all(line.endswith(".") for line in found)


def test_the_environment():
    lines = doctor.environment()
    assert lines[0].startswith("Python 3.")
    assert any(line.startswith("greedylr_integrations ") for line in lines)
    assert not any("cannot be imported" in line for line in lines)


def test_an_adapter_that_cannot_be_imported(monkeypatch):
    def broken(name):
        raise RuntimeError("numpy was compiled for another version")

    monkeypatch.setattr(doctor, "import_module", broken)
    assert doctor.environment()[-1] == (
        "greedylr_integrations.accelerate cannot be imported: RuntimeError: numpy was compiled for another version"
    )
