"""GreedyLR by name, in files and on command lines that have no place for a callback: `report_to: greedylr`.

    python -m greedylr_integrations.by_name trl.scripts.sft --config sft.yaml

Importing this module adds the name to `INTEGRATION_TO_CALLBACK`, in which Hugging Face's Trainer looks up what
`report_to` names; nothing is replaced. As a command, it does that and runs a module or script as Python would. The
environment variable GREEDYLR has the arguments of the callback, as JSON.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Sequence

from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from greedylr_integrations import transformers

VARIABLE = "GREEDYLR"


class GreedyLRCallback(transformers.GreedyLRCallback):
    """`transformers.GreedyLRCallback` with the arguments in the environment variable GREEDYLR.

    Its name is the same, so that one resumes from the checkpoints of the other.
    """

    def __init__(self) -> None:
        text = os.environ.get(VARIABLE, "{}")
        try:
            arguments = json.loads(text)
            super().__init__(**arguments)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"the environment variable {VARIABLE}={text!r} is not allowed: it must be the arguments of"
                f' GreedyLRCallback as JSON, such as {{"max_scale": 10}} ({error})'
            ) from error


INTEGRATION_TO_CALLBACK.setdefault("greedylr", GreedyLRCallback)


def main(words: Sequence[str]) -> None:
    """Run a module or a script, by its name or path, with the arguments that follow it."""
    if not words or words[0].startswith("-"):
        raise SystemExit("usage: python -m greedylr_integrations.by_name MODULE_OR_SCRIPT [ARGUMENT ...]")
    sys.argv = list(words)
    if words[0].endswith(".py"):
        sys.path[0] = os.path.dirname(os.path.abspath(words[0]))
        runpy.run_path(words[0], run_name="__main__")
    else:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
