"""The schedules that recipes compare: "greedy" is from this package, the others are fixed schedules of transformers."""

from __future__ import annotations

from typing import Any

KINDS = {"linear": "linear", "cosine": "cosine", "wsd": "warmup_stable_decay", "constant": "constant_with_warmup"}
SCHEDULES = ("greedy", *KINDS)
DECAY = 0.2  # share of the run, for wsd


def kind_and_arguments(name: str, total_steps: int) -> tuple[str, dict[str, Any]]:
    """`lr_scheduler_type` and `lr_scheduler_kwargs` of transformers for a fixed schedule."""
    decay = {"num_decay_steps": round(DECAY * total_steps), "decay_type": "linear"}
    return KINDS[name], decay if name == "wsd" else {}


def fixed(name: str, optimizer, total_steps: int, warmup_steps: int = 0):
    """A fixed schedule as an `LRScheduler`, to be stepped once per optimizer step, with a linear warmup.

    "wsd" (warmup, stable, decay) is constant, then decays linearly to 0 over the last 20% of the run.
    """
    from transformers import get_scheduler

    kind, more = kind_and_arguments(name, total_steps)
    return get_scheduler(kind, optimizer, warmup_steps, total_steps, scheduler_specific_kwargs=more)
