"""Decisions in memory and on disk: complete, bounded, safe against a kill, and refused where they would mix runs."""

import copy
import json
import logging
import math
import signal
import subprocess
import sys
import time

import pytest
import torch
from processes import TESTS, spawn

from greedylr_integrations import GreedyConfig, GreedyLR, PaperConfig, history
from greedylr_integrations.decision import Action, Decision, Reason

FAST = {"window_size": 2, "factor": 0.9}


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


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr("greedylr_integrations.schedulers.HISTORY_SIZE", 10)
    scheduler = train(scheduler_of(), losses())
    assert [record.step for record in scheduler.history] == list(range(51, 61))


def test_going_back_to_a_state_takes_the_later_records_back():
    scheduler = train(scheduler_of(), losses(20))
    state = json.loads(json.dumps(scheduler.state_dict()))
    train(scheduler, losses()[20:40])
    scheduler.pin(1.0)
    scheduler.load_state_dict(state)
    assert [record.step for record in scheduler.history] == list(range(1, 21))
    assert list(scheduler.orders) == []


# ---- on disk ----


@pytest.mark.parametrize("config", [GreedyConfig(**FAST), PaperConfig(patience=0, min_lr=1e-4)])
def test_what_is_read_is_what_was_decided(tmp_path, config):
    path = tmp_path / "new" / "history.jsonl"
    values = losses()
    values[7], values[9], values[20] = math.inf, -math.inf, 1e308
    scheduler = GreedyLR(optimizer_of(0.1, 0.02), config, total_steps=60, history_file=path)
    train(scheduler, values)
    header, records, orders = history.read(path)
    assert records == list(scheduler.history)
    assert len(records) == 60
    assert orders == []
    assert header == {
        "greedylr_history": 1,
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
    same = {"envelope": 1.0}
    assert lines == [
        {"step": 1, "loss": 2.0, "smoothed": 2.0, "best": None, "action": "hold", "reason": "FILLING"}
        | {"scales": [1.0], "lrs": [0.5], "nonfinite": 0, **same},
        {"step": 2, "loss": 1.0, "smoothed": 1.0, "best": 2.0, "action": "raise", "reason": "IMPROVED"}
        | {"scales": [2.0], "lrs": [1.0], "nonfinite": 0, **same},
        {"step": 2, "order": "cap", "value": 3},
        {"step": 3, "loss": "nan", "smoothed": None, "best": None, "action": "lower", "reason": "NONFINITE"}
        | {"scales": [1.0], "lrs": [0.5], "nonfinite": 1, **same},
    ]


def test_any_controller(tmp_path):
    class Constant:
        def observe(self, loss):
            return Decision(Action.HOLD, Reason.INSIGNIFICANT, (2.0,), loss, math.nan)

    scheduler = GreedyLR(optimizer_of(0.1, 0.2), controller=Constant(), history_file=tmp_path / "h.jsonl")
    train(scheduler, [1.0, 2.0])
    header, records, _ = history.read(tmp_path / "h.jsonl")
    assert header["config"] is None
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


def test_a_fresh_run_refuses_the_history_of_another_before_it_writes(tmp_path):
    path = tmp_path / "history.jsonl"
    train(scheduler_of(path), losses(5))
    before = path.read_bytes()
    for ramp in (0, 10):
        with pytest.raises(ValueError, match="has the history of another run already: name another file, delete this"):
            scheduler_of(path, linear_warmup_steps=ramp).step(1.0)
    assert path.read_bytes() == before


def _two_ranks(rank, world, out):
    said = []
    for name in ("a", "b"):
        scheduler = scheduler_of(f"{out}/{name}{rank}")  # as on machines that share no disk
        try:
            scheduler.pin(2.0)
            train(scheduler, losses(3))
        except ValueError as error:
            said.append(str(error))
        if rank == 0 and name == "a":
            assert history.read(f"{out}/a0")[0]["world_size"] == 2
    torch.save(said, f"{out}/said-{rank}")


def test_rank_0_alone_writes_and_all_refuse_what_it_refuses(tmp_path):
    for name in ("a1", "b0"):
        train(scheduler_of(tmp_path / name), losses(3))
    before = (tmp_path / "a1").read_bytes()
    spawn(_two_ranks, 2, tmp_path)
    first, second = (torch.load(tmp_path / f"said-{rank}") for rank in range(2))
    assert len(first) == len(second) == 1
    assert first[0].startswith(f"history_file='{tmp_path}/b0' has the history of another run already")
    assert (tmp_path / "a1").read_bytes() == before
    assert not (tmp_path / "b1").exists()


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
    with path.open("ab") as file:
        file.write(b'{"step": 4')  # and was killed while it wrote
    second = scheduler_of(path)
    second.load_state_dict(json.loads(json.dumps(state)))
    steered(second, cut, 60)
    assert history.read(path) == history.read(tmp_path / "whole")
    assert f'{{"resumed": {cut}, "greedylr_history": 1, ' in path.read_text()


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
    with path.open("ab") as file:
        file.write(b"x" * 20_000)
    second = scheduler_of(path)
    second.load_state_dict(first.state_dict())
    train(second, losses()[3:5])
    assert [record.step for record in history.read(path)[1]] == [1, 2, 3, 4, 5]


def test_a_copy_goes_on_in_the_same_file(tmp_path):
    scheduler = train(scheduler_of(tmp_path / "h"), losses(3))
    train(copy.deepcopy(scheduler), losses(5)[3:])
    assert [record.step for record in history.read(tmp_path / "h")[1]] == [1, 2, 3, 4, 5]


def test_a_full_disk_ends_the_history_and_not_the_run(warnings_of):
    scheduler = train(scheduler_of("/dev/full"), losses(5))
    assert len(scheduler.history) == 5
    (message,) = warnings_of()
    assert message.startswith("GreedyLR writes no more to history_file /dev/full: ")


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
        (1, b'{"loss": 1}', "not the header of a GreedyLR history of version 1 or 2: greedylr_history is missing"),
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
    assert message.startswith(f"next time start at {lr:.2g}: the LR settled on {lr / 0.1:.2g} x the base LR")
    caplog.clear()
    train(scheduler_of(), losses(9)).finish()  # too short to say
    assert caplog.messages == []


def test_a_shadow_run_says_how_it_would_have_gone(caplog):
    caplog.set_level(logging.INFO, "greedylr_integrations")
    scheduler = GreedyLR(optimizer_of(0.1), window_size=1, factor=0.5, shadow=True)
    train(scheduler, [4.0, 3.0, 2.0, 5.0, 6.0, 7.0, 1.0]).finish()
    assert caplog.messages == [
        "GreedyLR in shadow: would have taken the LR from 0.1 to 0.1 (highest 0.4 at step 3, lowest 0.05 at step 6,"
        " ramp and final decay aside); 3 raises, 3 lowerings"
    ]
