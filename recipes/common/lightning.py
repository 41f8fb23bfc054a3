"""Shared by the recipes on Lightning: a module that logs, rows that continue after a resume, Ctrl-C, the report."""

from __future__ import annotations

import os
import sys
import time
import zipfile
from contextlib import ExitStack
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from greedylr_integrations.lightning import GreedyLRCallback
from recipes.common.offline import RecipeError
from recipes.common.report import Run, decisions_in, next_learning_rate, peak_memory_gib
from recipes.common.schedules import fixed
from recipes.common.stop import StopOnSignal, Stopped


class Module(pl.LightningModule):
    """A module with a schedule, and with the log of the run, which its checkpoints contain."""

    def __init__(self, schedule: str, args, warmup_steps: int = 0):
        super().__init__()
        self.schedule, self.args, self.warmup_steps = schedule, args, warmup_steps
        self.train_loss, self.validation_loss, self.learning_rate = [], [], []
        self.start = time.perf_counter()

    def log_step(self, loss: torch.Tensor) -> None:
        """For `training_step`: log the loss, as a mean over the ranks, and the LR of the step."""
        self.train_loss.append((self.global_step + 1, loss))
        self.learning_rate.append((self.global_step + 1, self.optimizers().param_groups[0]["lr"]))

    def log_so_far(self):
        return [(step, float(loss)) for step, loss in self.train_loss], self.validation_loss, self.learning_rate

    def reduced(self, *values: torch.Tensor) -> torch.Tensor:
        """Means over the ranks."""
        return self.trainer.strategy.reduce(torch.stack([value.double() for value in values]), reduce_op="mean")

    def make_optimizer(self, parameters):
        raise NotImplementedError

    def configure_optimizers(self):
        optimizer = self.make_optimizer([p for p in self.parameters() if p.requires_grad])
        if self.schedule == "greedy":
            return optimizer
        scheduler = fixed(self.schedule, optimizer, self.args.max_steps, self.warmup_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint):
        checkpoint["log"], checkpoint["seconds"] = self.log_so_far(), self.seconds

    def on_load_checkpoint(self, checkpoint):
        self.train_loss, self.validation_loss, self.learning_rate = checkpoint["log"]
        self.start -= checkpoint.get("seconds", 0.0)

    @property
    def seconds(self) -> float:
        """Since the run began, as far as checkpoints know."""
        return time.perf_counter() - self.start


class Batches:
    """This rank's indices of each batch, from the Trainer's present step on, without end.

    They depend only on seed and step, so the order is the same after a resume.
    """

    def __init__(self, trainer, rows: int, batch_size: int, seed: int):
        self.trainer, self.rows, self.batch_size, self.seed = trainer, rows, batch_size, seed

    def __iter__(self):
        rank, world = self.trainer.global_rank, self.trainer.world_size
        step, size = self.trainer.global_step, self.batch_size * world
        per_epoch = self.rows // size
        while True:
            epoch, first = divmod(step, per_epoch)
            order = torch.randperm(self.rows, generator=torch.Generator().manual_seed(self.seed + epoch))
            for batch in range(first, per_epoch):
                yield order[batch * size + rank : (batch + 1) * size : world].tolist()
                step += 1


def check_rows(args, data, processes: int) -> None:
    """Check that there are enough rows for each process to train on and to validate on."""
    for part, rows, least in (
        ("train", len(data[0]), processes * args.batch_size),
        ("test", len(data[1]), processes),
    ):
        if rows < least:
            raise RecipeError(
                f"{part}: {rows} rows of {args.dataset!r} do not fill one step of {least}:"
                " use more rows, or a smaller --batch-size"
            )


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints, the last one last. A kill may leave an incomplete one."""
    return sorted(filter(zipfile.is_zipfile, folder.glob("checkpoint-*.ckpt")), key=lambda p: int(p.stem.split("-")[1]))


class Saving(pl.Callback):
    """Saves every `every` steps, stops with a checkpoint on Ctrl-C and SIGTERM, and has the last step validated.

    If a step is validated, it is saved after that: from an earlier checkpoint of the step, Lightning would continue as
    if the validation had been done.
    """

    def __init__(self, folder: Path, every: int, validated: int):
        self.folder, self.every, self.validated, self.handlers = folder, every, validated, ExitStack()

    def on_train_start(self, trainer, module):  # by now Lightning has set its handler of SIGTERM, which broadcasts
        self.stop = self.handlers.enter_context(StopOnSignal())

    def on_train_batch_end(self, trainer, module, *batch):
        last = trainer.global_step == trainer.max_steps
        self.stopped = self.stop.asked() and not last
        if last:
            trainer.should_stop = True  # Lightning validates before it stops early
        elif trainer.global_step % self.validated:
            self.save(trainer)

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            self.save(trainer)

    def save(self, trainer):
        if self.stopped or trainer.global_step % self.every == 0:
            older = checkpoints(self.folder)
            trainer.save_checkpoint(self.folder / f"checkpoint-{trainer.global_step}.ckpt")
            for path in older[:-1] if trainer.is_global_zero else []:
                path.unlink()
        if self.stopped:
            raise Stopped(self.stop.number, self.folder.parent)

    def on_train_end(self, trainer, module):
        self.handlers.close()

    def on_exception(self, trainer, module, exception):
        self.handlers.close()


def train(module: Module, data, validation_batch: int, collate_fn=None, **more) -> tuple[Run, pl.Trainer]:
    """Fit the module, from its last checkpoint if there is one.

    `data` is a pair of rows to train on and rows to validate on, and `more` is passed to the Trainer. Checkpoints and
    decisions are kept in --output-dir/SCHEDULE.
    """
    args, folder = module.args, module.args.output_dir / module.schedule
    found, callback = checkpoints(folder), None
    validated = max(1, args.max_steps // 4)
    callbacks = [Saving(folder, args.save_steps, validated)]
    if module.schedule == "greedy":
        if not found:
            args.greedy.forget_unfinished(folder)
        per_epoch = len(data[0]) // (args.batch_size * args.devices * more.get("num_nodes", 1))
        lengths = args.greedy.lengths(args.max_steps, per_epoch, module.warmup_steps)
        callback = GreedyLRCallback(**lengths, **args.greedy.arguments(folder))
        callbacks.insert(0, callback)
    trainer = pl.Trainer(
        max_steps=args.max_steps,
        max_epochs=-1,
        val_check_interval=validated,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=-1,  # all of the validation, before a run that is not resumed
        devices=args.devices,
        use_distributed_sampler=False,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        **more,
    )
    batches = Batches(trainer, len(data[0]), args.batch_size, args.seed)
    own = data[1].shard(trainer.world_size, trainer.global_rank, contiguous=False)
    loaders = (
        DataLoader(data[0], batch_sampler=batches, collate_fn=collate_fn),
        DataLoader(own, validation_batch, collate_fn=collate_fn),
    )
    module.start = time.perf_counter()
    try:
        trainer.fit(module, *loaders, ckpt_path=found[-1] if found else None)
    except Stopped:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            sys.exit()  # if this process ended with an error, Lightning would kill the first one
        raise
    train_loss, validation_loss, learning_rate = module.log_so_far()
    decisions = decisions_in(callback.scheduler.history_file.path) if callback and trainer.is_global_zero else []
    run = Run(
        schedule=module.schedule,
        train_loss=train_loss,
        validation_loss=validation_loss,
        learning_rate=learning_rate,
        seconds=module.seconds,
        peak_memory_gib=peak_memory_gib(),
        next_learning_rate=next_learning_rate(decisions, args.learning_rate),
        decisions=decisions,
    )
    return run, trainer
