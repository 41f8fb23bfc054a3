import json
import sys
from pathlib import Path

import processes
import pytest
import tiny

pytest.importorskip("peft")
from recipes import finetune_llm
from recipes.common import chat, offline
from recipes.common.offline import RecipeError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A tiny chat model in a folder, and chats in a file."""
    out = tmp_path_factory.mktemp("parts")
    tiny.llama().save_pretrained(out / "model")
    tiny.tokenizer().save_pretrained(out / "model")
    words = tiny.WORDS
    rows = [
        {
            "messages": [
                {"role": role, "content": " ".join(words[(i + j + k) % 7] for k in range(4))}
                for j, role in enumerate(["user", "assistant", "user", "assistant"])
            ]
        }
        for i in range(40)
    ]
    (out / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (out / "plain.txt").write_text("\n".join(" ".join(words[:9]) for _ in range(40)))
    (out / "other.csv").write_text("a,b\n1,2\n")
    return out


def flags(parts, out, dataset="chats.jsonl", **more):
    defaults = {
        "model": parts / "model",
        "dataset": parts / dataset,
        "output-dir": out,
        "max-length": 48,
        "max-steps": 24,
        "validation-rows": 4,
        "learning-rate": 3e-3,
        "lora-r": 4,
        "disable-tqdm": True,
    }
    words = []
    for name, value in {**defaults, **more}.items():
        words += [f"--{name}", *([str(value)] if not isinstance(value, list) else value)]
    return words


def test_the_command_line(parts, tmp_path):
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "recipes.finetune_llm",
        *flags(parts, tmp_path, compare=["greedy", "cosine"]),
    ]
    done = processes.run(command, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "next time start at " in done.stdout
    assert (tmp_path / "loss_and_lr.png").stat().st_size > 10_000
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    greedy, cosine = metrics["runs"]
    assert [run["schedule"] for run in metrics["runs"]] == ["greedy", "cosine"]
    for run in metrics["runs"]:
        assert [step for step, _ in run["train_loss"]] == list(range(1, 25))
        assert len(run["validation_loss"]) == 4
        assert run["validation_loss"][-1][1] < run["validation_loss"][0][1]
    assert greedy["train_loss"][0] == cosine["train_loss"][0]  # the same start and data
    assert {decision["action"] for decision in greedy["decisions"]} >= {"raise", "hold"}
    again = processes.run(command, cwd=ROOT)
    assert again.returncode == 2
    last = again.stderr.strip().splitlines()[-1]
    assert last.endswith("has the results of another run: choose another --output-dir, or --resume that run")


def test_plain_text(parts, tmp_path):
    finetune_llm.main(flags(parts, tmp_path, dataset="plain.txt", schedule="linear"))
    (run,) = json.loads((tmp_path / "metrics.json").read_text())["runs"]
    assert run["decisions"] == []
    assert run["train_loss"][-1][1] < run["train_loss"][0][1]


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
    words = [word for word in flags(parts, tmp_path) if word not in ("--max-steps", "24")]
    _, args = finetune_llm.parse_flags([*words, "--num-train-epochs", "3", "--eval-strategy", "no"])
    assert (args.max_steps, args.num_train_epochs, args.eval_strategy.value) == (-1, 3, "no")
    _, args = finetune_llm.parse_flags(words)
    assert (args.max_steps, args.eval_steps, args.eval_strategy.value) == (80, 0.25, "steps")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"dataset": "other.csv"}, "has no column 'messages' or 'text', only: a, b"),
        ({"dataset": "missing.jsonl"}, "cannot be loaded"),
        ({"schedule": "cosin"}, "schedule 'cosin' is unknown: choose from greedy, linear, cosine, wsd, constant"),
        ({"max-length": 4096}, "is beyond the model's limit of 64 tokens"),
        ({"validation-rows": 40}, "has 40 usable rows, and 40 are kept for validation"),
        ({"model": "nobody/nothing"}, "model 'nobody/nothing' cannot be loaded"),
    ],
)
def test_wrong_input_is_one_line(parts, tmp_path, more, says):
    with pytest.raises(RecipeError) as error:
        finetune_llm.main(flags(parts, tmp_path, **more))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_model_without_a_chat_template(parts, tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = None
    tiny.llama().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(RecipeError, match="has no chat template"):
        finetune_llm.main(flags(parts, tmp_path / "out", model=tmp_path / "model"))


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
    command = [sys.executable, "-W", "ignore", "-m", f"recipes.{name}", *map(str, words)]
    return processes.run(command, cwd=ROOT)


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
