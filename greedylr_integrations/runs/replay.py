"""What other configurations would have done with the losses of a run."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping
from itertools import repeat
from typing import Any

import numpy as np

from greedylr_integrations.controller import ControllerConfig, GreedyController
from greedylr_integrations.decision import Action, Reason
from greedylr_integrations.guard import SpikeError
from greedylr_integrations.rules import RULES, config_from_dict
from greedylr_integrations.runs.run import Run, RunError, make_run, name_reasons

PRESETS = {"greedy": "GreedyConfig"} | {name: config.__name__ for name, config in RULES.items()}


def parse_config(text: str) -> ControllerConfig:
    """A configuration from words such as "paper factor=.9 patience=5"; the preset comes first and may be left out.

    Raises:
        RunError: for words that are not a field or have a value that is not allowed.
    """
    words = text.replace(",", " ").split()
    behaviour = PRESETS["greedy"]
    if words and "=" not in words[0]:
        if words[0] not in PRESETS:
            raise RunError(f"{words[0]!r} is not a preset; there are {', '.join(PRESETS)}")
        behaviour = PRESETS[words.pop(0)]
    fields: dict[str, Any] = {"behaviour": behaviour}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise RunError(f"{word!r} is not of the form field=value, as in factor=0.9")
        fields[name.replace("-", "_")] = _value(value)
    if "every_n_steps" in fields:
        raise RunError("every_n_steps has no meaning here: a replay makes one decision for each recorded loss")
    return make_config(fields)


def make_config(fields: Mapping[str, Any]) -> ControllerConfig:
    """The configuration with these fields; RunError says what is wrong with them."""
    try:
        return config_from_dict(fields)
    except (TypeError, ValueError) as error:
        known = str(error)
        if "unexpected keyword argument" in known:
            name = known.rpartition(" ")[2]
            known = f"{name} is not a field of {fields['behaviour']}"
        raise RunError(known) from None


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return None if text.lower() == "none" else text


def _seen(run: Run, column: str) -> Iterable[float | None]:
    """What the decisions saw beside the loss."""
    values = getattr(run, column).tolist() if run.has(column) else []
    return (None if math.isnan(value) else value for value in values) if values else repeat(None)


def replay(run: Run, config: ControllerConfig, base_lr: float, horizon: int | None, name: str) -> Run:
    """The run that `config` would have made of the recorded losses, without warmup and final decay.

    Raises:
        RunError: if the controller would have ended the run before its last loss, or cannot be made.
    """
    try:
        controller = GreedyController(config, (base_lr,), horizon)
    except (TypeError, ValueError, OverflowError) as error:
        raise RunError(str(error)) from None
    scales, smoothed, best, actions, reasons = array("d"), array("d"), array("d"), array("b"), array("b")
    code_of = {id(member): i for kind in (Action, Reason) for i, member in enumerate(kind)}  # hashing a member is slow
    seen = (_seen(run, column) for column in ("slopes", "distances"))
    for row, observation in enumerate(zip(run.losses.tolist(), *seen, strict=False), 1):
        try:
            decision = controller.observe(*observation)
        except (FloatingPointError, SpikeError) as error:
            if controller.ending is None or row < len(run.losses):
                raise RunError(f"{run.name}: at step {run.steps[row - 1]} {error}") from None
            decision = controller.ending
        scales.append(decision.scales[0])
        actions.append(code_of[id(decision.action)])
        reasons.append(code_of[id(decision.reason)])
        smoothed.append(math.nan if decision.smoothed is None else decision.smoothed)
        best.append(math.nan if decision.best is None else decision.best)
    played = make_run(
        name,
        "replay of the recorded losses",
        run.steps,
        run.losses,
        scales=np.frombuffer(scales),
        lrs=base_lr * np.frombuffer(scales),
        smoothed=np.frombuffer(smoothed),
        best=np.frombuffer(best),
        actions=np.frombuffer(actions, np.int8),
        lrs_are_next=True,
        config=config.to_dict(),
        base_lrs=[base_lr],
        total_steps=horizon,
        monitor=run.monitor,
    )
    name_reasons(played, list(Reason.__members__), np.frombuffer(reasons, np.int8))
    return played
