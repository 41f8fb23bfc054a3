"""The half that no rule is tuned on: no data and no model class of the tuning half."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.search import data
from benchmarks.search.held_out_text import (
    ChatsAttention,
    PassagesBag,
    SpeechesRecurrence,
    TextsConvolution,
    TweetsGru,
    TweetsGruEpochs,
    WordsFactors,
)
from benchmarks.search.workload import Batch, Weights, Workload, normal


class FacesMixer(Workload):
    """Removes noise from patches of faces, with layers over rows and over columns in turn."""

    name, family, optimizer, lr, batch = "faces-mixer", "faces-mixer", "rmsprop", 3e-3, 8

    def start(self, g: torch.Generator) -> Weights:
        layers = {f"up{i}": normal(g, 8, 32) for i in range(4)}
        return layers | {f"down{i}": normal(g, 32, 8, scale=0.05) for i in range(4)}

    def rows(self) -> int:
        return len(data.faces()[0])

    def examine(self, rows: torch.Tensor, progress: float, g: torch.Generator | None) -> Batch:
        x = data.faces()[0][rows]
        return x, x + 0.5 * torch.randn(x.shape, generator=g)

    def loss(self, w: Weights, *batch: torch.Tensor) -> torch.Tensor:
        clean, noisy = batch
        h = noisy.unflatten(-1, (8, 8))
        for i in range(4):
            h = (h + F.gelu(h @ w[f"up{i}"]) @ w[f"down{i}"]).mT
        return F.mse_loss(h.flatten(-2), clean)

    def validation(self) -> Batch:
        x = data.faces()[1]
        return x, x + 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))


class FlightsMachine(Workload):
    """A factorization machine: the time in the air from the categories of a flight, one by one and in pairs."""

    name, family, optimizer, lr, batch = "flights-machine", "flights-machine", "sgd", 0.1, 32

    def start(self, g: torch.Generator) -> Weights:
        return {"one": torch.zeros(400), "two": normal(g, 400, 8, scale=0.1), "bias": torch.zeros(1)}

    def rows(self) -> int:
        return len(data.flights()[0][0])

    def examine(self, rows: torch.Tensor, progress: float, g: torch.Generator | None) -> Batch:
        x, y = data.flights()[0]
        return x[rows], y[rows]

    def loss(self, w: Weights, *batch: torch.Tensor) -> torch.Tensor:
        x, y = batch
        v = w["two"][x]
        pairs = (v.sum(1) ** 2 - (v**2).sum(1)).sum(-1) / 2
        return F.mse_loss(w["one"][x].sum(1) + pairs + w["bias"], y)

    def validation(self) -> Batch:
        return data.flights()[1]


class FlightsMachineEpochs(FlightsMachine):
    """The same in three passes over a third of the data."""

    name, epochs = "flights-machine, 3 epochs", 3


class PhotosAutoencoder(Workload):
    """An autoencoder of patches whose decoder is its encoder transposed; it starts on a plateau, with small weights."""

    name, family, optimizer, lr, batch = "photos-autoencoder", "photos-autoencoder", "sgd", 0.03, 8

    def start(self, g: torch.Generator) -> Weights:
        return {"first": normal(g, 64, 24, scale=0.03), "second": normal(g, 24, 8, scale=0.03), "bias": torch.zeros(64)}

    def rows(self) -> int:
        return len(data.photographs()[0])

    def examine(self, rows: torch.Tensor, progress: float, g: torch.Generator | None) -> Batch:
        return (data.photographs()[0][rows],)

    def loss(self, w: Weights, *batch: torch.Tensor) -> torch.Tensor:
        (x,) = batch
        code = torch.tanh(x @ w["first"]) @ w["second"]
        return F.mse_loss(torch.tanh(code @ w["second"].mT) @ w["first"].mT + w["bias"], x)

    def validation(self) -> Batch:
        return (data.photographs()[1],)


class DigitsConvolution(Workload):
    """A convolutional network on shifted digits, four to a batch: 350 steps are one pass over them."""

    name, family, optimizer, lr, batch = "digits-convolution", "digits-convolution", "sgd", 0.03, 4
    examples = 1397

    def start(self, g: torch.Generator) -> Weights:
        return {
            "one": normal(g, 9, 8, scale=0.4),
            "one_bias": torch.zeros(8),
            "two": normal(g, 72, 16, scale=0.16),
            "two_bias": torch.zeros(16),
            "out": normal(g, 64, 10, scale=0.1),
            "out_bias": torch.zeros(10),
        }

    def rows(self) -> int:
        return 1397

    def examine(self, rows: torch.Tensor, progress: float, g: torch.Generator | None) -> Batch:
        x, y = data.digits()[0]
        up, left = torch.randint(-1, 2, (2,), generator=g).tolist()
        return torch.roll(x[rows], (up, left), (1, 2)), y[rows]

    def loss(self, w: Weights, *batch: torch.Tensor) -> torch.Tensor:
        x, y = batch
        seen = torch.stack([x[:, i : i + 6, j : j + 6] for i in range(3) for j in range(3)], -1)
        h = F.relu(seen @ w["one"] + w["one_bias"])  # 6 x 6 places of 8 channels
        seen = torch.cat([h[:, i : i + 4 : 2, j : j + 4 : 2] for i in range(3) for j in range(3)], -1)
        h = F.relu(seen @ w["two"] + w["two_bias"])
        return F.cross_entropy(h.flatten(1) @ w["out"] + w["out_bias"], y)

    def validation(self) -> Batch:
        return data.digits()[1]


WORKLOADS = (
    TweetsGru(),
    TweetsGruEpochs(),
    ChatsAttention(),
    SpeechesRecurrence(),
    TextsConvolution(),
    PassagesBag(),
    WordsFactors(),
    FacesMixer(),
    FlightsMachine(),
    FlightsMachineEpochs(),
    PhotosAutoencoder(),
    DigitsConvolution(),
)
