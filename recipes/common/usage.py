"""A short --help: a recipe's own flags with their texts, the many others by name. --help-all has all texts."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping, Sequence


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Adds the default to each text, if there is one to tell."""

    def _get_help_string(self, action: argparse.Action) -> str:
        told = "default" in (action.help or "") or action.default in (None, False, "", argparse.SUPPRESS)
        return (action.help or "") + ("" if told else " (default: %(default)s)")


class Usage(argparse.Action):
    """The flags --help and --help-all.

    Args:
        by_name (dict): for each heading, the names of flags that --help only lists.
        defaults (dict): what the recipe has set of these.
    """

    def __init__(
        self,
        option_strings: Sequence[str],
        dest: str,
        by_name: Mapping[str, Sequence[str]],
        defaults: Mapping[str, object],
    ) -> None:
        text = "show this help; --help-all explains all flags"
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=text)
        self.by_name, self.defaults = by_name, defaults

    def __call__(self, made, namespace, values, option_string=None) -> None:
        made.usage = f"python -m recipes.{made.prog} [flags]"
        if option_string != "--help-all":
            listed = {name for names in self.by_name.values() for name in names}
            made.epilog = "\n\n".join(f"{heading}:\n{self._list(names)}" for heading, names in self.by_name.items())
            for action in made._actions:
                if action.option_strings[0].lstrip("-").replace("-", "_").removeprefix("no_") in listed:
                    action.help = argparse.SUPPRESS
        for action in made._actions:  # one spelling of each
            dashed = [name for name in action.option_strings if "_" not in name]
            action.option_strings = dashed or action.option_strings
        made.print_help()
        made.exit()

    def _list(self, names: Sequence[str]) -> str:
        set_here = {name: f"={self.defaults[name]}" for name in names if self.defaults.get(name) is not None}
        words = (name if "." in name else name.replace("_", "-") for name in names)
        text = ", ".join(word + set_here.get(name, "") for word, name in zip(words, names, strict=True))
        return textwrap.fill(text, 78, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
