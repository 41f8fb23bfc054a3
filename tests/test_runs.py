import json
import math
import random

import histories
import numpy as np
import pytest
import torch

from greedylr_integrations import GreedyLR, runs
from greedylr_integrations.decision import Action
from greedylr_integrations.runs import RunError, read
from recipes.common import report

TRAINED = [histories.with_trainer, histories.with_lightning, histories.with_torch]


def csv_file(path, header, rows, end="\n"):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + end)
    return path


@pytest.mark.parametrize("train", TRAINED)
def test_a_history_has_what_the_callback_recorded(train):
    trained = train()
    (run,) = read(trained.history)
    records = list(trained.callback.history)
    decisions = [record.decision for record in records]
    assert run.steps.tolist() == [record.step for record in records]
    assert len({run.reason(i) for i in range(len(run))}) >= 3
    assert [run.reason(i) for i in range(len(run))] == [decision.reason.name for decision in decisions]
    assert run.count(Action.RAISE) == sum(decision.action is Action.RAISE for decision in decisions) > 0
    for column, values in (
        (run.losses, [decision.loss for decision in decisions]),
        (run.smoothed, [decision.smoothed for decision in decisions]),
        (run.best, [decision.best for decision in decisions]),
        (run.scales, [decision.scales[0] for decision in decisions]),
        (run.lrs, [record.lrs[0] for record in records]),
        (run.envelope, [record.envelope for record in records]),
    ):
        np.testing.assert_array_equal(column, np.array(values, dtype=float))
    groups = len(records[0].lrs)
    assert (run.group_lrs is not None) == (groups > 1)
    if run.group_lrs is not None:
        np.testing.assert_array_equal(run.group_lrs.T, [record.lrs for record in records])


def test_the_suggested_lr_is_the_callbacks():
    trained = histories.with_trainer()
    (run,) = read(trained.history)
    assert run.suggested_lr() == trained.callback.suggested_lr() is not None


def test_orders_stand_beside_the_decisions():
    (run,) = read(histories.with_torch().history)
    assert [(order.step, str(order)) for order in run.commands] == [(150, "cap 2")]
    assert 150 in run.steps
    assert len(run) == len(histories.with_torch().callback.history)


def test_a_resume_takes_back_what_came_after_it(tmp_path):
    trained = histories.with_trainer()
    head, lines = histories.header(trained.callback), [histories.line(r) for r in trained.callback.history]
    wrong = [{**line, "loss": 99.0} for line in lines[50:60]]
    order = {"step": lines[55]["step"], "order": "hold", "value": None}
    resumed = {**head, "resumed": lines[49]["step"]}
    path = histories.write(tmp_path / "h.jsonl", [head, *lines[:50], *wrong, order, resumed, *lines[50:]])
    (whole,), (run,) = read(trained.history), read(path)
    np.testing.assert_array_equal(run.steps, whole.steps)
    np.testing.assert_array_equal(run.losses, whole.losses)
    assert run.commands == []


def test_a_torn_last_line_is_left_out(tmp_path):
    text = histories.with_trainer().history.read_text()
    (tmp_path / "h.jsonl").write_text(text[:-25])
    assert len(read(tmp_path / "h.jsonl")[0]) == len(read(histories.with_trainer().history)[0]) - 1


