"""Looking at training runs: read them, draw them, explain them, replay them. The command is `greedylr`.

Nothing here is imported while a model is trained.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from greedylr_integrations.runs.find import read
    from greedylr_integrations.runs.run import ACTIONS, LOSSES, LRS, NO_DECISION, STEPS, Run, RunError, make_run

__all__ = ["ACTIONS", "LOSSES", "LRS", "NO_DECISION", "STEPS", "Run", "RunError", "make_run", "read"]


def __getattr__(name: str) -> Any:  # so that the command can say which packages are missing
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'find' if name == 'read' else 'run'}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
