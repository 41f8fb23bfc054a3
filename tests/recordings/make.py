"""Recorded learning rates: what each case below gave when it was recorded, to be compared bit for bit.

    python tests/recordings/make.py

writes the recordings into this folder. That was done once, with the code of version 1 of the state and of the history;
a new recording is right only when LRs are meant to change.

The losses are read from losses.json, so the LRs depend on nothing but the code and, where a factor is raised to a
power, on the C library's `pow` and `exp`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import random
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from greedylr_integrations import GreedyConfig, GreedyController, GreedyLR, history

try:
    from greedylr_integrations import PaperConfig, TransformersConfig
except ImportError:  # before they were exported
    from greedylr_integrations.rules import PaperConfig, TransformersConfig

HERE = Path(__file__).parent
KINDS = ("controller", "scheduler", "frameworks")


def commands_of(scheduler: Any) -> list[tuple[Any, ...]]:
    """Step, name and value of each command; the attribute was `orders` at first."""
    return [tuple(entry) for entry in (scheduler.orders if hasattr(scheduler, "orders") else scheduler.commands)]


# ---- losses ----


def make_losses() -> list[float]:
    """Falls, plateaus, a jump, a slow rise, outliers, NaN and infinities; only arithmetic that is exact everywhere."""
    rng = random.Random(0)
    losses = []
    for i in range(2000):
        noise = 0.1 * (rng.random() + rng.random() + rng.random() - 1.5)
        if i < 900:
            level = 1 + 2 / (1 + min(i, 600) / 60)
        elif i < 1400:
            level = 1.1 + 1.6 / (1 + (i - 900) / 80)
        elif i < 1500:
            level, noise = 1.25, 0.0
        elif i < 1700:
            level = 1.25 + (i - 1500) / 400
        else:
            level = 0.6 + 1 / (1 + (i - 1700) / 50)
        losses.append(round(level + noise, 5))
    for i in (37, 420, 421, 1180, 1843):
        losses[i] = round(losses[i] * 40, 5)
    for i in (250, 700, 701, 1300, 1760):
        losses[i] = math.nan
    losses[555], losses[1600] = math.inf, -math.inf
    return losses


def read_losses() -> list[float]:
    return [float(loss) for loss in json.loads((HERE / "losses.json").read_text())]


# ---- traces ----


def digest(values: Iterable[object]) -> str:
    text = "\n".join(value.hex() if isinstance(value, float) else repr(value) for value in values)
    return hashlib.sha256(text.encode()).hexdigest()


EVERY = 10  # steps whose LRs are written out; of each other step, a short digest


def trace(entries: Sequence[tuple[Sequence[float], Any]]) -> dict[str, Any]:
    """LRs and decision (or None) of each step.

    "lrs" are the LRs of every 10th step and of the last, "marks" four digits of each step's digest as runs of equal
    ones, "digest" that of all LRs, "means" that of what the decisions saw, "decisions" runs of equal ones.
    """
    rows = [[float(lr).hex() for lr in lrs] for lrs, _ in entries]
    names = ["-" if d is None else f"{d.action.value} {d.reason.name}" for _, d in entries]
    return {
        "steps": len(entries),
        "lrs": [*rows[::EVERY], rows[-1]],
        "marks": runs(digest(row)[:4] for row in rows),
        "digest": digest(lr for row in rows for lr in row),
        "decisions": runs(names),
        "means": digest(v for _, d in entries if d is not None for v in (d.loss, d.smoothed, d.best)),
    }


def runs(names: Iterable[str]) -> list[list[Any]]:
    return [[name, len(list(run))] for name, run in groupby(names)]


def unrolled(pairs: Sequence[Sequence[Any]]) -> list[str]:
    return [name for name, count in pairs for _ in range(count)]


def fingerprint() -> str:
    """Equal on two machines whose `pow` and `exp` round alike."""
    rng = random.Random(1)
    return digest(
        v for _ in range(2000) for x in [rng.random()] for v in ((0.5 + x / 2) ** -rng.random(), math.exp(-x))
    )


# ---- the controller alone ----


@dataclass(kw_only=True)
class Controlled:
    config: Any
    base_lrs: tuple[float, ...] = (1.0,)
    horizon: int | None = None
    losses: Callable[[list[float]], list[float]] = list


def negated(losses: list[float]) -> list[float]:
    return [5 - loss for loss in losses]


def huge(losses: list[float]) -> list[float]:
    """Sums of two of these losses overflow."""
    return [*losses[:200], 1.7e308, 1.7e308, *losses[202:600]]


def presets(kind: Any) -> dict[str, Controlled]:
    """Configurations that both published rules take."""
    bounds: dict[str, Any] = {"min_lr": 1e-3, "max_lr": 8.0}
    return {
        "default": Controlled(config=kind()),
        "no patience": Controlled(config=kind(patience=0, factor=0.97, **bounds)),
        "patience 2": Controlled(config=kind(patience=2, factor=0.9, smooth=True, window_size=20, **bounds)),
        "warmup and cooldown": Controlled(
            config=kind(patience=1, warmup=5, cooldown=3, factor=0.9, smooth=True, window_size=10, **bounds)
        ),
        "relative": Controlled(config=kind(patience=1, threshold=0.01, threshold_mode="rel", factor=0.8, **bounds)),
        "absolute": Controlled(config=kind(patience=1, threshold=0.02, threshold_mode="abs", factor=0.8, **bounds)),
        "lists": Controlled(
            config=kind(patience=1, factor=0.85, min_lr=[1e-3, 2e-2, 0.5], max_lr=[0.3, 0.1, 4.0]),
            base_lrs=(0.1, 0.05, 1.0),
        ),
        "max": Controlled(config=kind(patience=1, mode="max", factor=0.9, **bounds), losses=negated),
        "reset": Controlled(config=kind(patience=0, factor=0.7, reset_start=7, min_lr=0.05, max_lr=2.0)),
        "hold and horizon": Controlled(config=kind(patience=3, on_nonfinite="hold", **bounds), horizon=2000),
        "huge": Controlled(
            config=kind(patience=0, factor=0.9, smooth=True, window_size=5, on_nonfinite="hold", **bounds), losses=huge
        ),
    }


CONTROLLED = {
    "loss": {
        "default": Controlled(config=GreedyConfig()),
        "horizon 2000": Controlled(config=GreedyConfig(), horizon=2000),
        "horizon 50": Controlled(config=GreedyConfig(), horizon=50),
        "patience 2": Controlled(config=GreedyConfig(patience=2, window_size=10, factor=0.9)),
        "warmup and cooldown": Controlled(
            config=GreedyConfig(warmup=5, cooldown=3, window_size=10, best_window=40, factor=0.9)
        ),
        "relative": Controlled(config=GreedyConfig(threshold=0.01, threshold_mode="rel", window_size=8, factor=0.9)),
        "absolute": Controlled(config=GreedyConfig(threshold=0.02, threshold_mode="abs", window_size=8, factor=0.9)),
        "lists": Controlled(
            config=GreedyConfig(window_size=6, factor=0.85, min_lr=[1e-3, 2e-2, 0.5], max_lr=[0.3, 0.1, 4.0]),
            base_lrs=(0.1, 0.05, 1.0),
        ),
        "max": Controlled(config=GreedyConfig(mode="max", window_size=12), losses=negated, horizon=2000),
        "reset": Controlled(config=GreedyConfig(reset_start=70, window_size=10, min_scale=0.2, max_scale=3.0)),
        "no pace": Controlled(config=GreedyConfig(pace=0, window_size=1, factor=0.95, on_nonfinite="hold")),
        "pace 2": Controlled(config=GreedyConfig(pace=2, threshold=2.5, max_scale=100.0), horizon=1000),
        "huge": Controlled(config=GreedyConfig(window_size=5, on_nonfinite="hold"), losses=huge),
    },
    "paper": presets(PaperConfig),
    "transformers": presets(TransformersConfig),
}


def observe(controller: GreedyController, case: Controlled, losses: Sequence[float]) -> list[tuple[list[float], Any]]:
    entries = []
    for loss in losses:
        decision = controller.observe(loss)
        assert decision.scales == controller.scales
        entries.append(([lr * scale for lr, scale in zip(case.base_lrs, decision.scales, strict=True)], decision))
    return entries


def run_controller(case: Controlled, folder: Path) -> dict[str, Any]:
    controller = GreedyController(case.config, case.base_lrs, case.horizon)
    return trace(observe(controller, case, case.losses(read_losses())))


# ---- the scheduler ----

STEPS = 400


@dataclass(kw_only=True)
class Scheduled:
    """A run of the scheduler: what happens before which step, and whether it is saved and loaded on the way."""

    config: Any
    groups: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    multiply: bool = False
    script: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    save_at: int | None = None
    steps: int = STEPS


def rises_and_falls(step: int) -> float:
    return min((step + 1) / 10, 1.0) * (1 - step / 600)


def build(case: Scheduled, **more: Any) -> GreedyLR:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.1, 0.03, 0.7)[: case.groups]]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    schedule = LambdaLR(optimizer, rises_and_falls) if case.multiply else None
    return GreedyLR(optimizer, case.config, base_schedule=schedule, **case.options, **more)


def drive(scheduler: GreedyLR, case: Scheduled, start: int, stop: int) -> list[tuple[list[float], Any]]:
    losses, entries = read_losses(), []
    optimizer = scheduler.optimizer
    for step in range(start, stop):
        method, *values = case.script.get(step, (None,))
        if method == "add_group":
            optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": values[0]})
        elif method is not None:
            getattr(scheduler, method)(*values)
        optimizer.step()
        decision = scheduler.step(losses[step])
        entries.append(([float(group["lr"]) for group in optimizer.param_groups], decision))
    return entries


def save(scheduler: GreedyLR) -> dict[str, Any]:
    """As JSON and back, as a checkpoint keeps it."""
    schedule = scheduler.base_schedule
    state = {
        "scheduler": scheduler.state_dict(),
        "base_schedule": None if schedule is None else schedule.state_dict(),
        "optimizer_lrs": [group["lr"] for group in scheduler.optimizer.param_groups],
    }
    return json.loads(json.dumps(state, allow_nan=False))


def resume(case: Scheduled, saved: dict[str, Any], **more: Any) -> GreedyLR:
    scheduler = build(case, **more)
    if scheduler.base_schedule is not None:
        scheduler.base_schedule.load_state_dict(dict(saved["base_schedule"]))
    for group, lr in zip(scheduler.optimizer.param_groups, saved["optimizer_lrs"], strict=True):
        group["lr"] = lr
    scheduler.load_state_dict(saved["scheduler"])
    return scheduler


def run_scheduler(case: Scheduled, folder: Path) -> dict[str, Any]:
    scheduler = build(case)
    entries = drive(scheduler, case, 0, case.save_at or case.steps)
    if case.save_at is not None:
        scheduler = resume(case, save(scheduler))
        entries += drive(scheduler, case, case.save_at, case.steps)
    return trace(entries)


COMMANDS = {
    60: ("hold",),
    80: ("release",),
    100: ("cap", 1.05),
    150: ("pin", 0.7),
    170: ("release",),
    200: ("pin", 1e6),
    210: ("cap", 0.9),
    230: ("release",),
    280: ("start_decay", 100),
}
KNOWN = {"total_steps": STEPS, "linear_warmup_steps": 20}


def scheduled(**fields: Any) -> dict[str, Scheduled]:
    """What each behaviour goes through; `fields` are those of its config, with the class as `kind`."""
    kind = fields.pop("kind")

    def config(**more: Any) -> Any:
        return kind(**fields, **more)

    return {
        "one group": Scheduled(config=config()),
        "three groups": Scheduled(config=config(), groups=3, options=KNOWN),
        "decay ratio": Scheduled(config=config(), options={"total_steps": STEPS, "decay_ratio": 0.7}),
        "every 3 steps": Scheduled(config=config(every_n_steps=3), groups=3, options=KNOWN),
        "base schedule": Scheduled(config=config(), groups=3, multiply=True, options={"total_steps": STEPS}),
        "commands": Scheduled(config=config(), groups=3, options=KNOWN, script=COMMANDS),
        "commands and schedule": Scheduled(config=config(), multiply=True, script=COMMANDS),
        "commands and every 3 steps": Scheduled(config=config(every_n_steps=3), options=KNOWN, script=COMMANDS),
        "one step later": Scheduled(config=config(), options={**KNOWN, "loss_lag": 1}, script=COMMANDS),
        "group added": Scheduled(config=config(), groups=2, options=KNOWN, script={90: ("add_group", 0.4)}),
        "observed too": Scheduled(config=config(), script={n: ("observe", 1 + 30 / n) for n in range(50, 400, 25)}),
        "resumed": Scheduled(config=config(), groups=3, options=KNOWN, save_at=137),
        "resumed in a ramp": Scheduled(config=config(), options=KNOWN, save_at=11),
        "resumed between decisions": Scheduled(config=config(every_n_steps=4), options=KNOWN, save_at=142),
        "resumed under hold": Scheduled(config=config(), options=KNOWN, script=COMMANDS, save_at=70),
        "resumed under cap": Scheduled(config=config(), options=KNOWN, script=COMMANDS, save_at=131),
        "resumed under pin": Scheduled(config=config(), options=KNOWN, script=COMMANDS, save_at=160),
        "resumed in a decay": Scheduled(config=config(), options=KNOWN, script=COMMANDS, save_at=311),
        "resumed with schedule": Scheduled(config=config(), groups=3, multiply=True, script=COMMANDS, save_at=131),
        "resumed one step later": Scheduled(config=config(), options={**KNOWN, "loss_lag": 1}, save_at=200),
    }


SCHEDULED = {
    "loss": scheduled(kind=GreedyConfig, window_size=12, factor=0.95),
    "paper": scheduled(kind=PaperConfig, patience=1, factor=0.9, smooth=True, window_size=8, min_lr=1e-3, max_lr=2.0),
    "transformers": scheduled(
        kind=TransformersConfig, patience=1, factor=0.9, smooth=True, window_size=8, min_lr=1e-3, max_lr=2.0, cooldown=2
    ),
}


# ---- the three frameworks: 120 optimizer steps of 2 micro-batches, 2 parameter groups ----

OPTIMIZER_STEPS, ACCUMULATE = 120, 2
PRESET = {"patience": 1, "factor": 0.8, "smooth": True, "window_size": 4, "warmup": 2, "min_lr": 1e-3, "max_lr": 0.5}
SETTINGS: dict[str, Any] = {
    "loss": GreedyConfig(window_size=4, factor=0.9),
    "paper": PaperConfig(**PRESET),
    "transformers": TransformersConfig(**PRESET),
    "loss every 3 steps": GreedyConfig(window_size=4, factor=0.9, every_n_steps=3),
    "loss x schedule": GreedyConfig(window_size=4, factor=0.9),
}
RAMP = 6


def micro_losses() -> list[float]:
    """A fall, a plateau and a jump: every 8th recorded loss, the NaN among them, an outlier."""
    losses = read_losses()[2::8][: OPTIMIZER_STEPS * ACCUMULATE]
    return [*losses[:101], 60.0, *losses[102:]]


class Replayed(torch.nn.Module):
    """Its loss is the recorded one: no matrix product, and no machine's rounding, gets into it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
        self.last = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, value: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.first + self.last) * 0 + value.sum()}


