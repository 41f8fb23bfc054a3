"""Optimizers as functions of many runs at once, and torch's own for one run.

All weights of a run are one row of a table, so that a step is a few operations on the whole table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch


@dataclass
class Table:
    """Weights of many runs, one per row, and the state of their optimizer.

    Attributes:
        names, shapes: of the tensors that a row is made of, in order.
    """

    weights: torch.Tensor
    names: list[str]
    shapes: list[torch.Size]
    first: torch.Tensor = field(init=False)
    second: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.first, self.second = torch.zeros_like(self.weights), torch.zeros_like(self.weights)

    def tensors(self, table: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Views of the rows as the tensors that the model knows, each with the runs as its first dimension."""
        table = self.weights if table is None else table
        parts = table.split([shape.numel() for shape in self.shapes], 1)
        return {n: p.view(-1, *s) for n, p, s in zip(self.names, parts, self.shapes, strict=True)}

    def keep(self, rows: torch.Tensor) -> None:
        """Keep only some of the runs."""
        self.weights, self.first, self.second = self.weights[rows], self.first[rows], self.second[rows]


Step = Callable[[Table, torch.Tensor, torch.Tensor, int], None]


def sgd(table: Table, gradient: torch.Tensor, lr: torch.Tensor, t: int) -> None:
    """Momentum of 0.9."""
    table.first.mul_(0.9).add_(gradient)
    table.weights.sub_(lr[:, None] * table.first)


def plain_sgd(table: Table, gradient: torch.Tensor, lr: torch.Tensor, t: int) -> None:
    table.weights.sub_(lr[:, None] * gradient)


def adagrad(table: Table, gradient: torch.Tensor, lr: torch.Tensor, t: int) -> None:
    table.second.addcmul_(gradient, gradient)
    table.weights.sub_(lr[:, None] * gradient / table.second.sqrt().add_(1e-10))


def rmsprop(table: Table, gradient: torch.Tensor, lr: torch.Tensor, t: int) -> None:
    table.second.mul_(0.99).addcmul_(gradient, gradient, value=0.01)
    table.weights.sub_(lr[:, None] * gradient / table.second.sqrt().add_(1e-8))


def adamw(table: Table, gradient: torch.Tensor, lr: torch.Tensor, t: int) -> None:
    """Like torch's: betas of 0.9 and 0.999, weight decay of 0.01."""
    table.weights.mul_(1 - 0.01 * lr[:, None])
    table.first.lerp_(gradient, 0.1)
    table.second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
    below = table.second.sqrt().div_((1 - 0.999 ** (t + 1)) ** 0.5).add_(1e-8)
    table.weights.sub_(lr[:, None] / (1 - 0.9 ** (t + 1)) * table.first / below)


EDGES = ("symbols", "places", "head", "patches")  # what Muon leaves to AdamW, at a tenth of the LR


def muon(table: Table, gradient: torch.Tensor, lr: torch.Tensor, t: int) -> None:
    """Orthogonal steps of the hidden matrices, momentum of 0.95; AdamW for the rest."""
    before = table.weights.clone()
    momentum = table.first.clone()
    adamw(table, gradient, 0.1 * lr, t)
    matrices = [n for n, s in zip(table.names, table.shapes, strict=True) if len(s) == 2 and n not in EDGES]
    views, old, g = table.tensors(), table.tensors(before), table.tensors(gradient)
    first, m = table.tensors(table.first), table.tensors(momentum)
    for name in matrices:
        first[name].copy_(m[name].mul_(0.95).add_(g[name]))
        rows, columns = m[name].shape[-2:]
        step = _orthogonal(g[name] + 0.95 * first[name]) * max(1.0, rows / columns) ** 0.5
        views[name].copy_(old[name] - lr[:, None, None] * step)


def _orthogonal(x: torch.Tensor) -> torch.Tensor:
    """Approximately the nearest matrices with singular values of 1, by five Newton-Schulz steps."""
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x


OPTIMIZERS: dict[str, Step] = {
    "sgd": sgd,
    "plain sgd": plain_sgd,
    "adagrad": adagrad,
    "rmsprop": rmsprop,
    "adamw": adamw,
    "muon": muon,
}


def of_torch(name: str, parameters: Iterable[torch.nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """The same optimizer for one run; Muon is not available here."""
    make: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "sgd": lambda p: torch.optim.SGD(p, lr=lr, momentum=0.9),
        "plain sgd": lambda p: torch.optim.SGD(p, lr=lr),
        "adagrad": lambda p: torch.optim.Adagrad(p, lr=lr),
        "rmsprop": lambda p: torch.optim.RMSprop(p, lr=lr),
        "adamw": lambda p: torch.optim.AdamW(p, lr=lr),
    }
    return make[name](parameters)
