"""The recipes on TRL's trainers. What they share with finetune_llm is tested in test_recipes.py."""

import json
import shutil
import signal
import statistics

import pytest
import recipe_parts
from recipe_parts import assert_same, flags, runs_of

pytest.importorskip("trl")
pytest.importorskip("peft")
from recipes import dpo_trl, sft_trl
from recipes.common import trainer
from recipes.common.offline import RecipeError
from recipes.common.stop import resume_command

RECIPES = {"sft_trl": sft_trl, "dpo_trl": dpo_trl}
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ' ' }}{% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] + eos_token }}{% endgeneration %}{% else %}{{ message['content'] + eos_token }}{% endif %}"
    "{{ ' ' }}{% endfor %}"
)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """With a template in which TRL sees the replies; "no-marks" has the plain one."""
    out = recipe_parts.make(tmp_path_factory.mktemp("parts"))
    shutil.copytree(out / "model", out / "no-marks")
    (out / "model" / "chat_template.jinja").write_text(TEMPLATE)
    return out


@pytest.mark.parametrize(("name", "number"), [("sft_trl", signal.SIGTERM), ("dpo_trl", signal.SIGKILL)])
def test_killed_and_resumed(parts, tmp_path, capsys, name, number):
    recipe, more = RECIPES[name], {"max_steps": 60, "save_steps": 10}
    recipe.main(flags(parts, tmp_path / "whole", **more))
    printed = capsys.readouterr().out
    assert "next time start at " in printed
    assert ("the real reply is chosen, and a reply from another chat" in printed) == (name == "dpo_trl")
    assert (tmp_path / "whole" / "loss_and_lr.png").stat().st_size > 10_000
    out = tmp_path / "killed"
    words = flags(parts, out, **more)
    there = lambda: recipe_parts.whole_checkpoints(out / "greedy")  # noqa: E731
    code, printed = recipe_parts.kill_when(name, words, there, number)
    assert not (out / "metrics.json").exists()
    if number == signal.SIGTERM:
        assert code == 128 + number
        assert printed.strip().splitlines()[-1] == f"saved; go on with: {resume_command(name, words, out)}"
    recipe.main([*words, "--resume"])
    (resumed,), (whole,) = runs_of(out), runs_of(tmp_path / "whole")
    assert [step for step, _ in whole["train_loss"]] == list(range(1, 61))
    assert len({lr for _, lr in whole["learning_rate"]}) > 10
    losses = [loss for _, loss in whole["train_loss"]]
    assert statistics.fmean(losses[-10:]) < statistics.fmean(losses[:5]) - 0.01  # that of a coin, within 0.0003
    if name == "sft_trl":  # a preference for one random reply over another does not generalize
        assert whole["validation_loss"][-1][1] < whole["validation_loss"][0][1]
    assert_same(resumed, whole)


def test_sft_counts_the_replies_only(parts, tmp_path, monkeypatch):
    from recipes.common import trainer as common

    batches = []
    monkeypatch.setattr(common, "train", lambda trainer, schedule: batches.extend(trainer.get_eval_dataloader()))
    recipe, args = sft_trl.parse_flags(flags(parts, tmp_path))
    tokenizer = common.load_tokenizer(recipe)
    sft_trl.train("linear", recipe, args, tokenizer, sft_trl.load_data(recipe, args, tokenizer))
    ids, labels = batches[0]["input_ids"][0], batches[0]["labels"][0]
    said = tokenizer.decode(ids[labels != -100]).split()
    assert len(said) == 10  # two replies of four words and their ends
    assert not {"user", "assistant"} & set(said)


def test_the_smollm2_template_says_the_same_as_the_models():
    import tiny

    from recipes.common.offline import smollm2

    try:
        path = smollm2()
    except RecipeError as error:
        pytest.skip(str(error))
    own = (sft_trl.Path(path) / "chat_template.jinja").read_text()
    tokenizer = tiny.tokenizer()
    messages = [{"role": role, "content": "w1"} for role in ("user", "assistant", "user", "assistant")]
    for chat in (messages, [{"role": "system", "content": "w2"}, *messages]):
        texts = [
            tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False)
            for template in (own, sft_trl.SMOLLM2_TEMPLATE.read_text())
        ]
        assert texts[0] == texts[1]


def test_a_rejected_reply_is_of_another_chat(parts):
    from recipes.common.chat import load_rows

    rows = load_rows(str(parts / "chats.jsonl"))
    replies = {row["messages"][0]["content"]: row["messages"][1]["content"] for row in rows}
    pairs = dpo_trl.shuffled_pairs(rows, seed=0)
    assert len(pairs) > 20
    for pair in pairs:
        assert replies[pair["prompt"][0]["content"]] == pair["chosen"][0]["content"] != pair["rejected"][0]["content"]
        assert pair["rejected"][0]["content"] in replies.values()


