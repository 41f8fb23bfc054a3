"""GreedyLR's own settings as flags: `--greedy.max_scale 3`, or `greedy: {max_scale: 3}` in a --config file."""

from __future__ import annotations

import argparse
import ast
import inspect
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_type_hints

from greedylr_integrations.controller import ControllerConfig
from greedylr_integrations.envelope import Envelope
from greedylr_integrations.rules import RULES, ConfigFields, make_config
from recipes.common.offline import RecipeError

PREFIX = "greedy."
# A recipe follows the training loss, and is resumed with the settings that it began with.
FIELDS = {name: hint for name, hint in get_type_hints(ConfigFields).items() if name not in ("mode", "on_resume")}
NAMES = [f"{PREFIX}{name}" for name in ("rule", "decay_ratio", *FIELDS)]


@dataclass(frozen=True)
class Greedy:
    """GreedyLR as the flags set it."""

    config: ControllerConfig
    decay_ratio: float | None = None
    control_file: str | None = None
    history_file: str | None = None

    def arguments(self, folder: Path) -> dict[str, Any]:
        """Arguments of a scheduler or a callback whose run has this folder."""
        return {**vars(self), "history_file": self.history_file or str(folder / "history.jsonl")}

    def lengths(self, total_steps: int, steps_per_epoch: int | None, warmup_steps: int) -> dict[str, int | None]:
        """What GreedyLR needs to know of a run. If it searches for the LR, that takes the place of the warmup."""
        searches = self.config.searches(total_steps, steps_per_epoch)
        return {
            "total_steps": total_steps,
            "steps_per_epoch": steps_per_epoch,
            "linear_warmup_steps": 0 if searches else warmup_steps,
        }

    def forget_unfinished(self, folder: Path) -> None:
        """Delete the history of a run that ended before its first checkpoint. One by --history-file is left alone."""
        (folder / "history.jsonl").unlink(missing_ok=True)

    def to_settings(self) -> dict[str, Any]:
        """As JSON, what must be the same when a run is resumed."""
        return {**self.config.to_dict(), "decay_ratio": self.decay_ratio, "history_file": self.history_file}


def add_flags(made: argparse.ArgumentParser) -> None:
    made.add_argument("--control-file", metavar="FILE", help="file by which to steer GreedyLR during the run")
    made.add_argument("--history-file", metavar="FILE", help="file for the decisions (default: greedy/history.jsonl)")
    add = made.add_argument_group("settings of GreedyLR", argument_default=argparse.SUPPRESS).add_argument
    add(f"--{PREFIX}rule", choices=RULES, help="what moves the LR (default: slope, or loss if a setting needs it)")
    share = "share of the run that the final decay takes (default: 0.3)"
    add(f"--{PREFIX}decay_ratio", type=float, metavar="FLOAT", help=share)
    texts = {name: text for config in reversed(RULES.values()) for name, text in documented(config).items()}
    for name, hint in FIELDS.items():
        kind = (get_args(hint) or (hint,))[0]  # the others are None, and one number for each parameter group
        text = texts[name].replace("%", "%%")
        add(f"--{PREFIX}{name}", type=as_bool if kind is bool else kind, metavar=kind.__name__.upper(), help=text)


def as_bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def documented(config: type) -> dict[str, str]:
    """The fields of a configuration with the text that follows each in its source."""
    found: dict[str, str] = {}
    for each in reversed(config.__mro__[:-1]):
        if each.__module__.startswith("greedylr_integrations"):
            (made,) = ast.parse(inspect.getsource(each)).body
            for field, text in pairwise(made.body):
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    found[field.target.id] = f"{config.__name__}: {' '.join(text.value.value.split())}"
    return found


def from_flags(args: argparse.Namespace) -> Greedy:
    """GreedyLR as the flags set it.

    Raises:
        RecipeError: if a setting is wrong, or if there are settings but "greedy" is not among the schedules.
    """
    given = {name: value for name, value in vars(args).items() if name.startswith(PREFIX)}
    files = {name: getattr(args, name) for name in ("control_file", "history_file")}
    if "greedy" not in args.schedules:
        for name in [*given, *(name for name, file in files.items() if file is not None)]:
            flag = name if name.startswith(PREFIX) else name.replace("_", "-")
            raise RecipeError(
                f"--{flag} is for the schedule 'greedy', and this run has only {', '.join(args.schedules)}:"
                " leave it out, or train greedy too"
            )
    for name, file in files.items():
        if file is not None and (Path(file).is_dir() or not Path(file).absolute().parent.is_dir()):
            raise RecipeError(f"--{name.replace('_', '-')} {file}: it must be a file, in a folder that exists")
    fields = {name.removeprefix(PREFIX): value for name, value in given.items()}
    rule, ratio = fields.pop("rule", None), fields.pop("decay_ratio", None)
    try:
        config = make_config(RULES[rule]() if rule else None, fields)
        config.rule([args.learning_rate], None)  # whether the bounds fit the base LR
        Envelope(**({} if ratio is None else {"decay_ratio": ratio}))
    except (TypeError, ValueError) as error:
        named = str(error).startswith(("decay_ratio", *FIELDS))
        raise RecipeError(f"--{PREFIX if named else 'greedy: '}{error}") from error
    return Greedy(config, ratio, **files)
