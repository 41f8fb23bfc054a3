"""What a run says in words: a line when it begins, a line when it ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from greedylr_integrations.controller import ControllerConfig
from greedylr_integrations.decision import (
    CEILING,
    FINDS,
    HOLDING,
    LOWER,
    ORDERED,
    RAISE,
    SEARCHES,
    TOO_SHORT,
    Reason,
)
from greedylr_integrations.envelope import Envelope
from greedylr_integrations.history import Record

EARLY = 0.9  # share of the planned steps before which a run has ended early


def opening(plan: str, base_lr: float, envelope: Envelope, monitor: str, base_schedule: Any, shadow: bool) -> str:
    """What will be followed, and how the LR will go."""
    parts = [f"GreedyLR {plan} (base LR {base_lr:.3g})"]
    if monitor != "loss":
        parts.append(f"decides on {monitor}")
    total = envelope.total_steps
    if base_schedule is not None:
        parts.append(f"multiplies the LR of {type(base_schedule).__name__}")
    elif total is None:
        parts.append("no final decay, since the length of the run is not known")
    elif envelope.decay_ratio:
        parts.append(f"decays to 0 over the last {round(envelope.decay_ratio * total):,} of {total:,} steps")
    if shadow:
        parts.append("shadow: leaves the LR alone")
    return "; ".join(parts)


def schedule(other: str | None, *, multiplied: bool, shadow: bool) -> str:
    """What sets the LR, in a few words.

    Args:
        other (str): another schedule of the optimizer. None if there is none.
        multiplied (bool): whether GreedyLR multiplies that one, and not replaces it.
        shadow (bool): whether GreedyLR leaves the LR alone.
    """
    if shadow:
        return f"{other or 'not GreedyLR'}; GreedyLR only watched"
    return f"GreedyLR {'x' if multiplied else 'in place of'} {other}" if other else "GreedyLR"


def settings(config: ControllerConfig) -> dict[str, Any]:
    """The name of the rule, and each of its settings that is not the default."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    changed = {name: value for name, value in config.hyperparameters().items() if value != defaults[name]}
    if changed.get("mode") == "min":  # the same as None
        del changed["mode"]
    plain = {name: value if isinstance(value, str | int | float) else str(value) for name, value in changed.items()}
    return {"rule": type(config).__name__, **plain}


def as_list(facts: Mapping[str, Any]) -> str:
    """Names and values as a list in Markdown."""
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def closing(records: Sequence[Record], lr: float, base_lr: float, step: int, history_file: str | None) -> str:
    """What a run found, and where to start the next.

    Args:
        records (sequence of Record): the run's decisions.
        lr (float): the LR that it suggests.
        base_lr (float): its base LR.
        step (int): optimizer steps of the run.
        history_file (str): where the history is. None if it is not in a file.
    """
    where = f" History: {history_file}" if history_file else ""
    found = [record.step for record in records if record.decision.reason in FINDS]
    actions = [record.decision.action for record in records]
    verb, how = "settled on", f"after {actions.count(RAISE):,} increases and {actions.count(LOWER):,} decreases"
    if found:
        verb, how = "found", f"first after {found[0]:,} of {step:,} steps"
    elif _ran_out_of_time([record.decision.reason for record in records]):
        verb, how = "ended its search at", "because its time was up; a higher LR may fit better"
    elif records and all(record.decision.reason is TOO_SHORT for record in records):
        return f"GreedyLR left the LR as it was, and did not search for another.{where}"
    times = f", {lr / base_lr:.3g} x the base LR of {base_lr:.3g}" if base_lr else ""
    return f"GreedyLR {verb} the LR {lr:.2g}{times}, {how}. Start the next such run at {lr:.2g}.{where}"


def _ran_out_of_time(reasons: Sequence[Reason]) -> bool:
    """Whether a search went on to where the LR was held, and was not ended by a command, a bound or a NaN."""
    ends = [i for i, reason in enumerate(reasons) if reason in SEARCHES]
    if ends and {CEILING, ORDERED}.intersection(reasons[: ends[-1]]):
        return False  # they held it up
    return bool(ends) and (ends[-1] + 1 == len(reasons) or reasons[ends[-1] + 1] is HOLDING)


def shadow(records: Sequence[Record], group: int, base_lr: float) -> str:
    """How the LR would have gone, without warmup and final decay."""
    scales = [record.decision.scales[group] for record in records]
    high, low = (function(range(len(scales)), key=scales.__getitem__) for function in (max, min))
    actions = [record.decision.action for record in records]
    return (
        f"GreedyLR in shadow: would have taken the LR from {base_lr:.3g} to {base_lr * scales[-1]:.3g} (highest"
        f" {base_lr * scales[high]:.3g} at step {records[high].step}, lowest {base_lr * scales[low]:.3g} at step"
        f" {records[low].step}, without warmup and final decay); {actions.count(RAISE)} increases,"
        f" {actions.count(LOWER)} decreases"
    )
