"""Classify images with Lightning, with a learning rate that is found in training.

    python -m recipes.lightning_vision                              # Fashion-MNIST, or scikit-learn's digits without it
    python -m recipes.lightning_vision --compare greedy cosine linear
    python -m recipes.lightning_vision --devices 2                   # two processes

Saves a checkpoint every --save-steps steps to --output-dir/SCHEDULE, and on Ctrl-C; --resume continues as if there had
been no interruption. Writes metrics.json, loss_and_lr.png and the network (greedy/model) to --output-dir.
"""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import nn

from recipes.common import lightning as common
from recipes.common.flags import check_at_least_one, finish, parse, parser, run, run_all
from recipes.common.offline import RecipeError, images
from recipes.common.report import Run

CNN = "cnn"


class Module(common.Module):
    """A small CNN, trained by SGD with momentum."""

    accuracy = float("nan")  # of the last validation

    def __init__(self, schedule: str, args, side: int):
        super().__init__(schedule, args)
        self.net = nn.Sequential(
            nn.Unflatten(1, (1, side, side)),
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(32 * (side // 4) ** 2, 10)),
        )

    def make_optimizer(self, parameters):
        return torch.optim.SGD(parameters, lr=self.args.learning_rate, momentum=0.9)

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch["image"]), batch["label"])
        self.log_step(self.reduced(loss.detach())[0])
        return loss

    def on_validation_epoch_start(self):
        self.sums = [0.0, 0, 0]

    def validation_step(self, batch, batch_idx):
        scores, labels = self.net(batch["image"]), batch["label"]
        loss = nn.functional.cross_entropy(scores, labels, reduction="sum")
        counts = (scores.argmax(1) == labels).sum(), torch.ones_like(labels).sum()
        self.sums = [total + value for total, value in zip(self.sums, (loss, *counts), strict=True)]

    def on_validation_epoch_end(self):
        loss, right, rows = self.reduced(*self.sums).tolist()
        self.accuracy = right / rows
        self.validation_loss.append((self.global_step, loss / rows))
        self.log_dict({"val_loss": loss / rows, "val_accuracy": self.accuracy}, sync_dist=True, prog_bar=True)


def train(schedule: str, args, data) -> Run:
    pl.seed_everything(args.seed, verbose=False)
    module = Module(schedule, args, side=round(len(data[0][0]["image"]) ** 0.5))
    run, trainer = common.train(module, data, validation_batch=500)
    if trainer.is_global_zero:
        print(f"{schedule}: validation accuracy {module.accuracy:.4f}")
        torch.save(module.net.cpu(), args.output_dir / schedule / "model")
    return run


def parse_flags(argv: list[str] | None = None):
    defaults = {"model": CNN, "dataset": "auto", "max_steps": 1500, "learning_rate": 0.01, "batch_size": 64}
    made = parser("lightning_vision", __doc__, **defaults)
    made.add_argument("--devices", type=int, default=1, help="processes, or GPUs (default: %(default)s)")
    made.add_argument("--save-steps", type=int, default=500, help="steps between checkpoints (default: %(default)s)")
    args = parse(made, argv, same=("max_steps", "learning_rate"))
    check_at_least_one(args, "max_steps", "batch_size", "devices", "save_steps")
    if args.model != CNN:
        raise RecipeError(f"--model {args.model!r} is unknown: this recipe has only {CNN!r}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_flags(argv)
    data = images(args.dataset)
    common.check_rows(args, data, args.devices)
    runs = run_all(args, lambda schedule: train(schedule, args, data))
    finish(runs, args, load="torch.load({model!r}, weights_only=False)")


if __name__ == "__main__":
    run("lightning_vision", main)
