"""The half that the default rule is judged on: no data and no model class of the other halves.

It was made on 27 November 2026, with fixed schedules only. No rule had been run on it by then, and nothing in it was
chosen by how well a rule does.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F

from benchmarks.search import fresh_data
from benchmarks.search.fresh_series import DemandQuantiles, HamletFinetuning, ReviewsLstm, TitlesDilated
from benchmarks.search.workload import Batch, Rows, Weights, normal


class WeatherFlow(Rows):
    """A normalizing flow of couplings over the weather: nats per number, to a sixteenth of its standard deviation."""

    name, family, optimizer, lr, batch = "weather-flow", "weather-flow", "adamw", 1e-2, 32

    def sides(self) -> tuple[Batch, Batch]:
        return fresh_data.weather()

    def start(self, g: torch.Generator) -> Weights:
        w: Weights = {}
        for i in range(4):
            w |= {f"in{i}": normal(g, 5, 32), f"bias{i}": torch.zeros(32), f"out{i}": normal(g, 32, 10, scale=0.02)}
        return w

    def examine(self, rows: torch.Tensor, progress: float, g: torch.Generator | None) -> Batch:
        (x,) = super().examine(rows, progress, g)
        return (x + fresh_data.GRAIN * (torch.rand(x.shape, generator=g) - 0.5),)

    def loss(self, w: Weights, *batch: torch.Tensor) -> torch.Tensor:
        (x,) = batch
        a, b = x.chunk(2, -1)
        grown = torch.zeros(())
        for i in range(4):
            size, shift = (torch.tanh(a @ w[f"in{i}"] + w[f"bias{i}"]) @ w[f"out{i}"]).chunk(2, -1)
            size = 2 * torch.tanh(size / 2)
            a, b = b * size.exp() + shift, a
            grown = grown + size.sum(-1).mean()
        squares = (a**2 + b**2).sum(-1).mean()
        return (squares / 2 - grown) / 10 + math.log(2 * math.pi) / 2 - math.log(fresh_data.GRAIN)

    def validation(self) -> Batch:
        (x,) = super().validation()
        g = torch.Generator().manual_seed(0)
        return (x + fresh_data.GRAIN * (torch.rand(x.shape, generator=g) - 0.5),)


class StormsScore(Rows):
    """A diffusion model of storms: layers that know how much noise was added predict the noise."""

    name, family, optimizer, lr, batch = "storms-score", "storms-score", "adamw", 1e-2, 64

    def sides(self) -> tuple[Batch, Batch]:
        return fresh_data.storms()

    def start(self, g: torch.Generator) -> Weights:
        w = {"in": normal(g, 6, 32), "out": normal(g, 32, 6, scale=0.02)}
        for i in range(3):
            w |= {f"time{i}": normal(g, 8, 64, scale=0.1), f"up{i}": normal(g, 32, 32), f"down{i}": normal(g, 32, 32)}
        return w

    def noised(self, x: torch.Tensor, g: torch.Generator | None) -> Batch:
        return x, torch.randn(x.shape, generator=g), torch.rand(len(x), generator=g)

    def examine(self, rows: torch.Tensor, progress: float, g: torch.Generator | None) -> Batch:
        return self.noised(self.sides()[0][0][rows], g)

    def validation(self) -> Batch:
        return self.noised(self.sides()[1][0], torch.Generator().manual_seed(0))

    def loss(self, w: Weights, *batch: torch.Tensor) -> torch.Tensor:
        x, noise, time = batch
        angle = (0.02 + 0.96 * time) * math.pi / 2
        h = (angle.cos()[:, None] * x + angle.sin()[:, None] * noise) @ w["in"]
        waves = angle[:, None] * torch.tensor([1.0, 2.0, 4.0, 8.0])
        waves = torch.cat([waves.sin(), waves.cos()], -1)
        for i in range(3):
            size, shift = (waves @ w[f"time{i}"]).chunk(2, -1)
            h = h + 0.5 * F.silu(F.layer_norm(h, (32,)) @ w[f"up{i}"] * (1 + size) + shift) @ w[f"down{i}"]
        return F.mse_loss(h @ w["out"], noise)


class GlyphsVae(Rows):
    """A variational autoencoder of characters of many typefaces: nats per pixel."""

    name, family, optimizer, lr, batch = "glyphs-vae", "glyphs-vae", "adamw", 2e-2, 16

    def sides(self) -> tuple[Batch, Batch]:
        return fresh_data.glyphs()

    def start(self, g: torch.Generator) -> Weights:
        return {
            "in": normal(g, 144, 32),
            "in_bias": torch.zeros(32),
            "code": normal(g, 32, 16),
            "up": normal(g, 8, 32),
            "up_bias": torch.zeros(32),
            "out": normal(g, 32, 144),
            "out_bias": torch.zeros(144),
        }

    def examine(self, rows: torch.Tensor, progress: float, g: torch.Generator | None) -> Batch:
        return self.sides()[0][0][rows], torch.randn(len(rows), 8, generator=g)

    def validation(self) -> Batch:
        x = self.sides()[1][0]
        return x, torch.randn(len(x), 8, generator=torch.Generator().manual_seed(0))

    def loss(self, w: Weights, *batch: torch.Tensor) -> torch.Tensor:
        x, noise = batch
        middle, size = (F.silu(x @ w["in"] + w["in_bias"]) @ w["code"]).chunk(2, -1)
        h = F.silu((middle + noise * (size / 2).exp()) @ w["up"] + w["up_bias"])
        apart = (middle**2 + size.exp() - 1 - size).sum(-1).mean() / 2
        return F.binary_cross_entropy_with_logits(h @ w["out"] + w["out_bias"], x) + apart / 144


class BaseballExperts(Rows):
    """A batter's runs in a season, by four small networks and a gate that weights them."""

    name, family, optimizer, lr, batch = "baseball-experts", "baseball-experts", "sgd", 0.1, 16
    experts: ClassVar[int] = 4

    def sides(self) -> tuple[Batch, Batch]:
        return fresh_data.baseball()

    def start(self, g: torch.Generator) -> Weights:
        n = self.experts
        return {
            "gate": normal(g, 11, n, scale=0.1),
            "in": normal(g, n, 11, 24),
            "in_bias": torch.zeros(n, 1, 24),
            "out": normal(g, n, 24, 1),
            "out_bias": torch.zeros(n, 1, 1),
        }

    def loss(self, w: Weights, *batch: torch.Tensor) -> torch.Tensor:
        x, y = batch
        chances = (x @ w["gate"]).softmax(-1)
        said = torch.tanh(x @ w["in"] + w["in_bias"]) @ w["out"] + w["out_bias"]
        return F.mse_loss((chances * said.squeeze(-1).mT).sum(-1), y)


