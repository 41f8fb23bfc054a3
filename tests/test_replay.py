import math
import re

import histories
import numpy as np
import pytest
import torch

from greedylr_integrations import GreedyConfig, GreedyLR, SpikeError
from greedylr_integrations.decision import Reason
from greedylr_integrations.rules import PaperConfig, TransformersConfig
from greedylr_integrations.runs import RunError, make_run, read
from greedylr_integrations.runs.explain import explain
from greedylr_integrations.runs.replay import make_config, parse_config, replay


@pytest.mark.parametrize("train", [histories.with_trainer, histories.with_torch])
def test_a_replay_of_a_run_with_its_own_configuration_is_that_run(train):
    trained = train()
    (run,) = read(trained.history)
    controller = trained.callback.scheduler.controller
    again = replay(run, make_config(run.config), run.base_lrs[0], controller.horizon, "again")
    assert len(set(again.scales)) > 10
    np.testing.assert_array_equal(again.scales, run.scales)
    np.testing.assert_array_equal(again.smoothed, run.smoothed)
    assert [again.reason(i) for i in range(len(again))] == [run.reason(i) for i in range(len(run))]
    np.testing.assert_array_equal(again.lrs, run.base_lrs[0] * run.scales)


@pytest.mark.parametrize("fields", [{"on_nonfinite": "raise"}, {"on_spike": "raise"}, {}])
def test_what_ended_a_run_is_the_end_of_its_replay(tmp_path, fields):
    bad = 50.0 if "on_spike" in fields else math.nan
    path, config = tmp_path / "h.jsonl", GreedyConfig(**fields)
    scheduler = GreedyLR(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1), config, history_file=path)
    with pytest.raises((FloatingPointError, SpikeError)):
        list(map(scheduler.step, [*[3.0, 3.1] * 20, *[bad] * 3]))
    (run,) = read(path)
    again = replay(run, config, 0.1, None, "again")
    assert [again.reason(i) for i in range(len(again))] == [run.reason(i) for i in range(len(run))]
    longer = make_run("log", "CSV log", [*run.steps, 99], [*run.losses, 3.0])
    with pytest.raises(RunError, match=f"log: at step {run.steps[-1]} the loss "):
        replay(longer, config, 0.1, None, "x")


def test_the_third_nan_ends_a_replay_with_its_step():
    run = make_run("log", "CSV log", [10, 11, 12, 13, 14], [1.0, math.nan, math.nan, math.nan, 1.0])
    with pytest.raises(RunError, match="log: at step 13 .* 3 times in a row"):
        replay(run, GreedyConfig(), 1.0, None, "x")
    held = replay(run, GreedyConfig(on_nonfinite="hold"), 1.0, None, "x")
    assert held.scales.tolist() == [1.0] * 5


def test_configurations_in_words():
    assert parse_config("") == GreedyConfig()
    assert parse_config("factor=.9 patience=5") == GreedyConfig(factor=0.9, patience=5)
    assert parse_config("window-size=3,threshold_mode=rel") == GreedyConfig(window_size=3, threshold_mode="rel")
    assert parse_config("paper smooth=true min_lr=1e-5") == PaperConfig(smooth=True, min_lr=1e-5)
    assert parse_config("transformers") == TransformersConfig()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("adam", "'adam' is not a preset; there are greedy, slope, loss, paper, transformers"),
        ("paper factor", "'factor' is not of the form"),
        ("fcator=.9", "'fcator' is not a field of GreedyConfig"),
        ("factor=2", "factor=2 is not allowed"),
        ("every_n_steps=4", "one decision for each recorded loss"),
        ("patience=high", "patience='high' is not allowed"),
    ],
)
def test_words_that_are_no_configuration(words, complaint):
    with pytest.raises(RunError, match=complaint):
        parse_config(words)


# ---- explain ----


def numbers_of(run, step):
    return " ".join(explain(run, step))


def test_each_move_is_explained_with_its_numbers():
    trained = histories.with_torch()
    (run,) = read(trained.history)
    window = trained.callback.scheduler.controller._rule._config.window_size
    explained = set()
    for i, record in enumerate(trained.callback.history):
        decision = record.decision
        if decision.reason not in (Reason.IMPROVED, Reason.WORSENED, Reason.INSIGNIFICANT) or i == 0:
            continue
        explained.add(decision.reason)
        told = numbers_of(run, record.step)
        finite = [other.decision.loss for other in list(trained.callback.history)[: i + 1]]
        finite = [loss for loss in finite if math.isfinite(loss)][-window:]
        differences = np.diff(finite)
        noise = math.sqrt((differences**2).sum() / (2 * (window - 1) * window))
        assert f"decision {decision.action.value}; the LR" in told
        assert f"Reason {decision.reason.name}: {decision.reason.value}." in told
        assert f"Mean of the last {window} losses {np.mean(finite):.6g}" in told
        assert f"the best before it, {decision.best:.6g}" in told
        assert f"standard error {noise:.6g}" in told
        assert f"above {decision.best + noise:.6g} is worse" in told
        if decision.action.value != "hold":
            before = trained.callback.history[i - 1].decision.scales[0]
            assert f"scale {before:.6g} to {decision.scales[0]:.6g}" in told
    assert len(explained) == 3


