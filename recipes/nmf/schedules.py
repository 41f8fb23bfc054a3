"""The schedules that are compared on NMF, and the trials that each has.

A schedule is `lr(step, loss)`: the LR of an optimizer step, counted from 0, after the loss of the step before it. LRs
are in units of the bound at the start, so that the same trials fit every matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from greedylr_integrations.controller import GreedyController
from greedylr_integrations.envelope import Envelope
from greedylr_integrations.learned import Policy, PolicyConfig, PolicyController
from greedylr_integrations.rules import GreedyConfig
from recipes.nmf.problem import Factorization

TRIALS = 12
Schedule = Callable[[int, float], float]


@dataclass(frozen=True)
class Run:
    """What a schedule is made for."""

    factorization: Factorization
    steps: int
    policy: Policy | None


@dataclass(frozen=True)
class Method:
    """A schedule, the settings to tune it over, and whether the bound caps its LR."""

    build: Callable[..., Schedule]
    trials: tuple[dict[str, Any], ...] = ({},)
    cap: bool = False


def constant(run: Run, peak: float) -> Schedule:
    lr = peak * run.factorization.bound
    return lambda step, loss: lr


def step_decay(run: Run, peak: float, factor: float, at: tuple[float, ...]) -> Schedule:
    lr = peak * run.factorization.bound
    return lambda step, loss: lr * factor ** sum(step >= share * run.steps for share in at)


def cosine(run: Run, peak: float) -> Schedule:
    lr = peak * run.factorization.bound
    return lambda step, loss: lr * (1 + math.cos(math.pi * step / run.steps)) / 2


def greedy(run: Run, peak: float) -> Schedule:
    controller = GreedyController(GreedyConfig(on_nonfinite="hold"), horizon=run.steps)
    return _controlled(controller, peak * run.factorization.bound, Envelope(total_steps=run.steps))


def at_the_bound(run: Run) -> Schedule:
    return lambda step, loss: run.factorization.bound


def cosine_of_the_bound(run: Run, peak: float) -> Schedule:
    return lambda step, loss: run.factorization.bound * min(1.0, peak * (1 + math.cos(math.pi * step / run.steps)) / 2)


def learned(run: Run) -> Schedule:
    assert run.policy
    controller = PolicyController(PolicyConfig(policy=run.policy, on_nonfinite="hold"), horizon=run.steps)
    base_lr = run.factorization.bound
    lr = _controlled(controller, base_lr, Envelope(total_steps=run.steps, decay_ratio=controller.decay_ratio))

    def limited(step: int, loss: float) -> float:
        controller.limit(run.factorization.bound / base_lr)
        return lr(step, loss)

    return limited


def _controlled(controller: GreedyController, base_lr: float, envelope: Envelope) -> Schedule:
    def lr(step: int, loss: float) -> float:
        if step:
            controller.observe(loss)
        return base_lr * controller.scales[0] * envelope(step)

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
