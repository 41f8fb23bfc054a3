import importlib
import json
import re
import shlex
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import forked
import processes
import pytest
import recipe_parts
import tiny
import torch
from recipe_parts import ROOT, assert_same, flags, runs_of

pytest.importorskip("peft")
from greedylr_integrations import Reason
from recipes import ask, finetune_llm
from recipes.common import chat, llm, offline, report, schedules, trainer
from recipes.common import flags as common_flags
from recipes.common.flags import run_all
from recipes.common.offline import RecipeError
from recipes.common.report import Run
from recipes.common.stop import StopOnSignal, Stopped, resume_command


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return recipe_parts.make(tmp_path_factory.mktemp("parts"))


def test_the_command_line(parts, tmp_path):
    command = recipe_parts.command("finetune_llm", flags(parts, tmp_path, compare=["greedy", "cosine"]))
    done = processes.run(command, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "next time start at " in done.stdout
    assert (tmp_path / "loss_and_lr.png").stat().st_size > 10_000
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    greedy, cosine = metrics["runs"]
    assert [run["schedule"] for run in metrics["runs"]] == ["greedy", "cosine"]
    for run in metrics["runs"]:
        assert [step for step, _ in run["train_loss"]] == list(range(1, 25))
        assert [step for step, _ in run["validation_loss"]] == [0, 6, 12, 18, 24]
        assert run["validation_loss"][-1][1] < run["validation_loss"][0][1]
    assert greedy["train_loss"][0] == cosine["train_loss"][0]  # the same start and data
    assert {decision["reason"] for decision in greedy["decisions"]} == {"TOO_SHORT"}  # 24 steps: no search
    again = forked.run(command[3:], 1, cwd=ROOT)
    assert again.returncode == 2
    last = again.stderr.strip().splitlines()[-1]
    assert last.endswith("has the results of another run: choose another --output-dir, or --resume that run")


def test_what_is_seen_of_a_run(parts, tmp_path, capfd):
    """A bar with the loss, validation before and after, the reply, and a command that asks again; no dictionaries."""
    finetune_llm.main(
        flags(parts, tmp_path, compare=["greedy", "wsd"], eval_on_start=True, ask="w1 w2", disable_tqdm=False)
    )
    said = capfd.readouterr()
    assert "{" not in said.out + said.err
    assert "greedy, loss " in said.err
    assert "wsd, loss " in said.err
    assert "scale=" in said.err
    for schedule in ("greedy", "wsd"):
        assert re.search(rf"{schedule}: validation loss \d\.\d{{3}} after 0 steps", said.out + said.err)
        (row,) = [line for line in said.out.splitlines() if line.startswith(f"│ {schedule}")]
        before, after = (float(row.split("│")[i]) for i in (3, 4))
        assert after < before
    *_, question, reply, last = said.out.strip().splitlines()
    assert question == "> w1 w2"
    assert last == f"ask it: {sys.executable} -m recipes.ask {tmp_path}/greedy/model 'w1 w2'"
    done = processes.run(shlex.split(last.removeprefix("ask it: ")), cwd=ROOT)
    assert done.stdout.strip() == reply.strip()


@pytest.mark.parametrize(("folder", "said"), [("nothing", "there is no folder"), (".", "cannot be loaded")])
def test_a_model_that_is_not_there_cannot_be_asked(tmp_path, folder, said):
    with pytest.raises(RecipeError, match=said):
        ask.main([str(tmp_path / folder), "Hello!"])


@pytest.mark.parametrize("words", [["m", "Hi", "--tokens", "0"], ["m", " "]])
def test_a_question_that_cannot_be_answered_is_one_line(words):
    with pytest.raises(RecipeError, match="--tokens 0 is not allowed|the question is empty"):
        ask.main(words)


def test_plain_text(parts, tmp_path):
    finetune_llm.main(flags(parts, tmp_path, dataset="plain.txt", schedule="linear"))
    (run,) = json.loads((tmp_path / "metrics.json").read_text())["runs"]
    assert run["decisions"] == []
    assert run["train_loss"][-1][1] < run["train_loss"][0][1]


@pytest.mark.parametrize("more", [{"logging_steps": 10}, {"logging_strategy": "no"}])
def test_the_last_step_is_logged_always(parts, tmp_path, capsys, more):
    finetune_llm.main(flags(parts, tmp_path, plot=False, **more))
    (run,) = runs_of(tmp_path)
    assert [step for step, _ in run["train_loss"]] == ([10, 20, 24] if "logging_steps" in more else [24])
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("│ greedy"))
    assert row.split("│")[6].strip() == "24"


