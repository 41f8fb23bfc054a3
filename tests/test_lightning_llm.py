"""The Lightning recipe through its command line: one process, two on gloo, killed and resumed."""

import json
import os
import shlex
import signal
import sys

import processes
import pytest
import recipe_parts
from recipe_parts import flags, kill_when, runs_of

pytest.importorskip("lightning")
pytest.importorskip("peft")
from greedylr_integrations import history
from recipes import lightning_llm
from recipes.common import lightning as common
from recipes.common.offline import RecipeError

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's are many
STEPS = 200


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return recipe_parts.make(tmp_path_factory.mktemp("parts"))


def words(parts, out, **more):
    given = flags(parts, out, **{"max_steps": STEPS, "save_steps": 20, "dtype": "float64", "batch_size": 4, **more})
    at = given.index("--disable-tqdm")
    return given[:at] + given[at + 2 :]


@pytest.fixture(scope="module")
def whole(parts, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    lightning_llm.main(words(parts, out))
    return out


@pytest.fixture(scope="module")
def pair(parts, tmp_path_factory):
    """The same on two processes, each with half a batch; and each one's LRs."""
    folder = tmp_path_factory.mktemp("pair")
    worker = recipe_parts.ROOT / "tests" / "recipe_worker.py"
    two = words(parts, folder / "out", devices=2, batch_size=2)
    env = {**os.environ, **processes.ON_CPU, "PYTHONPATH": str(recipe_parts.ROOT)}
    done = processes.run([*processes.torchrun(2), worker, folder, "lightning_llm", *two], env=env)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "out", [json.loads((folder / f"lrs-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
def test_the_loss_falls(whole):
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    (run,) = runs_of(whole)
    assert [step for step, _ in run["train_loss"]] == list(range(1, STEPS + 1))
    assert [step for step, _ in run["validation_loss"]] == [0, 50, 100, 150, 200]
    assert run["validation_loss"][-1][1] < run["train_loss"][0][1] - 0.1
    assert len({lr for _, lr in run["learning_rate"]}) > 10
    assert (whole / "loss_and_lr.png").stat().st_size > 10_000
    assert (whole / "greedy" / "model" / "adapter_model.safetensors").exists()


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(whole, pair):
    out, (first, second) = pair
    (one,), (two,) = runs_of(whole), runs_of(out)
    assert first == second == [lr for _, lr in two["learning_rate"]]
    for name in ("train_loss", "validation_loss", "learning_rate"):
        assert [step for step, _ in two[name]] == [step for step, _ in one[name]]
        ours, theirs = ([value for step, value in run[name] if step <= 50] for run in (two, one))
        assert ours == pytest.approx(theirs, rel=1e-6)  # later their rounding has grown: Llama's norms are in float32


@pytest.mark.slow
def test_killed_twice_and_resumed(pair, parts, tmp_path):
    """SIGTERM, then SIGKILL, of two processes that Lightning launched: in the end all is as if nothing had been."""
    two = words(parts, tmp_path, devices=2, batch_size=2)
    seen = tmp_path / "greedy" / "history.jsonl"

    def at(step):
        return lambda: seen.exists() and seen.read_text().count("\n") > step

    code, printed = kill_when("lightning_llm", two, at(13), signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    again = shlex.join([sys.executable, "-m", "recipes.lightning_llm", *two, "--resume"])
    assert printed.strip().splitlines()[-1] == f"saved; go on with: {again}"
    code, _ = kill_when("lightning_llm", [*two, "--resume"], at(66), signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert not (tmp_path / "metrics.json").exists()
    done = processes.run(recipe_parts.command("lightning_llm", [*two, "--resume"]), cwd=recipe_parts.ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    recipe_parts.assert_same(*runs_of(tmp_path), *runs_of(pair[0]))
    assert history.read(seen) == history.read(pair[0] / "greedy" / "history.jsonl")


def test_rows_do_not_repeat_within_an_epoch_and_a_resume_goes_on():
    class Trainer:
        global_step, world_size = 0, 2

        def __init__(self, rank, step=0):
            self.global_rank, self.global_step = rank, step

    def first(count, *place):
        batches = iter(common.Batches(Trainer(*place), 11, 2, seed=3))
        return [next(batches) for _ in range(count)]

    ranks = [first(5, rank) for rank in range(2)]
    epochs = [[row for rank in ranks for batch in rank[at : at + 2] for row in batch] for at in (0, 2)]
    for rows in epochs:
        assert len(set(rows)) == 8
    assert epochs[0] != epochs[1]
    assert first(2, 1, 3) == ranks[1][3:]


def test_a_signal_at_a_step_that_is_validated(parts, tmp_path, monkeypatch):
    """Its validation is neither lost nor done twice."""
    monkeypatch.setattr(common.StopOnSignal, "asked", lambda self: not list(tmp_path.glob("greedy/*.ckpt")))
    given = words(parts, tmp_path, max_steps=8, save_steps=100)
    saved = common.Saving.on_train_batch_end

    def at_the_second_validation(self, trainer, module, *batch):
        if trainer.global_step == 4 or list(tmp_path.glob("greedy/*.ckpt")):
            saved(self, trainer, module, *batch)
        else:
            self.stopped = False

    monkeypatch.setattr(common.Saving, "on_train_batch_end", at_the_second_validation)
    with pytest.raises(common.Stopped):
        lightning_llm.main(given)
    lightning_llm.main([*given, "--resume"])
    (run,) = runs_of(tmp_path)
    assert [step for step, _ in run["validation_loss"]] == [0, 2, 4, 6, 8]


@pytest.mark.slow
def test_a_torn_checkpoint_is_passed_over(whole, tmp_path):
    assert common.checkpoints(tmp_path) == []
    data = common.checkpoints(whole / "greedy")[-1].read_bytes()
    (tmp_path / "checkpoint-8.ckpt").write_bytes(data)
    (tmp_path / "checkpoint-16.ckpt").write_bytes(data[: len(data) // 2])
    assert [path.name for path in common.checkpoints(tmp_path)] == ["checkpoint-8.ckpt"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        *recipe_parts.WRONG,
        ({"dtype": "int8"}, "argument --dtype: invalid choice: 'int8' (choose from "),
        ({"batch_size": 50}, "train: 36 rows of"),
        ({"devices": 0}, "--devices 0 is not allowed: it must be at least 1"),
        ({"save_steps": 0}, "--save-steps 0 is not allowed: it must be at least 1"),
        ({"max_steps": 0}, "--max-steps 0 is not allowed: it must be at least 1"),
        ({"warmup_steps": -1}, "--warmup-steps -1 is not allowed: it must be at least 0"),
    ],
)
def test_wrong_input_is_one_line(parts, tmp_path, more, says):
    with pytest.raises(RecipeError) as error:
        lightning_llm.main(words(parts, tmp_path / "out", **more))
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "metrics.json").exists()


@pytest.mark.slow
def test_the_results_of_another_run_are_left_alone(whole, parts):
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    with pytest.raises(RecipeError, match="has the results of another run: choose another --output-dir"):
        lightning_llm.main(words(parts, whole))
    with pytest.raises(RecipeError, match="was started with learning_rate .* cannot be resumed with 0.1"):
        lightning_llm.main([*words(parts, whole), "--resume", "--learning-rate", "0.1"])
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before


def test_a_full_disk_is_one_line(parts, tmp_path, capsys, monkeypatch):
    given = words(parts, tmp_path, schedule="linear", save_steps=2)
    recipe_parts.assert_full_disk_is_one_line(monkeypatch, capsys, lightning_llm, given, lightning_llm, "load_tokens")
