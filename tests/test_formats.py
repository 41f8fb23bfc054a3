"""Chats in the shapes in which people have them: each is recognized and said, or a row in the right shape is shown."""

import csv
import json

import pytest

datasets = pytest.importorskip("datasets")
import tiny

from recipes.common import chat
from recipes.common.offline import RecipeError

CHATS = [[{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}] for i in range(3)]
SHAREGPT = [
    {"conversations": [{"from": "human", "value": f"q{i}"}, {"from": "gpt", "value": f"a{i}"}]} for i in range(3)
]


def rows(*names):
    return [dict(zip(names, (f"q{i}", f"a{i}"), strict=True)) for i in range(3)]


SHAPES = {
    "messages": ([{"messages": messages} for messages in CHATS], None),
    "prompt-completion": (rows("prompt", "completion"), "prompt and completion (prompt, completion)"),
    "conversational": (
        [{"prompt": messages[:1], "completion": messages[1:]} for messages in CHATS],
        "prompt and completion (prompt, completion)",
    ),
    "prompt-response": (rows("prompt", "response"), "prompt and response (prompt, response)"),
    "alpaca": ([{**row, "input": ""} for row in rows("instruction", "output")], "Alpaca (instruction, output)"),
    "sharegpt": (SHAREGPT, "ShareGPT (conversations)"),
    "question-answer": (rows("question", "answer"), "question and answer (question, answer)"),
}


def write(path, content):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    elif path.suffix == ".json":
        path.write_text(json.dumps(content))
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(content).to_parquet(path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, content[0])
            writer.writeheader()
            writer.writerows(content)
    return str(path)


@pytest.mark.parametrize("ending", ["json", "jsonl", "csv", "parquet"])
@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_in_each_kind_of_file(shape, ending, tmp_path, capsys):
    content, said = SHAPES[shape]
    if ending == "csv" and not isinstance(next(iter(content[0].values())), str):
        pytest.skip("csv has no lists")
    loaded = chat.load_rows(write(tmp_path / f"data.{ending}", content))
    assert list(loaded["messages"]) == CHATS
    printed = capsys.readouterr().out
    assert (f": {said}, made into chats" in printed) if said else ("made into chats" not in printed)


def test_the_input_of_alpaca_follows_the_instruction(tmp_path):
    row = {"instruction": "Translate.", "input": "Hallo", "output": "Hello"}
    loaded = chat.load_rows(write(tmp_path / "data.jsonl", [row]))
    assert loaded[0]["messages"][0] == {"role": "user", "content": "Translate.\n\nHallo"}


def test_text_is_left_as_it_is(tmp_path):
    loaded = chat.load_rows(write(tmp_path / "data.csv", [{"text": "a"}, {"text": "b"}]))
    assert list(loaded["text"]) == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([{"a": "x", "b": "y"}], r"no column 'messages' or 'text', only: a, b, nor those .*make each row such as \{"),
        ([{"prompt": "x"}], "no column 'messages' or 'text', only: prompt"),
        ([{"instruction": "x"}], "no column 'messages' or 'text', only: instruction"),
        ([{"prompt": "x", "completion": None}], "has in row 0 messages .*make it a list of"),
        ([{"question": None, "answer": "y"}], "has in row 0 messages"),
        ([{"conversations": "hello"}], "has in row 0 messages 'None'"),
        ([{"conversations": [{"value": "hello"}]}], "has in row 0 messages"),
        ([{"conversations": ["hello"]}], "has in row 0 messages 'None'"),
        ([{"messages": "hello"}], "has in row 0 messages 'hello'"),
        ([{"messages": [{"role": "user"}]}], "has in row 0 messages"),
    ],
)
def test_what_is_wrong_is_said_with_a_row_in_the_right_shape(content, says, tmp_path):
    class Args:
        dataset, split, rows, validation_rows, seed, model = str(tmp_path / "data.jsonl"), "train", 0, 1, 0, "m"

    class Tokenizer:
        chat_template = "x"

    write(tmp_path / "data.jsonl", content)
    with pytest.raises(RecipeError, match=says):
        chat.load_tokens(Args, Tokenizer, 10)


def test_rows_that_are_cut_are_counted(tmp_path, capsys):
    class Args:
        dataset, split, rows, validation_rows, seed, model = str(tmp_path / "data.jsonl"), "train", 0, 1, 0, "m"

    write(tmp_path / "data.jsonl", [{"text": " ".join(["w1"] * words)} for words in (3, 5, 8, 12)])
    data = chat.load_tokens(Args, tiny.tokenizer(), 5)
    assert "2 of 4 rows are longer than --max-length 5 tokens, and were cut there" in capsys.readouterr().out
    assert max(len(ids) for part in data.values() for ids in part["input_ids"]) == 5
