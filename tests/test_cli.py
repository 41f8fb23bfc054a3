import gc
import json
import os
import random
import re
import shutil
import sys
import threading
from pathlib import Path

import histories
import processes
import pytest

for needed in ("click", "rich", "matplotlib", "plotext", "bokeh"):
    pytest.importorskip(needed)
from greedylr_integrations.decision import Action
from greedylr_integrations.runs import cli, read
from greedylr_integrations.runs.run import RunError
from greedylr_integrations.runs.tables import read_csv

ROOT = Path(__file__).parents[1]


@pytest.fixture
def greedylr(capsys):
    def run(*words):
        with pytest.raises(SystemExit) as ended:
            cli.main([str(word) for word in words])
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return run


def fails(outcome, complaint):
    code, out, err = outcome
    assert code == 2
    assert out == ""
    assert re.search(complaint, err), err
    assert err.startswith("greedylr: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")


def process(*words):
    command = [sys.executable, "-W", "error", "-m", "greedylr_integrations.runs.cli", *words]
    return processes.run(command, timeout=120, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


# ---- commands on real runs ----


def test_plot_in_the_terminal(greedylr):
    trained = histories.with_torch()
    code, out, err = greedylr("plot", trained.history)
    assert (code, err) == (0, "")
    assert "smoothed loss" in out
    for reason in {record.decision.reason for record in trained.callback.history}:
        count = sum(record.decision.reason is reason for record in trained.callback.history)
        assert re.search(rf"{reason.name} +{count}  {re.escape(reason.value)}", out)


@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_plot_to_a_file(greedylr, tmp_path, ending):
    path = tmp_path / f"run{ending}"
    code, out, _ = greedylr("plot", histories.with_lightning().history, "-o", path)
    assert (code, out) == (0, f"wrote {path}\n")
    assert path.stat().st_size > 10_000


def test_plot_of_logs_without_decisions(greedylr):
    for folder in (histories.with_trainer().folder, histories.with_lightning().folder):
        code, out, err = greedylr("plot", folder)
        assert (code, err) == (0, "")
        assert "learning rate" in out
        assert "IMPROVED" not in out


def test_replay_shows_the_lr_of_each_configuration(greedylr, tmp_path):
    trained = histories.with_trainer()
    (run,) = read(trained.history)
    own = "patience=1 window_size=4 factor=0.9"
    others = ["--preset", "paper", "--config", "transformers patience=1 min_lr=1e-6"]
    code, out, err = greedylr("replay", trained.folder, "--config", own, *others, "-o", tmp_path / "replay.svg")
    assert (code, err) == (0, "")
    assert "with another LR they would have been different" in out
    row = next(line for line in out.splitlines() if own in line).replace(own, "").split()
    logged = read(trained.folder)[0]  # rounded by the Trainer, so the decisions may differ from the run's
    assert len(logged) == len(run)
    assert row[0] == format(run.base_lrs[0] * run.scales[-1], ".3g")
    assert row[3:] == [str(run.count(Action.RAISE)), str(run.count(Action.LOWER))]
    svg = (tmp_path / "replay.svg").read_text()
    for name in (own, "paper", "transformers patience=1 min_lr=1e-6"):
        assert f"<!-- {name} -->" in svg


def test_replay_of_one_configuration_in_the_terminal(greedylr):
    code, out, _ = greedylr("replay", histories.with_torch().history, "--factor", ".9", "--patience", "5", "--lr", "3")
    assert code == 0
    assert "factor=0.9 patience=5" in out
    code, out, _ = greedylr("replay", histories.with_torch().history, "--horizon", "0")
    assert code == 0
    assert "greedy" in out


def test_compare(greedylr, tmp_path):
    trained = [histories.with_trainer(), histories.with_torch()]
    paths = [one.history for one in trained]
    code, out, err = greedylr("compare", *paths, "-o", tmp_path / "both.png")
    assert (code, err) == (0, "")
    assert (tmp_path / "both.png").stat().st_size > 10_000
    for one, path in zip(trained, paths, strict=True):
        records = list(one.callback.history)
        cells = next(line for line in out.splitlines() if path.name in line).split()
        losses = [record.decision.loss for record in records][-max(1, round(0.1 * len(records))) :]
        assert cells[1] == format(sum(losses) / len(losses), ".5g")
        smoothed = [record.decision.smoothed for record in records]
        assert cells[2] == format(min(value for value in smoothed if value is not None), ".5g")
        assert cells[3] == str(records[-1].step)
        moves = [record.decision.action for record in records]
        assert cells[7:9] == [str(moves.count(Action.RAISE)), str(moves.count(Action.LOWER))]
    assert out.split()[-1] != "-"


def test_runs_of_one_name_are_told_apart(greedylr, tmp_path):
    text = histories.with_trainer().history.read_text()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "history.jsonl").write_text(text)
    _, out, _ = greedylr("compare", tmp_path / "a" / "history.jsonl", tmp_path / "b" / "history.jsonl")
    assert "a/history.jsonl" in out
    assert "b/history.jsonl" in out


