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
        ([{"a": "x", "b": "y"}], r"no column 'messages' or 'text', only: a, b, and no other .*make each row like \{"),
        ([{"prompt": "x"}], "no column 'messages' or 'text', only: prompt"),
        ([{"instruction": "x"}], "no column 'messages' or 'text', only: instruction"),
        ([{"prompt": "x", "completion": None}], "row 1: messages is .*make it a list of"),
        ([{"question": None, "answer": "y"}], "row 1: messages is"),
        ([{"conversations": "hello"}], "row 1: messages is None"),
        ([{"conversations": [{"value": "hello"}]}], "row 1: messages is"),
        ([{"conversations": ["hello"]}], "row 1: messages is None"),
        ([{"messages": "hello"}], "row 1: messages is 'hello'"),
        ([{"messages": [{"role": "user"}]}], "row 1: messages is"),
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


# ---- where data may be ----


def places(folder):
    """Three rows of text in a file of another spelling, a folder with two splits, and folders of `save_to_disk`."""
    write(folder / "rows.jsonl", TEXTS)
    (folder / "rows.jsonl").rename(folder / "ROWS.JSONL")
    (folder / "parts").mkdir()
    for split in ("train", "test"):
        write(folder / "parts" / f"{split}.jsonl", TEXTS)
    datasets.Dataset.from_list(TEXTS).save_to_disk(folder / "saved")
    datasets.DatasetDict(train=datasets.Dataset.from_list(TEXTS)).save_to_disk(folder / "saved-parts")
    (folder / "nothing-in-it").mkdir()
    (folder / "rows.xml").write_text("<a/>")
    (folder / "torn.jsonl").write_text('{"text": "a"}\n{"text": \n')
    (folder / "no-bytes.jsonl").write_text("")


TEXTS = [{"text": f"t{i}"} for i in range(3)]


@pytest.mark.parametrize("place", ["ROWS.JSONL", "parts", "saved", "saved-parts", "~/parts"])
def test_a_file_and_a_folder(place, tmp_path, monkeypatch):
    places(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert list(chat.load_rows(place)["text"]) == ["t0", "t1", "t2"]
    if place != "parts":  # datasets' own message
        with pytest.raises(RecipeError, match=r"has no split 'validation', only: train|Unknown split .validation"):
            chat.load_rows(place, "validation")


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("rows.xml", r"is a file of an unknown kind: its name must end in one of \.json, \.jsonl, \.csv, "),
        ("torn.jsonl", "cannot be loaded .*JSON parse error.* in row 1"),
        ("no-bytes.jsonl", "is empty: give one that has rows"),
        ("nothing-in-it", "cannot be loaded .*doesn't contain any data files"),
        ("rows.jsonll", "cannot be loaded .*Couldn't reach 'rows.jsonll' on the Hub"),  # it might be an id
        ("missing.csv", "is not there: give a file, a folder, or the id of a dataset on the hub"),
        ("./missing", "is not there"),
        ("~/missing", "is not there"),
        ("/a/b/c", "is not there"),
        ("nobody/nothing", "cannot be loaded .*Couldn't reach 'nobody/nothing' on the Hub"),
    ],
)
def test_data_that_is_not_there_is_one_sentence(place, says, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    places(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=says) as error:
        chat.load_rows(place)
    assert "\n" not in str(error.value)
