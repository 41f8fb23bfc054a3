"""GreedyLR: the learning rate that finds itself. See `schedulers.GreedyLR` and the adapter of each framework."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from greedylr_integrations.controller import ControllerConfig as ControllerConfig
    from greedylr_integrations.controller import GreedyController as GreedyController
    from greedylr_integrations.decision import Action as Action
    from greedylr_integrations.decision import Decision as Decision
    from greedylr_integrations.decision import Reason as Reason
    from greedylr_integrations.finder import FoundLR as FoundLR
    from greedylr_integrations.finder import find_lr as find_lr
    from greedylr_integrations.guard import SpikeError as SpikeError
    from greedylr_integrations.rule import OneScaleRule as OneScaleRule
    from greedylr_integrations.rule import Rule as Rule
    from greedylr_integrations.rules import GreedyConfig as GreedyConfig
    from greedylr_integrations.rules import PaperConfig as PaperConfig
    from greedylr_integrations.rules import SlopeConfig as SlopeConfig
    from greedylr_integrations.rules import TransformersConfig as TransformersConfig
    from greedylr_integrations.schedulers import GreedyLR as GreedyLR

__version__ = "0.1.0.dev0"

_HOME = {
    "Action": "decision",
    "ControllerConfig": "controller",
    "Decision": "decision",
    "FoundLR": "finder",
    "GreedyConfig": "rules",
    "GreedyController": "controller",
    "GreedyLR": "schedulers",
    "OneScaleRule": "rule",
    "PaperConfig": "rules",
    "Reason": "decision",
    "Rule": "rule",
    "SlopeConfig": "rules",
    "SpikeError": "guard",
    "TransformersConfig": "rules",
    "find_lr": "finder",
}
__all__ = list(_HOME)


if not TYPE_CHECKING:  # or a type checker would take any name for one of the package

    def __getattr__(name: str) -> Any:
        # imported when used: the package itself needs neither torch nor a framework
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