@pytest.mark.parametrize(
    ("number", "line", "complaint"),
    [
        (1, '{"greedylr_history": 3}', "version 1 or 2: .*greedylr_history=3 is not allowed"),
        (1, '{"greedylr_history": 1, "config": 3}', "line 1: .*config=3 is not allowed"),
        (5, "{torn", "line 5: .* is not JSON"),
        (5, "[1]", "line 5: .* not an object"),
        (5, '{"step": 3}', "line 5: this is not a decision: loss is missing"),
        (5, '{"resumed": "x"}', "line 5: this is not a resume: resumed='x' is not allowed"),
        (6, None, "'maybe'"),
    ],
)
def test_a_broken_history_is_an_error_with_its_line(tmp_path, number, line, complaint):
    lines = histories.with_trainer().history.read_text().splitlines()
    lines[number - 1] = line or lines[number - 1].replace('"hold"', '"maybe"')
    (tmp_path / "h.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(RunError, match=complaint):
        read(tmp_path / "h.jsonl")


# ---- logs of others ----


def test_trainer_state_checkpoint_and_output_folder():
    trained = histories.with_trainer()
    last = trained.folder / f"checkpoint-{histories.STEPS}"
    for path in (last / "trainer_state.json", last, trained.folder):
        (run,) = read(path)
        assert run.steps.tolist() == trained.steps
        assert run.losses.tolist() == trained.losses
        assert run.lrs.tolist() == trained.lrs
        assert run.config["patience"] == 1
        assert run.base_lrs == [1e-3, 1e-3]
        assert not run.has_decisions
    (earlier,) = read(trained.folder / "checkpoint-30")
    assert earlier.losses.tolist() == trained.losses[:30]


def test_lightning_csv_and_its_folders():
    trained = histories.with_lightning()
    version = trained.folder / "lightning_logs" / "version_0"
    for path in (version / "metrics.csv", version, trained.folder):
        (run,) = read(path)
        np.testing.assert_allclose(run.losses, trained.losses, rtol=1e-6)
        assert run.steps.tolist() == trained.steps
        assert len(set(run.lrs.tolist())) > 3  # greedylr/lr


def test_tensorboard_with_all_its_points(tmp_path):
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    losses = [2 + math.sin(i / 50) for i in range(12_000)]
    with SummaryWriter(tmp_path / "tb") as writer:
        for step, loss in enumerate(losses):
            writer.add_scalar("train/loss", loss, step)
            writer.add_scalar("eval/loss", 1.0, step)
            if step % 2 == 0:
                writer.add_scalar("train/learning_rate", 1e-3 / (1 + step), step)
    (run,) = read(tmp_path)
    np.testing.assert_allclose(run.losses, losses, rtol=1e-6)
    np.testing.assert_allclose(run.lrs[[0, 1, 11_999]], [1e-3, 1e-3, 1e-3 / 11_999], rtol=1e-6)
    assert read(tmp_path / "tb", "eval/loss")[0].losses.tolist() == [1.0] * 12_000


def test_metrics_of_a_recipe(tmp_path):
    trained = histories.with_torch()
    greedy = report.Run(
        "greedy",
        list(zip(trained.steps, trained.losses, strict=True)),
        [],
        list(zip(trained.steps, trained.lrs, strict=True)),
        1.0,
        0.1,
        0.02,
        trained.callback.history,
    )
    cosine = report.Run("cosine", [(1, 2.0), (2, 1.0)], [], [(1, 1e-3), (2, 5e-4)], 1.0, 0.1)
    report.save_metrics([greedy, cosine], tmp_path / "metrics.json")
    one, two = read(tmp_path)
    (history,) = read(trained.history)
    assert (one.name, two.name) == ("greedy", "cosine")
    assert two.losses.tolist() == [2.0, 1.0]
    assert two.lrs.tolist() == [1e-3, 5e-4]
    assert not two.has_decisions
    decided = one.actions != runs.NO_DECISION
    assert (~decided).sum() == 12  # the ramp
    np.testing.assert_array_equal(one.scales[decided], history.scales)
    np.testing.assert_array_equal(one.smoothed[decided], history.smoothed)
    assert [one.reason(i) for i in np.flatnonzero(decided)] == [history.reason(i) for i in range(len(history))]
    assert one.suggested_lr() == 0.02


def test_metrics_of_a_recipe_have_the_slopes_of_the_history(tmp_path):
    weight = torch.nn.Parameter(torch.ones(4))
    scheduler = GreedyLR(torch.optim.SGD([weight], lr=0.01), total_steps=80, history_file=tmp_path / "h" / "h.jsonl")
    for _ in range(80):
        weight.grad = weight.detach() + 0.1 * torch.randn(4)
        scheduler.optimizer.step()
        scheduler.step(float(weight.detach().norm()))
    steps = range(1, 81)
    lists = [(step, 1.0) for step in steps], [], [(step, 0.01) for step in steps]
    report.save_metrics([report.Run("greedy", *lists, 1.0, 0.1, 0.02, scheduler.history)], tmp_path / "metrics.json")
    (one,), (history,) = read(tmp_path / "metrics.json"), read(tmp_path / "h")
    assert np.isfinite(one.slope_means).sum() > 20
    np.testing.assert_array_equal(one.slope_means, history.slope_means)
    assert not np.isfinite(one.smoothed[np.isfinite(one.slopes)]).any()


# ---- CSV and JSON lines ----


def test_csv_with_empty_cells_nan_and_a_separate_lr(tmp_path):
    path = csv_file(
        tmp_path / "a.csv",
        "lr-SGD,step,val,Train_Loss",
        [(0.1, 0, "", ""), ("", 0, "", 2.0), ("", 1, "", "nan"), ("", 1, 9, ""), (0.05, 2, "", ""), ("", 2, "", 1.5)],
    )
    (run,) = read(path)
    assert run.steps.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(run.losses, [2.0, math.nan, 1.5])
    assert run.lrs.tolist() == [0.1, 0.1, 0.05]
    assert read(path, "val")[0].losses.tolist() == [9.0]


def test_csv_with_semicolons_a_byte_order_mark_and_no_steps(tmp_path):
    (tmp_path / "a.csv").write_text("a;loss\nx;3\ny;2\n", encoding="utf-8-sig")
    (run,) = read(tmp_path / "a.csv")
    assert (run.steps.tolist(), run.losses.tolist()) == ([1, 2], [3.0, 2.0])


def test_a_restart_takes_back_later_rows_and_says_so(tmp_path):
    path = csv_file(tmp_path / "a.csv", "step,loss", [(1, 5), (2, 4), (3, 9), (4, 9), (3, 3), (4, 2)])
    (run,) = read(path)
    assert run.losses.tolist() == [5, 4, 9, 3, 2]  # the two of step 3 are no contradiction
    assert "1 rows before a restart" in run.notes[0]


def test_a_torn_csv_row_is_left_out_only_at_the_end(tmp_path):
    path = csv_file(tmp_path / "a.csv", "step,loss,lr", [(1, 5, 1), (2, 4, 1), (3, 2)], end="")
    assert read(path)[0].losses.tolist() == [5, 4]
    path = csv_file(tmp_path / "b.csv", "step,loss,lr", [(1, 5, 1), (3, 2), (2, 4, 1)])
    with pytest.raises(RunError, match="line 3: '3,2' does not have 3 values"):
        read(path)


def test_json_lines_of_every_kind_of_number_and_a_torn_end(tmp_path):
    rng = random.Random(0)
    rows = [{"step": i, "loss": rng.random(), "note": "x" * (i % 5), "lr": 1e-3} for i in range(5000)]
    rows[17] = {"step": 17, "eval_loss": 1}
    path = histories.write(tmp_path / "a.jsonl", rows)
    end = '{"step": 5000, "loss": NaN}\n{"step": 5001, "loss": "inf"}\n{"step": 50'
    path.write_text(path.read_text() + "\n" * 300 + end)
    (run,) = read(path)
    assert run.losses[:4999].tolist() == [row["loss"] for row in rows if "loss" in row]
    assert run.steps.tolist() == [i for i in range(5002) if i != 17]
    np.testing.assert_array_equal(run.losses[4999:], [math.nan, math.inf])


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"step": 1, "loss": 2}, {"step": 2, "loss": 2}', "is not JSON"),
        ('{"step": 1, "loss": true}', "loss is True, not a number"),
        ('{"step": 1, "loss": 1', "is not JSON"),
        ("[1, 2]", "is not an object in braces"),
    ],
)
def test_a_wrong_line_among_json_lines_is_named(tmp_path, line, complaint):
    rows = [json.dumps({"step": i, "loss": 1.0}) for i in range(500)]
    rows[250] = line
    (tmp_path / "a.jsonl").write_text("\n".join(rows) + "\n")
    with pytest.raises(RunError, match=f"line 251: .*{complaint}"):
        read(tmp_path / "a.jsonl")


