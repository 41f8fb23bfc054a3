"""The half that rules are tuned on."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F

from benchmarks.search import data
from benchmarks.search.workload import Batch, Weights, Workload, next_token, normal, pretrained, spread, windows

WIDTH, DEPTH, HEADS = 32, 2, 4


def blocks(g: torch.Generator, width: int = WIDTH) -> Weights:
    """Weights of the layers of a transformer."""
    w: Weights = {}
    for i in range(DEPTH):
        w |= {f"norm{i}": torch.ones(width), f"norm_up{i}": torch.ones(width)}
        w |= {f"qkv{i}": normal(g, width, 3 * width), f"mix{i}": 0.5 * normal(g, width, width)}
        w |= {f"up{i}": normal(g, width, 3 * width), f"down{i}": 0.5 * normal(g, 3 * width, width)}
    return w


def transform(w: Weights, h: torch.Tensor, causal: bool) -> torch.Tensor:
    """The layers of a transformer."""
    places, width = h.shape[-2:]
    hidden = torch.full((places, places), -1e4).triu(1) if causal else torch.zeros(())
    for i in range(DEPTH):
        qkv = (F.layer_norm(h, (width,)) * w[f"norm{i}"]) @ w[f"qkv{i}"]
        q, k, v = qkv.unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        near = (q @ k.mT * (width // HEADS) ** -0.5 + hidden).softmax(-1)
        h = h + (near @ v).transpose(1, 2).flatten(2) @ w[f"mix{i}"]
        h = h + F.gelu((F.layer_norm(h, (width,)) * w[f"norm_up{i}"]) @ w[f"up{i}"]) @ w[f"down{i}"]
    return F.layer_norm(h, (width,))


class SourceTransformer(Workload):
    """A decoder over the bytes of source code."""

    name, family, optimizer, lr, batch, clip = "source-transformer", "source-transformer", "adamw", 5e-3, 8, 1.0
    length: ClassVar[int] = 32

    def text(self) -> data.Pair:
        return data.source()

    def start(self, g: torch.Generator) -> Weights:
        return {
            "symbols": normal(g, data.BYTES, WIDTH, scale=0.1),
            "places": normal(g, self.length, WIDTH, scale=0.05),
            **blocks(g),
            "norm": torch.ones(WIDTH),
            "head": normal(g, WIDTH, data.BYTES, scale=0.02),
        }

    def rows(self) -> int:
        return len(self.text()[0]) - self.length - 1

    def examine(self, rows: torch.Tensor, progress: float, g: torch.Generator | None) -> Batch:
        return (windows(self.text()[0], rows, self.length),)

    def loss(self, w: Weights, *batch: torch.Tensor) -> torch.Tensor:
        (x,) = batch
        h = transform(w, w["symbols"][x[:, :-1]] + w["places"], causal=True)
        return next_token(h * w["norm"] @ w["head"], x)

    def validation(self) -> Batch:
        return (spread(self.text()[1], self.length, 150),)


class SourceSmallBatch(SourceTransformer):
    """The same with two windows per batch."""

    name, family, lr, batch = "source-small-batch", "source-small-batch", 2e-3, 2


class SourceMuon(SourceTransformer):
    """The same with Muon."""

    name, family, optimizer, lr = "source-muon", "source-muon", "muon", 2e-2


class SourceToReference(SourceTransformer):
    """The same, with prose in place of source code after 40% of the run."""

    name, family = "source-to-reference", "source-to-reference"

    def rows(self) -> int:
        return len(data.reference()[0]) - self.length - 1

    def examine(self, rows: torch.Tensor, progress: float, g: torch.Generator | None) -> Batch:
        text = data.source() if progress < 0.4 else data.reference()
        return (windows(text[0], rows, self.length),)

    def validation(self) -> Batch:
        return (spread(data.reference()[1], self.length, 150),)

    @property
    def depends_on_length(self) -> bool:
        return True


class Finetuning(SourceTransformer):
    """A decoder trained on source code continues with prose."""

    name, family, lr, batch = "finetuning", "finetuning", 1e-3, 4

    def text(self) -> data.Pair:
        return data.reference()

    def start(self, g: torch.Generator) -> Weights:
        return {name: tensor.clone() for name, tensor in source_decoder().items()}


class Lora(Finetuning):
    """The same, but what is trained are matrices of rank 4, added to the frozen ones."""

    name, family, lr = "lora", "lora", 1e-2
    rank: ClassVar[int] = 4

    def start(self, g: torch.Generator) -> Weights:
        w: Weights = {}
        for name, tensor in source_decoder().items():
            if name[:-1] in ("qkv", "mix", "up", "down"):
                w[f"{name} a"] = normal(g, tensor.shape[0], self.rank)
                w[f"{name} b"] = torch.zeros(self.rank, tensor.shape[1])
        return w

    def loss(self, w: Weights, *batch: torch.Tensor) -> torch.Tensor:
        frozen = source_decoder()
        whole = {
            name: tensor + 2 * w[f"{name} a"] @ w[f"{name} b"] if f"{name} a" in w else tensor
            for name, tensor in frozen.items()
        }
        return super().loss(whole, *batch)


def source_decoder() -> Weights:
    """A decoder trained on source code, for 800 steps."""
    return pretrained(SourceTransformer, 5e-3, 800)


class FashionMlp(Workload):
    """Pictures of clothes, by two hidden layers."""

    name, family, optimizer, lr, batch = "fashion-mlp", "fashion-mlp", "sgd", 0.05, 16

    def start(self, g: torch.Generator) -> Weights:
        w = {"one": normal(g, 784, 24), "two": normal(g, 24, 24), "out": normal(g, 24, 10)}
        w = {name: 2**0.5 * tensor for name, tensor in w.items()}
        return w | {"one_bias": torch.zeros(24), "two_bias": torch.zeros(24), "out_bias": torch.zeros(10)}

    def rows(self) -> int:
        return len(data.fashion()[0][0])

    def examine(self, rows: torch.Tensor, progress: float, g: torch.Generator | None) -> Batch:
        x, y = data.fashion()[0]
        return x[rows], y[rows]

    def loss(self, w: Weights, *batch: torch.Tensor) -> torch.Tensor:
        x, y = batch
        h = F.relu(x.flatten(1) @ w["one"] + w["one_bias"])
        h = F.relu(h @ w["two"] + w["two_bias"])
        return F.cross_entropy(h @ w["out"] + w["out_bias"], y)

    def validation(self) -> Batch:
        return tuple(tensor[:1000] for tensor in data.fashion()[1])


class FashionMlpEpochs(FashionMlp):
    """The same in three passes over a third of the data."""

    name, epochs = "fashion-mlp, 3 epochs", 3


class FashionVit(FashionMlp):
    """Pictures of clothes, by a transformer over sixteen patches of each."""

    name, family, optimizer, lr, clip = "fashion-vit", "fashion-vit", "adamw", 3e-3, 1.0

    def start(self, g: torch.Generator) -> Weights:
        return {
            "patches": 2 * normal(g, 49, WIDTH),
            "places": normal(g, 16, WIDTH, scale=0.05),
            **blocks(g),
            "head": normal(g, WIDTH, 10, scale=0.02),
        }

    def loss(self, w: Weights, *batch: torch.Tensor) -> torch.Tensor:
        x, y = batch
        patches = x.reshape(-1, 4, 7, 4, 7).transpose(2, 3).reshape(-1, 16, 49)
        h = transform(w, patches @ w["patches"] + w["places"], causal=False)
        return F.cross_entropy((h @ w["head"]).mean(1), y)


class DiamondsMlp(Workload):
    """The price of a diamond, by two hidden layers."""

    name, family, optimizer, lr, batch = "diamonds-mlp", "diamonds-mlp", "adagrad", 0.1, 32

    def start(self, g: torch.Generator) -> Weights:
        w = {"one": normal(g, 26, 32), "two": normal(g, 32, 32), "out": normal(g, 32, 1)}
        w = {name: 2**0.5 * tensor for name, tensor in w.items()}
        return w | {"one_bias": torch.zeros(32), "two_bias": torch.zeros(32), "out_bias": torch.zeros(1)}

    def rows(self) -> int:
        return len(data.diamonds()[0][0])

    def examine(self, rows: torch.Tensor, progress: float, g: torch.Generator | None) -> Batch:
        x, y = data.diamonds()[0]
        return x[rows], y[rows]

    def loss(self, w: Weights, *batch: torch.Tensor) -> torch.Tensor:
        x, y = batch
        h = F.relu(x @ w["one"] + w["one_bias"])
        h = F.relu(h @ w["two"] + w["two_bias"])
        return F.mse_loss((h @ w["out"] + w["out_bias"]).squeeze(-1), y)

    def validation(self) -> Batch:
        return data.diamonds()[1]


WORKLOADS = (
    SourceTransformer(),
    SourceSmallBatch(),
    SourceMuon(),
    SourceToReference(),
    Finetuning(),
    Lora(),
    FashionMlp(),
    FashionMlpEpochs(),
    FashionVit(),
    DiamondsMlp(),
)
