"""Damaged and hostile files: readers give a run or one sentence, and the command line never a traceback.

GREEDYLR_FUZZ=50 tries 50 times as many.
"""

import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path

import pytest

for needed in ("hypothesis", "click", "rich", "matplotlib", "plotext", "bokeh"):
    pytest.importorskip(needed)
import numpy as np
from damage import ODD, TIMES, changed, fuzzed, of_one_line, places
from hypothesis import given
from hypothesis import strategies as st

from greedylr_integrations import history
from greedylr_integrations.runs import RunError, cli, read
from greedylr_integrations.runs.histories import run_of

HEADER = {"greedylr_history": 2, "config": None, "base_lrs": [0.1], "total_steps": 100, "monitor": "loss"}
HEADER |= {"world_size": 1, "run": "a", "decisions": 0, "commands": 0}
ROW = {
    "step": 1,
    "loss": 1.0,
    "smoothed": 1.0,
    "best": None,
    "slope": -0.5,
    "distance": 0.1,
    "action": "hold",
    "reason": "FILLING",
}
ROW |= {"scales": [1.0], "lrs": [0.1], "envelope": 1.0, "nonfinite": 0}
COMMAND = {"step": 5, "order": "cap", "value": 2.0}
STATE = {
    "max_steps": 9,
    "log_history": [{"step": i, "loss": 3.0 / i, "learning_rate": 0.1} for i in range(1, 9)],
    "stateful_callbacks": {
        "GreedyLRCallback": {
            "args": {"config": {"behaviour": "GreedyConfig", "patience": 1}},
            "attributes": {"saved": {"controller": {"base_lrs": [0.1]}}},
        }
    },
}
DECISION = {"step": 2, "action": "hold", "reason": "FILLING", "scales": [1.0], "lrs": [0.1], "smoothed": 1.0}
RECIPE = {
    "schedule": "greedy",
    "train_loss": [[1, 2.0], [2, 1.0]],
    "learning_rate": [[1, 0.1]],
    "decisions": [DECISION],
}
METRICS = {"runs": [RECIPE, {**RECIPE, "schedule": "cosine", "decisions": []}]}


def lines(*entries):
    return "".join(json.dumps(entry) + "\n" for entry in entries).encode()


FILES = {
    "h.jsonl": lines(
        HEADER, *({**ROW, "step": i} for i in range(6)), COMMAND, {"resumed": 3, **HEADER}, ROW | {"step": 4}
    ),
    "trainer_state.json": json.dumps(STATE, indent=1).encode(),
    "metrics.json": json.dumps(METRICS, indent=1).encode(),
    "log.csv": b"step,loss,lr\n" + b"".join(b"%d,%f,0.1\n" % (i, 3 - i / 9) for i in range(20)),
    "log.jsonl": lines(*({"step": i, "loss": 3 - i / 9, "lr": 0.1} for i in range(20))),
}


@st.composite
def files(draw):
    """A good file with some values replaced, bytes changed, or the end cut off."""
    name = draw(st.sampled_from(sorted(FILES)))
    content = FILES[name]
    if name.endswith(".json"):
        document = json.loads(content)
        for _ in range(draw(st.integers(0, 2))):
            paths = [path for path in places(document) if path]
            if not paths:
                break
            path = draw(st.sampled_from(paths))
            document = changed(document, path, draw(st.one_of(ODD, st.just(...))))
        content = json.dumps(document, indent=draw(st.sampled_from([1, None]))).encode("utf-8", "surrogatepass")
    elif name.endswith(".jsonl"):
        entries = [json.loads(line) for line in content.splitlines()]
        for _ in range(draw(st.integers(0, 3))):
            number = draw(st.integers(0, len(entries) - 1))
            paths = [path for path in places(entries[number]) if path]
            if not paths:  # all of its values are gone
                continue
            path = draw(st.sampled_from(paths))
            value = draw(st.one_of(ODD, st.just(...)))
            everywhere = range(1, len(entries)) if draw(st.booleans()) and number else [number]
            for i in everywhere:
                with contextlib.suppress(KeyError, IndexError, TypeError):
                    entries[i] = changed(entries[i], path, value)
        content = lines(*(entry for entry in entries if entry))
    for _ in range(draw(st.sampled_from([0, 0, 1, 3]))):
        at = draw(st.integers(0, len(content)))
        content = content[:at] + draw(st.binary(max_size=4)) + content[at + draw(st.integers(0, 3)) :]
    if draw(st.integers(0, 9)) == 0:
        content = content[: draw(st.integers(0, len(content)))]
    return name, content


