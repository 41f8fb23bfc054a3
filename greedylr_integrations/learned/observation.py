"""What a learned policy sees of a run: eleven numbers made of the mean losses of the blocks so far.

Training and use share this file, so that a policy sees the same in both. None of the numbers depends on the unit of the
loss. Observation, action and reward are this project's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

RECENT = 8  # number of block means that trend and noise are taken over
OBSERVED = (  # each between -1 and 1
    "trend",  # correlation of the recent block means with time; -1 if they fall steadily
    "noise",  # deviation of the means from a line, as a share of itself plus the total change of the loss
    "last change",  # change of the block mean, as a share of itself plus the deviation of the recent means
    "change before",
    "change before that",
    "relative change",  # of the block mean, times ten
    "height",  # distance above the best block mean, as a share of itself plus the fall from the first mean to the best
    "moved",  # relative change from the first block mean to the last
    "progress",  # share of the run that is over
    "position",  # of the scale between its bounds, on a log scale
    "last action",
)


def observe(
    means: Sequence[float], first: float, best: float, *, progress: float, position: float, action: float
) -> list[float]:
    """The observation at the end of a block.

    Args:
        means (sequence of float): the recent block means, at most `RECENT` of them; the last is that of this block.
        first (float): mean of the first block of the run.
        best (float): lowest block mean before this one.
        progress (float): share of the run that is over, from 0 to 1.
        position (float): place of the scale between its bounds, from -1 to 1.
        action (float): the last action, from -1 to 1.

    Returns:
        One number between -1 and 1 for each name in `OBSERVED`.
    """
    n, last = len(means), means[-1]
    average = sum(means) / n
    centre = (n - 1) / 2
    across = sum((i - centre) * mean for i, mean in enumerate(means))
    squares = sum((mean - average) ** 2 for mean in means)
    along = across * across / (n * (n * n - 1) / 12) if n > 1 else 0.0  # sum of squares that the trend explains
    trend = math.copysign(math.sqrt(min(along / squares, 1.0)), across) if squares > 0 else 0.0
    noise = math.sqrt(max(squares - along, 0.0) / (n - 2)) if n > 2 else 0.0
    deviation = math.sqrt(squares / n)
    changes = [later - earlier for earlier, later in zip(means[-4:-1], means[-3:], strict=False)][::-1]
    changes += [0.0] * (3 - len(changes))
    return [
        trend,
        _share(noise, abs(first - last)),
        *(_share(change, deviation) for change in changes),
        min(max(10 * _share(changes[0], abs(last) + abs(last - changes[0])), -1.0), 1.0),
        _share(max(last - best, 0.0), first - best),
        _share(last - first, abs(last) + abs(first)),
        progress,
        position,
        action,
    ]


def _share(part: float, rest: float) -> float:
    """`part` as a share of its magnitude plus `rest`, from -1 to 1."""
    whole = abs(part) + rest
    return part / whole if whole > 0 else 0.0