def test_report(greedylr, tmp_path):
    path = tmp_path / "report.html"
    runs = [histories.with_trainer().history, histories.with_torch().history, histories.with_lightning().folder]
    code, out, err = greedylr("report", *runs, "-o", path)
    assert (code, err) == (0, "")
    assert out.startswith(f"wrote {path} (")
    text = path.read_text()
    assert "raise: IMPROVED" in text
    assert "<dt>patience</dt><dd>1</dd>" in text


def test_explain(greedylr):
    code, out, err = greedylr("explain", histories.with_torch().history, "--step", "60")
    assert (code, err) == (0, "")
    assert out.startswith("Step 60: decision ")


def test_the_entry_point_in_a_process(tmp_path):
    done = process("explain", histories.with_torch().history, "--step", "100")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Step 100: ")
    failed = process("plot", tmp_path / "missing")
    assert failed.returncode == 2
    assert failed.stderr == f"greedylr: {tmp_path / 'missing'}: there is no such file or folder\n"
    assert "Examples" not in failed.stdout
    for command in ("plot", "replay", "compare", "report", "explain", "control"):
        help_text = process(command, "--help")
        assert help_text.returncode == 0
        assert f"greedylr {command} " in help_text.stdout  # an example


def test_what_an_import_costs_and_needs():
    light = "import sys; from greedylr_integrations.runs import cli, explain, figures, page; print(*sys.modules)"
    done = processes.run([sys.executable, "-c", light], cwd=ROOT)
    assert not {"torch", "matplotlib", "bokeh", "plotext", "rich"} & set(done.stdout.split())
    without = "import sys; sys.modules['click'] = None; import greedylr_integrations.runs.cli"
    done = processes.run([sys.executable, "-c", without], cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'greedylr_integrations[cli]'" in done.stderr
    assert done.stderr.count("\n") == 1


# ---- control ----


@pytest.mark.parametrize(
    ("words", "order", "value"),
    [
        (["hold"], "hold", None),
        (["release"], "release", None),
        (["cap", "2"], "cap", 2.0),
        (["pin", "1e-2"], "pin", 0.01),
        (["decay", "500"], "decay", 500),
    ],
)
def test_control_writes_the_order(greedylr, tmp_path, words, order, value):
    code, _, err = greedylr("control", tmp_path, *words)
    assert (code, err) == (0, "")
    first = json.loads((tmp_path / "control.json").read_text())
    assert {key: first[key] for key in ("order", "value")} == {"order": order, "value": value}
    greedylr("control", tmp_path / "control.json", *words)
    second = json.loads((tmp_path / "control.json").read_text())
    assert second["id"] != first["id"]
    assert [file.name for file in tmp_path.iterdir()] == ["control.json"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["cap"], "cap: scale=None is not allowed: it must be a number"),
        (["cap", "0"], "cap: scale=0.0 is not allowed: it must be above 0"),
        (["cap", "two"], "cap: scale='two' is not allowed: it must be a number"),
        (["pin", "nan"], "pin: scale=nan is not allowed"),
        (["pin", "inf"], "pin: scale=inf is not allowed"),
        (["decay", "1.5"], "decay: steps='1.5' is not allowed"),
        (["decay", "0"], "decay: steps=0 is not allowed"),
        (["hold", "3"], "hold: value=3.0 is not allowed"),
        (["stop"], "'stop' is not one of"),
    ],
)
def test_control_refuses(greedylr, tmp_path, words, complaint):
    fails(greedylr("control", tmp_path, *words), complaint)
    assert list(tmp_path.iterdir()) == []


