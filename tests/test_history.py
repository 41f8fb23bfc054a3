"""Decisions in memory and on disk: complete, bounded, safe against a kill, and never mixed with another run's."""

import copy
import errno
import json
import logging
import math
import os
import pickle
import signal
import subprocess
import sys
import time

import pytest
import torch
from processes import TESTS, spawn

from greedylr_integrations import ControllerConfig, GreedyConfig, GreedyLR, OneScaleRule, PaperConfig, history
from greedylr_integrations.decision import Decision, Reason

FAST = {"window_size": 2, "factor": 0.9}


def id_of(path):
    """Id of the run in the first line of a history."""
    with open(path) as file:
        return json.loads(file.readline())["run"]


def optimizer_of(*lrs):
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.ones(2))], "lr": lr} for lr in lrs], lr=0.1)


def losses(n=60):
    return [3 - i / 50 + 0.3 * math.sin(i * 1.7) for i in range(n)]


def scheduler_of(path=None, *lrs, **kwargs):
    return GreedyLR(optimizer_of(*(lrs or (0.1,))), history_file=path, **{**FAST, "total_steps": 60, **kwargs})


def train(scheduler, values):
    for loss in values:
        scheduler.step(loss)
    return scheduler


# ---- in memory ----


def test_every_decision_is_a_record():
    optimizer = optimizer_of(0.1, 0.02)
    scheduler = GreedyLR(optimizer, total_steps=60, linear_warmup_steps=5, **FAST)
    made = []
    for loss in losses():
        decision = scheduler.step(loss)
        if decision is not None:
            lrs = tuple(group["lr"] for group in optimizer.param_groups)
            made.append((scheduler.last_epoch, lrs, scheduler.factor, decision, 0))
    assert list(scheduler.history) == made
    assert made[0][0] == 6


def test_nonfinite_losses_in_a_row_are_counted():
    scheduler = train(scheduler_of(), [1.0, math.nan, math.inf, 1.0, -math.inf])
    assert [record.nonfinite for record in scheduler.history] == [0, 1, 2, 0, 1]


def test_memory_is_bounded():
    bounded = history.History(10)
    for record in train(scheduler_of(), losses()).history:
        bounded.entries.append(history.Entry(record.step, (0.1,), record.envelope, record.decision, 0))
    assert [record.step for record in bounded] == list(range(51, 61))
    assert history.History().entries.maxlen == history.HISTORY_SIZE


def test_going_back_to_a_state_takes_the_later_records_back():
    scheduler = train(scheduler_of(), losses(20))
    state = json.loads(json.dumps(scheduler.state_dict()))
    train(scheduler, losses()[20:40])
    scheduler.pin(1.0)
    scheduler.load_state_dict(state)
    assert [record.step for record in scheduler.history] == list(range(1, 21))
    assert list(scheduler.commands) == []


# ---- on disk ----


@pytest.mark.parametrize("config", [GreedyConfig(**FAST), PaperConfig(patience=0, min_lr=1e-4)])
def test_what_is_read_is_what_was_decided(tmp_path, config):
    path = tmp_path / "new" / "history.jsonl"
    values = losses()
    values[7], values[9], values[20] = math.inf, -math.inf, 1e308
    scheduler = GreedyLR(optimizer_of(0.1, 0.02), config, total_steps=60, history_file=path)
    train(scheduler, values)
    header, records, commands = history.read(path)
    assert records == list(scheduler.history)
    assert len(records) == 60
    assert commands == []
    assert len(id_of(path)) == 32
    assert header == {
        "greedylr_history": 2,
        "config": config.to_dict(),
        "base_lrs": [0.1, 0.02],
        "total_steps": 60,
        "monitor": "loss",
        "world_size": 1,
    }


