"""Workloads of the tuning half whose slopes are noisy: small batches, plateaus, Adagrad, synthetic data."""

from __future__ import annotations

from bisect import bisect
from functools import cache
from typing import ClassVar

import torch
import torch.nn.functional as F

from benchmarks.search import tuning
from benchmarks.search.workload import Batch, Weights, Workload, normal

ROWS, VALIDATION = 60_000, 2_000


def uniform(g: torch.Generator, *shape: int) -> torch.Tensor:
    """Weights drawn like the initial ones of torch's layers."""
    return (torch.rand(*shape, generator=g) * 2 - 1) * shape[0] ** -0.5


def layers(g: torch.Generator, **shapes: tuple[int, int]) -> Weights:
    """A matrix of each shape, each with a bias of 0."""
    w: Weights = {}
    for name, shape in shapes.items():
        w |= {name: uniform(g, *shape), f"{name}_bias": torch.zeros(shape[1])}
    return w


class Deep(tuning.FashionMlp):
    """Six layers with torch's initialization: training starts on a plateau."""

    name, family, lr, batch = "deep", "deep", 0.03, 8
    widths: ClassVar[tuple[int, ...]] = (784, 48, 48, 48, 48, 48, 10)

    def start(self, g: torch.Generator) -> Weights:
        w: Weights = {}
        for i, shape in enumerate(zip(self.widths, self.widths[1:], strict=False)):
            w[f"w{i}"] = uniform(g, *shape)
            w[f"b{i}"] = uniform(g, *shape)[0].clone()
        return w

    def loss(self, w: Weights, *batch: torch.Tensor) -> torch.Tensor:
        x, y = batch
        h = x.flatten(1)
        for i in range(6):
            h = h @ w[f"w{i}"] + w[f"b{i}"]
            h = F.relu(h) if i < 5 else h
        return F.cross_entropy(h, y)


