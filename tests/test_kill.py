"""Real kills: two processes, `kill -9` (or an exception on one rank) in mid-run, and on from the last checkpoint."""

import json
import os
import random
import subprocess
import time
from importlib.metadata import version

import pytest
from forked import Forked
from processes import ON_CPU, TESTS, kill_tree, torchrun, wait

from greedylr_integrations import history

WORKER = str(TESTS / "kill_worker.py")
FRAMEWORKS = ("transformers", "lightning", "accelerate")
STEPS = {"window": 24, "slope": 64}  # the default does not search in fewer


def launch(framework, rule, out, *more, fault="", by_torchrun=False):
    argv = [WORKER, framework, rule, str(out), str(STEPS[rule]), *more]
    if not by_torchrun:
        return Forked(argv, 2, out / "errors", env={"FAULT": fault})
    env = {**os.environ, **ON_CPU, "FAULT": fault}
    with (out / "errors").open("a") as errors:
        return subprocess.Popen(
            [*torchrun(2), *argv], env=env, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
        )


def finish(process, out):
    assert wait(process, 180, (out / "errors").read_text) == 0, (out / "errors").read_text()[-4000:]


def trace(out, rule):
    """What each rank did in each step; later lines win, as after a resume."""
    ranks = []
    for rank in range(2):
        steps = {}
        for line in (out / f"trace-{rank}.jsonl").read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # torn by the kill
                continue
            steps[entry["step"]] = entry
        ranks.append([steps[step] for step in range(STEPS[rule])])
    return ranks


def skip_before_transformers_5():
    if int(version("transformers").split(".")[0]) < 5:
        pytest.skip("transformers 4 cannot load a checkpoint on several CPU processes: torch refuses its 'cpu:0'")


CASES = [
    pytest.param((framework, rule), id=f"{framework}-{rule}", marks=pytest.mark.slow if rule == "window" else ())
    for framework in FRAMEWORKS
    for rule in STEPS
]


@pytest.fixture(scope="module", params=CASES)
def whole(request, tmp_path_factory):
    framework, rule = request.param
    if framework == "transformers":
        skip_before_transformers_5()
    if framework == "lightning":
        pytest.importorskip("torchdata", reason="a stateful dataloader is needed to resume within an epoch")
    out = tmp_path_factory.mktemp(framework)
    finish(launch(framework, rule, out), out)
    first, second = trace(out, rule)
    assert [entry["lr"] for entry in first] == [entry["lr"] for entry in second]
    assert len({entry["lr"] for entry in first}) > 5
    return framework, rule, [first, second], history.read(out / "history.jsonl")


def kill_and_resume(whole, out, step, **how):
    framework, rule, expected, uninterrupted = whole
    process = launch(framework, rule, out, **how)
    file, deadline = out / "trace-0.jsonl", time.time() + 120
    while not file.exists() or file.read_text().count("\n") <= step:
        assert process.poll() is None, (out / "errors").read_text()[-4000:]
        assert time.time() < deadline
        time.sleep(0.002)
    kill_tree(process.pid)
    process.wait()
    assert len(file.read_text().splitlines()) < STEPS[rule]
    assert 0 < len(history.read(out / "history.jsonl")[1]) < STEPS[rule]
    finish(launch(framework, rule, out, "resume", **how), out)
    assert trace(out, rule) == expected  # LRs, losses seen and own losses, bit for bit
    assert '"resumed"' in (out / "history.jsonl").read_text()
    assert history.read(out / "history.jsonl") == uninterrupted


def test_kill_9_and_resume(whole, tmp_path):
    kill_and_resume(whole, tmp_path, 9, by_torchrun=whole[0] == "accelerate")


@pytest.mark.slow
@pytest.mark.parametrize("share", [random.Random(i).random() for i in range(15)])
def test_kill_9_at_a_random_step(whole, tmp_path, share):
    kill_and_resume(whole, tmp_path, 1 + int(share * (STEPS[whole[1]] - 6)))


@pytest.mark.slow
def test_an_exception_on_one_rank_ends_both_and_the_last_checkpoint_resumes(whole, tmp_path):
    framework, rule, expected, uninterrupted = whole
    process = launch(framework, rule, tmp_path, fault="exception 1 12")
    assert wait(process, 120, (tmp_path / "errors").read_text) != 0
    assert "rank 1 has had enough" in (tmp_path / "errors").read_text()
    finish(launch(framework, rule, tmp_path, "resume"), tmp_path)
    assert trace(tmp_path, rule) == expected
    assert history.read(tmp_path / "history.jsonl") == uninterrupted
