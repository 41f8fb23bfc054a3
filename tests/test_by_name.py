"""GreedyLR by its name in a file or on a command line: the LRs are those of the callback in Python."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from transformers import SchedulerType
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from greedylr_integrations import by_name
from greedylr_integrations.transformers import GreedyLRCallback

ROOT = Path(__file__).parents[1]


def used(out, callbacks, **kwargs):
    spy = tiny.LRSpy()
    tiny.trainer(out, [*callbacks, spy], max_steps=24, **kwargs).train()
    return spy.used


def test_report_to(tmp_path, monkeypatch):
    monkeypatch.setenv("GREEDYLR", '{"window_size": 2, "factor": 0.8, "quiet": true}')
    named = used(tmp_path, [], report_to="greedylr")
    assert named == used(tmp_path, [GreedyLRCallback(window_size=2, factor=0.8)])
    assert named != used(tmp_path, [])
    monkeypatch.delenv("GREEDYLR")
    assert used(tmp_path, [], report_to=["greedylr"]) == used(tmp_path, [GreedyLRCallback()])


def test_a_checkpoint_of_one_is_resumed_by_the_other(tmp_path, caplog):
    kwargs = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    tiny.trainer(tmp_path, [], report_to="greedylr", **kwargs).train()
    callback = GreedyLRCallback()
    tiny.trainer(tmp_path, [callback], **kwargs).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert [record.step for record in callback.history] == [4, 5, 6]
    assert "starts anew" not in caplog.text


@pytest.mark.parametrize("text", ["max_scale=10", "[1]", '{"max_scal": 10}', '{"max_scale": -1}'])
def test_wrong_arguments_are_one_error_that_names_the_variable(monkeypatch, text):
    monkeypatch.setenv("GREEDYLR", text)
    with pytest.raises(ValueError, match="the environment variable GREEDYLR="):
        by_name.GreedyLRCallback()


def test_it_only_adds_a_name():
    assert INTEGRATION_TO_CALLBACK["greedylr"] is by_name.GreedyLRCallback
    code = """
from transformers.integrations import integration_utils
before, names = dict(integration_utils.INTEGRATION_TO_CALLBACK), vars(integration_utils).copy()
import greedylr_integrations.by_name
after = integration_utils.INTEGRATION_TO_CALLBACK
assert after.keys() - before.keys() == {"greedylr"}
assert {name: after[name] for name in before} == before and vars(integration_utils) == names
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_why_lr_scheduler_type_cannot_name_it():
    with pytest.raises(ValueError, match="greedylr is not a valid SchedulerType"):
        SchedulerType("greedylr")
    with pytest.raises(TypeError, match="cannot extend"):

        class More(SchedulerType):
            GREEDYLR = "greedylr"


def test_the_usage():
    with pytest.raises(SystemExit, match="usage: python -m greedylr_integrations.by_name MODULE"):
        by_name.main(["--help"])


YAML = """\
env:
  GREEDYLR: '{{"max_scale": 20, "history_file": "{history}"}}'
model_name_or_path: {model}
dataset_name: {data}
output_dir: {out}
report_to: greedylr
learning_rate: 0.01
max_steps: 80
per_device_train_batch_size: 2
logging_steps: 1
save_strategy: "no"
max_length: 32
bf16: false
use_cpu: true
disable_tqdm: true
dtype: float32
"""


def test_trl_sft_from_yaml(tmp_path):
    pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from hf_worker import words
    from torch import Generator
    from trl import SFTConfig, SFTTrainer

    from greedylr_integrations import history

    model, data, out = tmp_path / "model", tmp_path / "data", tmp_path / "out"
    tiny.llama().save_pretrained(model)
    tiny.tokenizer().save_pretrained(model)
    g = Generator().manual_seed(3)
    rows = datasets.Dataset.from_list([{"text": words(g, 4 + i % 7)} for i in range(200)])
    data.mkdir()
    rows.to_json(data / "train.jsonl")
    file = tmp_path / "sft.yaml"
    file.write_text(YAML.format(history=tmp_path / "named.jsonl", model=model, data=data, out=out))
    command = [sys.executable, "-m", "greedylr_integrations.by_name", "trl.scripts.sft", "--config", str(file)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "HF_HOME": str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "GreedyLR searches for the LR by the slope" in done.stderr

    callback = GreedyLRCallback(max_scale=20)
    args = SFTConfig(
        str(out),
        report_to=[],
        learning_rate=0.01,
        max_steps=80,
        per_device_train_batch_size=2,
        logging_steps=1,
        save_strategy="no",
        max_length=32,
        bf16=False,
        use_cpu=True,
        disable_tqdm=True,
        model_init_kwargs={"dtype": "float32"},
    )
    SFTTrainer(str(model), args, train_dataset=rows, callbacks=[callback]).train()
    _, records, _ = history.read(tmp_path / "named.jsonl")
    assert [record.lrs for record in records] == [record.lrs for record in callback.history]
    assert len({record.lrs for record in records}) > 10