class ExamsOrdinal(Rows):
    """A pupil's grade by ordinal regression: one number, and five bounds between the grades."""

    name, family, optimizer, lr, batch = "exams-ordinal", "exams-ordinal", "plain sgd", 0.5, 32

    def sides(self) -> tuple[Batch, Batch]:
        return fresh_data.exams()

    def start(self, g: torch.Generator) -> Weights:
        return {
            "places": normal(g, 131, 8, scale=0.3),
            "in": normal(g, 11, 24),
            "in_bias": torch.zeros(24),
            "out": normal(g, 24, 1),
            "lowest": torch.full((1,), -1.0),
            "steps": torch.zeros(4),
        }

    def loss(self, w: Weights, *batch: torch.Tensor) -> torch.Tensor:
        x, place, grade = batch
        h = torch.tanh(torch.cat([x, w["places"][place]], -1) @ w["in"] + w["in_bias"]) @ w["out"]
        bounds = torch.cat([w["lowest"], w["lowest"] + F.softplus(w["steps"]).cumsum(0)])
        below = torch.sigmoid(bounds - h)  # the chance of a grade at most 0, 1, ... 4
        below = F.pad(F.pad(below, (1, 0)), (0, 1), value=1.0)
        chances = below[:, 1:] - below[:, :-1]
        return -(chances.gather(1, grade[:, None]) + 1e-4).log().mean()


class ExamsOrdinalEpochs(ExamsOrdinal):
    """The same in three passes over a third of the data."""

    name, epochs = "exams-ordinal, 3 epochs", 3


class BirthsPoisson(Rows):
    """Poisson regression of a day's births in a state, from the weekday, the day and the year: half the deviance."""

    name, family, optimizer, lr, batch = "births-poisson", "births-poisson", "adagrad", 0.05, 32

    def sides(self) -> tuple[Batch, Batch]:
        return fresh_data.births()

    def start(self, g: torch.Generator) -> Weights:
        return {
            "weekday": torch.zeros(7),
            "day": torch.zeros(372),
            "year": torch.zeros(20),
            "state_weekday": torch.zeros(51 * 7),
            "state_year": torch.zeros(51 * 20),
        }

    def loss(self, w: Weights, *batch: torch.Tensor) -> torch.Tensor:
        kinds, count, usual = batch
        state, weekday, day, year = kinds.unbind(-1)
        ratio = w["weekday"][weekday] + w["day"][day] + w["year"][year]
        ratio = ratio + w["state_weekday"][7 * state + weekday] + w["state_year"][20 * state + year]
        known = torch.xlogy(count, count / usual) - count + usual
        return (usual * torch.expm1(ratio) - count * ratio + known).mean()


class TerrainCoordinates(Rows):
    """The height of a place from its position, by 32 random waves and two layers."""

    name, family, optimizer, lr, batch = "terrain-coordinates", "terrain-coordinates", "sgd", 0.05, 64
    waves = 4 * torch.randn(2, 32, generator=torch.Generator().manual_seed(3))

    def sides(self) -> tuple[Batch, Batch]:
        return fresh_data.terrain()

    def start(self, g: torch.Generator) -> Weights:
        return {
            "one": normal(g, 64, 32),
            "one_bias": torch.zeros(32),
            "two": normal(g, 32, 32),
            "two_bias": torch.zeros(32),
            "out": normal(g, 32, 1),
        }

    def loss(self, w: Weights, *batch: torch.Tensor) -> torch.Tensor:
        place, y = batch
        angle = place @ self.waves
        h = F.relu(torch.cat([angle.sin(), angle.cos()], -1) @ w["one"] + w["one_bias"])
        return F.mse_loss((F.relu(h @ w["two"] + w["two_bias"]) @ w["out"]).squeeze(-1), y)


WORKLOADS = (
    TitlesDilated(),
    HamletFinetuning(),
    ReviewsLstm(),
    DemandQuantiles(),
    WeatherFlow(),
    StormsScore(),
    GlyphsVae(),
    BaseballExperts(),
    ExamsOrdinal(),
    ExamsOrdinalEpochs(),
    BirthsPoisson(),
    TerrainCoordinates(),
)
