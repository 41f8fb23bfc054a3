"""What the adapters add to a training step, and what the collective costs.

    make bench-adapters          (or: python benchmarks/adapters.py)

Step: in each framework, the same small training with and without the adapter, interleaved. The table has the median
time of a step, the median of the paired differences, and the host time inside the adapter's own code (outermost calls;
the loss is on the CPU). That time is measured with two clock reads per call, and by torch.profiler, which slows down
each tensor operation. The last column is its share of a LoRA step of a 135M model, as measured by
`recipes/finetune_llm.py` on two cores (3 s). Collective: one `LossMeter.compute` on 1, 2, 4 and 8 gloo processes of
this machine. Projection: latency a + b * log2(ranks) (a tree, as NCCL and gloo use for a few bytes), fitted to 2 and 4
processes, which have a core or half a core each; the latency of a real network is different.
"""

from __future__ import annotations

import math
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from functools import partial, wraps
from itertools import pairwise
from pathlib import Path

import torch

warnings.simplefilter("ignore")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
STEPS, ROUNDS = 300, 9
LORA_STEP = 3.0  # seconds


def step_time(train) -> float:
    """Median seconds between two optimizer steps of one run."""
    stamps: list[float] = []
    train(lambda *args: stamps.append(time.perf_counter()))
    return statistics.median(b - a for a, b in pairwise(stamps[20:]))


class OwnTime:
    """Seconds spent in the adapters' code, counted at the outermost call only."""

    def __init__(self) -> None:
        self.seconds, self.inside, self.profiling = 0.0, False, False

    def watch(self, owner: type, *names: str) -> None:
        for name in names:
            setattr(owner, name, self._timed(getattr(owner, name)))

    def profiled(self, train) -> float:
        """Host seconds per step in the adapter's code, by torch.profiler."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            self.profiling = True
            train(True, lambda *args: None)
            self.profiling = False
        (ours,) = (event for event in profile.key_averages() if event.key == "greedylr")
        return ours.cpu_time_total / 1e6 / STEPS

    def _timed(self, method):
        @wraps(method)
        def timed(*args, **kwargs):
            if self.inside:
                return method(*args, **kwargs)
            self.inside, begin = True, time.perf_counter()
            try:
                if self.profiling:
                    with torch.profiler.record_function("greedylr"):
                        return method(*args, **kwargs)
                return method(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - begin
                self.inside = False

        return timed


def watch_all(own: OwnTime) -> None:
    from greedylr_integrations import accelerate, lightning, loss, transformers

    own.watch(loss.LossMeter, "update")
    own.watch(transformers.GreedyLRCallback, "on_step_begin", "on_optimizer_step", "on_step_end", "on_epoch_end")
    own.watch(lightning.GreedyLRCallback, "_on_step", "on_train_batch_end", "on_train_epoch_end")
    own.watch(accelerate.GreedyLR, "step", "_on_step")


def transformers_run(adapted: bool, hook) -> None:
    import tiny

    from greedylr_integrations.transformers import GreedyLRCallback

    model = tiny.Regressor()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    optimizer.register_step_post_hook(hook)
    with tempfile.TemporaryDirectory() as out:
        trainer = tiny.trainer(
            out,
            [GreedyLRCallback()] if adapted else [],
            model=model,
            max_steps=STEPS,
            logging_steps=10_000,
            trainer_kwargs={"optimizers": (optimizer, None)},
        )
        trainer.train()


def lightning_run(adapted: bool, hook) -> None:
    import lightning.pytorch as pl
    import tiny

    from greedylr_integrations.lightning import GreedyLRCallback

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = tiny.Regressor()

        def training_step(self, batch, batch_idx):
            return self.model(**batch)["loss"]

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=1e-3)
            optimizer.register_step_post_hook(hook)
            return optimizer

    trainer = pl.Trainer(
        max_steps=STEPS,
        max_epochs=-1,
        accelerator="cpu",
        devices=1,
        callbacks=[GreedyLRCallback()] if adapted else [],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(tiny.regression_data(STEPS * 2), batch_size=2))


def accelerate_run(adapted: bool, hook) -> None:
    import tiny
    from accelerate import Accelerator

    from greedylr_integrations.accelerate import GreedyLR

    accelerator = Accelerator(cpu=True)
    model = tiny.Regressor()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    optimizer.register_step_post_hook(hook)
    loader = torch.utils.data.DataLoader(tiny.regression_data(STEPS * 2), batch_size=2)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    scheduler = accelerator.prepare(GreedyLR(optimizer, total_steps=STEPS)) if adapted else None
    for batch in loader:
        loss = model(**batch)["loss"]
        accelerator.backward(loss)
        optimizer.step()
        if scheduler is not None:
            scheduler.step(loss)
        optimizer.zero_grad()


def adapters() -> None:
    own = OwnTime()
    watch_all(own)
    print(f"\n{'':14}step without   with it   added   our own code   by profiler   of a 135M LoRA step")
    frameworks = {"transformers": transformers_run, "lightning": lightning_run, "accelerate": accelerate_run}
    for name, train in frameworks.items():
        own.seconds, pairs = 0.0, []
        for _ in range(ROUNDS):
            pairs.append(tuple(step_time(partial(train, adapted)) for adapted in (False, True)))
        without, with_it = (statistics.median(times) for times in zip(*pairs, strict=True))
        added, ours = statistics.median(b - a for a, b in pairs), own.seconds / ROUNDS / STEPS
        by_profiler = statistics.median(own.profiled(train) for _ in range(3))
        print(
            f"{name:14}{without * 1e6:9.0f} us{with_it * 1e6:7.0f} us{added * 1e6:5.0f} us{ours * 1e6:12.0f} us"
            f"{by_profiler * 1e6:11.0f} us{ours / LORA_STEP:22.4%}",
            flush=True,
        )


def _collective(rank: int, world: int, port: int, out: str) -> None:
    from greedylr_integrations.loss import LossMeter

    torch.set_num_threads(1)
    if world > 1:
        torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    meter, loss, times = LossMeter(), torch.tensor(1.0), []
    for _ in range(400):
        meter.update(loss)
        meter.end_step()
        begin = time.perf_counter()
        meter.compute()
        times.append(time.perf_counter() - begin)
    if rank == 0:
        Path(out).write_text(str(statistics.median(times[50:])))
    if world > 1:
        torch.distributed.destroy_process_group()


def collectives() -> None:
    import socket

    import torch.multiprocessing as mp

    measured = {}
    print("\nprocesses   one decision's all-reduce and read (median)")
    for world in (1, 2, 4, 8):
        with socket.socket() as s, tempfile.TemporaryDirectory() as out:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
            s.close()
            mp.spawn(_collective, (world, port, f"{out}/time"), nprocs=world)
            measured[world] = float(Path(out, "time").read_text())
        print(f"{world:9}{measured[world] * 1e6:12.0f} us", flush=True)
    slope = measured[4] - measured[2]
    for ranks in (64, 1024):
        projected = measured[2] + slope * (math.log2(ranks) - 1)
        print(f"projected for {ranks} ranks: {projected * 1e3:.1f} ms at this machine's latency (two cores for all)")
    network = 20e-6
    print(
        f"projected for 1024 ranks: {10 * network * 1e6:.0f} us, if one level of the tree takes {network * 1e6:.0f} us"
    )


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores"
    )
    adapters()
    collectives()