def test_the_format_line_by_line(tmp_path):
    path = tmp_path / "history.jsonl"
    scheduler = GreedyLR(optimizer_of(0.5), window_size=1, factor=0.5, history_file=path)
    train(scheduler, [2.0, 1.0])
    scheduler.cap(3)
    scheduler.step(math.nan)
    _, *lines = map(json.loads, path.read_text().splitlines())
    same = {"envelope": 1.0, "slope": None, "distance": None}
    assert lines == [
        {"step": 1, "loss": 2.0, "smoothed": 2.0, "best": None, "action": "hold", "reason": "FILLING"}
        | {"scales": [1.0], "lrs": [0.5], "nonfinite": 0, **same},
        {"step": 2, "loss": 1.0, "smoothed": 1.0, "best": 2.0, "action": "raise", "reason": "IMPROVED"}
        | {"scales": [2.0], "lrs": [1.0], "nonfinite": 0, **same},
        {"step": 2, "order": "cap", "value": 3},
        {"step": 3, "loss": "nan", "smoothed": None, "best": None, "action": "lower", "reason": "NONFINITE"}
        | {"scales": [1.0], "lrs": [0.5], "nonfinite": 1, **same},
    ]


def test_a_rule_of_ones_own(tmp_path):
    class Constant(OneScaleRule):
        def update(self, loss, slope=None, distance=None):
            return Decision(self.move(2.0), Reason.INSIGNIFICANT, self.scales, loss, math.nan)

    class ConstantConfig(ControllerConfig):
        def rule(self, base_lrs, horizon, first_pass=None):
            return Constant(base_lrs)

    scheduler = GreedyLR(optimizer_of(0.1, 0.2), ConstantConfig(), history_file=tmp_path / "h.jsonl")
    train(scheduler, [1.0, 2.0])
    header, records, _ = history.read(tmp_path / "h.jsonl")
    assert header["config"]["behaviour"] == "ConstantConfig"
    assert [(r.decision.scales, r.lrs, r.decision.smoothed) for r in records] == [((2.0, 2.0), (0.2, 0.4), None)] * 2


def test_a_metric(tmp_path):
    scheduler = scheduler_of(tmp_path / "h.jsonl", monitor="eval_loss")
    scheduler.observe(2.0)
    for _ in range(4):
        scheduler.step()
    scheduler.observe(1.0)
    header, records, _ = history.read(tmp_path / "h.jsonl")
    assert header["monitor"] == "eval_loss"
    assert [record.step for record in records] == [0, 4]


# ---- one file, one run ----


def test_a_fresh_run_renames_the_history_of_another(tmp_path, warnings_of):
    path = tmp_path / "history.jsonl"
    written = []
    for run in range(3):
        train(scheduler_of(path), losses(5 + run)).finish()
        written.append(path.read_bytes())
    assert len({id_of(path) for path in tmp_path.iterdir()}) == 3
    # nothing is lost: the first run was renamed by the second, which was renamed by the third
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {
        "history-2.jsonl": written[0],
        "history-3.jsonl": written[1],
        "history.jsonl": written[2],
    }
    assert [text for text in warnings_of() if "renamed" in text] == [
        f"GreedyLR renamed the history of an earlier run to {tmp_path}/history-{i}.jsonl, and writes its own to {path}"
        for i in (2, 3)
    ]


def stats(folder):
    of_files = [(file.name, file.lstat()) for file in folder.iterdir()]
    return {name: (stat.st_mode, stat.st_size, stat.st_ino, stat.st_mtime_ns) for name, stat in of_files}


def taken(path, how):
    """Something else is at the path; returns what must not change, and what is still open."""
    other = path.parent / "other"
    if how == "bytes":
        path.write_bytes(b"\0" * 5_000_000)
    elif how == "text":
        path.write_text("my notes, without a newline")
    elif how == "json":
        path.write_text('{"loss": 1.0}\n')
    elif how == "link":
        other.write_text("precious\n")
        path.symlink_to(other)
    elif how == "link to nothing":
        path.symlink_to(other)
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "folder":
        path.mkdir()
    elif how == "being written":
        return train(scheduler_of(path), losses(5))
    return None


@pytest.mark.parametrize("how", ["bytes", "text", "json", "link", "link to nothing", "pipe", "folder", "being written"])
@pytest.mark.parametrize("resumed", [False, True])
def test_what_is_not_an_earlier_history_is_left_alone(tmp_path, warnings_of, how, resumed):
    path = tmp_path / "history.jsonl"
    open_run = taken(path, how)
    before = stats(tmp_path)
    content = path.read_bytes() if path.is_file() else None
    scheduler = scheduler_of(path)
    if resumed:
        scheduler.load_state_dict((open_run or train(scheduler_of(), losses(5))).state_dict())
    train(scheduler, losses(9)[5:])
    after = stats(tmp_path)
    own = tmp_path / "history-2.jsonl"
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {own.name}
    assert content is None or path.read_bytes() == content
    assert scheduler.history_file.path == str(own)
    assert history.read(own)[1] == list(scheduler.history)[-4:]
    (message,) = [text for text in warnings_of() if "writes its history to" in text]
    why = {"being written": "is being written by another process"}.get(
        how, "is not a regular file" if how in ("link", "link to nothing", "pipe", "folder") else "is not a GreedyLR"
    )
    assert message.startswith(f"GreedyLR writes its history to {own}: {path} {why}")


