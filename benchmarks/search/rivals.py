"""Optimizers that need no LR, and other ways to follow the gradient, on the half that rules are judged on.

Each run uses the optimizer from its authors' package, on one tensor that holds all weights. This makes no difference,
since all of these optimizers work on each coordinate by itself or on all of them together. Only the gradients are
computed for many runs at once.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from torch import nn

from benchmarks.search import arms, stages
from benchmarks.search.optimizers import of_torch
from benchmarks.search.store import Results
from benchmarks.search.train import Job, Runs
from benchmarks.search.workload import Workload

Parameters = list[nn.Parameter]


class Method:
    """One run's optimizer and schedule.

    Args:
        optimizer: steps on the weights of the run.
        shape: factor of the optimizer's LR as a function of the share of the run that is done, after the warmup.
    """

    def __init__(self, optimizer: Any, steps: int, shape: Callable[[float], float]) -> None:
        self.optimizer = optimizer
        self._steps, self._step, self._shape = steps, 0, shape
        self._base = [group["lr"] for group in optimizer.param_groups]

    @property
    def factor(self) -> float:
        warm = min(1.0, (self._step + 1) / arms.warmup_steps(self._steps))
        return self._shape(self._step / self._steps) * warm

    def step(self) -> None:
        """One optimizer step; the gradient is already computed."""
        factor = self.factor
        for group, lr in zip(self.optimizer.param_groups, self._base, strict=True):
            group["lr"] = lr * factor
        self.optimizer.step()
        self._step += 1

    def finish(self) -> None:
        """Set the weights to those that the method regards as its result."""


class Hypergradient(Method):
    """LR <- LR (1 - beta cos(gradient, last step)): Baydin et al. 2018, arXiv 1703.04782, multiplicative."""

    def __init__(self, parameter: nn.Parameter, job: Job, workload: Workload, beta: float) -> None:
        super().__init__(of_torch(workload.optimizer, [parameter], job.lr), job.steps, arms.decaying(0.3))
        self._parameter, self._beta = parameter, beta
        self._moved: torch.Tensor | None = None

    @torch.no_grad()
    def step(self) -> None:
        gradient = self._parameter.grad
        assert gradient is not None
        if self._moved is not None:
            cosine = float((gradient * self._moved).sum() / (gradient.norm() * self._moved.norm()))
            if math.isfinite(cosine):
                self._base = [lr * (1 - self._beta * cosine) for lr in self._base]
        before = self._parameter.detach().clone()
        super().step()
        self._moved = self._parameter.detach() - before


class ScheduleFree(Method):
    def __init__(self, parameter: nn.Parameter, job: Job, **knob: float) -> None:
        from schedulefree import AdamWScheduleFree

        optimizer = AdamWScheduleFree([parameter], warmup_steps=arms.warmup_steps(job.steps), **knob)
        super().__init__(optimizer, job.steps, lambda done: 1.0)
        self.optimizer.train()

    @property
    def factor(self) -> float:
        return 1.0  # it has its own warmup

    def finish(self) -> None:
        self.optimizer.eval()


class DistanceOverGradients(Method):
    """DoG, with the weight averaging that goes with it."""

    def __init__(self, parameter: nn.Parameter, job: Job, **knob: float) -> None:
        from dog import DoG, PolynomialDecayAverager

        super().__init__(DoG([parameter], **knob), job.steps, lambda done: 1.0)
        self._model = nn.ParameterList([parameter])
        self._average = PolynomialDecayAverager(self._model)

    @property
    def factor(self) -> float:
        return 1.0

    def step(self) -> None:
        super().step()
        self._average.step()

    @torch.no_grad()
    def finish(self) -> None:
        for mine, average in zip(self._model, self._average.av_model, strict=True):
            mine.copy_(average)


def prodigy(parameter: nn.Parameter, job: Job, **knob: float) -> Method:
    from prodigyopt import Prodigy

    return Method(Prodigy([parameter], safeguard_warmup=True, **knob), job.steps, arms.SHAPES["cosine"])


def d_adaptation(parameter: nn.Parameter, job: Job, **knob: float) -> Method:
    from dadaptation import DAdaptAdam

    return Method(DAdaptAdam([parameter], decouple=True, **knob), job.steps, arms.SHAPES["cosine"])


def mechanic(parameter: nn.Parameter, job: Job, workload: Workload, **knob: float) -> Method:
    """The workload's own optimizer, tuned by Mechanic (Cutkosky et al. 2023), with a linear schedule."""
    from mechanic_pytorch import mechanize

    base = type(of_torch(workload.optimizer, [parameter], 1.0))
    more = {"momentum": 0.9} if workload.optimizer == "sgd" else {}
    return Method(mechanize(base, **knob)([parameter], lr=1.0, **more), job.steps, arms.SHAPES["linear"])


