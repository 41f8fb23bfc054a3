"""What a schedule is learned on: a family of tasks, from which each episode draws one training run."""

from __future__ import annotations

from importlib import import_module
from typing import Protocol

import numpy as np

from recipes.common.offline import RecipeError


class Episode(Protocol):
    """One training run, from its start.

    Attributes:
        base_lr: LR at scale 1, with which it starts.
        steps: optimizer steps that it has.
    """

    base_lr: float
    steps: int

    def advance(self, lr: float) -> float:
        """One optimizer step with this LR; its training loss, before the step. NaN or infinite: it has diverged."""
        ...

    def bound(self) -> float | None:
        """Highest LR with which the next step is stable; None where none is known."""
        ...

    def validation_loss(self) -> float:
        """Loss now on data that `advance` does not see."""
        ...

    # twin() -> Episode, if there is one: the same run from its state now, with the same batches to come


class TaskFamily(Protocol):
    """Tasks that one policy shall serve. `name` is that of the policy; all randomness of an episode is from `rng`.

    It may have settings of its own, by the names of `environment.Settings`, such as `decay_ratio`: the share of a run
    over which the LR decays linearly to 0, whatever the policy does.
    """

    name: str

    def sample(self, rng: np.random.Generator) -> Episode: ...


FAMILIES = {
    "network": "recipes.learn.networks:Networks",
    "nmf": "recipes.nmf.tasks:NMF",
    "quadratic": "recipes.learn.tasks:Quadratics",
}


def family(name: str) -> TaskFamily:
    """A task family by name, imported only now; RecipeError for another name."""
    if name not in FAMILIES:
        raise RecipeError(f"--family {name!r} is unknown: choose from {', '.join(FAMILIES)}")
    module, maker = FAMILIES[name].split(":")
    return getattr(import_module(module), maker)()


class Quadratics:
    """The simplest family, for trials and tests: noisy gradients of sum(curvature x^2) / 2, in a few dimensions."""

    name = "quadratic"

    def sample(self, rng: np.random.Generator) -> Quadratic:
        return Quadratic(rng)


class Quadratic:
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
