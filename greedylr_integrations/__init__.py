"""GreedyLR: the learning rate follows the loss. See `schedulers.GreedyLR` and the adapter of each framework."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from greedylr_integrations.core import Decision, GreedyController
    from greedylr_integrations.greedy import GreedyConfig
    from greedylr_integrations.schedulers import GreedyLR

__all__ = ["Decision", "GreedyConfig", "GreedyController", "GreedyLR"]
__version__ = "0.1.0.dev0"

_HOME = {"Decision": "core", "GreedyConfig": "greedy", "GreedyController": "core", "GreedyLR": "schedulers"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