def test_control_needs_a_place(greedylr, tmp_path):
    fails(greedylr("control", tmp_path / "no", "hold"), "neither a run's folder nor")
    fails(greedylr("control", tmp_path / "no" / "control.json", "hold"), "neither a run's folder nor")


def test_control_does_not_overwrite_what_is_not_a_control_file(greedylr, tmp_path):
    for name, content in (
        ("history.jsonl", '{"greedylr_history": 1}\n'),
        ("config.json", '{"lr": 1}'),
        ("a.json", "["),
    ):
        (tmp_path / name).write_text(content)
        fails(greedylr("control", tmp_path / name, "hold"), "not a control file, and it would be overwritten")
        assert (tmp_path / name).read_text() == content
    (tmp_path / "empty.json").touch()
    assert greedylr("control", tmp_path / "empty.json", "hold")[0] == 0


def test_an_order_is_never_read_by_halves(greedylr, tmp_path):
    path = tmp_path / "control.json"
    greedylr("control", path, "hold")
    done, read_orders = threading.Event(), []

    def look():
        while not done.is_set():
            read_orders.append(json.loads(path.read_text())["order"])

    reader = threading.Thread(target=look)
    reader.start()
    for i in range(100):
        greedylr("control", path, "cap", i + 1)
    done.set()
    reader.join(timeout=30)
    assert not reader.is_alive()
    assert len(read_orders) > 100
    assert set(read_orders) <= {"hold", "cap"}


# ---- what goes wrong ----

