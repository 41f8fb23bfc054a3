"""What the recipes on Accelerate share: one process or several, checkpoints that are whole, rows that go on."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.utils.data import Sampler

from greedylr_integrations.history import steady_scales, suggested_lr
from recipes.common.report import Run, decisions_in
from recipes.common.schedules import fixed

ON_CPU = not torch.accelerator.is_available()  # Accelerate has to be told, or torchrun's processes train apart


def make_accelerator(**more):
    """A loader's batch is that of all processes, and a scheduler is stepped once an optimizer step."""
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    return Accelerator(cpu=ON_CPU, dataloader_config=DataLoaderConfiguration(split_batches=True), **more)


def make_scheduler(schedule: str, optimizer, folder: Path, total_steps: int):
    """With a ramp over a twentieth of the run; the decisions of "greedy" are kept in `folder`, over every resume."""
    from greedylr_integrations.accelerate import GreedyLR

    ramp = total_steps // 20
    if schedule != "greedy":
        return fixed(schedule, optimizer, total_steps, ramp)
    file = folder / "history.jsonl"
    return GreedyLR(optimizer, total_steps=total_steps, linear_warmup_steps=ramp, history_file=file)


class Order(Sampler):
    """Numbers of the rows from one place of the run to another, in a new order each epoch."""

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


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def resumed(accelerator, schedule: str, folder: Path) -> Run:
    """The run so far, of the last checkpoint if there is one, which all that is prepared is set to.

    What is added to it is in the checkpoints to come.
    """
    result = Run(schedule, [], [], [], 0.0, 0.0)
    kept = SimpleNamespace(state_dict=lambda: vars(result), load_state_dict=vars(result).update)
    accelerator.register_for_checkpointing(kept)
    if found := checkpoints(folder):
        accelerator.load_state(str(found[-1]))
    elif accelerator.is_main_process:
        (folder / "history.jsonl").unlink(missing_ok=True)  # of a run that was killed before it saved
    return result


def save(accelerator, folder: Path, step: int) -> None:
    """A whole checkpoint or none: it gets its name when all is written, and only then the ones before go."""
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


def add_decisions(result: Run, scheduler, folder: Path, base_lr: float) -> None:
    """Of all of the run, those before a resume too. For the main process, at the end."""
    scheduler.finish()
    result.decisions = decisions_in(folder / "history.jsonl")
    result.next_learning_rate = suggested_lr(steady_scales(result.decisions), base_lr)