def _two_ranks(rank, world, out):
    for name in ("a", "b"):
        scheduler = scheduler_of(f"{out}/{name}{rank}")  # as on machines that share no disk
        scheduler.pin(2.0)
        train(scheduler, losses(3)).finish()
        if rank == 0:
            assert history.read(f"{out}/{name}0")[0]["world_size"] == 2
    train(scheduler_of(f"{out}/c0" if rank == 0 else None), losses(3))


def test_rank_0_alone_touches_the_files(tmp_path):
    for name in ("a1", "b0"):
        train(scheduler_of(tmp_path / name), losses(3)).finish()
    before, renamed = (tmp_path / "a1").read_bytes(), (tmp_path / "b0").read_bytes()
    spawn(_two_ranks, 2, tmp_path)
    assert (tmp_path / "a1").read_bytes() == before
    assert (tmp_path / "b0-2").read_bytes() == renamed
    assert len(history.read(tmp_path / "b0")[1]) == len(history.read(tmp_path / "c0")[1]) == 3
    assert {path.name for path in tmp_path.iterdir()} - {"store"} == {"a0", "a1", "b0", "b0-2", "c0"}


@pytest.mark.parametrize("cut", [1, 7, 30, 59])
def test_interrupted_and_resumed_it_reads_as_one_run(tmp_path, cut):
    def steered(scheduler, start, stop):
        for i in range(start, stop):
            if i == 25:
                scheduler.cap(0.9)
            scheduler.step(losses()[i])

    steered(scheduler_of(tmp_path / "whole"), 0, 60)
    path = tmp_path / "cut"
    first = scheduler_of(path)
    steered(first, 0, cut)
    state = first.state_dict()
    steered(first, cut, min(cut + 9, 60))  # the run went on for a while after its last checkpoint
    first.history_file.close()
    with path.open("ab") as file:
        file.write(b'{"step": 4')  # and was killed while it wrote
    second = scheduler_of(path)
    second.load_state_dict(json.loads(json.dumps(state)))
    steered(second, cut, 60)
    (header, *rest), (whole, *expected) = history.read(path), history.read(tmp_path / "whole")
    assert rest == expected
    assert id_of(path) != id_of(tmp_path / "whole")
    assert header == whole
    assert f'{{"resumed": {cut}, "greedylr_history": 2, ' in path.read_text()


@pytest.mark.parametrize("after", ["hold", "observe"])
def test_what_comes_after_a_checkpoint_in_the_same_step_is_taken_back(tmp_path, after):
    def go(path, stop, state=None):
        scheduler, saved = scheduler_of(path), None
        if state is not None:
            scheduler.load_state_dict(state)
        for i in range(scheduler.last_epoch, stop):
            if i == 10:
                saved = json.loads(json.dumps(scheduler.state_dict()))
                scheduler.hold() if after == "hold" else scheduler.observe(2.0)
            scheduler.step(losses()[i])
        scheduler.finish()
        return saved

    go(tmp_path / "whole", 30)
    state = go(tmp_path / "cut", 13)
    go(tmp_path / "cut", 30, state)
    assert history.read(tmp_path / "cut")[1:] == history.read(tmp_path / "whole")[1:]


def test_a_resumed_run_without_a_file_begins_one(tmp_path):
    first = train(scheduler_of(), losses(10))
    for content in (None, b"", b'{"greedylr_his'):
        path = tmp_path / "history.jsonl"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        second = scheduler_of(path)
        second.load_state_dict(first.state_dict())
        train(second, losses()[10:20])
        assert history.read(path)[1] == list(second.history)