@fuzzed(400)
@given(files())
def test_reading_gives_a_run_or_one_sentence(file):
    name, content = file
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        with np.errstate(all="ignore"):
            try:
                runs = read(path)
            except RunError as error:
                assert of_one_line(str(error))
                return
            for run in runs:
                columns = (run.losses, run.lrs, run.scales, run.smoothed, run.best, run.slopes, run.envelope)
                assert {len(column) for column in (*columns, run.actions, run.reasons)} == {len(run)}
                assert (np.diff(run.steps) >= 0).all()
                run.suggested_lr(), run.best_loss(), run.final_loss()


@fuzzed(300)
@given(files())
def test_a_history_is_read_alike_as_records_and_as_columns(file):
    content = file[1] if file[0] == "h.jsonl" else FILES["h.jsonl"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "h.jsonl"
        path.write_bytes(content)
        try:
            header, columns, commands = history.read_columns(path)
        except ValueError as error:
            assert of_one_line(str(error))
            with pytest.raises(ValueError, match="line"):
                history.read(path)
            return
        assert all(scale >= 0 for scale in columns.scales)
        assert all(0 <= envelope <= 1 for envelope in columns.envelopes)
        assert list(columns.steps) == sorted(columns.steps)
        try:
            again, records, same = history.read(path)
        except ValueError as error:  # a reason that is not known here
            assert "reason" in str(error)
            return
        assert (again, same) == (header, commands)
        assert [record.step for record in records] == list(columns.steps)
        assert [lr for record in records for lr in record.lrs] == list(columns.lrs)
        if records:
            assert run_of(columns, "x", "history").has_decisions


COMMANDS = st.sampled_from(
    [
        ["plot", "{file}"],
        ["plot", "{file}", "-o", "{folder}/a.png"],
        ["plot", "{file}", "-o", "{folder}/a.svg"],
        ["compare", "{file}", "{file}", "-o", "{folder}/a.pdf"],
        ["compare", "{file}", "--terminal"],
        ["replay", "{file}"],
        ["replay", "{file}", "--preset", "paper", "--config", "transformers patience=1", "-o", "{folder}/a.png"],
        ["explain", "{file}", "--step", "4"],
        ["report", "{file}", "{file}", "-o", "{folder}/r.html"],
        ["plot", "{folder}"],
        ["control", "{file}", "hold"],
    ]
)


@fuzzed(80)
@given(files(), COMMANDS)
def test_no_command_ends_in_a_traceback(file, words):
    name, content = file
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            cli.main([word.format(file=path, folder=folder) for word in words])
        assert ended.value.code in (0, 1, 2)
        complaints = [line for line in err.getvalue().splitlines() if not line.startswith("note: ")]
        assert len(complaints) == (0 if ended.value.code == 0 else 1), err.getvalue()
        assert "\x1b" not in out.getvalue() + err.getvalue()
        if ended.value.code == 0 and words[0] == "report":
            assert "<script>window" not in (Path(folder) / "r.html").read_text(encoding="utf-8")


@fuzzed(60)
@given(
    st.lists(
        st.one_of(st.sampled_from(["replay", "plot", "control", "--step", "--lr", "cap", "-o"]), st.text()), max_size=5
    )
)
def test_no_words_end_in_a_traceback(words):
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        pytest.raises(SystemExit) as ended,
    ):
        cli.main(words)
    assert ended.value.code in (0, 1, 2)


def test_a_fuzzer_that_follows_the_code(tmp_path):
    """Atheris finds what branches a byte can reach; only in a long run, in a process of its own."""
    pytest.importorskip("atheris")
    if TIMES < 10:
        pytest.skip("a long run only: GREEDYLR_FUZZ=10")
    import processes

    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    script = Path(__file__).parent / "atheris_readers.py"
    command = [sys.executable, script, tmp_path, f"-max_total_time={6 * TIMES}", "-rss_limit_mb=4000"]
    done = processes.run(command, timeout=60 + 12 * TIMES)
    assert done.returncode == 0, done.stderr[-4000:]
