"""The same training with Accelerate, Hugging Face's Trainer and Lightning: three_worker.py OUT ACCUMULATE STEPS.

Each rank has batches of one row, so that all three give row i to rank i % world. The last rank's losses are 100 times
the others'. With FAULTS set, rank 1 has a NaN in its 11th micro-batch and rank 0 an infinity in its 21st. With COMMANDS
set, rank 0 writes orders into the control file while it trains. With POLICY set, the policy in that file decides; with
SLOPE set, the default rule.
Writes what each rank saw and did, and the history.
"""

import json
import os
import sys
import warnings

import torch
import torch.distributed as dist
from processes import leave

from greedylr_integrations import steering as module

warnings.simplefilter("ignore")
RANK, WORLD = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
FAULTS = {(1, 10): float("nan"), (0, 20): float("inf")} if os.environ.get("FAULTS") else {}
COMMANDS = (
    {10: ("pin", 3.0), 20: ("release", None), 25: ("cap", 0.5), 32: ("decay", 4)} if os.environ.get("COMMANDS") else {}
)
LR = 2e-4


steering = {}  # files of the framework under way


def settings():
    if "SLOPE" in os.environ:
        return {}
    if "POLICY" not in os.environ:
        return {"window_size": 4, "factor": 0.9}
    from greedylr_integrations.learned import PolicyConfig

    return {"config": PolicyConfig.load(os.environ["POLICY"])}


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
        self.seen = []  # this rank's own losses

    def forward(self, x, y, weight):
        loss = (weight * (self.net(x).squeeze(-1) - y) ** 2).mean()
        fault = FAULTS.get((RANK, len(self.seen)))
        if fault:
            loss = loss + fault  # the gradient stays finite, so that the model survives
        if RANK == 0 and len(self.seen) in COMMANDS:
            name, value = COMMANDS[len(self.seen)]
            written = json.dumps({"order": name, "value": value, "id": len(self.seen)})
            with open(steering["control_file"], "w") as file:
                file.write(written)
        self.seen.append(loss.item())
        return {"loss": loss}


def rows(count):
    g = torch.Generator().manual_seed(1)
    made = []
    for i in range(count):
        x = torch.randn(4, generator=g, dtype=torch.float64)
        y = x.sum() + 0.3 * torch.randn((), generator=g, dtype=torch.float64)
        weight = torch.tensor(100.0 if WORLD > 1 and i % WORLD == WORLD - 1 else 1.0, dtype=torch.float64)
        made.append({"x": x, "y": y, "weight": weight})
    return made


def optimizer_of(model, used):
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    optimizer.register_step_pre_hook(lambda o, a, k: used.append(o.param_groups[0]["lr"]))
    return optimizer


def with_accelerate(accumulate, steps, used, out):
    from accelerate import Accelerator

    from greedylr_integrations.accelerate import GreedyLR

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    model = Model()
    optimizer = optimizer_of(model, used)
    loader = torch.utils.data.DataLoader(rows(steps * accumulate * WORLD), batch_size=1)
    decisions, own = [], model
    scheduler = GreedyLR(optimizer, total_steps=steps, **settings(), **steering)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    for batch in loader:
        with accelerator.accumulate(model):
            loss = model(**batch)["loss"]
            accelerator.backward(loss)
            optimizer.step()
            decisions.append(scheduler.step(loss))
            optimizer.zero_grad()
    return own, [decision for decision in decisions if decision is not None]


def with_transformers(accumulate, steps, used, out):
    from torch.utils.data import SequentialSampler
    from transformers import Trainer, TrainingArguments

    from greedylr_integrations.transformers import GreedyLRCallback

    class InOrder(Trainer):
        def _get_train_sampler(self, *args):
            return SequentialSampler(self.train_dataset)

    callback = GreedyLRCallback(**settings(), **steering)
    args = TrainingArguments(
        out,
        max_steps=steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=accumulate,
        max_grad_norm=0,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=10_000,
    )
    model = Model()
    data, pair = rows(steps * accumulate * WORLD), (optimizer_of(model, used), None)
    InOrder(model, args, train_dataset=data, callbacks=[callback], optimizers=pair).train()
    return model, [record.decision for record in callback.history]


def with_lightning(accumulate, steps, used, out):
    import lightning.pytorch as pl

    from greedylr_integrations.lightning import GreedyLRCallback

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = Model()

        def training_step(self, batch, batch_idx):
            return self.model(**batch)["loss"]

        def configure_optimizers(self):
            return optimizer_of(self.model, used)

    callback, module = GreedyLRCallback(**settings(), **steering), Module()
    trainer = pl.Trainer(
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        accelerator="cpu",
        devices=WORLD,
        strategy="ddp" if WORLD > 1 else "auto",
        precision="64-true",
        callbacks=[callback],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
    )
    data = rows(steps * accumulate * WORLD)
    # Lightning's own sampler would shuffle
    sampler = torch.utils.data.DistributedSampler(data, WORLD, RANK, shuffle=False)
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=1, sampler=sampler))
    return module.model, [record.decision for record in callback.history]


def main(out, accumulate, steps):
    for name, train in (
        ("accelerate", with_accelerate),
        ("transformers", with_transformers),
        ("lightning", with_lightning),
    ):
        used = []
        steering["history_file"] = os.path.join(out, f"{name}.jsonl")
        if COMMANDS:
            module.LOOK_EVERY = 0.0
            steering["control_file"] = os.path.join(out, f"{name}-control.json")
        model, decisions = train(accumulate, steps, used, out)
        result = {
            "own": model.seen,
            "seen": [decision.loss for decision in decisions],
            "slopes": [decision.slope for decision in decisions],
            "actions": [decision.action.value for decision in decisions],
            "reasons": [decision.reason.name for decision in decisions],
            "used": used,
            "parameters": [p.double().sum().item() for p in model.parameters()],
        }
        with open(os.path.join(out, f"{name}-{RANK}.json"), "w") as file:
            json.dump(result, file)
        if dist.is_initialized():
            dist.barrier()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    leave()
