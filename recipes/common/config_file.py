"""The --config file: flags in YAML. What is wrong in it is one sentence with file, line and column."""

from __future__ import annotations

import argparse
import difflib
import json
from pathlib import Path
from typing import Any

import yaml

from recipes.common.offline import RecipeError


def words_of(made: argparse.ArgumentParser, file: str) -> list[str]:
    """The flags of a file as words of a command line. Each is parsed separately, so that errors can be located.

    Raises:
        RecipeError: if the file is not YAML, or has an unknown flag, the same flag twice, or a value of the wrong type.
    """
    try:
        loader = yaml.SafeLoader(Path(file).read_text())
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise RecipeError(f"--config {file!r} is not a list of `flag: value`")
        return _words(made, file, root, loader)
    except yaml.MarkedYAMLError as error:
        raise RecipeError(f"{place(file, error.problem_mark)}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"--config {file!r} is not YAML ({str(error).splitlines()[0]})") from error


def place(file: str, mark: Any) -> str:
    return f"{file}, line {mark.line + 1}, column {mark.column + 1}"


def _words(made: argparse.ArgumentParser, file: str, root: Any, loader: yaml.SafeLoader, prefix: str = "") -> list[str]:
    words: list[str] = []
    seen: set[str] = set()
    for key, value in root.value:
        where, name = place(file, key.start_mark), f"{prefix}{loader.construct_object(key)}"
        dashed, known = f"--{name}".replace("_", "-"), made._option_string_actions
        flag = dashed if dashed in known else f"--{name}"
        action = known.get(flag)
        if dashed in seen:
            raise RecipeError(f"{where}: {name!r} is there twice")
        seen.add(dashed)
        if flag == "--greedy" and isinstance(value, yaml.MappingNode):
            words += _words(made, file, value, loader, f"{name}.")
        elif action is None or action.dest in ("config", "help"):
            raise RecipeError(f"{where}: {name!r} is not a flag of {made.prog}{meant(made, flag)}")
        else:
            words += _tried(made, place(file, value.start_mark), name, _flag(made, flag, loader, value))
    return words


def _flag(made: argparse.ArgumentParser, flag: str, loader: yaml.SafeLoader, node: Any) -> list[str]:
    """A flag and its value as words; none for null, which leaves the default."""
    value, no = loader.construct_object(node, deep=True), f"--no-{flag[2:]}"
    if value is None:
        return []
    if isinstance(value, list):
        return [flag, *map(str, value)]
    if isinstance(value, dict):
        return [f"{flag}={json.dumps(value)}"]
    if isinstance(value, bool) and made._option_string_actions[flag].nargs == 0:
        return [flag] if value else [no] if no in made._option_string_actions else []
    return [f"{flag}={value}"]


def _tried(made: argparse.ArgumentParser, where: str, name: str, words: list[str]) -> list[str]:
    try:
        made.parse_known_args(words)
    except RecipeError as error:
        if "ignored explicit argument" in str(error):
            raise RecipeError(f"{where}: {name} must be true or false") from error
        raise RecipeError(f"{where}: {error}") from error
    return words


def meant(made: argparse.ArgumentParser, flag: str) -> str:
    """The flag that is nearest to an unknown one, as the end of a sentence."""
    known = made._option_string_actions
    names = [name for name in known if name.replace("_", "-") not in known or "_" not in name]  # one spelling of each
    near = difflib.get_close_matches(flag.split("=")[0].replace("_", "-"), names, 1)
    return f": did you mean {near[0]}?" if near else f" ({made.prog} --help lists them)"
