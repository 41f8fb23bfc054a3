"""Classify images with Lightning, the learning rate following the loss.

    python -m recipes.lightning_vision                              # Fashion-MNIST, or scikit-learn's digits without it
    python -m recipes.lightning_vision --compare greedy cosine linear
    python -m recipes.lightning_vision --devices 2                   # two processes

Writes metrics.json and loss_and_lr.png into --output-dir.
"""

from __future__ import annotations

import time

from recipes.common.flags import finish, parse, parser, run, run_all
from recipes.common.offline import images
from recipes.common.report import Run, peak_memory_gib
from recipes.common.schedules import fixed


def make_module(schedule: str, args, side: int):
    import lightning.pytorch as pl
    import torch
    from torch import nn

    class Module(pl.LightningModule):
        """A small CNN under SGD with momentum."""

        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(
                nn.Unflatten(1, (1, side, side)),
                *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
                *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
                *(nn.Flatten(), nn.Linear(32 * (side // 4) ** 2, 10)),
            )
            self.train_loss, self.validation_loss, self.learning_rate = [], [], []

        def training_step(self, batch, batch_idx):
            loss = nn.functional.cross_entropy(self.net(batch["image"]), batch["label"])
            self.train_loss.append((self.global_step + 1, loss.detach()))
            self.learning_rate.append((self.global_step + 1, self.optimizers().param_groups[0]["lr"]))
            return loss

        def validation_step(self, batch, batch_idx):
            scores = self.net(batch["image"])
            self.log("val_loss", nn.functional.cross_entropy(scores, batch["label"]), sync_dist=True, prog_bar=True)
            self.log("val_accuracy", (scores.argmax(1) == batch["label"]).float().mean(), sync_dist=True, prog_bar=True)

        def on_validation_epoch_end(self):
            self.validation_loss.append((self.global_step, float(self.trainer.callback_metrics["val_loss"])))

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=args.learning_rate, momentum=0.9)
            if schedule == "greedy":
                return optimizer
            scheduler = fixed(schedule, optimizer, args.max_steps)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    return Module()


def train(schedule: str, args, train_data, test_data) -> Run:
    import lightning.pytorch as pl
    from torch.utils.data import DataLoader

    from greedylr_integrations.lightning import GreedyLRCallback

    pl.seed_everything(args.seed, verbose=False)
    callback = GreedyLRCallback(prog_bar=True) if schedule == "greedy" else None
    module = make_module(schedule, args, side=round(len(train_data[0]["image"]) ** 0.5))
    trainer = pl.Trainer(
        max_steps=args.max_steps,
        max_epochs=-1,
        val_check_interval=max(1, args.max_steps // 5),
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        devices=args.devices,
        callbacks=[callback] if callback else [],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    start = time.perf_counter()
    trainer.fit(
        module,
        DataLoader(train_data, batch_size=args.batch_size, shuffle=True, drop_last=True),
        DataLoader(test_data, batch_size=500),
    )
    print(f"{schedule}: validation accuracy {float(trainer.callback_metrics['val_accuracy']):.4f}")
    return Run(
        schedule=schedule,
        train_loss=[(step, float(loss)) for step, loss in module.train_loss],
        validation_loss=module.validation_loss,
        learning_rate=module.learning_rate,
        seconds=time.perf_counter() - start,
        peak_memory_gib=peak_memory_gib(),
        next_learning_rate=callback.suggested_lr() if callback else None,
        decisions=list(callback.history) if callback else [],
    )


def parse_flags(argv: list[str] | None = None):
    defaults = {"model": "cnn", "dataset": "auto", "max_steps": 1500, "learning_rate": 0.01, "batch_size": 64}
    made = parser("lightning_vision", __doc__, **defaults)
    made.add_argument("--devices", type=int, default=1, help="processes, or GPUs (default: %(default)s)")
    return parse(made, argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_flags(argv)
    data = images(args.dataset)
    finish(run_all(args, lambda schedule: train(schedule, args, *data)), args)


if __name__ == "__main__":
    run("lightning_vision", main)
