"""The Ray recipe through its command line: a worker killed in mid-run, the whole killed, and on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from processes import ON_CPU, kill_tree, wait

pytest.importorskip("ray")
pytest.importorskip("peft")
import recipe_parts

from greedylr_integrations import history

ROOT = Path(__file__).parents[1]
STEPS = 40
ENVIRONMENT = {**os.environ, **ON_CPU, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return recipe_parts.make(tmp_path_factory.mktemp("parts"))


def flags(parts, out, **more):
    values = {
        "model": parts / "model",
        "dataset": parts / "chats.jsonl",
        "output-dir": out,
        "max-length": 48,
        "max-steps": STEPS,
        "validation-rows": 4,
        "learning-rate": 3e-3,
        "batch-size": 2,
        "save-steps": 5,
        "eval-steps": 20,
        "lora-r": 4,
        **more,
    }
    return [str(word) for name, value in values.items() for word in (f"--{name}", value)]


class Launched:
    def __init__(self, words, out):
        out.mkdir(exist_ok=True, parents=True)
        self.errors = out.with_suffix(".errors")
        command = [sys.executable, "-W", "ignore", "-m", "recipes.ray_train_llm", *words]
        with self.errors.open("a") as errors:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=ENVIRONMENT, stdout=errors, stderr=errors, start_new_session=True
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


def learning_rates(out):
    (run,) = json.loads((out / "metrics.json").read_text())["runs"]
    return run["learning_rate"]


@pytest.fixture(scope="module")
def undisturbed(parts, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    Launched(flags(parts, out), out).end()
    return out


def test_two_workers_are_one_run(undisturbed):
    (run,) = json.loads((undisturbed / "metrics.json").read_text())["runs"]
    assert [step for step, _ in run["train_loss"]] == list(range(1, STEPS + 1))
    assert run["validation_loss"][-1][1] < run["train_loss"][0][1] - 0.1
    assert len({lr for _, lr in run["learning_rate"]}) > 10
    assert (undisturbed / "loss_and_lr.png").stat().st_size > 10_000
    (checkpoint, *_) = (undisturbed / "greedy").glob("checkpoint_*/checkpoint")
    assert {"rng_state_0.pth", "rng_state_1.pth"} < {file.name for file in checkpoint.iterdir()}  # DDP, not two runs


def test_a_killed_worker_then_a_stopped_run(undisturbed, parts, tmp_path):
    out = tmp_path / "disturbed"
    run = Launched(flags(parts, out), out)
    run.reach(12)
    before = run.workers()
    assert len(before) == 2
    before[-1].kill()
    run.reach(26)
    after = run.workers()
    assert not {worker.pid for worker in before} & {worker.pid for worker in after}
    run.process.send_signal(signal.SIGTERM)
    run.end(128 + signal.SIGTERM)
    assert "saved; go on with: python -m recipes.ray_train_llm " in run.errors.read_text()
    assert not (out / "metrics.json").exists()
    Launched([*flags(parts, out), "--resume"], out).end()
    assert learning_rates(out) == learning_rates(undisturbed)
    assert history.read(out / "greedy" / "history.jsonl") == history.read(undisturbed / "greedy" / "history.jsonl")


@pytest.mark.slow
def test_the_whole_is_killed(undisturbed, parts, tmp_path):
    out = tmp_path / "killed"
    run = Launched(flags(parts, out), out)
    run.reach(18)
    kill_tree(run.process.pid)
    run.process.wait()
    Launched([*flags(parts, out), "--resume"], out).end()
    assert learning_rates(out) == learning_rates(undisturbed)
