"""What a workload of the search suite is: a model as a function of its weights, its data, its optimizer."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import cache, lru_cache
from typing import ClassVar

import torch
import torch.nn.functional as F

from benchmarks.search import data
from benchmarks.search.optimizers import of_torch

SYMBOLS = len(data.SYMBOLS) + 1  # of a text; the last is any other character

Weights = dict[str, torch.Tensor]
Batch = tuple[torch.Tensor, ...]


class Workload(ABC):
    """A small training. The model is a function of its weights, so that many runs can be trained at once.

    Attributes:
        name: as in the tables.
        family: workloads of the same data and model, which are resampled together.
        optimizer: name in `optimizers.OPTIMIZERS`.
        lr: roughly the tuned LR; the grid of LRs starts there and moves if it must.
        batch: examples per batch.
        clip: largest norm of the gradient; 0 for none.
        epochs: passes over the data in a run. If 1, all data is new.
        examples: size of the data if it is smaller than what a run needs, so that the number of passes follows from it.
    """

    name: ClassVar[str]
    family: ClassVar[str]
    optimizer: ClassVar[str]
    lr: ClassVar[float]
    batch: ClassVar[int]
    clip: ClassVar[float] = 0.0
    epochs: ClassVar[int] = 1
    examples: ClassVar[int | None] = None

    @abstractmethod
    def start(self, g: torch.Generator) -> Weights:
        """Weights at the start."""

    @abstractmethod
    def rows(self) -> int:
        """How many different examples there are to draw from."""

    @abstractmethod
    def examine(self, rows: torch.Tensor, progress: float, g: torch.Generator | None) -> Batch:
        """The examples of some rows. `progress` is the share of the run that is done; `g` is None at validation."""

    @abstractmethod
    def loss(self, w: Weights, *batch: torch.Tensor) -> torch.Tensor:
        """Mean loss of one batch."""

    @abstractmethod
    def validation(self) -> Batch:
        """What the final loss is computed on."""

    @property
    def depends_on_length(self) -> bool:
        """Whether runs of different lengths have different data."""
        return self.epochs > 1

    def steps_per_epoch(self, steps: int) -> int | None:
        """Steps of one pass over the data, which is what the user knows. None if all data is new."""
        if self.examples is not None:
            return max(1, self.examples // self.batch)
        return None if self.epochs == 1 else math.ceil(steps / self.epochs)

    def draw(self, seed: int, step: int, steps: int) -> Batch:
        """The batch of a step of the run with this seed."""
        g = torch.Generator().manual_seed(1_000_003 * (seed + 1) + step)
        per_epoch = self.steps_per_epoch(steps)
        if per_epoch is None:
            rows = torch.randint(self.rows(), (self.batch,), generator=g)
        else:
            epoch, place = divmod(step, per_epoch)
            order = _order(seed, epoch, per_epoch * self.batch)
            rows = order[place * self.batch : (place + 1) * self.batch]
            if self.examples is None:
                rows = _some(seed, self.rows())[rows]
        return self.examine(rows, step / steps, g)


class Rows(Workload):
    """Examples that are rows of tensors."""

    def sides(self) -> tuple[Batch, Batch]:
        """What to train on, what to validate on."""
        raise NotImplementedError

    def rows(self) -> int:
        return len(self.sides()[0][0])

    def examine(self, rows: torch.Tensor, progress: float, g: torch.Generator | None) -> Batch:
        return tuple(tensor[rows] for tensor in self.sides()[0])

    def validation(self) -> Batch:
        return self.sides()[1]


@lru_cache(maxsize=64)
def _order(seed: int, epoch: int, count: int) -> torch.Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(7_919 * (seed + 1) + epoch))


@lru_cache(maxsize=16)
def _some(seed: int, count: int) -> torch.Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(104_729 * (seed + 1)))


@cache
def pretrained(make: type[Workload], lr: float, steps: int) -> Weights:
    """The weights that a workload ends with if it is trained with warmup-stable-decay."""
    workload = make()
    w = {name: tensor.requires_grad_() for name, tensor in workload.start(torch.Generator().manual_seed(77)).items()}
    optimizer = of_torch(workload.optimizer, w.values(), lr)  # type: ignore[arg-type]
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / (0.02 * steps), (steps - step) / (0.3 * steps))
        optimizer.zero_grad()
        workload.loss(w, *workload.draw(77, 2 * step, steps)).backward()
        optimizer.step()
    return {name: tensor.detach() for name, tensor in w.items()}


# ---- parts of models and data ----


def normal(g: torch.Generator, *shape: int, scale: float | None = None) -> torch.Tensor:
    """Random weights; by default, scaled so that activations keep their size."""
    return torch.randn(*shape, generator=g) * (shape[-2] ** -0.5 if scale is None else scale)


class Text(Workload):
    """The next character of a text, in windows."""

    length: ClassVar[int] = 16

    def text(self) -> data.Pair:
        raise NotImplementedError

    def rows(self) -> int:
        return len(self.text()[0]) - self.length - 1

    def examine(self, rows: torch.Tensor, progress: float, g: torch.Generator | None) -> Batch:
        return (windows(self.text()[0], rows, self.length),)

    def validation(self) -> Batch:
        return (spread(self.text()[1], self.length, 200),)


def windows(text: torch.Tensor, starts: torch.Tensor, length: int) -> torch.Tensor:
    """Windows of a text that begin at `starts`, plus one more character, to be predicted."""
    return text[starts[..., None] + torch.arange(length + 1)]


def spread(text: torch.Tensor, length: int, count: int) -> torch.Tensor:
    """Evenly spaced windows."""
    return windows(text, torch.linspace(0, len(text) - length - 2, count).long(), length)


def next_token(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of predicting each token but the first."""
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
