"""What is compared: what drives the LR of one run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from greedylr_integrations import GreedyConfig, SlopeConfig
from greedylr_integrations.controller import ControllerConfig, GreedyController
from greedylr_integrations.envelope import Envelope

WARMUP = 0.02  # share of the run, for all arms that do not search
POINTS = 61  # of a run's scales that are kept


def warmup_steps(steps: int) -> int:
    return max(1, round(WARMUP * steps))


class Fixed:
    """A schedule that is a function of the share of the run that is done, after a linear warmup."""

    wants_slope = False
    dead = False

    def __init__(self, shape: Callable[[float], float], steps: int, *, warmup: int | None = None) -> None:
        self._shape, self._steps, self._step = shape, steps, 0
        self._warmup = warmup_steps(steps) if warmup is None else warmup

    @property
    def factor(self) -> float:
        """What multiplies the base LR now."""
        return self._shape(self._step / self._steps) * min(1.0, (self._step + 1) / self._warmup)

    def observe(self, loss: float, slope: float | None = None, distance: float | None = None) -> None:
        """An optimizer step was made, at this loss, slope and distance."""
        self._step += 1

    def result(self) -> dict[str, Any]:
        """What to keep of the run."""
        return {}


class Greedy:
    """The package's controller and envelope, called as `GreedyLR` calls them."""

    def __init__(self, config: ControllerConfig, steps: int, steps_per_epoch: int | None) -> None:
        warmup = 0 if config.searches(steps, steps_per_epoch) else warmup_steps(steps)
        self._envelope = Envelope(linear_warmup_steps=warmup, total_steps=steps, decay_ratio=config.decay_ratio)
        self._controller = GreedyController(config, (1.0,), self._envelope.decided_steps, steps_per_epoch)
        self._new_steps = steps if steps_per_epoch is None else steps_per_epoch
        self._step, self._scales, self._steps = 0, [self._controller.scales[0]], steps
        self.dead = False

    @property
    def factor(self) -> float:
        return self._controller.scales[0] * self._envelope(self._step)

    @property
    def wants_slope(self) -> bool:
        return self._step < self._new_steps and self._controller.wants_slope

    def observe(self, loss: float, slope: float | None = None, distance: float | None = None) -> None:
        if self._step >= self._envelope.linear_warmup_steps and not self.dead:
            try:
                way = (slope, distance) if self.wants_slope else (None, None)
                self._controller.observe(loss, *way)
            except FloatingPointError:
                self.dead = True
        self._step += 1
        self._scales.append(self._controller.scales[0])

    def result(self) -> dict[str, Any]:
        """The scales, evenly spaced; the one at 60% of the run; and the share of the run until it was reached."""
        middle = self._scales[min(len(self._scales) - 1, round(0.6 * self._steps))]
        searched = next((i for i, scale in enumerate(self._scales) if scale == middle), 0) / self._steps
        last = len(self._scales) - 1
        scales = [self._scales[round(i * last / (POINTS - 1))] for i in range(POINTS)]
        return {
            "found": round(middle, 5),
            "searched": round(searched, 4),
            "scales": [float(f"{scale:.4g}") for scale in scales],
        }


def decaying(share: float) -> Callable[[float], float]:
    """Warmup-stable-decay: constant, then linear to 0 over the last `share` of the run."""
    return lambda done: min(1.0, (1 - done) / share)


SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1 - done,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
}
FIXED = (*SHAPES, "wsd")
CONFIGS: dict[str, Callable[[], ControllerConfig]] = {"greedy": SlopeConfig, "loss window": GreedyConfig}
YOKED = ("yoked", "yoked, same multiple")
Driver = Fixed | Greedy


def replayed(scales: Sequence[float], decay: float) -> Callable[[float], float]:
    """The scales of another run, and the final decay."""

    def shape(done: float) -> float:
        place = min(max(done, 0.0), 1.0) * (len(scales) - 1)
        low = min(int(place), len(scales) - 2)
        a, b = math.log(scales[low]), math.log(scales[low + 1])
        return math.exp(a + (place - low) * (b - a)) * min(1.0, (1 - done) / decay)

    return shape


def make(arm: str, steps: int, decay: float | None, steps_per_epoch: int | None, scales: Sequence[float]) -> Driver:
    """What drives one run.

    Args:
        decay: share of the run that the decay takes; for warmup-stable-decay only.
        scales: those to replay; for a yoked run only.
    """
    if arm in CONFIGS:
        return Greedy(CONFIGS[arm](), steps, steps_per_epoch)
    if arm in YOKED:
        return Fixed(replayed(scales, SlopeConfig().decay_ratio), steps, warmup=1)  # like the run that is replayed
    if arm == "wsd":
        return Fixed(decaying(decay or 0.3), steps)
    return Fixed(SHAPES.get(arm, SHAPES["constant"]), steps)
