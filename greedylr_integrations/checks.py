"""Checks of values from users and checkpoints. An error is one clear sentence: the field, the value, what is allowed.

A check of a number returns it as a plain Python number, so that NumPy numbers are accepted and can be written as JSON.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

LARGEST_LR = 1e30  # times any scale that is allowed, still a float
LARGEST_INTEGER = 2**53  # beyond it, not every one is a float


def check(ok: bool, field: str, value: object, allowed: str) -> None:
    """ValueError with the field and the value, unless `ok`."""
    if not ok:
        raise ValueError(f"{field}={value!r} is not allowed: it must be {allowed}")


def check_hook(field: str, value: object, takes: str) -> None:
    """None, or something that can be called; TypeError otherwise."""
    if value is not None and not callable(value):
        raise TypeError(f"{field}={value!r} is not allowed: it must be a function that takes {takes}")


def plain(value: Any) -> Any:
    """Numbers, and lists of them, as plain Python types, which JSON and checkpoints can hold; anything else as it is.

    Lists may be those of a configuration library, such as OmegaConf's.
    """
    if isinstance(value, (bool, int, float)) and type(value).__module__ == "builtins":
        return value
    if hasattr(value, "tolist"):  # of numpy and torch
        return value.tolist()
    if isinstance(value, Real):
        return int(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return (tuple if type(value) is tuple else list)(map(plain, value))
    return value


def check_number(field: str, value: object) -> float:
    """`value` as a finite float or int; TypeError if it is not a real number. bool is not one."""
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise TypeError(f"{field}={value!r} is not allowed: it must be a number")
    check(_finite(number), field, value, "finite")
    return number


def check_integer(field: str, value: object, *, least: int | None = None) -> int:
    """`value` as an int of at least `least`; TypeError if it is not an integer. bool is not one."""
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{field}={value!r} is not allowed: it must be an integer")
    if least is not None:
        check(number >= least, field, value, f"at least {least}")
    check(abs(number) <= LARGEST_INTEGER, field, value, f"at most {LARGEST_INTEGER}")
    return number


def _finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond the floats
        return False


def check_choice(field: str, value: object, choices: Sequence[str]) -> None:
    """ValueError unless `value` is one of the choices."""
    check(value in choices, field, value, "one of " + ", ".join(repr(choice) for choice in choices))


def as_loss(loss: object, field: str = "loss") -> float:
    """A float from any real number (int, numpy, 0-d tensor); TypeError otherwise."""
    if isinstance(loss, (bool, str, bytes)) or loss is None:
        raise TypeError(f"{field}={loss!r} is not allowed: it must be a number")
    try:
        return float(loss)  # type: ignore[arg-type]
    except OverflowError:
        return math.inf  # an int beyond the floats
    except (TypeError, ValueError) as error:
        raise TypeError(f"{field}={loss!r:.200} is not allowed: it must be a single number") from error


# ---- state ----


def as_json(number: float) -> float | str:
    """The number, or its name if it is not finite, which JSON does not allow."""
    return number if math.isfinite(number) else str(number)


def is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_INTEGER


def is_count(value: object) -> bool:
    return is_integer(value) and value >= 0  # type: ignore[operator]


def is_flag(value: object) -> bool:
    return isinstance(value, bool)


def is_finite(value: object) -> bool:
    return (isinstance(value, float) and math.isfinite(value)) or is_integer(value)


def is_positive(value: object) -> bool:
    return is_finite(value) and value > 0  # type: ignore[operator]


def is_share(value: object) -> bool:
    """A number from 0 to 1."""
    return is_finite(value) and 0 <= value <= 1  # type: ignore[operator]


def is_number(value: object) -> bool:
    """What `as_json` gives."""
    return is_finite(value) or value in ("nan", "inf", "-inf")


def is_base_lr(value: object) -> bool:
    return is_finite(value) and 0 <= value <= LARGEST_LR  # type: ignore[operator]


def is_list_of(is_item: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(is_item(item) for item in value)


is_numbers = is_list_of(is_finite)


def is_none_or(is_value: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or is_value(value)


Schema = Mapping[str, Callable[[Any], bool]]


def fits(schema: Schema) -> Callable[[object], bool]:
    """A check that a value is a dictionary of exactly this schema."""
    return lambda value: isinstance(value, Mapping) and not faults_of(value, schema)


def faults_of(values: Mapping[str, Any], schema: Schema) -> str:
    """Every missing, unknown or wrong key; empty if there is none."""
    faults = [f"{key} is missing" for key in schema if key not in values]
    faults += [f"{key} is unknown" for key in values if key not in schema]
    faults += [
        f"{key}={values[key]!r:.80} is not allowed" for key in schema if key in values and not schema[key](values[key])
    ]
    return "; ".join(faults)


def check_state(state: object, schema: Schema, what: str) -> None:
    """ValueError that names every missing, unknown or wrong key."""
    if not isinstance(state, Mapping):
        raise ValueError(f"{what} state is {type(state).__name__}, not a dictionary: load what state_dict() gave")
    if faults := faults_of(state, schema):
        raise ValueError(f"{what} state does not load, nothing was changed: {faults}")
