"""Small networks as tasks to learn a schedule on: images of digits, and the characters of Python's documentation."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from recipes.common.offline import images

CONTEXT = 8  # number of characters that the next one is predicted from
CHARACTERS = "\n !\"'(),-.0123456789:;?ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"


class Data(NamedTuple):
    """Rows and their classes, for training and for validation."""

    inputs: torch.Tensor
    targets: torch.Tensor
    validation_inputs: torch.Tensor
    validation_targets: torch.Tensor
    classes: int


@cache
def data(name: str) -> Data:
    """Data by name: images ("digits", "fashion-mnist") or text ("python-docs", "chitchat", "reviews" of films)."""
    if name in ("digits", "fashion-mnist"):
        train, test = (part.with_format("numpy")[:] for part in images(name))
        parts = [torch.as_tensor(part[column]) for part in (train, test) for column in ("image", "label")]
        inputs, targets, validation_inputs, validation_targets = parts
        return Data(inputs, targets, validation_inputs[:2000], validation_targets[:2000], 10)
    if name == "python-docs":
        from pydoc_data.topics import topics

        text = "\n".join(topics[topic] for topic in sorted(topics))
    elif name == "reviews":
        from recipes.common.offline import reviews

        text = "\n".join(reviews()[0]["text"])
    else:
        from recipes.common.offline import chitchat

        text = "\n".join(turn["content"] for row in chitchat(1000) for turn in row["messages"])
    codes = {character: code for code, character in enumerate(CHARACTERS)}
    encoded = torch.tensor([codes[character] for character in text[:400_000] if character in codes])
    rows = encoded.unfold(0, CONTEXT + 1, 1)
    cut = len(rows) * 9 // 10
    held_out = rows[cut:][:: max(1, len(rows[cut:]) // 2000)]
    return Data(rows[:cut, :-1], rows[:cut, -1], held_out[:, :-1], held_out[:, -1], len(CHARACTERS))


class Task(NamedTuple):
    """What a run trains, and how.

    Attributes:
        data (str): name of the data.
        optimizer (str): "adamw" or "sgd" (with momentum 0.9).
        width, depth (int): width and number of the hidden layers.
        batch (int): rows per step.
        steps (int): optimizer steps.
        base_lr (float): LR at scale 1.
        seed (int): seed of weights and batches.
    """

    data: str
    optimizer: str
    width: int
    depth: int
    batch: int
    steps: int
    base_lr: float
    seed: int


class NetworkEpisode:
    """One training run of a small network; see `tasks.Episode`."""

    def __init__(self, task: Task) -> None:
        self.base_lr, self.steps = task.base_lr, task.steps
        self._data, self._batch = data(task.data), task.batch
        self._generator = torch.Generator().manual_seed(task.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(task.seed)
            self._model = self._make_model(task)
        parameters = self._model.parameters()
        if task.optimizer == "sgd":
            self._optimizer = torch.optim.SGD(parameters, task.base_lr, momentum=0.9, fused=True)
        else:
            self._optimizer = torch.optim.AdamW(parameters, task.base_lr, fused=True)

    def _make_model(self, task: Task) -> nn.Module:
        text = self._data.inputs.dtype == torch.int64
        inputs = CONTEXT * 8 if text else self._data.inputs.shape[1]
        layers: list[nn.Module] = [nn.Embedding(self._data.classes, 8), nn.Flatten()] if text else []
        for _ in range(task.depth):
            layers += [nn.Linear(inputs, task.width), nn.ReLU()]
            inputs = task.width
        return nn.Sequential(*layers, nn.Linear(inputs, self._data.classes))

    def advance(self, lr: float) -> float:
        rows = torch.randint(len(self._data.inputs), (self._batch,), generator=self._generator)
        loss = nn.functional.cross_entropy(self._model(self._data.inputs[rows]), self._data.targets[rows])
        self._optimizer.zero_grad()
        loss.backward()
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        return loss.item()

    def bound(self) -> float | None:
        return None

    @torch.no_grad()
    def validation_loss(self) -> float:
        scores = self._model(self._data.validation_inputs)
        return nn.functional.cross_entropy(scores, self._data.validation_targets).item()


class Networks:
    """Networks of many sizes, with base LRs that range from far too low to too high."""

    name = "network"
    decay_ratio = 0.3

    def sample(self, rng: np.random.Generator) -> NetworkEpisode:
        optimizer = rng.choice(["adamw", "sgd"])
        usual = {"adamw": 3e-3, "sgd": 0.1}[optimizer]
        return NetworkEpisode(
            Task(
                data=rng.choice(["digits", "python-docs"]),
                optimizer=optimizer,
                width=int(rng.choice([16, 32, 64])),
                depth=int(rng.integers(1, 3)),
                batch=int(rng.choice([16, 32, 64])),
                steps=int(rng.choice([80, 150, 300, 600])),
                base_lr=float(usual * 10 ** rng.uniform(-1.3, 0.7)),
                seed=int(rng.integers(2**31)),
            )
        )
