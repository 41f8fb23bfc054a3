"""The workloads of the held-out half whose data is text."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F

from benchmarks.search import data
from benchmarks.search.workload import SYMBOLS, Batch, Text, Weights, Workload, next_token, normal


class TweetsGru(Text):
    """A gated recurrent unit over tweets."""

    name, family, optimizer, lr, batch, clip = "tweets-gru", "tweets-gru", "adamw", 3e-2, 6, 1.0
    length: ClassVar[int] = 12
    width: ClassVar[int] = 24

    def text(self) -> data.Pair:
        return data.tweets()

    def start(self, g: torch.Generator) -> Weights:
        d = self.width
        return {
            "symbols": normal(g, SYMBOLS, 16, scale=0.5),
            "in": normal(g, 16, 3 * d),
            "in_bias": torch.zeros(3 * d),
            "back": normal(g, d, 3 * d),
            "out": normal(g, d, SYMBOLS, scale=0.02),
        }

    def loss(self, w: Weights, *batch: torch.Tensor) -> torch.Tensor:
        (x,) = batch
        ins = (w["symbols"][x[:, :-1]] @ w["in"] + w["in_bias"]).unbind(1)
        h, hs = torch.zeros_like(ins[0][:, : self.width]), []
        for step in ins:
            back = h @ w["back"]
            (r, z, n), (br, bz, bn) = step.chunk(3, -1), back.chunk(3, -1)
            z = torch.sigmoid(z + bz)
            h = z * h + (1 - z) * torch.tanh(n + torch.sigmoid(r + br) * bn)
            hs.append(h)
        return next_token(torch.stack(hs, 1) @ w["out"], x)


class TweetsGruEpochs(TweetsGru):
    """The same in three passes over a third of the data."""

    name, epochs = "tweets-gru, 3 epochs", 3


class ChatsAttention(Text):
    """Attention without a softmax, over chats, with batches of two windows."""

    name, family, optimizer, lr, batch, clip = "chats-attention", "chats-attention", "adamw", 2e-2, 2, 1.0
    length: ClassVar[int] = 24
    width: ClassVar[int] = 24

    def text(self) -> data.Pair:
        return data.chats()

    def start(self, g: torch.Generator) -> Weights:
        d = self.width
        return {
            "symbols": normal(g, SYMBOLS, d, scale=0.3),
            "places": normal(g, self.length, d, scale=0.1),
            "qkv": normal(g, d, 3 * d),
            "mix": normal(g, d, d),
            "gate": normal(g, d, 2 * d),
            "down": normal(g, d, d),
            "out": normal(g, d, SYMBOLS, scale=0.02),
        }

    def loss(self, w: Weights, *batch: torch.Tensor) -> torch.Tensor:
        (x,) = batch
        h = w["symbols"][x[:, :-1]] + w["places"]
        q, k, v = (h @ w["qkv"]).chunk(3, -1)
        near = (F.elu(q) + 1) @ (F.elu(k) + 1).mT
        near = near.tril()
        h = h + (near / near.sum(-1, keepdim=True).clamp(min=1e-6)) @ v @ w["mix"]
        a, b = (h @ w["gate"]).chunk(2, -1)
        h = h + (F.silu(a) * b) @ w["down"]
        return next_token(h @ w["out"], x)


class SpeechesRecurrence(Text):
    """A linear recurrence with a decay for each channel, over speeches; one batch in 30 is noise."""

    name, family, optimizer, lr, batch, clip = "speeches-recurrence", "speeches-recurrence", "adamw", 3e-2, 6, 1.0
    width: ClassVar[int] = 24

    def text(self) -> data.Pair:
        return data.speeches()

    def examine(self, rows: torch.Tensor, progress: float, g: torch.Generator | None) -> Batch:
        (x,) = super().examine(rows, progress, g)
        if g is not None and torch.rand((), generator=g) < 1 / 30:
            x = torch.randint(SYMBOLS, x.shape, generator=g)
        return (x,)

    def start(self, g: torch.Generator) -> Weights:
        d = self.width
        return {
            "symbols": normal(g, SYMBOLS, d, scale=0.5),
            "decay": torch.linspace(-1.0, 4.0, d),
            "in": normal(g, d, d),
            "gate": normal(g, d, d),
            "mix": normal(g, d, d),
            "out": normal(g, d, SYMBOLS, scale=0.02),
        }

    def loss(self, w: Weights, *batch: torch.Tensor) -> torch.Tensor:
        (x,) = batch
        h = w["symbols"][x[:, :-1]]
        apart = torch.arange(self.length)[:, None] - torch.arange(self.length)
        kernel = torch.exp(F.logsigmoid(w["decay"]) * apart.clamp(min=0)[..., None]) * (apart >= 0)[..., None]
        state = torch.einsum("tsd,bsd->btd", kernel, h @ w["in"])
        h = h + torch.tanh(state) * torch.sigmoid(h @ w["gate"]) @ w["mix"]
        return next_token(h @ w["out"], x)


class TextsConvolution(Workload):
    """Convolutions over 24 characters: are they from a tweet, a chat or a speech?"""

    name, family, optimizer, lr, batch, clip = "texts-convolution", "texts-convolution", "adamw", 2e-2, 8, 1.0

    def start(self, g: torch.Generator) -> Weights:
        return {
            "symbols": normal(g, SYMBOLS, 12, scale=0.3),
            "five": normal(g, 60, 24),
            "bias": torch.zeros(24),
            "out": normal(g, 24, 3),
        }

    def rows(self) -> int:
        return 3 * 800_000

    def examine(self, rows: torch.Tensor, progress: float, g: torch.Generator | None) -> Batch:
        side = 1 if g is None else 0
        texts = [text()[side] for text in (data.tweets, data.chats, data.speeches)]
        place, which = rows // 3, rows % 3
        x = torch.stack([texts[k][p : p + 24] for p, k in zip(place.tolist(), which.tolist(), strict=True)])
        return x, which

    def loss(self, w: Weights, *batch: torch.Tensor) -> torch.Tensor:
        x, y = batch
        h = w["symbols"][x]
        h = torch.cat([h[:, i : i + 20] for i in range(5)], -1) @ w["five"] + w["bias"]
        return F.cross_entropy(F.relu(h).amax(1) @ w["out"], y)

    def validation(self) -> Batch:
        return self.examine(torch.arange(0, 3 * 59_000, 3 * 59_000 // 1499), 1.0, None)


class PassagesBag(Workload):
    """Tells which party's speech a passage is from, by the mean of its word vectors."""

    name, family, optimizer, lr, batch = "passages-bag", "passages-bag", "adagrad", 0.1, 16

    def start(self, g: torch.Generator) -> Weights:
        return {"words": normal(g, 1200, 8, scale=0.3), "out": normal(g, 8, 2), "bias": torch.zeros(2)}

    def rows(self) -> int:
        return len(data.passages()[0][0])

    def examine(self, rows: torch.Tensor, progress: float, g: torch.Generator | None) -> Batch:
        x, y = data.passages()[0]
        return x[rows], y[rows]

    def loss(self, w: Weights, *batch: torch.Tensor) -> torch.Tensor:
        x, y = batch
        return F.cross_entropy(w["words"][x].mean(1) @ w["out"] + w["bias"], y)

    def validation(self) -> Batch:
        return data.passages()[1]


class WordsFactors(Workload):
    """Word vectors, from how often two words are near each other: a factorization of a matrix."""

    name, family, optimizer, lr, batch = "words-factors", "words-factors", "adagrad", 0.3, 256

    def start(self, g: torch.Generator) -> Weights:
        one = {"left": normal(g, 600, 9, scale=0.1), "right": normal(g, 600, 9, scale=0.1)}
        return {**one, "left_bias": torch.zeros(600), "right_bias": torch.zeros(600)}

    def rows(self) -> int:
        return len(data.pairs_of_words()[0][0])

    def examine(self, rows: torch.Tensor, progress: float, g: torch.Generator | None) -> Batch:
        x, y = data.pairs_of_words()[0]
        return x[rows], y[rows]

    def loss(self, w: Weights, *batch: torch.Tensor) -> torch.Tensor:
        x, y = batch
        a, b = x[:, 0], x[:, 1]
        return F.mse_loss((w["left"][a] * w["right"][b]).sum(-1) + w["left_bias"][a] + w["right_bias"][b], y)

    def validation(self) -> Batch:
        return data.pairs_of_words()[1]