def test_a_long_torn_line_is_cut(tmp_path):
    path = tmp_path / "history.jsonl"
    first = train(scheduler_of(path), losses(3))
    first.history_file.close()
    with path.open("ab") as file:
        file.write(b"x" * 20_000)
    second = scheduler_of(path)
    second.load_state_dict(first.state_dict())
    train(second, losses()[3:5])
    assert [record.step for record in history.read(path)[1]] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda scheduler: pickle.loads(pickle.dumps(scheduler))])
def test_a_copy_goes_on_in_the_same_file_unless_the_original_still_writes(tmp_path, copied, warnings_of):
    scheduler = train(scheduler_of(tmp_path / "h"), losses(3))
    other = train(copied(scheduler), losses(5)[3:])
    assert other.history_file.path == str(tmp_path / "h-2")
    assert "is being written by another process" in warnings_of()[-1]
    assert [record.step for record in history.read(tmp_path / "h-2")[1]] == [4, 5]
    other.finish()
    (tmp_path / "h-2").unlink()
    scheduler.finish()
    train(copied(scheduler), losses(5)[3:])
    assert [record.step for record in history.read(tmp_path / "h")[1]] == [1, 2, 3, 4, 5]


def test_a_full_disk_ends_the_history_and_not_the_run(tmp_path, monkeypatch, warnings_of):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    scheduler = train(scheduler_of(tmp_path / "h"), losses(2))
    monkeypatch.setattr("greedylr_integrations.history_file.os.write", full)
    train(scheduler, losses(5))
    assert len(scheduler.history) == 7
    (message,) = warnings_of()
    assert message.startswith(f"GreedyLR stops writing to history_file {tmp_path}/h: ")
    monkeypatch.undo()
    assert len(history.read(tmp_path / "h")[1]) == 2


SCRIPT = """
import sys; sys.path.insert(0, {tests!r})
import itertools, test_history as t
scheduler = t.scheduler_of({path!r}, total_steps=None)
for i in itertools.count():
    scheduler.step(3.0 + (i % 7) / 10)
"""


def test_kill_9_leaves_a_readable_history(tmp_path):
    path = tmp_path / "history.jsonl"
    code = SCRIPT.format(tests=str(TESTS), path=str(path))
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code])
    try:
        deadline = time.monotonic() + 100
        while not path.exists() or path.stat().st_size < 200_000:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    _, records, _ = history.read(path)
    assert [record.step for record in records] == list(range(1, len(records) + 1))
    assert len(records) > 500


# ---- reading ----


@pytest.fixture
def lines(tmp_path):
    train(scheduler_of(tmp_path / "good"), losses(4))
    return (tmp_path / "good").read_bytes().split(b"\n")[:-1]


def read_lines(tmp_path, lines, end=b"\n"):
    path = tmp_path / "history.jsonl"
    path.write_bytes(b"\n".join(lines) + end)
    return history.read(path)


def test_a_torn_last_line_is_left_out_wherever_it_was_torn(tmp_path, lines):
    for kept in range(1, len(lines[-1]) + 1):
        _, records, _ = read_lines(tmp_path, [*lines[:-1], lines[-1][:kept]], end=b"")
        assert len(records) == 3


