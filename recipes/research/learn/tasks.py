"""What a schedule is learned on: a family of tasks, from which each episode draws one training run."""

from __future__ import annotations

from importlib import import_module
from typing import Protocol

import numpy as np

from recipes.common.offline import RecipeError


class Episode(Protocol):
    """One training run, from its start.

    It may also have a method `twin()`, which returns an `Episode`: the same run from its current state, with the same
    batches to come.

    Attributes:
        base_lr (float): LR at scale 1, which the run starts with.
        steps (int): optimizer steps of the run.
    """

    base_lr: float
    steps: int

    def advance(self, lr: float) -> float:
        """Take one optimizer step. Returns the training loss before it; NaN or infinite if the run has diverged."""
        ...

    def bound(self) -> float | None:
        """Highest LR for which the next step is stable, or None if it is not known."""
        ...

    def validation_loss(self) -> float:
        """Current loss on data that `advance` does not train on."""
        ...


class TaskFamily(Protocol):
    """Tasks that one policy is meant for.

    It may override the fields of `environment.Settings`, such as `decay_ratio`: the share of a run over which the LR
    decays linearly to 0, whatever the policy does.

    Attributes:
        name (str): name of the policy.
    """

    name: str

    def sample(self, rng: np.random.Generator) -> Episode:
        """Draw a run. All of its randomness comes from `rng`."""
        ...


FAMILIES = {
    "network": "recipes.research.learn.networks:Networks",
    "nmf": "recipes.research.nmf.tasks:NMF",
    "quadratic": "recipes.research.learn.tasks:Quadratics",
}


def family(name: str) -> TaskFamily:
    """A task family by name, imported when it is asked for. RecipeError if the name is unknown."""
    if name not in FAMILIES:
        raise RecipeError(f"--family {name!r} is unknown: choose from {', '.join(FAMILIES)}")
    module, maker = FAMILIES[name].split(":")
    return getattr(import_module(module), maker)()


class Quadratics:
    """The simplest family, for trials and tests: noisy gradients of sum(curvature x^2) / 2 in a few dimensions."""

    name = "quadratic"

    def sample(self, rng: np.random.Generator) -> Quadratic:
        return Quadratic(rng)


class Quadratic:
    """One run on a quadratic; see `Episode`."""

    def __init__(self, rng: np.random.Generator, steps: int = 100) -> None:
        self.steps = steps
        self._rng = rng
        self._curvature = 10 ** rng.uniform(-1, 0, size=8)
        self._x = rng.normal(size=8)
        self._noise = 10 ** rng.uniform(-2, 0)
        self.base_lr = 10 ** rng.uniform(-2, 0)

    def advance(self, lr: float) -> float:
        loss = self.validation_loss()
        gradient = self._curvature * self._x + self._noise * self._rng.normal(size=8)
        self._x = self._x - lr * gradient
        return loss

    def bound(self) -> float | None:
        return 2 / self._curvature.max()

    def validation_loss(self) -> float:
        return float(self._curvature @ self._x**2 / 2)
