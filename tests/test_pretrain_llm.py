import json
import os
import random
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import processes
import pytest
import tiny
import torch
from recipe_parts import kill_when

pytest.importorskip("accelerate")
pytest.importorskip("datasets")
from recipes import pretrain_llm
from recipes.common import accelerated, decoder, flags, offline, packed, speed, stop
from recipes.common.offline import RecipeError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A tiny model in a folder, and texts in files."""
    out = tmp_path_factory.mktemp("parts")
    tiny.llama().save_pretrained(out / "model")
    tiny.tokenizer().save_pretrained(out / "model")
    chance = random.Random(0)
    texts = [
        " ".join(f"w{(3 * i + chance.randrange(2)) % 20}" for i in range(chance.randrange(20, 60))) for _ in range(200)
    ]
    (out / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    (out / "texts.txt").write_text("\n\n".join(texts))
    (out / "other.csv").write_text("a,b\n1,2\n")
    (out / "empty.jsonl").write_text("")
    return out


def words(parts, out, dataset="texts.jsonl", **more):
    given = {
        "model": parts / "model",
        "dataset": parts / dataset,
        "output-dir": out,
        "max-steps": 24,
        "max-length": 32,
        "validation-rows": 6,
        "batch-size": 4,
        "save-steps": 8,
        "no-plot": None,
        **more,
    }
    return [str(word) for name, value in given.items() for word in ([f"--{name}"] + ([] if value is None else [value]))]


def results(out):
    return json.loads((out / "metrics.json").read_text())["runs"]


def command(arguments):
    return [sys.executable, "-W", "ignore", "-m", "recipes.pretrain_llm", *map(str, arguments)]


@pytest.fixture
def main():
    """The recipe in this process."""
    return pretrain_llm.main


def test_the_loss_falls_and_the_model_is_one_of_transformers(parts, tmp_path, main, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    main(words(parts, tmp_path, **{"max-steps": 40, "learning-rate": 1e-2, "gradient-accumulation-steps": 2}))
    (run,) = results(tmp_path)
    assert [step for step, _ in run["train_loss"]] == list(range(1, 41))
    assert run["validation_loss"][-1][1] < run["validation_loss"][0][1] < 3.9  # 3.87 is a guess among 48
    assert len(run["decisions"]) == 38
    assert run["more"]["tokens_per_second"] > 0
    assert "5,120 tokens: 0.69 epochs of " in capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "greedy/model")
    ids = AutoTokenizer.from_pretrained(tmp_path / "greedy/model")("w0 w3 w6 w9 w12", return_tensors="pt")["input_ids"]
    assert model(ids).logits.shape == (1, 5, 48)


def test_each_schedule_starts_alike(parts, tmp_path, main):
    main([*words(parts, tmp_path), "--compare", "greedy", "linear", "cosine", "wsd"])
    runs = results(tmp_path)
    assert [run["schedule"] for run in runs] == ["greedy", "linear", "cosine", "wsd"]
    assert len({tuple(run["train_loss"][0]) for run in runs}) == 1
    peak = 3e-3
    lrs = [dict(run["learning_rate"]) for run in runs]
    assert lrs[1][2] == lrs[2][2] == lrs[3][2] == peak
    assert lrs[3][20] == peak > lrs[1][20] > lrs[2][20]  # 20% of 24 steps is 5


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_other_parts_of_a_batch_are_the_same_step(parts, tmp_path, main):
    main([*words(parts, tmp_path / "one"), "--float64"])
    more = {"gradient-accumulation-steps": 4, "log-steps": 5, "compile": "eager"}
    main([*words(parts, tmp_path / "four", **more), "--float64", "--gradient-checkpointing"])
    (one,), (four,) = results(tmp_path / "one"), results(tmp_path / "four")
    assert [step for step, _ in four["train_loss"]] == [step for step, _ in one["train_loss"]]
    for a, b in zip(one["train_loss"], four["train_loss"], strict=True):
        assert a[1] == pytest.approx(b[1], abs=1e-9)


@pytest.mark.slow
def test_streamed_bf16_and_text_stopped_and_resumed(parts, tmp_path, main, monkeypatch):
    monkeypatch.setattr(packed, "STREAM_VALIDATION", 20)
    whole, stopped = ([*words(parts, tmp_path / name, "texts.txt"), "--streaming", "--bf16"] for name in "ab")
    main(whole)
    with monkeypatch.context() as patch:
        patch.setattr(stop.StopOnSignal, "asked", lambda self: True)
        with pytest.raises(stop.Stopped):
            main(stopped)
    assert [path.name for path in accelerated.checkpoints(tmp_path / "b/greedy")] == ["checkpoint-1"]
    main([*stopped, "--resume"])
    (a,), (b,) = results(tmp_path / "a"), results(tmp_path / "b")
    assert len(a["train_loss"]) == 24
    assert a["train_loss"][-1][1] < a["train_loss"][0][1]
    assert (a["train_loss"], a["learning_rate"]) == (b["train_loss"], b["learning_rate"])


def test_sigterm_and_sigkill_and_resume(parts, tmp_path, main):
    steps = {"max-steps": 120, "save-steps": 10}
    whole, out = tmp_path / "whole", tmp_path / "killed"
    main(words(parts, whole, **steps))
    arguments = words(parts, out, **steps)

    code, printed = kill_when(
        "pretrain_llm", arguments, (out / "greedy/checkpoint-20").exists, signal.SIGTERM, timeout=60
    )
    assert code == 128 + signal.SIGTERM
    said = printed.strip().splitlines()[-1]
    assert said.startswith(f"saved; go on with: {sys.executable} -m recipes.pretrain_llm ")
    again = shlex.split(said.split("recipes.pretrain_llm ")[1])
    assert again == [*arguments, "--resume"]
    (saved,) = accelerated.checkpoints(out / "greedy")
    reached = int(saved.name.split("-")[1])
    assert 20 <= reached < 120

    later = out / f"greedy/checkpoint-{(reached // 10 + 3) * 10}"
    code, _ = kill_when("pretrain_llm", again, later.exists, signal.SIGKILL, timeout=60)
    assert code == -signal.SIGKILL
    unfinished = out / "greedy/unfinished"  # as a kill leaves it that comes while saving
    unfinished.mkdir(exist_ok=True)
    (unfinished / "optimizer.bin").write_text("half")
    assert accelerated.checkpoints(out / "greedy")

    done = processes.run(command(again), cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    (a,), (b,) = results(whole), results(out)
    for part in ("learning_rate", "train_loss", "validation_loss", "decisions", "next_learning_rate"):
        assert a[part] == b[part], part
    assert [path.name for path in accelerated.checkpoints(out / "greedy")] == ["checkpoint-120"]


@pytest.mark.parametrize("more", [[], ["--fsdp"]])
def test_two_processes_are_one_with_the_whole_batch(parts, tmp_path, main, more):
    main([*words(parts, tmp_path / "one"), "--float64"])
    arguments = [*words(parts, tmp_path / "two", **{"batch-size": 2}), "--float64", *more]
    worker = [ROOT / "tests/pretrain_worker.py", *arguments]
    if more:
        done = forked.run(worker, 2, cwd=ROOT)
    else:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
        done = processes.run([*processes.torchrun(2), *worker], cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    (one,), (two,) = results(tmp_path / "one"), results(tmp_path / "two")
    ranks = [json.loads((tmp_path / f"two/rank{i}.json").read_text()) for i in range(2)]
    assert ranks[0]["kinds"] == ranks[1]["kinds"] == (["DTensor"] if more else ["Parameter"])
    assert ranks[0]["learning_rate"] == ranks[1]["learning_rate"] == two["learning_rate"]
    for part in ("train_loss", "validation_loss"):
        for a, b in zip(one[part], two[part], strict=True):
            assert a[0] == b[0]
            assert a[1] == pytest.approx(b[1], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--fsdp"]])
def test_two_processes_are_killed_and_resumed(parts, tmp_path, more):
    whole, out = tmp_path / "whole", tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    for folder in (whole, out):
        arguments = [*words(parts, folder, **{"max-steps": 100, "batch-size": 2}), *more]
        launch = [*map(str, processes.torchrun(2)), "-m", "recipes.pretrain_llm", *arguments]
        process = subprocess.Popen(launch, cwd=ROOT, env=environment)
        if folder == out:
            while not (out / "greedy/checkpoint-16").exists() and process.poll() is None:
                time.sleep(0.002)
            processes.kill_tree(process.pid)
            process.wait()
            done = processes.run([*launch, "--resume"], cwd=ROOT, env=environment)
            assert done.returncode == 0, done.stderr[-3000:]
        else:
            assert processes.wait(process, 120) == 0
    (a,), (b,) = results(whole), results(out)
    for part in ("learning_rate", "train_loss", "validation_loss", "decisions"):
        assert a[part] == b[part], part


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"dataset": "missing.jsonl"}, "is not there: give a file, a folder, or the id of a dataset on the hub"),
        ({"dataset": "other.csv"}, "has no column 'text', only: a, b"),
        ({"dataset": "empty.jsonl"}, "empty.jsonl' "),
        (
            {"streaming": None},
            "has less than one row of 32 tokens to train on, apart from those kept for validation (500",
        ),
        ({"max-length": 65}, "--max-length 65 is beyond the model's limit of 64 tokens"),
        ({"validation-rows": 99}, "--validation-rows asks for 99"),
        ({"model": "nobody/nothing"}, "nobody/nothing"),
        ({"model": "7M"}, "'7M' cannot be loaded"),
        ({"width": 64}, "--width and --layers go with a size"),
        ({"gradient-accumulation-steps": 3}, "--batch-size 4 is not a multiple of --gradient-accumulation-steps 3"),
        ({"max-steps": 0}, "--max-steps 0 is not allowed: it must be at least 1"),
        ({"save-steps": -1}, "--save-steps -1 is not allowed: it must be at least 0"),
        ({"width": 0}, "--width 0 is not allowed: it must be at least 1"),
        ({"fsdp": None}, "--fsdp needs processes to shard over"),
    ],
)
def test_wrong_input_is_one_line(parts, tmp_path, main, more, says):
    with pytest.raises(RecipeError) as error:
        main(words(parts, tmp_path / "out", **more))
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_another_runs_folder_is_left_alone(parts, tmp_path, main):
    main(words(parts, tmp_path))
    before = snapshot(tmp_path)
    for more, says in (
        ([], "has the results of another run"),
        (["--resume", "--seed", "1"], "was started with seed 0"),
    ):
        with pytest.raises(RecipeError, match=says):
            main([*words(parts, tmp_path), *more])
    assert snapshot(tmp_path) == before


def test_a_full_disk(parts, tmp_path, main, capfd, monkeypatch):
    """A limit on the size of files, which Python reports as a full disk is reported."""
    arguments = words(parts, tmp_path / "out", **{"save-steps": 4})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    whole_save, seen = pretrain_llm.save, []

    def save(accelerator, folder, step):
        if step == 8:
            seen.append(snapshot(folder))
            resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, limits[1]))
        try:
            whole_save(accelerator, folder, step)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(pretrain_llm, "save", save)
    with pytest.raises(SystemExit) as end:
        flags.run("pretrain_llm", lambda: main(arguments))
    monkeypatch.setattr(pretrain_llm, "save", whole_save)
    assert end.value.code == 2
    assert "the disk is full" in capfd.readouterr().err.strip().splitlines()[-1]
    after = snapshot(tmp_path / "out/greedy")
    assert {path for path in after if "checkpoint-" in str(path)} == {p for p in seen[0] if "checkpoint-4" in str(p)}
    assert all(after[path] == seen[0][path] for path in after if "checkpoint-" in str(path))
    main([*arguments, "--resume"])
    assert len(results(tmp_path / "out")[0]["train_loss"]) == 24


def test_the_order_of_rows_goes_on_from_any_place():
    whole = list(accelerated.Order(7, 3, 0, 20))
    assert sorted(whole[:7]) == sorted(whole[7:14]) == list(range(7))
    assert whole[:7] != whole[7:14]
    for start in range(20):
        assert list(accelerated.Order(7, 3, start, 20)) == whole[start:]


def test_sizes_are_what_they_are_called():
    from transformers import AutoModelForCausalLM

    millions = {"2M": 2.1, "5M": 5.3, "30M": 33.4, "125M": 123.6, "350M": 353.6, "1B": 1014.5}
    try:
        offline.gpt2_bpe()
    except RecipeError as error:
        pytest.skip(str(error))
    for size in decoder.SIZES:
        args = pretrain_llm.parse_flags(["--model", size])
        tokenizer, config = decoder.load_config(args)
        assert tokenizer("Hello world")["input_ids"] == [15496, 995]  # GPT-2's
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions[size], rel=0.01)


def test_flops_of_a_known_model():
    """PaLM 8B, its paper's table: 32 layers, width 4096, 8.63 billion parameters, 2,048 tokens."""
    from types import SimpleNamespace

    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(torch.empty(8_630_000_000, device="meta"))
    config = SimpleNamespace(tie_word_embeddings=True, num_hidden_layers=32, hidden_size=4096)
    assert speed.flops_per_token(model, config, 2048) == pytest.approx(6 * 8.63e9 + 12 * 32 * 16 * 256 * 2048)


def test_python_docs():
    rows = offline.python_docs()
    assert rows.column_names == ["text"]
    assert len(rows) >= 79
    if offline.PYTHON_DOC_SOURCES.exists():
        assert sum(map(len, rows["text"])) > 10e6