@pytest.mark.parametrize(
    ("number", "line", "says"),
    [
        (3, b'{"step": 2', "is not JSON"),
        (3, b"\xff\xfe\x00", "is not JSON"),
        (2, b"", "is not JSON"),
        (4, b"3", "3 is not an object"),
        (1, b'{"loss": 1}', "of a GreedyLR history of version 1 or 2: greedylr_history is missing"),
        (1, b'{"greedylr_history": 3}', "greedylr_history=3 is not allowed: it must be 1 or 2"),
        (
            5,
            b'{"step": 1, "order": "stop", "value": null}',
            "not a command: order='stop' is not allowed: it must be one of hold, cap, pin, release, decay",
        ),
        (5, b'{"resumed": "x"}', "not a resume: "),
        (2, b'{"step": 1}', "not a decision: loss is missing; smoothed is missing"),
        (2, (b'"hold"', b'"up"'), "action='up' is not allowed"),
        (2, (b'"hold"', b"[]"), "action=[] is not allowed"),
        (2, (b'"FILLING"', b'"BECAUSE"'), "reason='BECAUSE' is not known"),
        (2, (b'"step": 1', b'"step": 1, "x": 1'), "'x' is unknown"),
        (2, (b'"loss": 3.0', b'"loss": NaN'), "loss=nan is not allowed"),
    ],
)
def test_anything_else_is_named_with_its_line(tmp_path, lines, number, line, says):
    if isinstance(line, tuple):
        line = lines[number - 1].replace(*line)
        assert line != lines[number - 1]
    lines[number - 1] = line
    with pytest.raises(ValueError) as error:  # noqa: PT011
        read_lines(tmp_path, lines)
    assert f"history.jsonl, line {number}: " in str(error.value)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lrs": [-0.1]}, "lrs=[-0.1] is not allowed: it must be a list of finite numbers of at least 0"),
        ({"scales": [-1.0]}, "scales=[-1.0] is not allowed"),
        ({"scales": []}, "scales=[] is not allowed"),
        ({"scales": [1.0, 1.0]}, "there are 2 scales for 1 LRs"),
        ({"envelope": 1.5}, "envelope=1.5 is not allowed: it must be a number from 0 to 1"),
        ({"envelope": -0.1}, "envelope=-0.1 is not allowed"),
        ({"step": -1}, "step=-1 is not allowed: it must be an integer of at least 0"),
        ({"step": 1.0}, "step=1.0 is not allowed"),
        ({"step": 2**60}, "is not allowed"),
        ({"step": 0}, "step 0 comes after step 1 without a resume in between"),
        ({"loss": 10**400}, "is not allowed"),
        ({"smoothed": True}, "smoothed=True is not allowed"),
        ({"nonfinite": -1}, "nonfinite=-1 is not allowed"),
        ({"slope": "x", "distance": None}, "slope='x' is not allowed"),
        ({"slope": None, "distance": "x"}, "distance='x' is not allowed"),
        ({"reason": ""}, "reason='' is not allowed"),
        ({"reason": "\x1b[31m" * 201}, "is not allowed"),
    ],
)
def test_values_that_make_no_sense_are_refused(tmp_path, lines, changes, says):
    lines[0] = json.dumps({**json.loads(lines[0]), "greedylr_history": 2}).encode()
    lines[2] = json.dumps({**json.loads(lines[2]), **changes}).encode()
    with pytest.raises(ValueError) as error:  # noqa: PT011
        read_lines(tmp_path, lines)
    assert "history.jsonl, line 3: " in str(error.value)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"base_lrs": [-1.0]}, "base_lrs=[-1.0] is not allowed"),
        ({"base_lrs": []}, "base_lrs=[] is not allowed"),
        ({"total_steps": -1}, "total_steps=-1 is not allowed: it must be an integer of at least 1, or null"),
        ({"world_size": 0}, "world_size=0 is not allowed"),
        ({"config": []}, "config=[] is not allowed"),
        ({"run": 3}, "run=3 is not allowed"),
        ({"greedylr_history": 1, "run": "a"}, "'run' is unknown"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(tmp_path, lines, changes, says):
    header = {**json.loads(lines[0]), "greedylr_history": 2, **changes}
    with pytest.raises(ValueError) as error:  # noqa: PT011
        read_lines(tmp_path, [json.dumps(header).encode(), *lines[1:]])
    assert "history.jsonl, line 1: this is not the header of a GreedyLR history" in str(error.value)
    assert says in str(error.value)


def test_version_2_has_slopes_and_the_id_of_the_run(tmp_path, lines):
    header = {**json.loads(lines[0]), "greedylr_history": 2, "run": "a"}
    seen = ((None, None), (0.5, 0.1), (-1, 3), (0, 0))
    rows = [
        {**json.loads(line), "slope": slope, "distance": distance}
        for line, (slope, distance) in zip(lines[1:], seen, strict=True)
    ]
    encoded = [json.dumps(entry).encode() for entry in (header, *rows)]
    assert read_lines(tmp_path, encoded)[0] == {
        key: value for key, value in header.items() if key not in ("run", "decisions", "commands")
    }
    _, columns, _ = history.read_columns(tmp_path / "history.jsonl")
    assert math.isnan(columns.slopes[0])
    assert list(columns.slopes)[1:] == [0.5, -1, 0]
    assert list(columns.distances)[1:] == [0.1, 3, 0]
    version_1 = json.dumps(
        {k: v for k, v in header.items() if k not in ("run", "decisions", "commands")} | {"greedylr_history": 1}
    ).encode()
    row = json.dumps({key: value for key, value in rows[0].items() if key not in ("slope", "distance")}).encode()
    with pytest.raises(ValueError, match="line 3: this is not a decision: 'slope' is unknown"):
        read_lines(tmp_path, [version_1, row, encoded[2]])
    resumed = json.dumps({"resumed": 4, **header, "run": "b"}).encode()
    with pytest.raises(ValueError, match="line 6: the run 'b' resumes in the history of 'a'"):
        read_lines(tmp_path, [*encoded, resumed])


def test_the_first_files_of_version_2_had_no_distance(tmp_path, lines):
    header = {**json.loads(lines[0]), "greedylr_history": 2, "run": "a"}
    rows = [{**json.loads(line), "slope": 0.5} for line in lines[1:]]
    for row in rows:
        row.pop("distance", None)
    read_lines(tmp_path, [json.dumps(entry).encode() for entry in (header, *rows)])
    _, columns, _ = history.read_columns(tmp_path / "history.jsonl")
    assert list(columns.slopes) == [0.5] * len(rows)
    assert all(map(math.isnan, columns.distances))


def test_columns_are_the_records(tmp_path):
    path = tmp_path / "h.jsonl"
    scheduler = scheduler_of(path, 0.1, 0.02, linear_warmup_steps=3)
    scheduler.cap(2)
    train(scheduler, losses())
    scheduler.release()
    scheduler.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "lr": 0.5})
    train(scheduler, losses(5))
    _, records, commands = history.read(path)
    header, columns, same = history.read_columns(path)
    assert (same, header["base_lrs"]) == (commands, [0.1, 0.02])
    assert list(columns.steps) == [record.step for record in records]
    assert list(columns.losses) == [record.decision.loss for record in records]
    assert list(columns.lrs) == [lr for record in records for lr in record.lrs]
    assert set(columns.groups) == {2, 3}
    named = [columns.reason_names[code] for code in columns.reasons]
    assert named == [record.decision.reason.name for record in records]


