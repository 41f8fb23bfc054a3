"""The schedules that are compared on NMF, and the settings tried for each.

A schedule is a function `lr(step, loss)`: the LR of an optimizer step, counted from 0, given the loss of the step
before it. Peaks are in units of the bound at the start, so that the same trials fit every matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from greedylr_integrations import GreedyConfig, GreedyController
from greedylr_integrations.envelope import Envelope
from greedylr_integrations.learned import Policy, PolicyRule
from recipes.research.nmf.problem import Factorization

TRIALS = 12
Schedule = Callable[[int, float], float]


@dataclass(frozen=True)
class Setup:
    """What a schedule is made for."""

    factorization: Factorization
    steps: int
    policy: Policy | None


@dataclass(frozen=True)
class Method:
    """A schedule, the settings to tune it over, and whether its LR is capped by the bound."""

    build: Callable[..., Schedule]
    trials: tuple[dict[str, Any], ...] = ({},)
    cap: bool = False


def constant(setup: Setup, peak: float) -> Schedule:
    lr = peak * setup.factorization.bound
    return lambda step, loss: lr


def step_decay(setup: Setup, peak: float, factor: float, at: tuple[float, ...]) -> Schedule:
    lr = peak * setup.factorization.bound
    return lambda step, loss: lr * factor ** sum(step >= share * setup.steps for share in at)


def cosine(setup: Setup, peak: float) -> Schedule:
    lr = peak * setup.factorization.bound
    return lambda step, loss: lr * (1 + math.cos(math.pi * step / setup.steps)) / 2


def greedy(setup: Setup, peak: float) -> Schedule:
    controller = GreedyController(GreedyConfig(on_nonfinite="hold"), horizon=setup.steps)
    base_lr, envelope = peak * setup.factorization.bound, Envelope(total_steps=setup.steps)

    def lr(step: int, loss: float) -> float:
        if step:
            controller.observe(loss)
        return base_lr * controller.scales[0] * envelope(step)

    return lr


def at_the_bound(setup: Setup) -> Schedule:
    return lambda step, loss: setup.factorization.bound


def cosine_of_the_bound(setup: Setup, peak: float) -> Schedule:
    return lambda step, loss: (
        setup.factorization.bound * min(1.0, peak * (1 + math.cos(math.pi * step / setup.steps)) / 2)
    )


def learned(setup: Setup) -> Schedule:
    assert setup.policy
    rule, factorization = PolicyRule(setup.policy, setup.steps), setup.factorization
    base_lr, envelope = factorization.bound, Envelope(total_steps=setup.steps, decay_ratio=setup.policy.decay_ratio)

    def lr(step: int, loss: float) -> float:
        rule.limit = factorization.bound / base_lr
        if step and math.isfinite(loss):
            rule.update(loss, None)
        return base_lr * rule.scales[0] * envelope(step)

    return lr


def _peaks(low: float, high: float, count: int = TRIALS) -> tuple[dict[str, float], ...]:
    return tuple({"peak": float(f"{peak:.3g}")} for peak in np.geomspace(low, high, count))


DECAYS = ((0.5, (0.2, 0.4, 0.6, 0.8)), (0.1, (0.5, 0.75)), (0.2, (0.8,)))
METHODS = {
    "constant": Method(constant, _peaks(0.03, 2.0)),
    "step decay": Method(
        step_decay,
        tuple(trial | {"factor": f, "at": at} for trial, (f, at) in product(_peaks(0.1, 1.0, 4), DECAYS)),
    ),
    "cosine": Method(cosine, _peaks(0.06, 3.0)),
    "GreedyLR": Method(greedy, _peaks(0.03, 3.0)),
    "GreedyLR, capped": Method(greedy, _peaks(0.2, 20.0), cap=True),
    "at the bound": Method(at_the_bound, cap=True),
    "cosine of the bound": Method(cosine_of_the_bound, _peaks(2.0, 160.0), cap=True),
    "learned": Method(learned, cap=True),
}