@pytest.mark.parametrize(
    ("name", "more", "says"),
    [
        *((name, more, says) for name in RECIPES for more, says in [
            ({"dataset": "missing.jsonl"}, "is not there: give a file, a folder, or the id of a dataset on the hub"),
            ({"dataset": "empty.csv"}, "is empty: give one that has rows"),
            ({"model": "nothing"}, "cannot be loaded"),
            ({"model": "no-template"}, "has no chat template"),
            ({"max_length": 4096}, "is beyond the model's limit of 64 tokens"),
            ({"validation_rows": 40}, "40 are kept for validation"),
            ({"resume": True}, "has no checkpoint of a run to resume"),
            ({"dataset": "strings.jsonl"}, "row 1: messages is 'w1 w2': make it a list of {role, content}"),
        ]),
        ("sft_trl", {"dataset": "no-reply.jsonl"}, "has 0 chats with a reply, and 4 are kept for validation"),
        ("sft_trl", {"dataset": "no-text.jsonl"}, "row 2: text is None: make it text"),
        ("dpo_trl", {"dataset": "no-reply.jsonl"}, "has 0 pairs of replies, and 4 are kept for validation"),
        ("dpo_trl", {"dataset": "pairs.jsonl", "model": "no-template"}, "has no chat template"),
        ("dpo_trl", {"dataset": "no-rejected.jsonl"}, "row 41: rejected is None: make it a list"),
        ("sft_trl", {"dataset": "other.csv"}, "has no column 'messages' or 'text', only: a, b"),
        ("dpo_trl", {"dataset": "other.csv"}, "has no column 'chosen' or 'messages', only: a, b"),
        ("sft_trl", {"model": "no-marks"}, "pass one with --chat-template-path, or use --assistant-only-loss false"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(parts, tmp_path, name, more, says):
    with pytest.raises(RecipeError) as error:
        RECIPES[name].main(flags(parts, tmp_path / "out", **more))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_chats_of_which_some_have_no_reply(parts, tmp_path):
    """TRL refuses such data, where the loss counts the replies only."""
    lines = [(parts / name).read_text() for name in ("chats.jsonl", "no-reply.jsonl")]
    (tmp_path / "some.jsonl").write_text("\n".join(lines))
    sft_trl.main(flags(parts, tmp_path / "out", dataset=tmp_path / "some.jsonl", max_steps=4, plot=False))
    assert len(runs_of(tmp_path / "out")[0]["train_loss"]) == 4


def test_pairs_of_chats_and_of_text(parts, tmp_path):
    from recipes.common import trainer as common

    text = [{"prompt": f"w{i}", "chosen": "w1 w2", "rejected": "w3"} for i in range(9)]
    (tmp_path / "text.jsonl").write_text("\n".join(map(json.dumps, text)))
    for file, model in ((parts / "pairs.jsonl", "model"), (tmp_path / "text.jsonl", "no-template")):
        recipe, _ = dpo_trl.parse_flags(flags(parts, tmp_path / "out", dataset=file, model=model))
        assert len(dpo_trl.load_data(recipe, common.load_tokenizer(recipe))["test"]) == 4


def test_a_template_for_a_model_that_has_none(parts, tmp_path):
    words = flags(parts, tmp_path / "out", model="no-template", max_steps=4, plot=False)
    sft_trl.main([*words, "--chat-template-path", str(parts / "model" / "chat_template.jinja")])
    assert len(runs_of(tmp_path / "out")[0]["train_loss"]) == 4


@pytest.mark.parametrize("name", RECIPES)
def test_checkpoints_of_another_run_are_left_alone(parts, tmp_path, name):
    (tmp_path / "greedy" / "checkpoint-8").mkdir(parents=True)
    with pytest.raises(RecipeError, match="has the checkpoints of another run"):
        RECIPES[name].main(flags(parts, tmp_path))


@pytest.mark.parametrize("name", RECIPES)
def test_a_full_disk_is_one_line(parts, tmp_path, capsys, monkeypatch, name):
    words = flags(parts, tmp_path, schedule="linear", save_steps=2, eval_strategy="no")
    made = (trainer, "kind_and_arguments")  # when TRL has prepared the data, which it keeps in a cache
    recipe_parts.assert_full_disk_is_one_line(monkeypatch, capsys, RECIPES[name], words, *made)
