"""The schedules that recipes compare: "greedy" is from this package, the others are fixed schedules of transformers."""

from __future__ import annotations

from typing import Any

from greedylr_integrations import SlopeConfig

KINDS = {"linear": "linear", "cosine": "cosine", "wsd": "warmup_stable_decay", "constant": "constant_with_warmup"}
SCHEDULES = ("greedy", *KINDS)
DECAY = 0.2  # share of the run, for wsd


def kind_and_arguments(name: str, total_steps: int) -> tuple[str, dict[str, Any]]:
    """`lr_scheduler_type` and `lr_scheduler_kwargs` of transformers for a fixed schedule."""
    decay = {"num_decay_steps": round(DECAY * total_steps), "decay_type": "linear"}
    return KINDS[name], decay if name == "wsd" else {}


def greedy_lengths(total_steps: int, steps_per_epoch: int | None, warmup_steps: int) -> dict[str, int | None]:
    """What GreedyLR needs to know of a run. If it searches for the LR, that takes the place of the warmup."""
    searches = SlopeConfig().searches(total_steps, steps_per_epoch)
    return {
        "total_steps": total_steps,
        "steps_per_epoch": steps_per_epoch,
        "linear_warmup_steps": 0 if searches else warmup_steps,
    }


def fixed(name: str, optimizer, total_steps: int, warmup_steps: int = 0):
    """A fixed schedule as an `LRScheduler`, to be stepped once per optimizer step, with a linear warmup.

    "wsd" (warmup, stable, decay) is constant, then decays linearly to 0 over the last 20% of the run.
    """
    from transformers import get_scheduler

    kind, more = kind_and_arguments(name, total_steps)
    return get_scheduler(kind, optimizer, warmup_steps, total_steps, scheduler_specific_kwargs=more)
