"""The random numbers of torch, NumPy and Python."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """On exit, restore the generators, so that they go on as if nothing had been drawn in between."""
    numpy = sys.modules.get("numpy")
    state, of_numpy = random.getstate(), numpy and numpy.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(state)
        if numpy:
            numpy.random.set_state(of_numpy)
