"""The state of `GreedyLR` in a checkpoint, and how a state of an earlier version becomes one of this version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from greedylr_integrations.checks import (
    check,
    check_state,
    is_base_lr,
    is_count,
    is_flag,
    is_integer,
    is_list_of,
    is_none_or,
    is_positive,
    is_share,
)
from greedylr_integrations.rule import is_scale
from greedylr_integrations.signals import SIGNALS_STATE, WAITING
from greedylr_integrations.slope import NOTHING_MEASURED
from greedylr_integrations.steering import make_command
from greedylr_integrations.suggestion import NOT_SETTLED, is_settling

STATE_VERSION = 2


def checked_state(state: Any, groups: int, *, with_schedule: bool, monitor: str) -> dict[str, Any]:
    """A state of this version, of so many parameter groups; ValueError if it does not fit the run."""
    if isinstance(state, Mapping) and state.get("version") == 1:
        state = _of_version_1(state)
    if isinstance(state, Mapping):  # the first states of version 2 did not have them
        state = {"monitor": monitor, "settling": NOT_SETTLED, **state}
    check_state(state, SCHEDULER_STATE, "GreedyLR")
    check(
        len(state["base_lrs"]) == groups,
        "base_lrs",
        state["base_lrs"],
        f"a list of {groups}, one for each parameter group of this optimizer",
    )
    if state["monitor"] != monitor:
        raise ValueError(
            f"the checkpoint's run followed {state['monitor']!r}, this one follows {monitor!r}, so their values cannot"
            " be compared: use the same monitor, or start without the scheduler's state"
        )
    if (state["schedule_lrs"] is not None) != with_schedule:
        there, here = ("without", "with") if with_schedule else ("with", "without")
        raise ValueError(
            f"the checkpoint was written {there} a base_schedule, this run continues {here} one: make them equal"
        )
    return dict(state)


def _of_version_1(state: Mapping[str, Any]) -> dict[str, Any]:
    """Version 1 had no slope, no id of the run, and did not count decisions."""
    upgraded = {"run": "", "decisions": 1, "commands": 0, "slope": NOTHING_MEASURED, **state, "version": STATE_VERSION}
    pending = state.get("pending")
    if isinstance(pending, Mapping) and pending.get("waiting") is not None:
        numbers = [pending["waiting"], 1.0]  # earlier only a loss
        upgraded["pending"] = {**pending, "waiting": numbers + [0.0] * (WAITING - len(numbers))}
    return upgraded


def _is_command(value: Any) -> bool:
    try:
        return value is None or make_command(*value).name in ("hold", "cap", "pin")
    except (TypeError, ValueError):
        return False


def _is_decay(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and is_count(value[0])
        and is_integer(value[1])
        and is_positive(value[1])
        and is_share(value[2])
    )


SCHEDULER_STATE = {
    "version": lambda value: value == STATE_VERSION and is_integer(value),
    "run": lambda value: value is None or isinstance(value, str),
    "monitor": lambda value: isinstance(value, str),
    "last_epoch": is_count,
    "base_lrs": is_list_of(is_base_lr),
    "scales": is_list_of(is_scale),
    "envelope": is_share,
    "decisions": is_count,
    "commands": is_count,
    "settling": is_settling,
    "decay": is_none_or(_is_decay),
    "order": _is_command,
    "schedule_lrs": is_none_or(is_list_of(is_base_lr)),
    "schedule_ramps": is_flag,
    "controller": lambda value: isinstance(value, Mapping),
    **SIGNALS_STATE,
}