def rows() -> list[dict[str, torch.Tensor]]:
    return [{"value": torch.tensor(loss, dtype=torch.float64)} for loss in micro_losses()]


def spied_optimizer(model: Replayed, used: list[list[float]]) -> torch.optim.Optimizer:
    """Writes down the LRs with which it really steps."""
    optimizer = torch.optim.SGD([{"params": [model.first], "lr": 0.02}, {"params": [model.last], "lr": 0.1}])
    optimizer.register_step_pre_hook(lambda o, a, k: used.append([float(group["lr"]) for group in o.param_groups]))
    return optimizer


def framework_trace(used: list[list[float]], scheduler: Any) -> dict[str, Any]:
    records = list(scheduler.history)
    return {
        "used": trace([(lrs, None) for lrs in used]),
        "history": trace([(record.lrs, record.decision) for record in records]),
        "at": digest(value for record in records for value in (record.step, float(record.envelope), record.nonfinite)),
    }


def with_accelerate(name: str, folder: Path) -> dict[str, Any]:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    from greedylr_integrations.accelerate import GreedyLR as AccelerateGreedyLR

    AcceleratorState._reset_state(True)  # that of an earlier Trainer in this process
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATE)
    used: list[list[float]] = []
    model = Replayed()
    optimizer = spied_optimizer(model, used)
    schedule: dict[str, Any] = {"linear_warmup_steps": RAMP}
    if name.endswith("schedule"):
        schedule = {"base_schedule": LambdaLR(optimizer, rises_and_falls)}
    scheduler = AccelerateGreedyLR(optimizer, SETTINGS[name], total_steps=OPTIMIZER_STEPS, **schedule)
    loader = torch.utils.data.DataLoader(rows(), batch_size=1)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    for batch in loader:
        with accelerator.accumulate(model):
            loss = model(**batch)["loss"]
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step(loss)
            optimizer.zero_grad()
    return framework_trace(used, scheduler)


