"""The schedules that recipes compare: "greedy" is this package's, the others are fixed ones of transformers."""

from __future__ import annotations

from typing import Any

KINDS = {"linear": "linear", "cosine": "cosine", "wsd": "warmup_stable_decay", "constant": "constant_with_warmup"}
SCHEDULES = ("greedy", *KINDS)
DECAY = 0.2  # of the run, in wsd


def kind_and_arguments(name: str, total_steps: int) -> tuple[str, dict[str, Any]]:
    """The fixed schedule as transformers names it (`lr_scheduler_type`), and its `lr_scheduler_kwargs`."""
    decay = {"num_decay_steps": round(DECAY * total_steps), "decay_type": "linear"}
    return KINDS[name], decay if name == "wsd" else {}


def fixed(name: str, optimizer, total_steps: int, warmup_steps: int = 0):
    """A fixed schedule as an `LRScheduler` to step once an optimizer step, with a linear ramp over `warmup_steps`.

    "wsd" is warmup, stable, decay: constant, then linearly to 0 over the last 20% of the run.
    """
    from transformers import get_scheduler

    kind, more = kind_and_arguments(name, total_steps)
    return get_scheduler(kind, optimizer, warmup_steps, total_steps, scheduler_specific_kwargs=more)