def test_ramp_decay_nan_order_and_groups_are_told():
    (run,) = read(histories.with_torch().history)
    assert "final decay multiplied the LR" in numbers_of(run, 239)
    assert "final decay" not in numbers_of(run, 100)
    assert "The loss was nan: it is left out of the mean." in numbers_of(run, 61)
    assert "Reason NONFINITE" in numbers_of(run, 61)
    assert "cap 2 at step 150" in numbers_of(run, 151)
    assert "followed at this step, before the decision: cap 2." in numbers_of(run, 150)
    assert "cap" not in numbers_of(run, 149)
    (lightning,) = read(histories.with_lightning().history)
    last = lightning.steps[-2]
    both = ", ".join(f"{lr:.6g}" for lr in lightning.group_lrs[:, -2])
    assert f"all parameter groups after it: {both}" in numbers_of(lightning, last)


def test_patience_is_told():
    (run,) = read(histories.with_trainer().history)
    row = next(i for i in range(len(run)) if run.reason(i) == "PATIENCE")
    told = numbers_of(run, int(run.steps[row]))
    assert Reason.PATIENCE.value in told
    assert "moves after more than 1 in a row" in told


@pytest.mark.parametrize("preset", ["paper smooth=true window_size=5 patience=2", "transformers patience=2"])
def test_presets_are_explained_by_their_own_threshold(preset):
    (run,) = read(histories.with_torch().history)
    finite = np.isfinite(run.losses)
    run = make_run("log", "CSV log", run.steps[finite], run.losses[finite])
    replayed = replay(run, parse_config(preset + " min_lr=1e-9"), 1.0, None, preset)
    told = numbers_of(replayed, int(run.steps[100]))
    best, size = replayed.best[100], 5 if "smooth" in preset else 1
    edge = best * (1 - 1e-6) if "paper" in preset else best - 1e-6
    assert f"Mean of the last {size} losses" in told
    assert f"a mean beyond {edge:.6g} counts as good" in told
    assert "after more than 2 in a row" in told


def lr_told(run, step):
    return re.search(r"the LR (rose|fell|stayed) (.+?)[.;]( |$)", numbers_of(run, step))[2].partition("; ")[0]


def test_a_log_and_a_history_of_one_run_tell_the_same_lr():
    trained = histories.with_trainer()
    (log,), (history,) = read(trained.folder), read(trained.history)
    moved = 0
    for step in history.steps[1:-1].tolist():
        assert lr_told(log, step) == lr_told(history, step)
        moved += "from" in lr_told(log, step)
    assert moved > 10
    trained = histories.with_lightning()  # its log counts from 0, and floats of 32 bits are in it
    (log,), (history,) = read(trained.folder), read(trained.history)
    assert "Step 7 (6 in this log, which counts from 0): the LR" in numbers_of(log, 7)


def test_a_scale_of_0_is_explained():
    columns = {"lrs": [0.0, 0.1], "scales": [0.0, 1.0], "actions": [1, 0], "reasons": ["WORSENED", "ORDERED"]}
    run = make_run("r", "GreedyLR history", [1, 2], [1.0, 1.0], lrs_are_next=True, **columns)
    assert "the LR rose from 0 to 0.1 (step 3); scale 0 to 1." in numbers_of(run, 2)


def test_the_slope_is_explained():
    columns = {"lrs": [0.1] * 3, "slopes": [math.nan, -0.5, 0.75], "actions": [2] * 3, "reasons": ["HOLDING"] * 3}
    means = [math.nan, -0.25, 0.5]
    run = make_run("r", "GreedyLR history", range(3), [1.0] * 3, lrs_are_next=True, slope_means=means, **columns)
    assert "Slope" not in numbers_of(run, 0)
    assert "Slope -0.5; the mean of the last ones is -0.25, below 0: moving further" in numbers_of(run, 1)
    assert "Slope 0.75; the mean of the last ones is 0.5, above 0: the weights have overshot." in numbers_of(run, 2)


def test_what_the_record_lacks_is_said():
    (run,) = read(histories.with_trainer().folder)
    told = numbers_of(run, 40)
    assert "no decisions, so it cannot say why" in told
    assert f"{run.lrs[run.steps.tolist().index(40)]:.6g}" in told
    bare = make_run("log", "CSV log", [1, 5], [2.0, 1.0])
    assert "Nothing was recorded at step 3; the last row before it is step 1." in numbers_of(bare, 3)
    assert "the record has no LR" in numbers_of(bare, 5)
    with pytest.raises(RunError, match="step 9 is not in the record, which goes from step 1 to 5"):
        explain(bare, 9)