def test_the_loss_counts_the_replies_only():
    tokenizer = tiny.tokenizer()
    messages = [
        {"role": "user", "content": "w1 w2"},
        {"role": "assistant", "content": "w3"},
        {"role": "user", "content": "w4"},
        {"role": "assistant", "content": "w5 w6"},
        {"role": "user", "content": "w7"},
    ]
    row = chat.tokenize({"messages": messages}, tokenizer, 100)
    assert tokenizer.decode(
        row["input_ids"]
    ) == "user w1 w2<eos> assistant w3<eos> user w4<eos> assistant w5 w6<eos>".replace("<eos>", " <eos>")
    counted = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    assert tokenizer.decode(counted) == "assistant w3 <eos> assistant w5 w6 <eos>"
    short = chat.tokenize({"messages": messages}, tokenizer, 6)
    assert len(short["input_ids"]) == len(short["labels"]) == 6


def test_a_template_that_writes_earlier_turns_anew():
    """As Qwen3's, which has an empty think block in the last reply only."""
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }} {% if loop.last and m['role'] == 'assistant' %}w9 {% endif %}"
        "{{ m['content'] }}{{ eos_token }} {% endfor %}{% if add_generation_prompt %}assistant {% endif %}"
    )
    messages = [{"role": role, "content": f"w{i}"} for i, role in enumerate(["user", "assistant", "user", "assistant"])]
    row = chat.tokenize({"messages": messages}, tokenizer, 100)
    pairs = [(token, label) for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    assert all(token == label for token, label in pairs)
    assert tokenizer.decode([token for token, _ in pairs]) == "w9 w3 <eos>"


def test_epochs_in_place_of_steps(parts, tmp_path):
    words = ["--output-dir", str(tmp_path)]
    _, args = finetune_llm.parse_flags([*words, "--num-train-epochs", "3", "--eval-strategy", "no"])
    assert (args.max_steps, args.num_train_epochs, args.eval_strategy.value) == (-1, 3, "no")
    _, args = finetune_llm.parse_flags([*words, "--save-steps", "0", "--eval-steps", "0"])  # transformers' own rules
    assert (args.save_steps, args.eval_steps) == (0, 1)
    _, args = finetune_llm.parse_flags(words)
    assert (args.max_steps, args.eval_steps, args.eval_strategy.value) == (80, 0.25, "steps")


# ---- kills ----


def test_killed_twice_and_resumed(parts, tmp_path):
    """SIGTERM under the first schedule, SIGKILL under the second: in the end all is as if nothing had been."""
    more = {"compare": ["greedy", "wsd"], "max_steps": 100, "save_steps": 10, "plot": False}
    finetune_llm.main(flags(parts, tmp_path / "whole", **more))
    out = tmp_path / "killed"
    words = flags(parts, out, **more)
    seen = out / "greedy" / "history.jsonl"
    there = lambda: seen.exists() and seen.read_text().count("\n") > 13  # noqa: E731
    code, printed = recipe_parts.kill_when("finetune_llm", words, there, signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    assert printed.strip().splitlines()[-1] == f"saved; go on with: {resume_command('finetune_llm', words, out)}"
    assert recipe_parts.whole_checkpoints(out / "greedy")
    assert not (out / "greedy" / "result.json").exists()
    there = lambda: recipe_parts.whole_checkpoints(out / "wsd")  # noqa: E731
    code, _ = recipe_parts.kill_when("finetune_llm", [*words, "--resume"], there, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert not (out / "metrics.json").exists()
    finished = (out / "greedy" / "result.json").read_text()
    with pytest.raises(RecipeError, match="has the results of another run"):
        finetune_llm.main(words)
    with pytest.raises(RecipeError, match="was started with seed 0, so it cannot be resumed with 1"):
        finetune_llm.main([*words, "--resume", "--seed", "1"])
    with pytest.raises(RecipeError, match="was started with learning_rate 0.003, so it cannot be resumed with 0.1"):
        finetune_llm.main([*words, "--resume", "--learning-rate", "0.1"])
    finetune_llm.main([*words, "--resume"])
    for one, other in zip(runs_of(out), runs_of(tmp_path / "whole"), strict=True):
        assert len({lr for _, lr in one["learning_rate"]}) > 10
        assert_same(one, other)
    assert (out / "greedy" / "result.json").read_text() == finished  # it was not trained again


def test_a_signal_while_the_ranks_agree_is_not_lost(monkeypatch):
    import torch.distributed as dist

    first = iter([True])

    def all_reduce(numbers, operation):
        if next(first, False):
            signal.raise_signal(signal.SIGTERM)

    for name, result in (("is_initialized", True), ("get_world_size", 2), ("get_backend", "gloo")):
        monkeypatch.setattr(dist, name, lambda result=result: result)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    with StopOnSignal() as stop:
        assert not stop.asked()  # the other ranks have not heard of it
        assert stop.asked()
        assert stop.number == signal.SIGTERM


def plain_parser():
    return common_flags.parser("some_recipe", "Text.", model="m", dataset="d", learning_rate=0.1, batch_size=4)


def run_of(schedule):
    return Run(schedule, [(1, 2.0)], [(1, 2.0)], [(1, 0.1)], 1.0, 1.0)


def test_a_signal_after_the_last_step_ends_the_run_before_the_next_schedule(tmp_path):
    args, trained = SimpleNamespace(schedules=["linear", "cosine"], output_dir=tmp_path, settings={}), []

    def train(schedule):
        with StopOnSignal():
            signal.raise_signal(signal.SIGINT)
        trained.append(schedule)
        return run_of(schedule)

    with pytest.raises(Stopped) as stopped:
        run_all(args, train)
    assert (trained, stopped.value.number) == (["linear"], signal.SIGINT)
    assert [run.schedule for run in run_all(args, run_of)] == ["linear", "cosine"]


def test_a_signal_between_schedules_reaches_the_next_one(tmp_path):
    with StopOnSignal():
        signal.raise_signal(signal.SIGTERM)
        with StopOnSignal() as stop:
            assert stop.asked()
    with StopOnSignal() as stop:
        assert not stop.asked()


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({}, f"{sys.executable} -m recipes.x --seed 1 --output-dir out --resume"),
        ({"LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1"}, "-m torch.distributed.run --nproc-per-node 2 -m "),
        ({"LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "4"}, "the same command with --output-dir out --resume"),
        ({"LOCAL_WORLD_SIZE": "2", "ACCELERATE_MIXED_PRECISION": "bf16"}, "the same command with --output-dir out"),
        ({"RAY_ADDRESS": "auto"}, "the same command with --output-dir out --resume"),
    ],
)
def test_how_to_go_on(monkeypatch, environment, says):
    for name in ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "SLURM_NNODES", "NODE_RANK", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert says in resume_command("x", ["--seed", "1"], Path("out"))


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"RANK": "0", "SLURM_PROCID": "1", "GROUP_RANK": "0"}, True),  # torchrun numbers the nodes as it likes
        ({"RANK": "3", "LOCAL_RANK": "0"}, False),
        ({"NODE_RANK": "1"}, False),  # Lightning's first process of the second node
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"NODE_RANK": "0", "LOCAL_RANK": "1"}, False),
        ({"SLURM_PROCID": "2"}, False),
    ],
)
def test_who_writes_the_results(monkeypatch, tmp_path, environment, first):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    made = plain_parser()
    file = tmp_path / "file"
    file.write_text("")
    if first:  # only that process looks at the output folder
        with pytest.raises(RecipeError, match="is not a writable folder"):
            common_flags.parse(made, ["--output-dir", str(file)])
    else:
        common_flags.parse(made, ["--output-dir", str(file)])