def test_many_resumes_take_no_quadratic_time(tmp_path):
    path = tmp_path / "h.jsonl"
    train(scheduler_of(path), losses(4))
    header, *rows = path.read_bytes().splitlines()
    resume = json.dumps({"resumed": 1, **json.loads(header), "decisions": 1}).encode()
    started = time.process_time()
    _, columns, _ = history.read_columns(_written(path, [header, *[rows[0], *rows[1:], resume] * 20_000]))
    assert time.process_time() - started < 20
    assert list(columns.steps) == [1]  # of all decisions in the file, each resume kept the first alone


def _written(path, lines):
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


@pytest.mark.parametrize("content", [b"", b'{"greedylr_history": 1'])
def test_a_file_without_a_header(tmp_path, content):
    with pytest.raises(ValueError, match=r"history.jsonl, line 1: there is no complete header of a GreedyLR history"):
        read_lines(tmp_path, [content], end=b"")


# ---- what it comes to ----


def test_the_end_of_a_run_says_where_to_start_the_next(caplog):
    caplog.set_level(logging.INFO, "greedylr_integrations")
    scheduler = train(scheduler_of(), losses())
    scheduler.finish()
    (message,) = caplog.messages
    lr = scheduler.suggested_lr()
    assert message.startswith(f"GreedyLR settled on the LR {lr:.2g}, {lr / 0.1:.3g} x the base LR of 0.1, after ")
    assert message.endswith(f"decreases. Start the next such run at {lr:.2g}.")
    caplog.clear()
    train(scheduler_of(total_steps=None), losses(9)).finish()  # too short to say
    assert caplog.messages == []


def test_a_shadow_run_says_how_it_would_have_gone(caplog):
    caplog.set_level(logging.INFO, "greedylr_integrations")
    scheduler = GreedyLR(optimizer_of(0.1), window_size=1, factor=0.5, shadow=True)
    train(scheduler, [4.0, 3.0, 2.0, 5.0, 6.0, 7.0, 1.0]).finish()
    assert caplog.messages == [
        "GreedyLR in shadow: would have taken the LR from 0.1 to 0.1 (highest 0.4 at step 3, lowest 0.05 at step 6,"
        " without warmup and final decay); 3 increases, 3 decreases"
    ]
