"""NMF as a family of tasks that a schedule is learned on."""

from __future__ import annotations

import numpy as np

from recipes.nmf.problem import Factorization, planted, reuters


class Episode:
    """A factorization; the LR starts at its bound, and neither factor exceeds its own."""

    def __init__(self, factorization: Factorization, steps: int) -> None:
        self.factorization, self.steps = factorization, steps
        self.base_lr = factorization.bound

    def advance(self, lr: float) -> float:
        return self.factorization.step(lr)

    def bound(self) -> float:
        return self.factorization.bound

    def validation_loss(self) -> float:
        """Of the whole matrix: a step sees the loss of a few rows."""
        return self.factorization.loss()


class NMF:
    """Planted matrices of many shapes, ranks and noises, and parts of the Reuters counts; 100 to 300 steps."""

    name = "nmf"

    def sample(self, rng: np.random.Generator) -> Episode:
        seed, rank, batch = int(rng.integers(2**31)), int(rng.integers(3, 11)), int(rng.integers(4, 33))
        if rng.random() < 0.8:
            matrix = planted(
                seed,
                *map(int, rng.integers(60, 201, size=2)),
                rank=rank,
                hidden=int(rng.integers(0, 31)),
                noise=10 ** rng.uniform(-1, 0.3),
                density=rng.uniform(0.3, 1.0),
                spread=rng.uniform(0.0, 1.0),
                batch=batch,
            )
        else:
            matrix = reuters().part(rng, rows=200, columns=150, rank=rank, batch=batch)
        return Episode(Factorization(matrix, seed), steps=int(rng.integers(100, 301)))
