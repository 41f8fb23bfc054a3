"""Chats or plain text as rows to train a language model on."""

from __future__ import annotations

from recipes.common.data import load, split_rows
from recipes.common.formats import with_known_columns
from recipes.common.offline import CHITCHAT, RecipeError, chitchat


def load_rows(dataset: str, split: str = "train", limit: int = 0, columns=("messages", "text")):
    """The first `limit` rows (0: all) of a hub id, a folder or a file, with one of the columns.

    `messages` is a list of {role, content}; it is made of the other shapes in `formats.FORMATS`.
    """
    if dataset == CHITCHAT:
        return chitchat(limit or None)
    rows = load(dataset, split)
    if not len(rows):
        raise RecipeError(f"dataset {dataset!r} is empty: give one that has rows")
    rows = rows.select(range(min(limit, len(rows)))) if limit else rows
    return with_known_columns(rows, dataset, columns)


def check_rows(rows, columns: tuple[str, ...], template, args) -> None:
    """Check that all values in the columns are chats, for which the model needs a template, or that all are text."""
    first = columns[0]
    chats = {"messages": True, "text": False}.get(first, isinstance(rows[0][first], list))
    if chats and template is None:
        raise RecipeError(f"model {args.model!r} has no chat template, which {args.dataset!r} needs: use a chat model")
    for column in columns:
        for i, value in enumerate(rows[column]):
            if not (is_chat(value) if chats else isinstance(value, str)):
                raise RecipeError(
                    f"dataset {args.dataset!r}, row {i + 1}: {column} is {shown(value)}: make it"
                    f" {'a list of {role, content}, none empty' if chats else 'text'}"
                )


def shown(value, longest: int = 200) -> str:
    text = repr(value)
    return text if len(text) <= longest else text[:longest] + "..."


def is_chat(value) -> bool:
    def is_message(one) -> bool:
        if not isinstance(one, dict) or not isinstance(one.get("role"), str):
            return False
        return one.get("content") is not None or bool(one.get("tool_calls"))

    return isinstance(value, list) and all(map(is_message, value))


def has_reply(row: dict) -> bool:
    return any(message["role"] == "assistant" for message in row["messages"])


def tokenize(row: dict, tokenizer, max_length: int) -> dict:
    """Token ids, labels that are -100 except in the assistant's replies, and whether the row was cut.

    Plain text has no -100.
    """
    if "messages" not in row:
        ids = tokenizer(row["text"])["input_ids"]
        return {"input_ids": ids[:max_length], "labels": ids[:max_length], "cut": len(ids) > max_length}

    def template(messages, prompt=False):
        return tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)

    messages, ids, labels = row["messages"], [], []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt, reply = template(messages[:i], prompt=True), template(messages[: i + 1])
        if reply[: len(ids)] != ids:
            labels = []  # the template rewrote the earlier turns (as Qwen3's does): count only this reply
        start = next((k for k, (a, b) in enumerate(zip(prompt, reply, strict=False)) if a != b), len(prompt))
        labels += [-100] * (start - len(labels)) + reply[start:]
        ids = reply
        if len(ids) >= max_length:
            break
    return {"input_ids": ids[:max_length], "labels": labels[:max_length], "cut": len(ids) > max_length}


def load_tokens(args, tokenizer, max_length: int):
    """`train` and `test`, with token ids and labels.

    `args` has dataset, split, rows, validation_rows, seed and model.
    """
    rows = load_rows(args.dataset, args.split, args.rows)
    column = "messages" if "messages" in rows.column_names else "text"
    check_rows(rows, (column,), tokenizer.chat_template, args)
    more = {"tokenizer": tokenizer, "max_length": max_length}
    data = rows.map(tokenize, fn_kwargs=more, remove_columns=rows.column_names)
    if cut := sum(data["cut"]):
        print(f"{cut} of {len(data)} rows are longer than --max-length {max_length} tokens, and were cut there")
    data = data.remove_columns("cut").filter(lambda row: any(label != -100 for label in row["labels"]))
    what = f"rows with {'a reply' if column == 'messages' else 'text'} within --max-length {max_length}"
    return split_rows(data, args.validation_rows, args.seed, args.dataset, what)


def pack(data, length: int):
    """Rows joined end to end and cut into blocks of `length` tokens; the tokens left over are dropped.

    Without an attention mask, the models of transformers see from `position_ids` which tokens belong to one row, and
    keep the rows apart.
    """

    def blocks(rows: dict) -> dict:
        stream = {
            "input_ids": [token for ids in rows["input_ids"] for token in ids],
            # the first token of a row is not predicted from the row before
            "labels": [label for labels in rows["labels"] for label in [-100, *labels[1:]]],
            "position_ids": [i for ids in rows["input_ids"] for i in range(len(ids))],
        }
        starts = range(0, len(stream["input_ids"]) - length + 1, length)
        return {name: [values[start : start + length] for start in starts] for name, values in stream.items()}

    return data.map(blocks, batched=True, batch_size=len(data), remove_columns=data.column_names)
