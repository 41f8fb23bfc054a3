"""NMF as a family of tasks to learn a schedule on."""

from __future__ import annotations

import copy

import numpy as np

from recipes.research.nmf.problem import Factorization, planted, reuters


class Episode:
    """A factorization. The LR starts at its bound, and is capped at the bound of each factor."""

    def __init__(self, factorization: Factorization, steps: int) -> None:
        self.factorization, self.steps = factorization, steps
        self.base_lr = factorization.bound

    def advance(self, lr: float) -> float:
        return self.factorization.step(lr)

    def bound(self) -> float:
        return self.factorization.bound

    def validation_loss(self) -> float:
        """Loss of the whole matrix; a step sees only the loss of a few rows."""
        return self.factorization.loss()

    def twin(self) -> Episode:
        """The same run from this state, with the same batches to come."""
        return Episode(copy.deepcopy(self.factorization), self.steps)


class NMF:
    """Planted matrices of many shapes, ranks and noises, and parts of the Reuters counts; 150 to 400 steps."""

    name = "nmf"
    decay_ratio = 0.15
    blocks = 20

    def sample(self, rng: np.random.Generator) -> Episode:
        def between(low: float, high: float) -> int:
            """An integer, log-uniformly distributed."""
            return round(np.exp(rng.uniform(np.log(low), np.log(high))))

        seed, rank, steps = int(rng.integers(2**31)), int(rng.integers(3, 13)), int(rng.integers(150, 401))
        if rng.random() < 0.7:
            rows, columns = between(60, 1500), between(30, 400)
            matrix = planted(
                seed,
                rows,
                columns,
                rank=rank,
                hidden=int(rng.integers(0, 31)) * int(rng.integers(2)),
                noise=10 ** rng.uniform(-1.3, 0.3),
                density=rng.uniform(0.3, 1.0),
                spread=rng.uniform(0.0, 1.2),
                batch=min(between(6, 64), rows // 4),
            )
        else:
            rows, columns = between(100, 300), between(100, 500)
            matrix = reuters().part(rng, rows, columns, rank, between(6, 40))
        return Episode(Factorization(matrix, seed), steps)
