"""What the controller decided, and what it suggests for the next run."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from greedylr_integrations.core import Decision


class Record(NamedTuple):
    """One decision in its place.

    Attributes:
        step: optimizer steps done when it was made.
        lrs: LR of each parameter group after it.
        envelope: factor of ramp and final decay in those LRs, from 0 to 1.
        decision: the decision.
    """

    step: int
    lrs: tuple[float, ...]
    envelope: float
    decision: Decision


def suggested_lr(records: Sequence[Record], base_lr: float) -> float | None:
    """The LR to start the next such run at: base LR x the scale that this run settled on.

    That is the median scale of the first group over the later half of the decisions outside ramp and final decay; None
    with fewer than 10 of them.
    """
    steady = [record.decision.scales[0] for record in records if record.envelope == 1.0]
    if len(steady) < 10:
        return None
    return base_lr * median(steady[len(steady) // 2 :])