@dataclass(frozen=True)
class Rival:
    """
    Attributes:
        make: the method for a weight, a job and a workload.
        knob: name of its main setting.
        values: its default first, then what is tried.
        free: whether it needs no base LR.
    """

    make: Callable[..., Method]
    knob: str
    values: tuple[float, ...]
    free: bool = True


RIVALS = {
    "Prodigy": Rival(lambda p, job, w, **k: prodigy(p, job, **k), "d_coef", (1.0, 0.5, 2.0, 4.0)),
    "D-Adaptation": Rival(lambda p, job, w, **k: d_adaptation(p, job, **k), "d0", (1e-6, 1e-5, 1e-4, 1e-3)),
    "DoG": Rival(lambda p, job, w, **k: DistanceOverGradients(p, job, **k), "reps_rel", (1e-6, 1e-5, 1e-4, 1e-3)),
    "schedule-free AdamW": Rival(lambda p, job, w, **k: ScheduleFree(p, job, **k), "lr", (0.0025, 0.001, 0.01, 0.03)),
    "Mechanic": Rival(lambda p, job, w, **k: mechanic(p, job, w, **k), "s_init", (1e-8, 1e-6, 1e-4, 1e-2)),
    "hypergradient": Rival(
        lambda p, job, w, **k: Hypergradient(p, job, w, **k), "beta", (0.02, 0.005, 0.05, 0.1), free=False
    ),
}


class RivalRuns(Runs):
    """Runs whose optimizers are objects of their own. `job.decay` is the value of the knob."""

    def __init__(self, workload: Workload, jobs: list[Job]) -> None:
        super().__init__(workload, jobs, [()] * len(jobs))
        self.parameters = [nn.Parameter(row.clone()) for row in self.table.weights]
        self.methods = []
        for parameter, job in zip(self.parameters, jobs, strict=True):
            rival = RIVALS[job.arm]
            knob = rival.values[0] if job.decay is None else job.decay
            self.methods.append(rival.make(parameter, job, workload, **{rival.knob: knob}))

    def train(self) -> list[dict[str, Any]]:
        for step in range(self.jobs[0].steps):
            self.table.weights = torch.stack([parameter.data for parameter in self.parameters])
            _, gradient = self.gradient(step)
            gradient = self.clipped(gradient)
            for parameter, method, row in zip(self.parameters, self.methods, gradient, strict=True):
                if torch.isfinite(row).all():
                    parameter.grad = row
                    method.step()
                else:
                    parameter.data.fill_(math.nan)  # it has diverged
        for method in self.methods:
            method.finish()
        self.table.weights = torch.stack([parameter.data for parameter in self.parameters])
        self.leave([True] * len(self.jobs))
        return self.results


def run(results: Results, workloads: Sequence[Workload], steps: int) -> None:
    """Each rival at its default, and at the best value of its knob on another seed; at each base LR if it needs one."""
    logging.getLogger("dog").setLevel(logging.ERROR)
    for workload in workloads:
        tuned = stages.tune(results, workload, steps)
        tuning, jobs = [], []
        for name, rival in RIVALS.items():
            for value in rival.values:
                tuning.append(Job("tune", workload.name, name, steps, tuned.lr, stages.OTHER_SEEDS[0], 1.0, value))
        _run(results, workload, tuning)
        for name, rival in RIVALS.items():
            values = {rival.values[0], best_value(results, workload, name, steps)}
            multiples = (1.0,) if rival.free else stages.MULTIPLES
            for value, multiple, seed in itertools.product(sorted(values), multiples, stages.SEEDS):
                lr = float(f"{multiple * tuned.lr:.3g}")
                jobs.append(Job("run", workload.name, name, steps, lr, seed, multiple, value))
        _run(results, workload, jobs)
        print(f"rivals on {workload.name}, {steps} steps", flush=True)


def best_value(results: Results, workload: Workload, name: str, steps: int) -> float:
    """The value of a rival's knob with the smallest loss on another seed."""

    def loss(value: float) -> float:
        found = results.losses(stage="tune", workload=workload.name, arm=name, steps=steps, decay=value)
        return mean(found) if found else math.inf

    return min(RIVALS[name].values, key=loss)


def _run(results: Results, workload: Workload, jobs: list[Job]) -> None:
    results.run(workload, jobs, trainer=lambda missing: RivalRuns(workload, missing).train())