def test_json_lines_in_which_the_lr_begins_later(tmp_path):
    rows = [
        {"loss": 3, "step": 1},
        {"loss": 2, "step": 2, "lr": 1},
        {"step": 2, "eval_loss": 9},
        {"loss": 1, "step": 3},
    ]
    (run,) = read(histories.write(tmp_path / "a.jsonl", rows))
    assert (run.steps.tolist(), run.losses.tolist()) == ([1, 2, 3], [3, 2, 1])
    np.testing.assert_array_equal(run.lrs, [math.nan, 1, 1])


BROKEN = {
    "empty.csv": (b"", "the file is empty"),
    "blank.jsonl": (b" \n\n", "the file is empty"),
    "no_loss.csv": (b"step,accuracy\n1,2\n", "--column: 'step', 'accuracy'"),
    "no_loss.jsonl": (b'{"step": 1, "acc": 2}\n{"step": 2, "acc": 2}\n', "--column: 'step', 'acc'"),
    "all_nan.csv": (b"loss\nnan\nnan\n", "none of the 2 losses is a finite number"),
    "no_rows.csv": (b"step,loss\n", "there are no losses"),
    "words.csv": (b"step,loss\n1,2\n2,high\n", "line 3: loss is 'high', not a number"),
    "words.jsonl": (b'{"loss": 1}\n{"loss": "high"}\n', "line 2: loss is 'high', not a number"),
    "binary.csv": (bytes(range(256)), "binary"),
    "utf16.csv": ("step,loss\n1,2\n".encode("utf-16"), "UTF-16"),
    "latin.csv": ("step,loss,größe\n1,2,3\n".encode("latin-1"), "not UTF-8"),
    "latin.jsonl": ('{"größe": 1, "loss": 2}\n'.encode("latin-1"), "the text is not UTF-8"),
    "twice.csv": (b"loss,loss\n1,2\n", "same name"),
    "other.json": (b'{\n"a": 1\n}', "it has .a."),
    "torn.json": (b'{\n"log_history": [{"loss": 1,', "neither JSON"),
    "bare.jsonl": (
        b'{"greedylr_history": 1, "config": null, "base_lrs": [1], "total_steps": 1, "monitor": "loss",'
        b' "world_size": 1}\n',
        "no decision yet",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_input_is_one_sentence_with_the_file(tmp_path, name):
    content, complaint = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RunError, match=complaint) as error:
        read(tmp_path / name)
    assert str(error.value).startswith(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_what_is_not_there(tmp_path):
    (tmp_path / "sft.yaml").write_text("learning_rate: 1e-4\n")
    with pytest.raises(
        RunError, match=r"sft.yaml: this is a file of settings, not the record of a run: name the run's"
    ):
        read(tmp_path / "sft.yaml")
    with pytest.raises(RunError, match="no such file"):
        read(tmp_path / "missing.csv")
    with pytest.raises(RunError, match="no log of a run in this folder"):
        read(tmp_path)
    csv_file(tmp_path / "a.csv", "step,loss", [(1, 2)])
    with pytest.raises(RunError, match="no column 'nll'; there are 'step', 'loss'"):
        read(tmp_path / "a.csv", "nll")
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(json.dumps(histories.header(histories.with_trainer().callback)) + "\n")
    with pytest.raises(RunError, match="several histories, name one: a.jsonl, b.jsonl"):
        read(tmp_path)


def test_a_history_file_reads_as_the_history_of_its_run(tmp_path):
    """What the scheduler itself writes, after an order and a resume."""
    from greedylr_integrations import GreedyLR, history

    def scheduler():
        optimizer = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr} for lr in (0.1, 0.2)])
        return GreedyLR(optimizer, total_steps=60, window_size=3, history_file=tmp_path / "run.jsonl")

    losses = [3 - i / 30 + 0.2 * math.sin(i) for i in range(60)]
    first = scheduler()
    for loss in losses[:40]:
        first.step(loss)
    state = first.state_dict()
    for loss in losses[40:50]:
        first.step(loss)
    first.finish()
    second = scheduler()
    second.load_state_dict(state)
    second.cap(1.5)
    for loss in losses[40:]:
        second.step(loss)
    second.finish()
    (run,) = read(tmp_path / "run.jsonl")
    _, records, orders = history.read(tmp_path / "run.jsonl")
    assert list(run.steps) == [record.step for record in records] == list(range(1, 61))
    assert list(run.lrs) == [record.lrs[0] for record in records]
    assert [run.reason_names[i] for i in run.reasons] == [record.decision.reason.name for record in records]
    assert [(order.step, order.order, order.value) for order in run.commands] == list(map(tuple, orders))
