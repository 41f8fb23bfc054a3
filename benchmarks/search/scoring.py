"""What a final loss is worth, and means over workloads with their intervals."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from statistics import mean

from benchmarks.search import stages
from benchmarks.search.store import Results

LEAST, MOST = stages.LENGTHS[0], stages.LENGTHS[-1]
AGREEMENT = 1.3
FLOOR = 0.8


class Worth:
    """How long, in runs, the tuned best fixed schedule would have to train to reach the same validation loss.

    1 is as good as the tuned schedule. Losses beyond those of the shortest and longest runs count as theirs, so worth
    lies between 0.1 and 2.

    Args:
        losses: for each length, in runs, the final losses of the tuned schedule.
    """

    def __init__(self, losses: Mapping[float, Sequence[float]]) -> None:
        lengths = sorted(losses)
        self.curve = list(zip(lengths, _falling([mean(losses[length]) for length in lengths]), strict=True))

    def __call__(self, loss: float) -> float:
        """The worth of a loss; between lengths, their logarithms are interpolated."""
        if loss >= self.curve[0][1]:
            return self.curve[0][0]
        if loss < self.curve[-1][1]:
            return self.curve[-1][0]
        equal = [length for length, value in self.curve if value == loss]
        if equal:
            return math.sqrt(equal[0] * equal[-1])
        for (short, high), (long, low) in zip(self.curve, self.curve[1:], strict=False):
            if high > loss > low:
                return short * (long / short) ** ((high - loss) / (high - low))
        raise AssertionError("a falling curve has a place for each loss between its ends")


def _falling(values: Sequence[float]) -> list[float]:
    """The nearest values, by least squares, that never rise."""
    pools: list[list[float]] = []
    for value in values:
        pools.append([value])
        while len(pools) > 1 and mean(pools[-1]) > mean(pools[-2]):
            last = pools.pop()
            pools[-1] += last
    return [mean(pool) for pool in pools for _ in pool]


def worth_of(results: Results, workload: str, steps: int) -> Worth | None:
    """The measure for one workload and run length; None if its runs are missing."""
    losses: dict[float, list[float]] = {}
    for length in stages.LENGTHS:
        long = max(2, round(length * steps))
        found = results.losses(stage=f"worth {steps}", workload=workload, steps=long)
        if not found:
            return None
        losses[length] = [min(loss, 1e9) for loss in found]
    return Worth(losses)


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(mean(map(math.log, values))) if values else math.nan


def interval(values: Mapping[str, Sequence[float]], rounds: int = 2000) -> tuple[float, float, float]:
    """Geometric mean, and its 95% interval from resampling whole families of workloads.

    Args:
        values: of each family of workloads.
    """
    rng = random.Random(0)
    families = [(sum(map(math.log, values[name])), len(values[name])) for name in sorted(values)]

    def geometric(chosen: Sequence[tuple[float, int]]) -> float:
        return math.exp(sum(logs for logs, _ in chosen) / sum(count for _, count in chosen))

    drawn = sorted(geometric(rng.choices(families, k=len(families))) for _ in range(rounds))
    return geometric(families), drawn[int(0.025 * (rounds - 1))], drawn[math.ceil(0.975 * (rounds - 1))]
