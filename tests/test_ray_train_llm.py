"""The Ray recipe through its command line: a worker killed in mid-run, the whole killed, and on."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from processes import ON_CPU, kill_tree, wait

pytest.importorskip("ray")
pytest.importorskip("peft")
import recipe_parts
from recipe_parts import assert_same, runs_of

from greedylr_integrations import history
from recipes import finetune_llm, ray_train_llm
from recipes.common.offline import RecipeError

STEPS = 40
ENVIRONMENT = {**os.environ, **ON_CPU, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return recipe_parts.make(tmp_path_factory.mktemp("parts"))


def flags(parts, out):
    return recipe_parts.flags(parts, out, max_steps=STEPS, batch_size=2, save_steps=5, eval_steps=20)


class Launched:
    def __init__(self, words, out):
        out.mkdir(exist_ok=True, parents=True)
        self.errors = out.with_suffix(".errors")
        command = recipe_parts.command("ray_train_llm", words)
        with self.errors.open("a") as errors:
            self.process = subprocess.Popen(
                command, cwd=recipe_parts.ROOT, env=ENVIRONMENT, stdout=errors, stderr=errors, start_new_session=True
            )
        self.history = out / "greedy" / "history.jsonl"

    def reach(self, step):
        """Wait until that many decisions stand in the history."""
        deadline = time.monotonic() + 150
        while not self.history.exists() or len(self.history.read_bytes().splitlines()) < step:
            assert self.process.poll() is None, self.errors.read_text()[-4000:]
            assert time.monotonic() < deadline, self.errors.read_text()[-4000:]
            time.sleep(0.02)

    def workers(self):
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in found if any("RayTrainWorker" in word for word in child.cmdline())]

    def end(self, code=0):
        assert wait(self.process, 200, self.errors.read_text) == code, self.errors.read_text()[-6000:]


@pytest.fixture(scope="module")
def undisturbed(parts, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    Launched(flags(parts, out), out).end()
    return out


@pytest.mark.slow
def test_two_workers_are_one_run(undisturbed):
    (run,) = runs_of(undisturbed)
    assert [step for step, _ in run["train_loss"]] == list(range(1, STEPS + 1))
    assert run["validation_loss"][-1][1] < run["train_loss"][0][1] - 0.1
    assert len({lr for _, lr in run["learning_rate"]}) > 10
    assert (undisturbed / "loss_and_lr.png").stat().st_size > 10_000
    (checkpoint, *_) = (undisturbed / "greedy").glob("checkpoint_*/checkpoint")
    assert {"rng_state_0.pth", "rng_state_1.pth"} < {file.name for file in checkpoint.iterdir()}  # DDP, not two runs


@pytest.mark.slow
def test_one_worker_is_a_run_of_finetune_llm(parts, tmp_path):
    """With rows packed and every weight trained too."""
    more = {"packing": True, "full": True, "max_steps": 12, "dtype": "float64"}
    given = [recipe_parts.flags(parts, tmp_path / name, **more) for name in ("ray", "alone")]
    Launched([*given[0], "--workers", "1"], tmp_path / "ray").end()
    finetune_llm.main(given[1])
    assert_same(*runs_of(tmp_path / "ray"), *runs_of(tmp_path / "alone"))


@pytest.mark.slow
def test_a_killed_worker(undisturbed, parts, tmp_path):
    out = tmp_path / "disturbed"
    run = Launched(flags(parts, out), out)
    run.reach(12)
    before = run.workers()
    assert len(before) == 2
    before[-1].kill()
    run.reach(26)
    assert not {worker.pid for worker in before} & {worker.pid for worker in run.workers()}
    run.end()
    assert_same(*runs_of(out), *runs_of(undisturbed))
    assert history.read(out / "greedy" / "history.jsonl") == history.read(undisturbed / "greedy" / "history.jsonl")


@pytest.mark.slow
def test_stopped_then_killed_with_all_of_ray(undisturbed, parts, tmp_path):
    out = tmp_path / "killed"
    run = Launched(flags(parts, out), out)
    run.reach(8)
    run.process.send_signal(signal.SIGTERM)
    run.end(128 + signal.SIGTERM)
    assert f"saved; go on with: {sys.executable} -m recipes.ray_train_llm " in run.errors.read_text()
    run = Launched([*flags(parts, out), "--resume"], out)
    run.reach(22)
    kill_tree(run.process.pid)
    run.process.wait()
    assert not (out / "metrics.json").exists()
    Launched([*flags(parts, out), "--resume"], out).end()
    assert_same(*runs_of(out), *runs_of(undisturbed))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        *recipe_parts.WRONG,
        ({"resume": True}, "has no checkpoint of a run to resume"),
        ({"workers": 0}, "--workers 0 is not allowed: it must be at least 1"),
        ({"full": True, "qlora": True}, "--full trains all weights and --qlora only LoRA's: choose one"),
        ({"packing": True, "rows": 5, "max_length": 64}, "do not fill one block of --max-length 64 tokens"),
        ({"dtype": "int8"}, "argument --dtype: invalid choice: 'int8' (choose from "),
    ],
)
def test_wrong_input_is_one_line(parts, tmp_path, more, says):
    with pytest.raises(RecipeError) as error:
        ray_train_llm.main(recipe_parts.flags(parts, tmp_path / "out", **more))
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flag", [["--qlora"], ["--lora-r", "4"], ["--lora-alpha", "4"], ["--dtype", "bfloat16"]])
def test_the_small_model_is_trained_whole(tmp_path, flag):
    ray_train_llm.parse_flags(["--full", "--output-dir", str(tmp_path / "out")])
    with pytest.raises(RecipeError, match=f"{flag[0]} needs a --model to load: all weights of 'small' are trained"):
        ray_train_llm.parse_flags([*flag, "--output-dir", str(tmp_path / "out")])


def test_checkpoints_of_another_run_are_left_alone(parts, tmp_path):
    (tmp_path / "greedy" / "checkpoint_8").mkdir(parents=True)
    with pytest.raises(RecipeError, match="has the checkpoints of another run: choose another --output-dir"):
        ray_train_llm.main(recipe_parts.flags(parts, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["greedy"]
