"""What a user writes with every public entry: for mypy, which `make lint` runs on it; nothing may be Any."""

import torch
from lightning.pytorch.callbacks import Callback
from transformers import TrainerCallback

from greedylr_integrations import (
    ControllerConfig,
    Decision,
    FoundLR,
    GreedyConfig,
    GreedyLR,
    PaperConfig,
    Reason,
    SlopeConfig,
    TransformersConfig,
    accelerate,
    find_lr,
    history,
    lightning,
    transformers,
)
from greedylr_integrations.learned import PolicyConfig
from greedylr_integrations.steering import make_command

configs: list[ControllerConfig] = [
    SlopeConfig(start_scale=0.1, doubling=8.0),
    GreedyConfig(window_size=50, factor=0.9, threshold_mode="rel"),
    PaperConfig(factor=0.9, patience=5),
    TransformersConfig(smooth=False),
    PolicyConfig.load("network"),
]


def train(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> list[str]:
    scheduler = GreedyLR(optimizer, total_steps=100, linear_warmup_steps=5, max_scale=3.0)
    decision: Decision | None = scheduler.step(loss)
    scheduler.follow(make_command("hold"))
    state = scheduler.state_dict()
    scheduler.load_state_dict(state)
    found: float | None = scheduler.suggested_lr()
    reasons: list[Reason] = [record.decision.reason for record in scheduler.history]
    lrs: list[float] = scheduler.get_last_lr()
    return [reason.name for reason in reasons] + [f"{found} {lrs} {decision}"]


def callbacks(optimizer: torch.optim.Optimizer) -> tuple[TrainerCallback, Callback, float]:
    of_trainer = transformers.GreedyLRCallback(window_size=20, monitor="eval_loss", mode="min")
    of_lightning = lightning.GreedyLRCallback(SlopeConfig(), history_file="history.jsonl", prog_bar=True)
    prepared = accelerate.GreedyLR(optimizer, total_steps=100)
    _, records, _ = history.read("history.jsonl")
    return of_trainer, of_lightning, records[-1].lrs[0] + prepared.get_last_lr()[0]


def search(net: torch.nn.Linear, optimizer: torch.optim.Optimizer, batches: list[torch.Tensor]) -> float | None:
    found: FoundLR = find_lr(net, batches, optimizer, lambda batch: torch.as_tensor(net(batch)).sum(), total_steps=200)
    return found.suggestion()