BROKEN = {
    "empty": b"",
    "no_loss": b"step,accuracy\n1,2\n",
    "nan": b"step,loss\n1,nan\n2,nan\n",
    "binary": bytes(range(256)) * 9,
    "latin": "step,loss,größe\n1,2,3\n".encode("latin-1"),
    "torn": b'{\n"log_history": [{"loss": 1,',
    "middle": b'{"loss": 1}\n{"loss"\n{"loss": 1}\n',
}
COMMANDS = {
    "plot": ["plot"],
    "replay": ["replay"],
    "compare": ["compare"],
    "report": ["report", "-o", "{}/r.html"],
    "explain": ["explain", "--step", "1"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", [*BROKEN, "missing", "folder"])
def test_broken_input_is_one_line_and_code_2(greedylr, tmp_path, command, name):
    path = tmp_path / name
    if name in BROKEN:
        path.write_bytes(BROKEN[name])
    elif name == "folder":
        path.mkdir()
    words = [word.format(tmp_path) for word in COMMANDS[command]]
    fails(greedylr(*words, path), re.escape(str(path)))
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_torn_last_line_is_no_error(greedylr, tmp_path, command):
    path = tmp_path / "h.jsonl"
    path.write_text(histories.with_trainer().history.read_text()[:-25])
    words = [word.format(tmp_path) for word in COMMANDS[command]]
    words = ["40" if word == "1" else word for word in words]
    code, out, err = greedylr(*words, path)
    assert (code, err) == (0, "")
    assert out


def test_escape_codes_in_a_file_do_not_get_to_the_terminal(greedylr, tmp_path):
    path = tmp_path / "h.jsonl"
    text = histories.with_torch().history.read_text()
    path.write_text(text.replace('"FILLING"', r'"\u001b]0;PWNED\u0007\u202e"').replace('"loss"', r'"\u001b[31m"', 1))
    for words in (["plot", path], ["explain", path, "--step", "20"], ["compare", path, path], ["report", path]):
        code, out, err = greedylr(*words, *(["-o", tmp_path / "r.html"] if words[0] == "report" else []))
        assert (code, err) == (0, "")
        assert not set("\x1b\x07\u202e") & set(out)
    (tmp_path / "log.csv").write_text("step,\x1b[31mloss\n1,2\n")
    fails(greedylr("plot", tmp_path / "log.csv"), "no column is named like a training loss")
    named = tmp_path / "\x1b[31mred.csv"
    named.write_text("step,loss\n1,2\n2,1\n")
    code, out, err = greedylr("compare", named)
    assert (code, err) == (0, "")
    assert "\x1b" not in out


STATES = {
    "callbacks": {"stateful_callbacks": 1},
    "callback": {"stateful_callbacks": {"GreedyLRCallback": 3}},
    "args": {"stateful_callbacks": {"GreedyLRCallback": {"args": 1}}},
    "attributes": {"stateful_callbacks": {"GreedyLRCallback": {"attributes": True}}},
    "base_lrs": {
        "stateful_callbacks": {"GreedyLRCallback": {"attributes": {"saved": {"controller": {"base_lrs": "x"}}}}}
    },
    "config": {"stateful_callbacks": {"GreedyLRCallback": {"args": {"config": 1.5}}}},
    "max_steps": {"max_steps": "many"},
}


@pytest.mark.parametrize("name", STATES)
def test_a_log_is_read_though_the_callback_saved_in_it_is_damaged(greedylr, tmp_path, name):
    log = {"log_history": [{"step": i, "loss": 3 - i / 9, "learning_rate": 0.1} for i in range(1, 9)]}
    (tmp_path / "trainer_state.json").write_text(json.dumps({**log, **STATES[name]}))
    code, out, err = greedylr("explain", tmp_path, "--step", "3")
    assert code == 0
    assert "stayed at 0.1" in out
    assert name in ("callbacks", "max_steps") or "the saved callback does not say its config" in err


@pytest.mark.parametrize(
    "content",
    [
        '{"log_history":' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"loss":1,"x":' + "[" * 100_000 + "]" * 100_000 + "}\n",
        json.dumps({"log_history": [{"step": 1, "loss": 10**400}]}),
        json.dumps({"log_history": [{"step": 1e30, "loss": 1}]}),
        json.dumps({"runs": [{"schedule": {}, "train_loss": [[1, 1.0]], "learning_rate": [[1, 0.1]]}] * 2}),
        "step,loss\n1e300,1\n",
        '"' + "x" * 200_000 + '",loss\n1,2\n',
    ],
)
def test_numbers_and_depths_that_a_machine_cannot_hold(greedylr, tmp_path, content):
    (tmp_path / "file").write_text(content)
    for command in ("plot", "compare", "replay"):
        fails(greedylr(command, tmp_path / "file"), "file")


def test_a_full_disk_is_one_line(tmp_path):
    history = histories.with_torch().history
    (tmp_path / "full.pdf").symlink_to("/dev/full")
    done = process("compare", history, "-o", tmp_path / "full.pdf")
    assert (done.returncode, done.stderr) == (2, f"greedylr: {tmp_path}/full.pdf: No space left on device\n")
    command = f"{sys.executable} -m greedylr_integrations.runs.cli compare {history} > /dev/full"
    done = processes.run(["sh", "-c", command], cwd=ROOT)
    assert (done.returncode, done.stderr) == (1, "greedylr: No space left on device\n")


def test_a_folder_whose_name_is_not_utf8(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    shutil.copy(histories.with_torch().history, folder + b"/h.jsonl")
    done = process("report", os.fsdecode(folder), "-o", tmp_path / "r.html")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_a_report_on_150_runs(greedylr, tmp_path):
    runs = [tmp_path / f"{i}.jsonl" for i in range(150)]
    for run in runs:
        shutil.copy(histories.with_torch().history, run)
    seconds, megabytes = measured("report", *runs, "-o", tmp_path / "r.html")
    assert seconds < 30
    assert megabytes < 300


def test_nan_rows_are_shown_and_three_end_a_replay(greedylr, tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,loss\n1,2\n2,nan\n3,1\n4,nan\n5,nan\n6,nan\n7,1\n")
    assert greedylr("plot", path)[0] == 0
    fails(greedylr("replay", path), "at step 6 the loss was NaN or infinite 3 times in a row")
    assert greedylr("replay", path, "--config", "on_nonfinite=hold")[0] == 0


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["plot"], "Missing argument"),
        (["draw", "x"], "No such command 'draw'"),
        (["plot", "x", "--colour"], "No such option"),
        (["plot", "x", "-o", "run.gif"], "must end in .png, .svg or .pdf"),
        (["plot", "x", "-o", "no/such/run.png"], "there is no folder 'no/such'"),
        (["report", "x", "-o", "r.txt"], "must end in .html"),
        (["explain", "x"], "Missing option"),
        (["explain", "{h}", "--step", "99999"], "step 99999 is not in the record"),
        (["replay", "{h}", "--config", "fcator=1"], "'fcator' is not a field"),
        (["replay", "{h}", "--factor", "2"], "factor=2.0 is not allowed"),
        (["replay", "{h}", "--lr", "-1"], "--lr"),
        (["replay", "{h}", "--horizon", "-1"], "horizon=-1 is not allowed"),
        (["plot", "{h}", "--column", "nll"], "leave --column out"),
    ],
)
def test_words_that_are_wrong(greedylr, words, complaint):
    fails(greedylr(*(word.format(h=histories.with_torch().history) for word in words)), complaint)


# ---- a million rows ----

MEASURED = """
import resource, sys, time
from greedylr_integrations.runs.cli import main
try:
    main(sys.argv[1:])
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    # ru_maxrss would be that of the process that started this one, if it is larger
    peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
    start, count = time.process_time(), 0
    for each in range(3_000_000):
        count += each
    loop = time.process_time() - start
    print((used.ru_utime + used.ru_stime) * 0.12 / loop, int(peak) / 1024, file=sys.stderr)
"""


def measured(*words):
    """Seconds of CPU on a machine that counts to 3 million in 0.12 s, and MB at the most."""
    done = processes.run(
        [sys.executable, "-c", MEASURED, *words], timeout=200, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    seconds, megabytes = map(float, done.stderr.split()[-2:])
    return seconds, megabytes


@pytest.fixture(scope="module")
def million(tmp_path_factory):
    out = tmp_path_factory.mktemp("million")
    rng = random.Random(0)
    with (out / "log.csv").open("w") as rows, (out / "log.jsonl").open("w") as lines:
        rows.write("step,loss,lr\n")
        for step in range(1_000_000):
            loss = 1 + 2 / (1 + step / 1e5) + rng.gauss(0, 0.2)
            rows.write(f"{step},{loss:.6f},0.001\n")
            lines.write(f'{{"step": {step}, "loss": {loss:.6f}, "lr": 0.001}}\n')
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["log.csv", "log.jsonl"])
def test_a_replay_of_a_million_rows(million, tmp_path, name):
    seconds, megabytes = measured("replay", million / name, "--factor", "0.999", "-o", tmp_path / "a.png")
    assert seconds < 5
    assert megabytes < 500


@pytest.mark.slow
def test_every_command_on_a_history_of_a_million_rows(million, tmp_path):
    head = json.dumps(histories.header(histories.with_torch().callback))
    reasons = {"raise": "IMPROVED", "lower": "WORSENED", "hold": "INSIGNIFICANT"}
    with (million / "log.csv").open() as rows, (tmp_path / "h.jsonl").open("w") as history:
        next(rows)
        history.write(head + "\n")
        for i, row in enumerate(rows):
            action = ("raise", "lower", "hold", "hold")[i % 4]
            loss, scale = row.split(",")[1], 2.0 if i % 4 == 0 else 1.0
            entry = {
                "step": i,
                "loss": float(loss),
                "smoothed": float(loss),
                "best": 1.5,
                "action": action,
                "reason": reasons[action],
                "scales": [scale],
                "lrs": [scale / 1000],
                "envelope": 1.0,
                "nonfinite": 0,
            }
            history.write(json.dumps(entry) + "\n")
    run = tmp_path / "h.jsonl"
    for words in (
        ["plot", run, "-o", tmp_path / "a.png"],
        ["replay", run],
        ["compare", run, "-o", tmp_path / "b.png"],
        ["report", run, "-o", tmp_path / "r.html"],
        ["explain", run, "--step", "999999"],
    ):
        seconds, megabytes = measured(*words)
        assert seconds < 60
        assert megabytes < 300
    assert (tmp_path / "r.html").stat().st_size < 6e6


@pytest.mark.parametrize("bad", [b"9,9,9,\xe2\x82\n9,9,9\n", b"9,\xff,9\n9,9,9\n", b"9,9,9,9,\xff\n"])
def test_bytes_that_are_not_text_far_into_a_table_are_one_error(tmp_path, bad, capfd):
    file = tmp_path / "log.csv"
    file.write_bytes(b"step,loss,lr\n" + b"1,2.0,0.1\n" * 20_000 + bad)
    with pytest.raises(RunError) as error:
        read_csv(file, "log", None)
    gc.collect()
    assert str(error.value).startswith(f"{file}")
    assert len(str(error.value).splitlines()) == 1
    assert capfd.readouterr().err == ""
