"""One rank has a fault while all of them train: rank_worker.py FRAMEWORK SCENARIO OUT.

Writes the LRs that the rank used and the error it met, if any.
"""

import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path

import small
import torch
import torch.distributed as dist
from processes import leave
from torch.distributed.algorithms.join import Join

warnings.simplefilter("ignore")
torch.set_num_threads(1)
RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
STEPS = 24
ODD_ONE = RANK == WORLD - 1
FAST = {"window_size": 2, "factor": 0.9}


def arguments(scenario, out):
    """Arguments of scheduler or callback; those of the last rank differ in some scenarios."""
    own = dict(FAST)
    if scenario == "another setting" and ODD_ONE:
        own["factor"] = 0.8
    if scenario == "another rule" and ODD_ONE:
        own = {}
    if scenario == "a history on one rank" and not ODD_ONE:
        own["history_file"] = str(out / "history.jsonl")
    if scenario == "orders on one rank" and not ODD_ONE:
        own["control_file"] = str(out / "control.json")
    return own


class Model(small.Regressor):
    """What happens to the last rank in its 12th step happens in its forward pass."""

    def __init__(self, scenario):
        super().__init__()
        self.scenario, self.steps = scenario, 0

    def forward(self, x, labels):
        self.steps += 1
        if ODD_ONE and self.steps == 12:
            if self.scenario == "death":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.scenario == "an exception":
                raise RuntimeError("the last rank has had enough")
            if self.scenario == "a slow rank":
                time.sleep(8)
        return super().forward(x, labels)


def with_torch(scenario, out, used):
    from greedylr_integrations import GreedyLR

    dist.init_process_group("gloo")
    model = torch.nn.parallel.DistributedDataParallel(Model(scenario))
    scheduler = GreedyLR(optimizer_of(model, used), total_steps=STEPS, **arguments(scenario, out))
    train(model, scheduler.optimizer, scheduler, batches(), lambda loss: loss.backward(), scenario)


def with_accelerate(scenario, out, used):
    from accelerate import Accelerator

    from greedylr_integrations.accelerate import GreedyLR

    accelerator = Accelerator(cpu=True)
    model = Model(scenario)
    optimizer = optimizer_of(model, used)
    scheduler = GreedyLR(optimizer, total_steps=STEPS, **arguments(scenario, out))
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    if scenario == "uneven data":
        with Join([model, scheduler]):  # accelerator.join_uneven_inputs does it on GPUs only
            return train(model, optimizer, scheduler, batches(short=ODD_ONE), accelerator.backward, scenario)
    return train(model, optimizer, scheduler, batches(), accelerator.backward, scenario)


def train(model, optimizer, scheduler, loader, backward, scenario):
    for step, batch in enumerate(loader):
        loss = model(**batch)["loss"]
        backward(loss)
        optimizer.step()
        without = scenario == "no loss on one rank" and ODD_ONE and step == 10
        scheduler.step(None if without else loss)
        optimizer.zero_grad()


def batches(short=False):
    rows = small.regression_data(STEPS * 2 * WORLD)[RANK::WORLD]
    return torch.utils.data.DataLoader(rows[: len(rows) - 6 if short else None], batch_size=2)


def optimizer_of(model, used):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    optimizer.register_step_pre_hook(lambda o, a, k: used.append(o.param_groups[0]["lr"]))
    return optimizer


def with_transformers(scenario, out, used):
    import tiny

    from greedylr_integrations.transformers import GreedyLRCallback

    model = Model(scenario)
    callback = GreedyLRCallback(**arguments(scenario, out))
    data = small.regression_data(STEPS * 2 * WORLD)
    pair = {"optimizers": (optimizer_of(model, used), None)}
    tiny.trainer(out, [callback], model=model, data=data, max_steps=STEPS, trainer_kwargs=pair).train()


def with_lightning(scenario, out, used):
    import lightning.pytorch as pl

    from greedylr_integrations.lightning import GreedyLRCallback

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = Model(scenario)

        def training_step(self, batch, batch_idx):
            if scenario == "no loss on one rank" and ODD_ONE and batch_idx == 10:
                return None
            return self.model(**batch)["loss"]

        def configure_optimizers(self):
            return optimizer_of(self.model, used)

    trainer = pl.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        devices=WORLD,
        strategy="ddp",
        callbacks=[GreedyLRCallback(**arguments(scenario, out))],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(small.regression_data(STEPS * 2 * WORLD), batch_size=2))


if __name__ == "__main__":
    framework, scenario, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    used, error = [], None
    try:
        {
            "torch": with_torch,
            "accelerate": with_accelerate,
            "transformers": with_transformers,
            "lightning": with_lightning,
        }[framework](scenario, out, used)
    except Exception as caught:
        error = f"{type(caught).__name__}: {caught}"
    written = out / f"{RANK}.unfinished"  # the others' errors may end this rank at any time
    written.write_text(json.dumps({"used": used, "error": error}))
    written.rename(out / f"rank-{RANK}.json")
    if error:
        os._exit(1)  # the others may be in a collective: torchrun ends them
    leave()
