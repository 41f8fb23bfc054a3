"""Shared by the recipes on Accelerate: processes, complete checkpoints, and rows that continue after a resume."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.utils.data import Sampler

from recipes.common.report import Run, decisions_in, next_learning_rate
from recipes.common.schedules import fixed

ON_CPU = not torch.accelerator.is_available()  # Accelerate needs to know, or the processes of torchrun train separately
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def make_accelerator(**more):
    """An `Accelerator` that splits each batch of a loader among all processes."""
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    return Accelerator(cpu=ON_CPU, dataloader_config=DataLoaderConfiguration(split_batches=True), **more)


def make_scheduler(schedule: str, optimizer, args, steps_per_epoch: int | None):
    """A schedule with a warmup over a twentieth of the run."""
    from greedylr_integrations.accelerate import GreedyLR

    warmup = args.max_steps // 20
    if schedule != "greedy":
        return fixed(schedule, optimizer, args.max_steps, warmup)
    lengths = args.greedy.lengths(args.max_steps, steps_per_epoch, warmup)
    return GreedyLR(optimizer, **lengths, **args.greedy.arguments(args.output_dir / schedule))


class Order(Sampler):
    """Indices of the rows from one place of the run to another, in a new order in each epoch."""

    def __init__(self, rows: int, seed: int, start: int, stop: int) -> None:
        self.rows, self.seed, self.start, self.stop = rows, seed, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self):
        for i in range(self.start, self.stop):
            epoch, place = divmod(i, self.rows)
            if i == self.start or place == 0:
                order = torch.randperm(self.rows, generator=torch.Generator().manual_seed(self.seed + epoch)).tolist()
            yield order[place]


class Sharded:
    """Model and optimizer of --fsdp in one checkpoint file, which any number of processes can read."""

    def __init__(self, model, optimizer) -> None:
        self.parts = model, optimizer

    def state_dict(self):
        return get_state_dict(*self.parts, options=WHOLE)

    def load_state_dict(self, state) -> None:
        set_state_dict(*self.parts, model_state_dict=state[0], optim_state_dict=state[1], options=WHOLE)


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def resumed(accelerator, schedule: str, args) -> Run:
    """The run so far. Everything that was prepared is set to the last checkpoint, if there is one.

    What is added to the run is part of later checkpoints.
    """
    result, folder = Run(schedule, [], [], [], 0.0, 0.0), args.output_dir / schedule
    kept = SimpleNamespace(state_dict=lambda: vars(result), load_state_dict=vars(result).update)
    accelerator.register_for_checkpointing(kept)
    if found := checkpoints(folder):
        accelerator.load_state(str(found[-1]))
    elif accelerator.is_main_process and schedule == "greedy":
        args.greedy.forget_unfinished(folder)
    return result


def save(accelerator, folder: Path, step: int) -> None:
    """Write a checkpoint completely or not at all: it is renamed when complete, and then the older ones are deleted."""
    unfinished = folder / "unfinished"
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(unfinished), safe_serialization=False)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        older = checkpoints(folder)
        unfinished.rename(folder / f"checkpoint-{step}")
        for path in older:
            if path.name != f"checkpoint-{step}":
                shutil.rmtree(path)


def add_decisions(result: Run, scheduler, base_lr: float) -> None:
    """Add the decisions of the whole run, including those before a resume. For the main process, at the end."""
    scheduler.finish()
    result.decisions = decisions_in(scheduler.history_file.path)
    result.next_learning_rate = next_learning_rate(result.decisions, base_lr)
