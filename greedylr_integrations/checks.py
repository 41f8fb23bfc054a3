"""Checks of what users and checkpoints hand in: one clear sentence with the field, the value and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def check(ok: bool, field: str, value: object, allowed: str) -> None:
    if not ok:
        raise ValueError(f"{field}={value!r} is not allowed: it must be {allowed}")


def check_number(field: str, value: object, kind: type = float) -> None:
    """TypeError unless `value` is a number of the kind, or an int where a float may stand; bool is neither."""
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise TypeError(f"{field}={value!r} is not allowed: it must be {'a number' if kind is float else 'an integer'}")
    check(_finite(value), field, value, "finite")  # type: ignore[arg-type]


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond the floats
        return False


def check_choice(field: str, value: object, choices: Sequence[str]) -> None:
    check(value in choices, field, value, "one of " + ", ".join(repr(choice) for choice in choices))


def check_bounds(field: str, value: object, groups: int | None = None) -> None:
    """An absolute bound: a number of at least 0, or a sequence of them, one for each group."""
    if isinstance(value, (list, tuple)):
        check(len(value) > 0, field, value, "a number or a list with one number a group")
        if groups is not None:
            check(len(value) == groups, field, value, f"a number or a list of {groups}, one for each parameter group")
        for item in value:
            check_bounds(field, item)
    else:
        check_number(field, value)
        check(value >= 0, field, value, "at least 0")  # type: ignore[operator]


def per_group(value: float | Sequence[float], groups: int) -> list[float]:
    return [float(v) for v in value] if isinstance(value, (list, tuple)) else [float(value)] * groups  # type: ignore[arg-type]


def check_shared(config: Any) -> None:
    """The fields that all three rules have, of GreedyLR's paper."""
    if config.factor is not None:
        check_number("factor", config.factor)
        check(0 < config.factor < 1, "factor", config.factor, "between 0 and 1, both excluded")
    for field, least in (("patience", 0), ("window_size", 1), ("warmup", 0), ("cooldown", 0), ("reset_start", 1)):
        value = getattr(config, field)
        if value is not None:
            check_number(field, value, int)
            check(value >= least, field, value, f"at least {least}")
    check_number("threshold", config.threshold)
    check(config.threshold >= 0, "threshold", config.threshold, "at least 0")
    for field in ("min_lr", "max_lr"):
        if getattr(config, field) is not None:
            check_bounds(field, getattr(config, field))
    if config.min_lr is not None and config.max_lr is not None:
        groups = max(len(v) if isinstance(v, (list, tuple)) else 1 for v in (config.min_lr, config.max_lr))
        for low, high in zip(per_group(config.min_lr, groups), per_group(config.max_lr, groups), strict=False):
            check(low <= high, "min_lr", config.min_lr, f"at most max_lr={config.max_lr!r}")


def as_loss(loss: object) -> float:
    """A float from whatever is a real number (int, numpy, 0-d tensor); TypeError that says so otherwise."""
    if isinstance(loss, (bool, str, bytes)) or loss is None:
        raise TypeError(f"loss={loss!r} is not allowed: it must be a number")
    try:
        return float(loss)  # type: ignore[arg-type]
    except OverflowError:
        return math.inf  # an int beyond the floats
    except (TypeError, ValueError) as error:
        raise TypeError(f"loss={loss!r:.200} is not allowed: it must be a single number") from error


# ---- state ----


def as_json(number: float) -> float | str:
    return number if math.isfinite(number) else str(number)  # JSON has no NaN


def is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and _finite(value)


def is_number(value: object) -> bool:
    """What `as_json` gives."""
    return is_finite(value) or value in ("nan", "inf", "-inf")


def is_numbers(value: object) -> bool:
    return isinstance(value, list) and all(is_finite(item) for item in value)


def is_recent(value: object) -> bool:
    """A `RecentBest`'s state."""
    return (
        isinstance(value, Mapping)
        and value.keys() == {"count", "queue"}
        and is_integer(value["count"])
        and isinstance(value["queue"], list)
        and all(
            isinstance(entry, list) and len(entry) == 2 and is_integer(entry[0]) and is_finite(entry[1])
            for entry in value["queue"]
        )
    )


def is_pace(value: object) -> bool:
    """A `Pace`'s state."""
    return (
        isinstance(value, Mapping)
        and value.keys() == {"skip", "largest", "means"}
        and is_integer(value["skip"])
        and is_finite(value["largest"])
        and is_numbers(value["means"])
    )


def is_window(value: object) -> bool:
    """A `RollingWindow`'s state."""
    return (
        isinstance(value, Mapping)
        and value.keys() == {"losses", "older"}
        and is_numbers(value["losses"])
        and is_integer(value["older"])
    )


def is_pending(value: object) -> bool:
    """A `LossMeter`'s state."""
    return (
        isinstance(value, Mapping)
        and value.keys() == {"total", "weight", "steps", "waiting"}
        and is_number(value["total"])
        and is_integer(value["weight"])
        and is_integer(value["steps"])
        and (value["waiting"] is None or is_number(value["waiting"]))
    )


def faults_of(values: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """Every missing, unknown or ill-typed key; empty if there is none."""
    faults = [f"{key} is missing" for key in schema if key not in values]
    faults += [f"{key} is unknown" for key in values if key not in schema]
    faults += [
        f"{key}={values[key]!r:.80} is ill-typed" for key in schema if key in values and not schema[key](values[key])
    ]
    return "; ".join(faults)


def check_state(state: object, schema: Mapping[str, Any], what: str) -> None:
    """ValueError that names every missing, unknown or ill-typed key."""
    if not isinstance(state, Mapping):
        raise ValueError(f"{what} state is {type(state).__name__}, not a dictionary: load what state_dict() gave")
    if faults := faults_of(state, schema):
        raise ValueError(f"{what} state does not load, nothing was changed: {faults}")
