"""The workloads of the fresh half whose data is text or a series. `fresh` says how they were made."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F

from benchmarks.search import data, fresh_data
from benchmarks.search.workload import SYMBOLS, Batch, Rows, Text, Weights, next_token, normal, pretrained


class TitlesDilated(Text):
    """Gated convolutions over titles of films, each over two characters, twice as far apart as in the one before."""

    name, family, optimizer, lr, batch, clip = "titles-dilated", "titles-dilated", "adamw", 1e-2, 8, 1.0
    length: ClassVar[int] = 12
    width: ClassVar[int] = 18

    def text(self) -> data.Pair:
        return fresh_data.titles()

    def start(self, g: torch.Generator) -> Weights:
        d = self.width
        w = {"symbols": normal(g, SYMBOLS, d, scale=0.5), "out": normal(g, d, SYMBOLS, scale=0.02)}
        for i in range(3):
            w |= {f"two{i}": normal(g, 2 * d, 2 * d), f"mix{i}": normal(g, d, d)}
        return w

    def loss(self, w: Weights, *batch: torch.Tensor) -> torch.Tensor:
        (x,) = batch
        h = w["symbols"][x[:, :-1]]
        for i in range(3):
            before = F.pad(h, (0, 0, 2**i, 0))[:, : self.length]
            a, b = (torch.cat([before, h], -1) @ w[f"two{i}"]).chunk(2, -1)
            h = h + torch.tanh(a) * torch.sigmoid(b) @ w[f"mix{i}"]
        return next_token(h @ w["out"], x)


class HamletFinetuning(TitlesDilated):
    """The same model, trained on titles for 800 steps, continues with Hamlet."""

    name, family, lr = "hamlet-finetuning", "hamlet-finetuning", 5e-3

    def text(self) -> data.Pair:
        return fresh_data.hamlet()

    def start(self, g: torch.Generator) -> Weights:
        return {name: tensor.clone() for name, tensor in pretrained(TitlesDilated, 1e-2, 800).items()}


class ReviewsLstm(Text):
    """Long short-term memory over reviews of films."""

    name, family, optimizer, lr, batch, clip = "reviews-lstm", "reviews-lstm", "sgd", 0.3, 8, 1.0
    length: ClassVar[int] = 12
    width: ClassVar[int] = 20

    def text(self) -> data.Pair:
        return fresh_data.reviews()

    def start(self, g: torch.Generator) -> Weights:
        d = self.width
        return {
            "symbols": normal(g, SYMBOLS, 16),
            "in": normal(g, 16, 4 * d),
            "back": normal(g, d, 4 * d),
            "bias": torch.cat([torch.ones(d), torch.zeros(3 * d)]),  # it begins by remembering
            "out": normal(g, d, SYMBOLS),
        }

    def loss(self, w: Weights, *batch: torch.Tensor) -> torch.Tensor:
        (x,) = batch
        ins = (w["symbols"][x[:, :-1]] @ w["in"] + w["bias"]).unbind(1)
        h = c = torch.zeros_like(ins[0][:, : self.width])
        hs = []
        for step in ins:
            forget, write, read, new = (step + h @ w["back"]).chunk(4, -1)
            c = torch.sigmoid(forget) * c + torch.sigmoid(write) * torch.tanh(new)
            h = torch.sigmoid(read) * torch.tanh(c)
            hs.append(h)
        return next_token(torch.stack(hs, 1) @ w["out"], x)


class DemandQuantiles(Rows):
    """Five quantiles of the demand for electricity in six hours, by a highway network."""

    name, family, optimizer, lr, batch = "demand-quantiles", "demand-quantiles", "rmsprop", 1e-2, 16
    quantiles = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])

    def start(self, g: torch.Generator) -> Weights:
        w = {"in": normal(g, 29, 24), "out": normal(g, 24, 5), "bias": torch.zeros(5)}
        for i in range(3):
            w |= {f"new{i}": normal(g, 24, 24), f"gate{i}": normal(g, 24, 24), f"gate_bias{i}": torch.full((24,), -1.0)}
        return w

    def sides(self) -> tuple[Batch, Batch]:
        return fresh_data.demand()

    def loss(self, w: Weights, *batch: torch.Tensor) -> torch.Tensor:
        x, y = batch
        h = x @ w["in"]
        for i in range(3):
            gate = torch.sigmoid(h @ w[f"gate{i}"] + w[f"gate_bias{i}"])
            h = gate * F.relu(h @ w[f"new{i}"]) + (1 - gate) * h
        above = y[:, None] - (h @ w["out"] + w["bias"])
        return torch.maximum(self.quantiles * above, (self.quantiles - 1) * above).mean()