def test_a_run_that_is_all_warmup(parts, tmp_path, capsys):
    words = flags(parts, tmp_path, max_steps=3, warmup_steps=3, plot=True)
    finetune_llm.main([*words, "--greedy.rule", "loss"])  # the default rule has no warmup
    (run,) = runs_of(tmp_path)
    assert run["decisions"] == []
    assert "greedy" in capsys.readouterr().out


def test_a_torn_checkpoint_is_passed_over(tmp_path):
    from recipes.common.trainer import last_checkpoint

    assert last_checkpoint(tmp_path) is None
    for step in (8, 16, 24):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (8, 16):
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-24" / "trainer_state.json").write_text("")
    assert last_checkpoint(tmp_path).name == "checkpoint-16"


def test_two_processes_are_one_with_twice_the_batch(parts, tmp_path):
    words = {"dtype": "float64", "schedule": "greedy", "plot": False, "max_steps": 12, "eval_strategy": "no"}
    finetune_llm.main(flags(parts, tmp_path / "one", **words, batch_size=4, use_cpu=True))
    worker = str(ROOT / "tests" / "recipe_worker.py")
    two = flags(parts, tmp_path / "two", **words, batch_size=2)
    done = forked.run([worker, tmp_path, "finetune_llm", *two], 2, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    lrs = [json.loads((tmp_path / f"lrs-{rank}.json").read_text()) for rank in range(2)]
    assert lrs[0] == lrs[1]
    assert len(lrs[0]) == 12
    (one,), (two,) = runs_of(tmp_path / "one"), runs_of(tmp_path / "two")
    for ours, theirs in zip(two["decisions"], one["decisions"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
    lrs = [[lr for _, lr in run["learning_rate"]] for run in (two, one)]
    assert lrs[0] == pytest.approx(lrs[1], rel=1e-6)  # the LR follows the loss, in all of its digits


def test_the_loss_in_float64_is_transformers_own():
    model = tiny.llama()
    ids = torch.randint(8, 48, (2, 12), generator=torch.Generator().manual_seed(0))
    labels = ids.masked_fill(torch.arange(12) % 5 == 0, -100)
    for more in ({}, {"num_items_in_batch": 7}):
        own = model(input_ids=ids, labels=labels, **more).loss
        ours = trainer.loss_in_float64(model(input_ids=ids).logits.double(), labels, 48, **more)
        assert ours.item() == pytest.approx(own.item(), rel=1e-6)


# ---- what finetune_llm can do ----


def test_every_weight_and_packed_rows_over_epochs(parts, tmp_path):
    words = flags(parts, tmp_path, full=True, packing=True, max_steps=-1, num_train_epochs=3, schedule="wsd")
    finetune_llm.main(words)
    (run,) = runs_of(tmp_path)
    assert run["train_loss"][-1][1] < run["train_loss"][0][1]
    lrs = [lr for _, lr in run["learning_rate"]]
    assert max(lrs) == lrs[len(lrs) // 2] == 3e-3
    assert lrs[-1] < 0.5 * 3e-3


def test_packed_rows_do_not_see_each_other():
    import torch
    from datasets import Dataset

    rows = Dataset.from_list([{"input_ids": ids, "labels": ids} for ids in ([8, 9, 10, 11], [12, 9, 8], [13, 14, 8])])
    packed = chat.pack(rows, 5).with_format("torch")
    assert [row.tolist() for row in packed["input_ids"]] == [[8, 9, 10, 11, 12], [9, 8, 13, 14, 8]]
    assert [row.tolist() for row in packed["position_ids"]] == [[0, 1, 2, 3, 0], [1, 2, 0, 1, 2]]
    assert [row.tolist() for row in packed["labels"]] == [[-100, 9, 10, 11, -100], [9, 8, -100, 14, 8]]
    model = tiny.llama().eval()
    model.config.use_cache = False  # as load_model does: with a cache the blocks are not told apart
    whole = model(input_ids=torch.tensor([[8, 9, 10, 11]])).logits
    block = {name: packed[0][name][None] for name in ("input_ids", "position_ids")}
    torch.testing.assert_close(model(**block).logits[:, :4], whole)
    alone = model(input_ids=torch.tensor([[13, 14, 8]])).logits
    block = {name: packed[1][name][None] for name in ("input_ids", "position_ids")}
    torch.testing.assert_close(model(**block).logits[:, 2:], alone)


@pytest.mark.slow
def test_lora_on_4_bits(parts, tmp_path):
    pytest.importorskip("bitsandbytes")
    model = tiny.llama(hidden_size=128, intermediate_size=128)  # blocks of 64 weights
    model.save_pretrained(tmp_path / "wide")
    tiny.tokenizer().save_pretrained(tmp_path / "wide")
    finetune_llm.main(flags(parts, tmp_path / "out", model=tmp_path / "wide", qlora=True))
    (run,) = runs_of(tmp_path / "out")
    assert run["train_loss"][-1][1] < run["train_loss"][0][1]


# ---- wrong input ----


@pytest.mark.parametrize(
    ("more", "says"),
    [
        *recipe_parts.WRONG,
        ({"validation_rows": 40}, "has 40 rows with a reply within --max-length 48, and 40 are kept for validation"),
        ({"dtype": "int8"}, "argument --dtype: invalid choice: 'int8' (choose from "),
        ({"full": True, "qlora": True}, "--full trains all weights and --qlora only LoRA's: choose one"),
        ({"packing": True, "rows": 5, "max_length": 64}, "do not fill one block of --max-length 64 tokens"),
        ({"resume": True}, "has no checkpoint of a run to resume: leave out --resume to start one"),
        ({"max_steps": 0}, "--max-steps 0 and --num-train-epochs 3.0 train nothing: make one of them greater than 0"),
        ({"gradient_accumulation_steps": 0}, "--gradient-accumulation-steps 0 is not allowed: it must be at least 1"),
        ({"per_device_eval_batch_size": 0}, "--per-device-eval-batch-size 0 is not allowed: it must be at least 1"),
        ({"logging_steps": 0}, "non-zero --logging_steps"),
        ({"max_stepz": 3}, "'--max-stepz' is not a flag of finetune_llm"),
        ({"max_steps": "many"}, "invalid int value: 'many'"),
        ({"eval_strategy": "sometimes"}, "sometimes"),
    ],
)
def test_wrong_input_is_one_line(parts, tmp_path, more, says):
    with pytest.raises(RecipeError) as error:
        finetune_llm.main(flags(parts, tmp_path / "out", **more))
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_checkpoints_of_another_run_are_left_alone(parts, tmp_path):
    for name in ("greedy/checkpoint-8", "checkpoint-8"):
        folder = tmp_path / name.replace("/", "-")
        (folder / name).mkdir(parents=True)
        with pytest.raises(RecipeError, match="has the checkpoints of another run: choose another --output-dir"):
            finetune_llm.main(flags(parts, folder))
        assert len(list(folder.iterdir())) == 1


def test_a_full_disk_is_one_line(parts, tmp_path, capsys, monkeypatch):
    words = flags(parts, tmp_path, schedule="linear", save_steps=2, eval_strategy="no", full=True)
    recipe_parts.assert_full_disk_is_one_line(monkeypatch, capsys, finetune_llm, words, llm, "load_data")


# ---- what all recipes share ----

CONFIGS = sorted((ROOT / "recipes" / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("file", CONFIGS, ids=[f"{file.parent.name}/{file.stem}" for file in CONFIGS])
def test_every_config_fits_its_recipe(file):
    pytest.importorskip("trl" if "trl" in file.parent.name else "peft")
    try:
        recipe = importlib.import_module(f"recipes.{file.parent.name}")
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    on_trainer = trainer in vars(recipe).values()
    recipe.parse_flags(["--config", str(file), *(["--use-cpu"] if on_trainer else [])])  # it has bf16 everywhere
    header = [line for line in file.read_text().splitlines() if line.startswith("#")]
    assert any(f"recipes.{file.parent.name} --config {file.relative_to(ROOT)}" in line for line in header)
    assert any("memory" in line for line in header)


@pytest.mark.parametrize("name", ["batch-size", "batch_size", "per-device-train-batch-size"])
@pytest.mark.parametrize("flag", ["--batch-size", "--per_device_train_batch_size"])
def test_the_command_line_wins_by_either_name(tmp_path, name, flag):
    (tmp_path / "a.yaml").write_text(f"{name}: 3\n")
    words = ["--config", str(tmp_path / "a.yaml"), "--output-dir", str(tmp_path / "out")]
    for more, size in (([], 3), ([flag, "8"], 8)):
        _, args = finetune_llm.parse_flags([*words, *more])
        assert args.per_device_train_batch_size == size


def test_fixed_schedules_have_one_ramp():
    import torch

    factors = {}
    for name in schedules.KINDS:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = schedules.fixed(name, optimizer, 100, 10)
        factors[name] = []
        for _ in range(100):
            factors[name].append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
    ramp = [i / 10 for i in range(10)]
    assert all(values[:10] == ramp for values in factors.values())
    assert factors["constant"][10:] == [1.0] * 90
    assert factors["wsd"][10:81] == [1.0] * 71
    assert factors["wsd"][81:] == pytest.approx([1 - i / 20 for i in range(1, 20)])


def test_a_row_of_the_report_is_read_back():
    import histories

    callback = histories.with_torch().callback
    run = report.Run("greedy", [(1, 2.0)], [], [(1, 0.1)], 1.0, 0.5, 0.2, list(callback.history))
    text = json.dumps(run.to_row())
    again = report.Run.from_row(json.loads(text))
    assert json.dumps(again.to_row()) == text
    assert repr(again.decisions) == repr(run.decisions)  # NaN is not equal to itself
    row = json.loads(text)
    assert row["decisions"][3]["reason"] in Reason.__members__
    row["decisions"][3]["reason"] = "the loss is a new recent best"  # as it was written before
    with pytest.raises(RecipeError, match="have the reason 'the loss is a new recent best', as an earlier version"):
        report.Run.from_row(row)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)  # the package's
def test_chitchat_is_real_chats_in_turns():
    pytest.importorskip("chitchat_dataset")
    rows = offline.chitchat(50)
    assert len(rows) == 50
    for row in rows:
        roles = [message["role"] for message in row["messages"]]
        assert roles == [("user", "assistant")[i % 2] for i in range(len(roles))]
        assert all(message["content"].strip() for message in row["messages"])


# ---- the other recipes ----


def recipe(name, *words):
    return forked.run(["-m", f"recipes.{name}", *words], 1, cwd=ROOT)


def check_results(out, steps):
    assert (out / "loss_and_lr.png").stat().st_size > 10_000
    (run,) = json.loads((out / "metrics.json").read_text())["runs"]
    assert [step for step, _ in run["train_loss"]] == list(range(1, steps + 1))
    assert run["decisions"]
    assert run["validation_loss"][-1][1] < run["validation_loss"][0][1]


def test_lightning_vision(tmp_path):
    pytest.importorskip("lightning")
    pytest.importorskip("sklearn")
    done = recipe("lightning_vision", "--dataset", "digits", "--max-steps", 60, "--output-dir", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "next time start at " in done.stdout
    check_results(tmp_path, 60)
    wrong = recipe("lightning_vision", "--dataset", "imagenet", "--output-dir", tmp_path / "other")
    assert wrong.returncode == 2
    assert wrong.stderr.strip().endswith("dataset 'imagenet' is unknown: choose from auto, fashion-mnist, digits")


def test_fashion_mnist():
    if not offline.FASHION_MNIST.exists():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    train, test = offline.images("fashion-mnist")
    assert (len(train), len(test), len(train[0]["image"])) == (60_000, 10_000, 784)


def test_accelerate_text(tmp_path):
    try:
        offline.minilm(), offline.reviews()
    except RecipeError as error:
        pytest.skip(str(error))
    words = ["--max-steps", 12, "--batch-size", 8, "--validation-rows", 40, "--learning-rate", 3e-4]
    done = recipe("accelerate_text", *words, "--output-dir", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    check_results(tmp_path, 12)
    wrong = recipe("accelerate_text", "--model", "nobody/nothing", "--output-dir", tmp_path / "other")
    assert wrong.returncode == 2
    assert "model 'nobody/nothing' cannot be loaded" in wrong.stderr.strip().splitlines()[-1]


def small_text(tmp_path, dropout=0.1):
    """A tiny classifier in a folder, and reviews in another."""
    from transformers import BertConfig, BertForSequenceClassification

    tokenizer = tiny.tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, pad_token_id=0, **sizes)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    for part in ("train", "test"):
        rows = [f"w{i % 20} w{(i * 7) % 20} w{i % 3},{int(i % 20 < 10)}" for i in range(200)]
        (tmp_path / "data" / f"{part}.csv").write_text("\n".join(["text,label", *rows]))
    return ["--model", str(tmp_path / "model"), "--dataset", str(tmp_path / "data"), "--learning-rate", "3e-3"]


LIGHTNINGS_WARNINGS = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec:FutureWarning",
    "ignore:.*isinstance.treespec, LeafSpec.*",
    "ignore:.*exists and is not empty",
    "ignore:.*does not have many workers",
)
MIDDLE = {
    "accelerate_text": ["--max-steps", "200", "--batch-size", "8", "--save-steps", "20", "--validation-rows", "50"],
    "lightning_vision": ["--dataset", "digits", "--max-steps", "250", "--save-steps", "20"],
}


def other(name, tmp_path, **more):
    """The recipe's main, and flags of a small run."""
    pytest.importorskip("lightning")
    words = [*MIDDLE[name], "--no-plot", *(small_text(tmp_path, **more) if name == "accelerate_text" else [])]
    return importlib.import_module(f"recipes.{name}").main, words


@pytest.mark.slow
@LIGHTNINGS_WARNINGS
@pytest.mark.parametrize("name", MIDDLE)
def test_the_others_are_killed_twice_and_resumed(tmp_path, name):
    main, words = other(name, tmp_path)
    main([*words, "--output-dir", str(tmp_path / "whole")])
    out = tmp_path / "killed"
    words += ["--output-dir", str(out)]
    there = lambda: any((out / "greedy").glob("checkpoint-[4-9]0*"))  # noqa: E731
    code, printed = recipe_parts.kill_when(name, words, there, signal.SIGINT)
    assert code == 128 + signal.SIGINT
    assert printed.strip().splitlines()[-1] == f"saved; go on with: {resume_command(name, words, out)}"
    there = lambda: any((out / "greedy").glob("checkpoint-1[2-9]0*"))  # noqa: E731
    code, _ = recipe_parts.kill_when(name, [*words, "--resume"], there, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert not (out / "metrics.json").exists()
    main([*words, "--resume"])
    (resumed,), (whole,) = runs_of(out), runs_of(tmp_path / "whole")
    assert len({lr for _, lr in whole["learning_rate"]}) > 10
    assert whole["validation_loss"][-1][1] < whole["validation_loss"][0][1]
    assert whole["validation_loss"][-1][0] == whole["train_loss"][-1][0]  # 250 do not part into four
    assert_same(resumed, whole)


@LIGHTNINGS_WARNINGS
@pytest.mark.parametrize("name", MIDDLE)
def test_two_processes_train_one_run(tmp_path, name):
    """Each with half of the batch: not two runs."""
    main, words = other(name, tmp_path, dropout=0.0)
    words += ["--max-steps", "20"]
    main([*words, "--batch-size", "8", "--output-dir", str(tmp_path / "one")])
    words += ["--batch-size", "4", "--output-dir", str(tmp_path / "two")]
    words += ["--devices", "2"] if name == "lightning_vision" else []
    worker = ROOT / "tests" / "recipe_worker.py"
    done = forked.run([worker, tmp_path, name, *words], 2, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    lrs = [json.loads((tmp_path / f"lrs-{rank}.json").read_text()) for rank in range(2)]
    assert lrs[0] == lrs[1]
    assert len(lrs[0]) == 20
    (one,), (two,) = runs_of(tmp_path / "one"), runs_of(tmp_path / "two")
    # in float32: later steps differ
    assert two["train_loss"][0][1] == pytest.approx(one["train_loss"][0][1], rel=1e-5)


@LIGHTNINGS_WARNINGS
@pytest.mark.parametrize(
    ("name", "more", "says"),
    [
        ("accelerate_text", {"model": "nobody/nothing"}, "model 'nobody/nothing' cannot be loaded"),
        ("accelerate_text", {"dataset": "nobody/nothing"}, "dataset 'nobody/nothing' cannot be loaded"),
        ("accelerate_text", {"max-length": "65"}, "is beyond the model's limit of 64 tokens"),
        ("accelerate_text", {"schedule": "cosin"}, "schedule 'cosin' is unknown"),
        ("accelerate_text", {"output-dir": "/dev/null/x"}, "/dev/null is not a writable folder: choose another"),
        ("accelerate_text", {"save-steps": "0"}, "--save-steps 0 is not allowed: it must be at least 1"),
        ("lightning_vision", {"dataset": "imagenet"}, "is unknown: choose from auto, fashion-mnist, digits"),
        ("lightning_vision", {"model": "resnet50"}, "--model 'resnet50' is unknown: this recipe has only 'cnn'"),
        ("lightning_vision", {"batch-size": "2000"}, "train: 1400 rows of 'digits' do not fill one step of 2000"),
        ("lightning_vision", {"devices": "0"}, "--devices 0 is not allowed: it must be at least 1"),
    ],
)
def test_wrong_input_of_the_others(tmp_path, name, more, says):
    main, words = other(name, tmp_path)
    words += ["--output-dir", str(tmp_path / "out")]
    words += [word for flag, value in more.items() for word in (f"--{flag}", value)]
    with pytest.raises(RecipeError) as error:
        main(words)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"test": "text,label\nw1,0"}, "has no split 'train', only: test"),
        ({"train": "text,label\nw1,0"}, "has 1 rows, and 50 are kept for validation"),
        ({"train": "a,label\nw1,0"}, "split 'train', has no column 'text', only: a, label"),
        ({"train": "a,label\nw1,0", "test": "a,label\nw1,0"}, "has no column 'text', only: a, label"),
        ({"train": "text,label\n", "test": "text,label\nw1,0"}, "empty"),
        ({"train": "text,label\nw1,0\nw2,", "test": "text,label\nw1,0"}, "row 2: the label is None: it must be"),
        ({"train": "text,label\nw1,a\n,b", "test": "text,label\nw1,a"}, "row 2: the text is None: it must be text"),
        ({"train": "text,label\nw1,a", "test": "text,label\nw1,a"}, "has only one label, 'a'"),
        ({"train": "text,label\nw1,0\nw2,1", "test": "text,label\nw1,2"}, "the label 2 in 'test' but not in 'train'"),
    ],
)
def test_wrong_reviews(tmp_path, files, says):
    from recipes import accelerate_text

    words = small_text(tmp_path)
    for file in (tmp_path / "data").iterdir():
        file.unlink()
    for part, text in files.items():
        (tmp_path / "data" / f"{part}.csv").write_text(text)
    with pytest.raises(RecipeError, match=says):
        accelerate_text.main([*words, *MIDDLE["accelerate_text"], "--output-dir", str(tmp_path / "out")])


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_texts_of_three_labels_in_a_file(tmp_path, kind, capsys):
    from recipes import accelerate_text

    words = small_text(tmp_path, dropout=0.0)
    rows = [{"text": f"w{i % 3} w{i % 7}", "label": ["bad", "fair", "good"][i % 3]} for i in range(120)]
    lines = ["text,label", *(",".join(row.values()) for row in rows)] if kind == "csv" else map(json.dumps, rows)
    (tmp_path / f"texts.{kind}").write_text("\n".join(lines))
    words += ["--dataset", str(tmp_path / f"texts.{kind}"), "--max-steps", "60", "--batch-size", "8", "--no-plot"]
    accelerate_text.main([*words, "--validation-rows", "30", "--output-dir", str(tmp_path / "out")])
    (run,) = runs_of(tmp_path / "out")
    assert run["train_loss"][0][1] == pytest.approx(1.1, abs=0.2)  # a guess among three
    assert run["validation_loss"][-1][1] < 0.8
    assert "validation accuracy 1.0000" in capsys.readouterr().out


def test_reviews_are_split_by_film():
    try:
        train, test = offline.reviews()
    except RecipeError as error:
        pytest.skip(str(error))
    assert len(train) + len(test) == 12_808
    assert {row["label"] for row in test} == {0, 1}


@pytest.mark.slow
def test_smollm2_is_converted_from_its_package(tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = offline.smollm2()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == " Paris"
    assert offline.smollm2() == path
