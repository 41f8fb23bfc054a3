"""The shapes in which people have chats, each made into a column `messages`: a list of {role, content}."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from recipes.common.offline import RecipeError

Row = dict[str, Any]
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}
SHAPE = {"messages": [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello!"}]}


class Format(NamedTuple):
    """A shape of rows.

    Attributes:
        name (str): what it is called.
        columns (tuple of str): the columns that it is recognized by.
        messages (callable): the chat of a row.
    """

    name: str
    columns: tuple[str, ...]
    messages: Callable[[Row], list[Row]]


def _turns(prompt: Any, reply: Any) -> list[Row]:
    """Either may be text or, as TRL has it, a list of messages."""
    asked = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    return [*asked, *(reply if isinstance(reply, list) else [{"role": "assistant", "content": reply}])]


def _alpaca(row: Row) -> list[Row]:
    instruction, more = row["instruction"], row.get("input")
    return _turns(f"{instruction}\n\n{more}" if instruction and more else instruction, row["output"])


def _sharegpt(row: Row) -> list[Row]:
    turns = row["conversations"] or []
    return [{"role": ROLES.get(turn.get("from"), turn.get("from")), "content": turn.get("value")} for turn in turns]


FORMATS = (
    Format("prompt and completion", ("prompt", "completion"), lambda row: _turns(row["prompt"], row["completion"])),
    Format("prompt and response", ("prompt", "response"), lambda row: _turns(row["prompt"], row["response"])),
    Format("Alpaca", ("instruction", "output"), _alpaca),
    Format("ShareGPT", ("conversations",), _sharegpt),
    Format("question and answer", ("question", "answer"), lambda row: _turns(row["question"], row["answer"])),
)


def with_known_columns(rows: Any, dataset: str, columns: tuple[str, ...]) -> Any:
    """The rows, with `messages` made of another shape if they have none of the columns. Says what was recognized.

    Raises:
        RecipeError: if the rows have none of the columns and no shape that is known.
    """
    names = rows.column_names
    for column in columns:
        if column in names:
            return rows
    if "messages" in columns:
        for each in FORMATS:
            if set(each.columns) <= set(names):
                print(f"dataset {dataset!r}: {each.name} ({', '.join(each.columns)}), made into chats")
                return rows.map(_converted, fn_kwargs={"make": each.messages}, remove_columns=names)
    wanted = " or ".join(map(repr, columns))
    shapes = "; ".join(" + ".join(each.columns) for each in FORMATS)
    known = f", and no other known shape ({shapes})" if "messages" in columns else ""
    example = f": make each row like {json.dumps(SHAPE)}" if known else ""
    raise RecipeError(f"dataset {dataset!r} has no column {wanted}, only: {', '.join(names)}{known}{example}")


def _converted(row: Row, make: Callable[[Row], list[Row]]) -> Row:
    try:
        messages = make(row)
    except (AttributeError, TypeError):  # something else than a list of turns: the check of the rows names it
        return {"messages": None}
    # text only: one type for the whole column
    return {
        "messages": [
            {key: None if turn.get(key) is None else str(turn[key]) for key in ("role", "content")} for turn in messages
        ]
    }
