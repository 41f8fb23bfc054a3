"""Odd values, where they can be put in a JSON document, and how hard the fuzzers try."""

import math
import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

TIMES = int(os.environ.get("GREEDYLR_FUZZ", "1"))
NUMBERS = (0, -1, 5e-324, 1e-300, 1e308, -1e308, 10**30, 10**400, 2**53, math.nan, math.inf, True, 0.1)
ODD = st.one_of(
    st.sampled_from([None, [], {}, "", "nan", "x" * 300, "\x1b[31m", "$$x$$", "$x", "_", "\ud800", [[1]], *NUMBERS]),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.floats(), max_size=3),
)


def places(node, path=()):
    """Where the values of a JSON document are."""
    yield path
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def changed(node, path, value):
    """The document with another value at a place, or without it if the value is `...`."""
    if not path:
        return value
    new = dict(node) if isinstance(node, dict) else list(node)
    if len(path) == 1 and value is ...:
        del new[path[0]]
    else:
        new[path[0]] = changed(node[path[0]], path[1:], value)
    return new


def fuzzed(count):
    return settings(
        max_examples=count * TIMES,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=TIMES == 1,  # `make test` tries the same each time
    )


def of_one_line(message):
    return "\n" not in message and len(message) < 2000