def patches(side: int, kernel: int, stride: int, channels: int) -> torch.Tensor:
    """Places of the inputs of a convolution, one row for each output."""
    outputs = range((side - kernel) // stride + 1)
    return torch.tensor(
        [
            [
                ((i * stride + a) * side + j * stride + b) * channels + c
                for a in range(kernel)
                for b in range(kernel)
                for c in range(channels)
            ]
            for i in outputs
            for j in outputs
        ]
    )


class Cnn(tuning.FashionMlp):
    """Two convolutions, as matrix products of patches, with batches of 8."""

    name, family, lr, batch = "cnn", "cnn", 0.03, 8
    one, two = patches(28, 4, 2, 1), patches(13, 3, 2, 8)

    def start(self, g: torch.Generator) -> Weights:
        return layers(g, one=(16, 8), two=(72, 12), out=(432, 10))

    def loss(self, w: Weights, *batch: torch.Tensor) -> torch.Tensor:
        x, y = batch
        h = F.relu(x.flatten(1)[:, self.one] @ w["one"] + w["one_bias"]).flatten(1)
        h = F.relu(h[:, self.two] @ w["two"] + w["two_bias"]).flatten(1)
        return F.cross_entropy(h @ w["out"] + w["out_bias"], y)


class Softmax(tuning.FashionMlp):
    """Softmax regression."""

    name, family, lr, batch = "softmax", "softmax", 0.01, 32

    def start(self, g: torch.Generator) -> Weights:
        return {"out": torch.zeros(784, 10), "out_bias": torch.zeros(10)}

    def loss(self, w: Weights, *batch: torch.Tensor) -> torch.Tensor:
        x, y = batch
        return F.cross_entropy(x.flatten(1) @ w["out"] + w["out_bias"], y)


class DiamondsRmsprop(tuning.DiamondsMlp):
    """The price of a diamond, by RMSprop."""

    name, family, optimizer, lr, batch = "diamonds-rmsprop", "diamonds-rmsprop", "rmsprop", 3e-3, 16


class Synthetic(Workload):
    """Data from a random teacher; its last rows are for validation."""

    @classmethod
    def make(cls, g: torch.Generator) -> Batch:
        """All rows."""
        raise NotImplementedError

    @classmethod
    @cache
    def all_rows(cls) -> Batch:
        return cls.make(torch.Generator().manual_seed(5))

    def rows(self) -> int:
        return ROWS

    def examine(self, rows: torch.Tensor, progress: float, g: torch.Generator | None) -> Batch:
        return tuple(tensor[rows] for tensor in self.all_rows())

    def validation(self) -> Batch:
        return tuple(tensor[-VALIDATION:] for tensor in self.all_rows())


class Clicks(Synthetic):
    """Clicks that depend on pairs of five categories, by embeddings and two layers."""

    name, family, optimizer, lr, batch = "clicks", "clicks", "adagrad", 0.1, 32
    fields, values, width = 5, 300, 6

    @classmethod
    def make(cls, g: torch.Generator) -> Batch:
        count = ROWS + VALIDATION
        often = 1 / (torch.arange(cls.values) + 3.0)
        x = torch.multinomial(often, count * cls.fields, replacement=True, generator=g).view(count, cls.fields)
        teacher = torch.randn(cls.fields, cls.values, 4, generator=g)
        e = torch.stack([teacher[i][x[:, i]] for i in range(cls.fields)], 1)
        pairs = (e.sum(1) ** 2 - (e**2).sum(1)).sum(1)
        chance = torch.sigmoid(0.25 * pairs + 0.5 * e[:, :, 0].sum(1) - 1)
        return x, (torch.rand(count, generator=g) < chance).float()

    def start(self, g: torch.Generator) -> Weights:
        return {
            "categories": 0.1 * torch.randn(self.fields * self.values, self.width, generator=g),
            "one": 1.4 * normal(g, self.fields * self.width, 24),
            "one_bias": torch.zeros(24),
            "two": 1.4 * normal(g, 24, 24),
            "two_bias": torch.zeros(24),
            "out": normal(g, 24, 1),
            "out_bias": torch.zeros(1),
        }

    def loss(self, w: Weights, *batch: torch.Tensor) -> torch.Tensor:
        x, y = batch
        h = w["categories"][x + torch.arange(self.fields) * self.values].flatten(1)
        h = F.relu(h @ w["one"] + w["one_bias"])
        h = F.relu(h @ w["two"] + w["two_bias"])
        return F.binary_cross_entropy_with_logits((h @ w["out"] + w["out_bias"]).squeeze(-1), y)


class Markov(Synthetic):
    """The next symbol of a Markov chain of the second order, from the last three."""

    name, family, optimizer, lr, batch = "markov", "markov", "adamw", 5e-3, 32
    symbols = 24

    @classmethod
    def make(cls, g: torch.Generator) -> Batch:
        n, count = cls.symbols, ROWS + VALIDATION + 3
        chances = torch.softmax(1.6 * torch.randn(n, n, n, generator=g), -1).cumsum(-1).tolist()
        text = [0, 1]
        for draw in torch.rand(count, generator=g).tolist()[: count - 2]:
            text.append(min(n - 1, bisect(chances[text[-2]][text[-1]], draw)))
        t = torch.tensor(text)
        return torch.stack([t[:-3], t[1:-2], t[2:-1]], 1), t[3:]

    def start(self, g: torch.Generator) -> Weights:
        return {
            "symbols": 0.5 * torch.randn(self.symbols, 12, generator=g),
            "one": 1.4 * normal(g, 36, 64),
            "one_bias": torch.zeros(64),
            "out": 0.1 * normal(g, 64, self.symbols),
            "out_bias": torch.zeros(self.symbols),
        }

    def loss(self, w: Weights, *batch: torch.Tensor) -> torch.Tensor:
        x, y = batch
        h = F.relu(w["symbols"][x].flatten(1) @ w["one"] + w["one_bias"])
        return F.cross_entropy(h @ w["out"] + w["out_bias"], y)


class Teacher(Synthetic):
    """A noisy function of 24 numbers of different sizes, by two layers of tanh."""

    name, family, optimizer, lr, batch = "teacher", "teacher", "sgd", 0.03, 16

    @classmethod
    def make(cls, g: torch.Generator) -> Batch:
        count = ROWS + VALIDATION
        x = torch.randn(count, 24, generator=g) * torch.linspace(0.2, 2, 24)
        z = x @ (torch.randn(24, 6, generator=g) * 24**-0.5)
        y = torch.tanh(2 * z[:, 0]) * z[:, 1] + torch.sin(2 * z[:, 2]) + 0.5 * z[:, 3:].sum(1)
        return x, y + 0.3 * torch.randn(count, generator=g)

    def start(self, g: torch.Generator) -> Weights:
        return layers(g, one=(24, 48), two=(48, 48), out=(48, 1))

    def loss(self, w: Weights, *batch: torch.Tensor) -> torch.Tensor:
        x, y = batch
        h = torch.tanh(x @ w["one"] + w["one_bias"])
        h = torch.tanh(h @ w["two"] + w["two_bias"])
        return F.mse_loss((h @ w["out"] + w["out_bias"]).squeeze(-1), y)


class TeacherAdamw(Teacher):
    """The same by AdamW with batches of 4."""

    name, family, optimizer, lr, batch = "teacher-adamw", "teacher-adamw", "adamw", 3e-3, 4


class Counting(Synthetic):
    """How often two symbols occur in twelve, by one layer of attention."""

    name, family, optimizer, lr, batch = "counting", "counting", "adamw", 3e-3, 16

    @classmethod
    def make(cls, g: torch.Generator) -> Batch:
        x = torch.randint(0, 16, (ROWS + VALIDATION, 12), generator=g)
        return x, ((x == 3).sum(1) + 2 * (x[:, :6] == 5).sum(1)).clamp(max=5)

    def start(self, g: torch.Generator) -> Weights:
        return {
            "symbols": 0.3 * torch.randn(16, 16, generator=g),
            "places": 0.3 * torch.randn(12, 16, generator=g),
            "query": normal(g, 16, 16),
            "key": normal(g, 16, 16),
            "value": normal(g, 16, 32),
            "one": 1.4 * normal(g, 32, 32),
            "one_bias": torch.zeros(32),
            "out": 0.1 * normal(g, 32, 6),
        }

    def loss(self, w: Weights, *batch: torch.Tensor) -> torch.Tensor:
        x, y = batch
        h = w["symbols"][x] + w["places"]
        near = ((h @ w["query"]) @ (h @ w["key"]).mT / 4).softmax(-1)
        h = F.relu(near @ (h @ w["value"])).mean(1)
        return F.cross_entropy(F.relu(h @ w["one"] + w["one_bias"]) @ w["out"], y)


WORKLOADS = (
    Deep(),
    Cnn(),
    Softmax(),
    DiamondsRmsprop(),
    Clicks(),
    Markov(),
    Teacher(),
    TeacherAdamw(),
    Counting(),
    tuning.FashionMlp(),
    tuning.DiamondsMlp(),
)