def hf_trainer(name: str, folder: Path, used: list[list[float]], **more: Any) -> tuple[Any, Any]:
    from torch.utils.data import SequentialSampler
    from transformers import Trainer, TrainingArguments

    from greedylr_integrations.transformers import GreedyLRCallback

    class InOrder(Trainer):
        def _get_train_sampler(self, *args: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    arguments = {"save_strategy": "no", "warmup_steps": 0 if name.endswith("schedule") else RAMP, **more}
    args = TrainingArguments(
        str(folder),
        max_steps=OPTIMIZER_STEPS,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=ACCUMULATE,
        max_grad_norm=0,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_steps=10_000,
        **arguments,
    )
    model = Replayed()
    optimizer = spied_optimizer(model, used)
    schedule = LambdaLR(optimizer, rises_and_falls) if name.endswith("schedule") else None
    callback = GreedyLRCallback(SETTINGS[name])
    pair = (optimizer, schedule)
    return InOrder(model, args, train_dataset=rows(), callbacks=[callback], optimizers=pair), callback


def with_transformers(name: str, folder: Path) -> dict[str, Any]:
    used: list[list[float]] = []
    trainer, callback = hf_trainer(name, folder, used)
    trainer.train()
    return framework_trace(used, callback.scheduler)


def with_lightning(name: str, folder: Path) -> dict[str, Any]:
    import lightning.pytorch as pl

    from greedylr_integrations.lightning import GreedyLRCallback

    used: list[list[float]] = []

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = Replayed()

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.model(**batch)["loss"]

        def configure_optimizers(self) -> Any:
            optimizer = spied_optimizer(self.model, used)
            if not name.endswith("schedule"):
                return optimizer
            schedule = {"scheduler": LambdaLR(optimizer, rises_and_falls), "interval": "step"}
            return {"optimizer": optimizer, "lr_scheduler": schedule}

    callback = GreedyLRCallback(SETTINGS[name], linear_warmup_steps=0 if name.endswith("schedule") else RAMP)
    trainer = pl.Trainer(
        max_steps=OPTIMIZER_STEPS,
        accumulate_grad_batches=ACCUMULATE,
        accelerator="cpu",
        devices=1,
        precision="64-true",
        callbacks=[callback],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(rows(), batch_size=1))
    return framework_trace(used, callback.scheduler)


FRAMEWORKS = {"accelerate": with_accelerate, "transformers": with_transformers, "lightning": with_lightning}


def cases() -> Iterator[tuple[str, str, Callable[[Path], dict[str, Any]]]]:
    """Kind, name and how to run it."""
    for behaviour, controlled in CONTROLLED.items():
        for name, case in controlled.items():
            yield "controller", f"{behaviour}, {name}", lambda folder, case=case: run_controller(case, folder)
    for behaviour, planned in SCHEDULED.items():
        for name, run in planned.items():
            yield "scheduler", f"{behaviour}, {name}", lambda folder, run=run: run_scheduler(run, folder)
    for framework, train in FRAMEWORKS.items():
        for name in SETTINGS:
            yield "frameworks", f"{framework}, {name}", lambda folder, t=train, name=name: t(name, folder)


# ---- states and histories in the form of version 1 ----

SAVED = {
    **{f"{behaviour}-plain": (planned["three groups"], 137) for behaviour, planned in SCHEDULED.items()},
    **{f"{behaviour}-cap": (planned["commands"], 131) for behaviour, planned in SCHEDULED.items()},
    **{
        f"{behaviour}-pending": (planned["resumed between decisions"], 142)  # 2 of 4 losses wait for their decision
        for behaviour, planned in SCHEDULED.items()
    },
    "loss-hold": (SCHEDULED["loss"]["commands"], 70),
    "loss-pin": (SCHEDULED["loss"]["commands"], 160),
    "loss-decay": (SCHEDULED["loss"]["commands"], 311),
    "loss-schedule": (SCHEDULED["loss"]["commands and schedule"], 131),
    "loss-lag": (SCHEDULED["loss"]["one step later"], 131),
    "loss-filling": (SCHEDULED["loss"]["one group"], 7),
}
WITH_HISTORY = ("loss-lag", "paper-pending", "transformers-pending")
LOST = 10  # steps of a killed run after its last checkpoint


def continued(name: str, saved: dict[str, Any], history_file: Path | None = None) -> dict[str, Any]:
    """Go on from a state, and in a history, to the end."""
    case, at = SAVED[name]
    scheduler = resume(case, saved, history_file=history_file)
    entries = drive(scheduler, case, at, case.steps)
    scheduler.finish()
    return trace(entries)


def history_trace(path: Path) -> dict[str, Any]:
    header, records, commands = history.read(path)
    return {
        "base_lrs": [float(lr).hex() for lr in header["base_lrs"]],
        "config": header["config"],
        "total_steps": header["total_steps"],
        "rows": trace([(record.lrs, record.decision) for record in records]),
        "scales": digest(scale for record in records for scale in record.decision.scales),
        "at": digest(value for record in records for value in (record.step, float(record.envelope), record.nonfinite)),
        "commands": [list(command) for command in commands],
    }


def write_states(folder: Path) -> dict[str, Any]:
    """The states and histories as they were saved, and what followed."""
    followed = {}
    for name, (case, at) in SAVED.items():
        path = HERE / f"history-{name}.jsonl"
        keeps = name in WITH_HISTORY
        path.unlink(missing_ok=True)
        scheduler = build(case, history_file=path if keeps else None)
        drive(scheduler, case, 0, at)
        saved = save(scheduler)
        (HERE / f"state-{name}.json").write_text(json.dumps(saved) + "\n")
        entry: dict[str, Any] = {}
        if keeps:
            drive(scheduler, case, at, at + LOST)
            scheduler.finish()
            path.write_text(path.read_text() + '{"step": 1')  # a kill tears the line that is being written
            entry["read"] = history_trace(path)
            copy = folder / path.name
            copy.write_bytes(path.read_bytes())
            entry["followed"] = continued(name, saved, copy)
            entry["read_after"] = history_trace(copy)
        else:
            entry["followed"] = continued(name, saved)
        followed[name] = entry
    return followed


CALLBACK_SAVED_AT = 70
CALLBACK_CASES = ("loss", "paper", "transformers", "loss every 3 steps", "loss x schedule")


def trained_with_checkpoint(name: str, folder: Path) -> Path:
    """A run of the Trainer to its end; returns the checkpoint on the way."""
    trainer, _ = hf_trainer(name, folder, [], save_strategy="steps", save_steps=CALLBACK_SAVED_AT)
    trainer.train()
    return folder / f"checkpoint-{CALLBACK_SAVED_AT}"


def train_on(name: str, checkpoint: Path, **more: Any) -> dict[str, Any]:
    """The LRs that the optimizer used after a resume."""
    used: list[list[float]] = []
    trainer, _ = hf_trainer(name, checkpoint.parent, used, **more)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    return trace([(lrs, None) for lrs in used])


def write_callback_states(folder: Path) -> dict[str, Any]:
    """What the Trainer kept of the callback in trainer_state.json, and the LRs that followed."""
    followed, states = {}, {}
    for name in CALLBACK_CASES:
        checkpoint = trained_with_checkpoint(name, folder / name)
        state = json.loads((checkpoint / "trainer_state.json").read_text())
        states[name] = state["stateful_callbacks"]["GreedyLRCallback"]
        followed[f"trainer, {name}"] = {"followed": train_on(name, checkpoint)}
    (HERE / "state-trainer.json").write_text(json.dumps(states) + "\n")
    return followed


def main() -> None:
    warnings.simplefilter("ignore")
    losses = [loss if math.isfinite(loss) else str(loss) for loss in make_losses()]
    (HERE / "losses.json").write_text(json.dumps(losses) + "\n")
    (HERE / "fingerprint.json").write_text(json.dumps(fingerprint()) + "\n")
    with tempfile.TemporaryDirectory() as folder:
        recorded: dict[str, Any] = {kind: {} for kind in KINDS}
        for number, (kind, name, run) in enumerate(cases()):
            recorded[kind][name] = run(Path(folder, str(number)))
        recorded["followed"] = {**write_states(Path(folder)), **write_callback_states(Path(folder))}
    for name, content in recorded.items():
        (HERE / f"{name}.json.gz").write_bytes(gzip.compress(json.dumps(content).encode(), 9, mtime=0))


if __name__ == "__main__":
    sys.exit(main())
