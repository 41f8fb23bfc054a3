"""From losses to statements: how many steps a loss is worth, who won a cell, and how sure that is."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from scipy.stats import t as student

TIE = 0.05  # share of the steps


def step_equivalents(loss: float, reference: Mapping[float, float]) -> float:
    """How long the tuned best schedule must run to reach a loss, as a share of the run.

    Args:
        loss: final validation loss; infinite for a diverged run.
        reference: length in horizons -> mean final loss of the tuned best schedule at that length.

    Between lengths, the logarithm of the length is interpolated over the loss. Before that, neighbouring lengths are
    pooled where the loss does not fall with the length. Beyond the shortest or longest length, that length is used.
    """
    lengths = sorted(reference)
    losses = _falling([reference[length] for length in lengths])
    if loss >= losses[0]:
        return lengths[0]
    if loss <= losses[-1]:
        return lengths[-1]
    for i in range(len(lengths) - 1):
        high, low = losses[i], losses[i + 1]
        if low <= loss <= high:
            share = 0.5 if high == low else (high - loss) / (high - low)
            return math.exp(math.log(lengths[i]) + share * (math.log(lengths[i + 1]) - math.log(lengths[i])))
    raise AssertionError("losses do not fall")


def _falling(values: Sequence[float]) -> list[float]:
    """The nearest sequence that never rises (pool adjacent violators)."""
    pools: list[list[float]] = []  # mean, count
    for value in values:
        pools.append([value, 1])
        while len(pools) > 1 and pools[-2][0] < pools[-1][0]:
            b, a = pools.pop(), pools.pop()
            pools.append([(a[0] * a[1] + b[0] * b[1]) / (a[1] + b[1]), a[1] + b[1]])
    return [pool[0] for pool in pools for _ in range(int(pool[1]))]


def reach(error: float, count: int) -> float:
    """Half of the 95% interval around a mean of `count` values with this standard error.

    By Student's t, since a few values are a poor estimate of their own spread: with two or three values, two standard
    errors are not a 95% interval.
    """
    return error * float(student.ppf(0.975, count - 1)) if count > 1 else error


@dataclass(frozen=True)
class Cell:
    """An arm against the best fixed schedule at one base LR of one workload.

    Attributes:
        opponent: the fixed schedule that was best on the seeds that are not scored, most often.
        gain: relative gain in step-equivalents, mean over the pairs; 0.1 is 10% more steps' worth. Infinite if all
            runs of one side diverged and none of the other.
        error: its standard error; infinite if it is not known.
        pairs: seeds that were scored.
        diverged: runs of the arm that diverged, and of the opponent.
    """

    workload: str
    multiple: float
    opponent: str
    gain: float
    error: float
    pairs: int = 0
    diverged: tuple[int, int] = (0, 0)

    @property
    def reach(self) -> float:
        """Half of the 95% interval of the gain."""
        return reach(self.error, self.pairs)

    @property
    def resolved(self) -> bool:
        """Whether the noise allows a verdict: the interval excludes the tie's edge, or the error is a third of it."""
        within = abs(self.gain) <= TIE and self.error <= TIE / 3
        return within or (math.isfinite(self.error) and abs(abs(self.gain) - TIE) > self.reach)

    @property
    def verdict(self) -> str:
        if not self.resolved:
            return "unresolved"
        if abs(self.gain) <= TIE:
            return "tie"
        return "win" if self.gain > 0 else "loss"


def compare(
    workload: str,
    multiple: float,
    arm: Mapping[int, float],
    fixed: Mapping[str, Mapping[int, float]],
    reference: Mapping[float, float],
) -> Cell:
    """A cell from final losses by seed; each seed is scored against the schedule that was best on the others.

    Runs are paired by seed. A pair in which one diverged (infinite), or in which both are beyond the same end of the
    reference, cannot be expressed in steps and enters no mean. Divergences are counted. If the two sides differ in
    their number, the surviving pairs give no verdict, unless one side diverged always and the other never.
    """
    gains, opponents, diverged = [], [], [0, 0]
    ends = {min(reference), max(reference)}
    for seed in sorted(arm):
        rest = [other for other in arm if other != seed]
        opponent = min(fixed, key=lambda name: mean([min(fixed[name][other], 1e9) for other in rest]))
        opponents.append(opponent)
        a, b = arm[seed], fixed[opponent][seed]
        diverged[0] += math.isinf(a)
        diverged[1] += math.isinf(b)
        worth = [step_equivalents(loss, reference) for loss in (a, b)]
        if math.isfinite(a) and math.isfinite(b) and not (worth[0] == worth[1] and worth[0] in ends):
            gains.append(worth[0] / worth[1] - 1)
    opponent = max(opponents, key=opponents.count)
    gain = mean(gains) if gains else 0.0
    error = stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf
    if diverged[0] != diverged[1]:
        error = math.inf
        if sorted(diverged) == [0, len(arm)]:
            gain, error = math.copysign(math.inf, diverged[1] - diverged[0]), 0.0
    return Cell(workload, multiple, opponent, gain, error, len(gains), (diverged[0], diverged[1]))


def bootstrap(
    values: Mapping[str, Sequence], statistic: Callable[[list], float], rounds: int = 2000, level: float = 0.95
) -> tuple[float, float, float]:
    """A statistic with its interval, from resampling whole workloads, since cells of one workload are not independent.

    Args:
        values: workload -> its values.
        statistic: of the values of all workloads, in one list; may be NaN if it is undefined.
    """
    rng, names = random.Random(0), sorted(values)
    found = statistic([value for name in names for value in values[name]])
    drawn = []
    for _ in range(rounds):
        sample = [value for name in rng.choices(names, k=len(names)) for value in values[name]]
        drawn.append(statistic(sample))
    drawn = sorted(value for value in drawn if not math.isnan(value))
    if not drawn:
        return found, math.nan, math.nan
    tail = (1 - level) / 2
    return found, drawn[int(tail * (len(drawn) - 1))], drawn[math.ceil((1 - tail) * (len(drawn) - 1))]


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(mean(map(math.log, values))) if values else math.nan


def log_slope(points: Sequence[tuple[float, float]]) -> float:
    """Slope of log y over log x, by least squares."""
    xs, ys = [math.log(x) for x, _ in points], [math.log(y) for _, y in points]
    x0, y0 = mean(xs), mean(ys)
    return sum((x - x0) * (y - y0) for x, y in zip(xs, ys, strict=True)) / sum((x - x0) ** 2 for x in xs)


def share(cells: Sequence[Cell], *verdicts: str) -> float:
    """Of the resolved cells, how many have one of the verdicts."""
    resolved = [cell for cell in cells if cell.resolved]
    return sum(cell.verdict in verdicts for cell in resolved) / len(resolved) if resolved else math.nan
