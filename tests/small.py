"""A small model and its data, without a framework: processes of the tests that need none start sooner."""

import random

import numpy as np
import torch


def seed_all(seed):
    """As transformers' `set_seed`."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class Regressor(torch.nn.Module):
    """A model whose forward takes no loss keywords."""

    def __init__(self, hidden=8):
        super().__init__()
        seed_all(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(4, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, 1))

    def forward(self, x, labels=None):
        prediction = self.net(x).squeeze(-1)
        loss = None if labels is None else torch.nn.functional.mse_loss(prediction, labels)
        return {"loss": loss, "logits": prediction}


def regression_data(n=48):
    g = torch.Generator().manual_seed(2)
    return [
        {"x": (x := torch.randn(4, generator=g)), "labels": x.sum() + 0.1 * torch.randn((), generator=g)}
        for _ in range(n)
    ]
