"""History files from the records of real runs, as text that the tests can break."""

import contextlib
import functools
import json
import math
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import tiny
import torch

from greedylr_integrations.decision import Reason


def header(callback, **more):
    scheduler = callback.scheduler
    return {
        "greedylr_history": 1,
        "config": scheduler.controller.config.to_dict(),
        "base_lrs": list(scheduler.base_lrs),
        "total_steps": scheduler.envelope.total_steps,
        "monitor": callback.monitor,
        "world_size": 1,
        **more,
    }


def line(record):
    action, reason, scales, loss, smoothed, best, *_ = record.decision  # version 1 has no slope and no distance
    return {
        "step": record.step,
        "loss": loss if math.isfinite(loss) else str(loss),
        "smoothed": smoothed,
        "best": best,
        "action": action.value,
        "reason": reason.name,
        "scales": list(scales),
        "lrs": list(record.lrs),
        "envelope": record.envelope,
        "nonfinite": int(reason is Reason.NONFINITE),
    }


def write(path, entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def of(callback, path, *more):
    """The history file of a run that has ended; `more` entries stand behind its records."""
    return write(path, [header(callback), *map(line, callback.history), *more])


# ---- runs that are really trained, once a process ----

STEPS = 90
_FOLDER = tempfile.TemporaryDirectory(prefix="histories")


class Trained(NamedTuple):
    folder: Path  # as the framework left it, and a history beside it
    history: Path
    callback: Any
    losses: list[float]  # as the framework logged them, and at which steps
    steps: list[int]
    lrs: list[float]


@contextlib.contextmanager
def _quiet():
    """The frameworks' own warnings are tested elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@functools.cache
def with_trainer():
    """Hugging Face's Trainer with a checkpoint every 30 steps; GreedyLR with a patience."""
    from greedylr_integrations.transformers import GreedyLRCallback

    folder = Path(_FOLDER.name) / "hf"
    callback = GreedyLRCallback(patience=1, window_size=4, factor=0.9, quiet=True)
    trainer = tiny.trainer(
        folder, [callback], max_steps=STEPS, save_strategy="steps", save_steps=30, learning_rate=1e-3
    )
    with _quiet():
        trainer.train()
    rows = [entry for entry in trainer.state.log_history if "loss" in entry]
    return Trained(
        folder,
        of(callback, Path(_FOLDER.name) / "hf.jsonl"),
        callback,
        [row["loss"] for row in rows],
        [row["step"] for row in rows],
        [row["learning_rate"] for row in rows],
    )


@functools.cache
def with_lightning():
    """Lightning with its CSV log, two parameter groups."""
    with _quiet():
        import lightning.pytorch as pl

    from greedylr_integrations import GreedyConfig
    from greedylr_integrations.lightning import GreedyLRCallback

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.losses = tiny.Regressor(), []

        def training_step(self, batch, batch_idx):
            loss = self.model(**batch)["loss"]
            self.losses.append(loss.item())
            self.log("train_loss", loss)
            return loss

        def configure_optimizers(self):
            first, last = self.model.net[0].parameters(), self.model.net[2].parameters()
            return torch.optim.SGD([{"params": first, "lr": 0.02}, {"params": last, "lr": 0.01}])

    folder = Path(_FOLDER.name) / "lightning"
    callback, module = GreedyLRCallback(GreedyConfig(), quiet=True), Module()
    with _quiet():
        trainer = pl.Trainer(
            max_epochs=2,
            callbacks=[callback],
            logger=pl.loggers.CSVLogger(folder),
            log_every_n_steps=1,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(module, torch.utils.data.DataLoader(tiny.regression_data(), batch_size=2))
    history = of(callback, Path(_FOLDER.name) / "lightning.jsonl")
    return Trained(folder, history, callback, module.losses, list(range(len(module.losses))), [])


@functools.cache
def with_torch():
    """A plain loop over a loss that jumps when the data changes, with ramp, final decay and a NaN."""
    from greedylr_integrations import GreedyConfig, GreedyLR

    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    scheduler = GreedyLR(
        torch.optim.SGD(model.parameters(), lr=0.01), GreedyConfig(), total_steps=240, linear_warmup_steps=12
    )
    losses, lrs = [], []
    for step in range(240):
        x = torch.randn(8, 4)
        target = x.sum(1, keepdim=True) * (-1 if step > 110 else 1)
        loss = torch.nn.functional.mse_loss(model(x), target + 0.3 * torch.randn(8, 1))
        lrs.append(scheduler.get_last_lr()[0])
        loss.backward()
        scheduler.optimizer.step()
        scheduler.optimizer.zero_grad()
        losses.append(math.nan if step == 60 else loss.item())
        scheduler.step(losses[-1])
    callback = SimpleNamespace(scheduler=scheduler, monitor="loss", history=list(scheduler.history))
    order = {"step": 150, "order": "cap", "value": 2.0}
    history = of(callback, Path(_FOLDER.name) / "torch.jsonl", order)
    return Trained(Path(_FOLDER.name), history, callback, losses, list(range(1, 241)), lrs)
