"""Trains on two processes, saves at every step, writes a trace: kill_worker.py FRAMEWORK RULE OUT STEPS [resume].

FAULT="kind rank step" in the environment is what happens to a rank in a step: one of `FAULTS`.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import small
import torch
from processes import leave

warnings.simplefilter("ignore")
torch.set_num_threads(1)
RANK = int(os.environ.get("RANK", "0"))
SETTINGS = {"window": {"window_size": 2, "factor": 0.9}, "slope": {}}[sys.argv[2]]
KIND, FAULTY_RANK, FAULTY_STEP = (os.environ.get("FAULT") or "none 0 0").split()
if KIND == "nan":
    SETTINGS |= {"on_nonfinite": "rollback", "snapshot_every": 8}


def have_had_enough():
    raise RuntimeError(f"rank {RANK} has had enough")


def freeze():
    """As a laptop that is closed, or a machine that swaps."""
    subprocess.Popen(["sh", "-c", f"sleep 3; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)


def jump():
    """The clock of this process, from now on."""
    real = time.time
    time.time = lambda: real() + 3600


FAULTS = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "term": lambda: os.kill(os.getppid(), signal.SIGTERM),  # to the launcher, and so to all ranks
    "exception": have_had_enough,
    "disk": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),  # as if it were full
    "slow": lambda: time.sleep(5),
    "frozen": freeze,
    "clock": jump,
    "nan": lambda: None,  # the loss, below
}


class Model(small.Regressor):
    """Each step slow enough to be killed in."""

    def __init__(self):
        super().__init__()
        self.own = []

    def forward(self, x, labels):
        time.sleep(0.02)
        result = super().forward(x, labels)
        if KIND != "none" and int(FAULTY_RANK) == RANK and len(self.own) == int(FAULTY_STEP):
            FAULTS[KIND]()
            if KIND == "nan":
                result["loss"] = result["loss"] * float("nan")
        self.own.append(result["loss"].item())
        return result


class Trace:
    def __init__(self, out):
        self.file = open(Path(out) / f"trace-{RANK}.jsonl", "a")  # noqa: SIM115

    def write(self, step, lr, own, seen):
        self.file.write(json.dumps({"step": step, "lr": lr, "own": own, "seen": seen}) + "\n")
        self.file.flush()


def newest(folder, marker):
    """The last checkpoint that was written whole."""
    found = sorted(folder.glob("*/" + marker), key=lambda path: int(path.parent.name.split("-")[1]))
    return found[-1].parent if found else None


def with_accelerate(out, steps, resume):
    from accelerate import Accelerator, skip_first_batches

    from greedylr_integrations.accelerate import GreedyLR

    accelerator = Accelerator(cpu=True)
    model = own = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    loader = torch.utils.data.DataLoader(small.regression_data(steps * 4), batch_size=2)
    scheduler = GreedyLR(optimizer, total_steps=steps, **SETTINGS, history_file=out / "history.jsonl")
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    trace, done = Trace(out), 0
    if resume:
        checkpoint = newest(out, "whole")
        accelerator.load_state(str(checkpoint))
        done = int(checkpoint.name.split("-")[1])
    for step, batch in enumerate(skip_first_batches(loader, done), done):
        lr = scheduler.get_last_lr()[0]
        loss = model(**batch)["loss"]
        accelerator.backward(loss)
        optimizer.step()
        decision = scheduler.step(loss)
        optimizer.zero_grad()
        trace.write(step, lr, own.own[-1], decision.loss)
        folder = out / f"state-{step + 1}"
        accelerator.save_state(str(folder))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            (folder / "whole").touch()
            shutil.rmtree(out / f"state-{step - 2}", ignore_errors=True)


def with_transformers(out, steps, resume):
    import tiny
    from transformers import TrainerCallback

    from greedylr_integrations.transformers import GreedyLRCallback

    model, spy, trace = Model(), tiny.LRSpy(), Trace(out)

    class Write(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            trace.write(state.global_step - 1, spy.used[-1][0], model.own[-1], callback.history[-1].decision.loss)

        def on_save(self, args, state, control, **kwargs):
            torch.distributed.barrier()  # every rank has written its random state
            if RANK == 0:
                (Path(args.output_dir) / f"checkpoint-{state.global_step}" / "whole").touch()

    callback = GreedyLRCallback(**SETTINGS, history_file=str(out / "history.jsonl"))
    trainer = tiny.trainer(
        out,
        [callback, spy, Write()],
        model=model,
        data=small.regression_data(steps * 4),
        max_steps=steps,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=3,
    )
    trainer.train(resume_from_checkpoint=str(newest(out, "whole")) if resume else None)


def with_lightning(out, steps, resume):
    import lightning.pytorch as pl
    from torchdata.stateful_dataloader import StatefulDataLoader

    from greedylr_integrations.lightning import GreedyLRCallback

    trace = Trace(out)

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.used = Model(), []

        def training_step(self, batch, batch_idx):
            return self.model(**batch)["loss"]

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.02)
            optimizer.register_step_pre_hook(lambda o, a, k: self.used.append(o.param_groups[0]["lr"]))
            return optimizer

    class Write(pl.Callback):
        def on_train_batch_end(self, trainer, module, *args):
            step = trainer.global_step
            trace.write(step - 1, module.used[-1], module.model.own[-1], callback.history[-1].decision.loss)
            trainer.save_checkpoint(out / f"state-{step}" / "last.ckpt")
            trainer.strategy.barrier()
            if RANK == 0:
                (out / f"state-{step}" / "whole").touch()
                shutil.rmtree(out / f"state-{step - 3}", ignore_errors=True)

    callback = GreedyLRCallback(**SETTINGS, history_file=str(out / "history.jsonl"))
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        callbacks=[callback, Write()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
    )
    data = small.regression_data(steps * 4)
    sampler = torch.utils.data.DistributedSampler(data, 2, RANK, shuffle=False)
    # a plain DataLoader would start the epoch over after a resume
    loader = StatefulDataLoader(data, batch_size=2, sampler=sampler)
    checkpoint = newest(out, "whole") / "last.ckpt" if resume else None
    trainer.fit(Module(), loader, ckpt_path=str(checkpoint) if checkpoint else None)


if __name__ == "__main__":
    framework, _, out, steps, *more = sys.argv[1:]
    out = Path(out)
    {"accelerate": with_accelerate, "transformers": with_transformers, "lightning": with_lightning}[framework](
        out, int(steps), "resume" in more
    )
    leave()
