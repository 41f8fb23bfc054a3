"""What is compared: each arm builds, for one training, an optimizer and whatever moves its learning rate.

Every arm has one main knob with four values to tune (`knobs`; the first is its default). All have the same warmup and
gradient clipping. Arms that have no final decay by design get GreedyLR's, except the LR-free methods, whose papers rule
one out (schedule-free, DoG) or prescribe another (Prodigy and D-Adaptation: cosine).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim.lr_scheduler import ChainedScheduler, LambdaLR, LinearLR, MultiStepLR, ReduceLROnPlateau

from benchmarks.workloads import Task
from greedylr_integrations import GreedyConfig, GreedyLR, PaperConfig
from greedylr_integrations.envelope import Envelope

RAMP = 0.02  # share of the steps, linear from 0
DECAY = 0.3  # share of the steps, linear to 0
EVALUATIONS = 10  # per run, for arms that follow the validation loss


@dataclass
class Setting:
    """One training as an arm sees it."""

    task: Task
    make_optimizer: Callable[[Sequence[torch.nn.Parameter], float], torch.optim.Optimizer]
    lr: float
    steps: int
    knob: dict[str, Any] = field(default_factory=dict)
    scales: Sequence[float] | None = None  # scales of another run, evenly spaced, to be replayed

    @property
    def ramp(self) -> int:
        return max(1, round(RAMP * self.steps))

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return list(self.task.model.parameters())

    def optimizer(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.parameters, self.lr)

    def envelope(self) -> Envelope:
        return Envelope(linear_warmup_steps=self.ramp, total_steps=self.steps, decay_ratio=DECAY)

    @torch.no_grad()
    def validate(self) -> float:
        return float(self.task.validate())


class Method:
    """An optimizer with its schedule. `scale` is LR / base LR without warmup and decay, if that is meaningful."""

    scale: float | None = None
    evaluations = 0  # forward passes over training batches beyond one per step

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def update(self, loss: torch.Tensor, again: Callable[[], torch.Tensor]) -> None:
        """One optimizer step; the gradients are already computed. `again()` is the loss of the same batch now."""
        self.optimizer.step()

    def step(self, loss: float) -> None:
        """One step of the schedule."""

    def finish(self) -> None:
        """Give the model the weights that the method regards as its result."""


class Scheduled(Method):
    """A torch scheduler that needs no loss."""

    def __init__(self, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
        super().__init__(optimizer)
        self.scheduler = scheduler

    def step(self, loss: float) -> None:
        self.scheduler.step()


def from_transformers(name: str, **fixed: Any) -> Callable[[Setting], Method]:
    from transformers import get_scheduler

    def build(s: Setting) -> Method:
        optimizer, extra = s.optimizer(), {**fixed, **s.knob}
        if "decay" in extra:
            extra["num_decay_steps"] = round(extra.pop("decay") * s.steps)
        return Scheduled(
            optimizer,
            get_scheduler(name, optimizer, s.ramp, s.steps, scheduler_specific_kwargs=extra or None),
        )

    return build


def factor_of(factor: Callable[[Setting, float], float], decay: bool = True) -> Callable[[Setting], Method]:
    """LR = base LR x factor(progress), with the warmup and, if `decay`, the final decay."""

    def build(s: Setting) -> Method:
        optimizer, envelope = s.optimizer(), s.envelope() if decay else Envelope(linear_warmup_steps=s.ramp)
        return Scheduled(optimizer, LambdaLR(optimizer, lambda t: factor(s, t / s.steps) * envelope(t)))

    return build


def multistep(s: Setting) -> Method:
    optimizer = s.optimizer()
    ramp = LinearLR(optimizer, start_factor=1e-6, total_iters=s.ramp)
    steps = [round(s.steps * i / 3) for i in (1, 2)]
    return Scheduled(optimizer, ChainedScheduler([ramp, MultiStepLR(optimizer, steps, gamma=s.knob.get("gamma", 0.1))]))


class Driven(Method):
    """LR = the LR that another scheduler sets on a stand-in optimizer, x warmup and final decay."""

    def __init__(self, s: Setting, make: Callable[[torch.optim.Optimizer], Any], every: int, evaluate: bool) -> None:
        super().__init__(s.optimizer())
        self.stand_in = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=s.lr)
        self.scheduler, self.setting, self.envelope = make(self.stand_in), s, s.envelope()
        self.every, self.evaluate = every, evaluate
        self.losses: list[float] = []
        self.steps = 0
        self._write()

    def _write(self) -> None:
        lr = self.stand_in.param_groups[0]["lr"]
        self.scale = lr / self.setting.lr
        for group in self.optimizer.param_groups:
            group["lr"] = lr * self.envelope(self.steps)

    def step(self, loss: float) -> None:
        self.steps += 1
        self.losses.append(loss)
        if len(self.losses) == self.every:
            metric = self.setting.validate() if self.evaluate else sum(self.losses) / self.every
            self.scheduler.step(metric)
            self.losses = []
        self._write()


def plateau(s: Setting) -> Method:
    """ReduceLROnPlateau on the mean training loss of each 5% of the run, as people step it once an epoch."""
    patience = s.knob.get("patience", 2)
    return Driven(s, lambda o: ReduceLROnPlateau(o, factor=0.5, patience=patience), max(1, s.steps // 20), False)


def transformers_greedy(s: Setting) -> Method:
    """transformers' GreedyLR as its Trainer steps it: with the validation loss, at evaluations."""
    from transformers.optimization import GreedyLR as Theirs

    knob = {"min_lr": 0.1 * s.lr, "max_lr": 10 * s.lr, **s.knob}
    return Driven(s, lambda o: Theirs(o, **knob), max(1, s.steps // EVALUATIONS), True)


class Ours(Method):
    """GreedyLR; by the loss window if no config is given."""

    def __init__(
        self, s: Setting, config: Any = None, *, horizon: bool = True, decay: bool = True, **more: Any
    ) -> None:
        super().__init__(s.optimizer())
        knob = dict(s.knob)
        if "rate" in knob:  # per step exp(-rate / T), as the default rule states its factor
            knob["factor"] = math.exp(-knob.pop("rate") / s.steps)
        if "window" in knob:
            knob["window_size"] = max(1, round(knob.pop("window") * s.steps))
        if "memory" in knob:  # length of the reference, in windows of the default length
            knob["best_window"] = round(knob.pop("memory") * max(1, round(0.08 * s.steps)))
        decay_ratio = knob.pop("decay_ratio", DECAY if decay else 0.0)
        total = s.steps if horizon else None
        self.decay_at = None if horizon or not decay else round(s.steps * (1 - decay_ratio))
        self.steps = s.steps
        self.scheduler = GreedyLR(
            self.optimizer,
            GreedyConfig() if config is None else config,
            total_steps=total,
            linear_warmup_steps=s.ramp,
            decay_ratio=decay_ratio,
            **more,
            **knob,
        )

    def step(self, loss: float) -> None:
        self.scheduler.step(loss)
        self.scale = self.scheduler.scale
        if self.scheduler.last_epoch == self.decay_at:
            self.scheduler.start_decay(self.steps - self.decay_at)


class OursOnValidation(Ours):
    """GreedyLR in the setting of the original article: on the validation loss, once an epoch (here ten times a run)."""

    def __init__(self, s: Setting) -> None:
        super().__init__(s, horizon=True)
        self.setting, self.every = s, max(1, s.steps // EVALUATIONS)
        knob = {"window_size": 1, "factor": 0.8, "threshold": 0.0, **s.knob}
        self.scheduler = GreedyLR(
            self.optimizer,
            total_steps=s.steps,
            linear_warmup_steps=s.ramp,
            decay_ratio=DECAY,
            horizon=EVALUATIONS,
            threshold_mode="rel",
            **knob,
        )

    def step(self, loss: float) -> None:
        self.scheduler.step()
        if self.scheduler.last_epoch % self.every == 0:
            self.scheduler.observe(self.setting.validate())
        self.scale = self.scheduler.scale


def paper(s: Setting) -> Method:
    """The paper's rule, stepped on every training loss with the fields of its published runs."""
    fields = {"smooth": True, "window_size": 50, "min_lr": 0.1 * s.lr, "max_lr": 10 * s.lr}
    return Ours(s, PaperConfig(**fields))


def yoked(s: Setting) -> Method:
    """The scales of another run, whatever the loss does."""
    assert s.scales, "a yoked run needs the scales of another"
    last = len(s.scales) - 1

    def factor(setting: Setting, progress: float) -> float:
        place = min(max(progress, 0.0), 1.0) * last
        low = min(int(place), last - 1)
        a, b = s.scales[low], s.scales[low + 1]
        return math.exp(math.log(a) + (place - low) * (math.log(b) - math.log(a)))

    return factor_of(factor)(s)


class RangeTest(Scheduled):
    """A tenth of the steps sweeps from 1% to 10x the base LR; warmup-stable-decay starts over with the rest.

    It uses a third of the LR at which the smoothed loss was lowest.
    """

    def __init__(self, s: Setting) -> None:
        self.setting, self.test_steps = s, max(10, s.steps // 10)
        self.start = copy.deepcopy(s.task.model.state_dict())
        self.seen: list[tuple[float, float]] = []
        self.smoothed: float | None = None
        optimizer = s.make_optimizer(s.parameters, s.lr * 0.01)
        super().__init__(optimizer, LambdaLR(optimizer, lambda t: 1000 ** (t / self.test_steps)))

    def step(self, loss: float) -> None:
        if len(self.seen) < self.test_steps:
            self.smoothed = loss if self.smoothed is None else 0.8 * self.smoothed + 0.2 * loss
            self.seen.append((self.smoothed if math.isfinite(self.smoothed) else math.inf, self._lr()))
            if len(self.seen) == self.test_steps:
                self._train()
                return
        super().step(loss)

    def _lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def _train(self) -> None:
        s = self.setting
        s.task.model.load_state_dict(self.start)
        lr = min(self.seen)[1] * s.knob.get("share", 1 / 3)
        rest = copy.copy(s)
        rest.lr, rest.steps, rest.knob = lr, s.steps - self.test_steps, {}
        other = from_transformers("warmup_stable_decay", decay=DECAY, decay_type="linear")(rest)
        self.optimizer, self.scheduler = other.optimizer, other.scheduler


# ---- LR-free, by the packages of their authors ----


class ScheduleFree(Method):
    def __init__(self, s: Setting, kind: str) -> None:
        import schedulefree

        make = {"adamw": schedulefree.AdamWScheduleFree, "sgd": schedulefree.SGDScheduleFree}[kind]
        self.model = s.task.model
        super().__init__(make(s.parameters, warmup_steps=s.ramp, **s.knob))
        self.optimizer.train()

    def finish(self) -> None:
        self.optimizer.eval()


def prodigy(s: Setting) -> Method:
    from prodigyopt import Prodigy
    from transformers import get_scheduler

    optimizer = Prodigy(s.parameters, safeguard_warmup=True, **s.knob)
    return Scheduled(optimizer, get_scheduler("cosine", optimizer, s.ramp, s.steps))


def d_adaptation(s: Setting) -> Method:
    from dadaptation import DAdaptAdam
    from transformers import get_scheduler

    optimizer = DAdaptAdam(s.parameters, decouple=True, **s.knob)
    return Scheduled(optimizer, get_scheduler("cosine", optimizer, s.ramp, s.steps))


class DoG(Method):
    def __init__(self, s: Setting) -> None:
        from dog import DoG as Theirs
        from dog import PolynomialDecayAverager

        super().__init__(Theirs(s.parameters, **s.knob))
        self.model, self.averager = s.task.model, PolynomialDecayAverager(s.task.model)

    def step(self, loss: float) -> None:
        self.averager.step()

    def finish(self) -> None:
        self.model.load_state_dict(self.averager.av_model.state_dict())


# ---- from their papers, because no maintained package has them ----


class Hypergradient(Method):
    """Hypergradient descent (Baydin et al. 2018, arXiv 1703.04782) over any optimizer, by its multiplicative rule.

    The derivative of the loss with respect to the LR that was used is -gradient . update, where update is what one unit
    of LR subtracts. The multiplicative form is LR <- LR x (1 + beta x cos(gradient, last update)), which has no unit.
    There is one LR for all parameters, one for weights and one for biases, or one for each parameter tensor.
    """

    def __init__(self, s: Setting, level: str) -> None:
        self.beta, self.envelope, self.steps = s.knob.get("beta", 0.02), s.envelope(), 0
        parameters = s.parameters
        if level == "one":
            groups = [parameters]
        elif level == "group":
            groups = [[p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]]
        else:
            groups = [[p] for p in parameters]
        self.groups = [group for group in groups if group]
        self.optimizers = [s.make_optimizer(group, s.lr) for group in self.groups]
        self.lrs = [s.lr] * len(self.groups)
        self.moved: list[list[torch.Tensor]] | None = None
        super().__init__(self.optimizers[0])
        self._write()

    def _write(self) -> None:
        for optimizer, lr in zip(self.optimizers, self.lrs, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = lr * self.envelope(self.steps)

    @torch.no_grad()
    def update(self, loss: torch.Tensor, again: Callable[[], torch.Tensor]) -> None:
        if self.moved is not None:
            for i, (group, moved) in enumerate(zip(self.groups, self.moved, strict=True)):
                gradient = [p.grad for p in group if p.grad is not None]
                moved = [m for p, m in zip(group, moved, strict=True) if p.grad is not None]
                dot = sum(float((g * m).sum()) for g, m in zip(gradient, moved, strict=True))
                norms = _norm(gradient) * _norm(moved)
                if norms > 0 and math.isfinite(norms):
                    self.lrs[i] *= 1 - self.beta * dot / norms  # moved = -LR x update
        self._write()
        before = [[p.detach().clone() for p in group] for group in self.groups]
        for optimizer in self.optimizers:
            optimizer.step()
        self.moved = [
            [p - b for p, b in zip(group, old, strict=True)] for group, old in zip(self.groups, before, strict=True)
        ]

    def step(self, loss: float) -> None:
        self.steps += 1


def _norm(tensors: Sequence[torch.Tensor]) -> float:
    return math.sqrt(sum(float((t * t).sum()) for t in tensors))


class LineSearch(Method):
    """SGD with Armijo line search (Vaswani et al. 2019, arXiv 1905.09997): the loss of the batch must fall enough.

    Backtracks by 0.7 until f(x - a g) <= f(x) - c a |g|^2, and begins each search at twice the last step, at most
    `max_lr` (their reset option 2, with gamma 2). The forward passes that it takes beyond one per step are counted.
    """

    def __init__(self, s: Setting) -> None:
        super().__init__(torch.optim.SGD(s.parameters, lr=s.lr))
        self.parameters, self.c = s.parameters, s.knob.get("c", 0.1)
        self.size, self.max_size, self.envelope, self.steps = s.lr, 100 * s.lr, s.envelope(), 0

    @torch.no_grad()
    def update(self, loss: torch.Tensor, again: Callable[[], torch.Tensor]) -> None:
        gradient = [(p, p.grad.clone()) for p in self.parameters if p.grad is not None]
        before = [p.clone() for p, _ in gradient]
        square, start = sum(float((g * g).sum()) for _, g in gradient), float(loss)
        size = min(2 * self.size, self.max_size)
        for _ in range(30):
            for (p, g), b in zip(gradient, before, strict=True):
                p.copy_(b - size * g)
            self.evaluations += 1
            value = float(again())
            if value <= start - self.c * size * square:
                break
            size *= 0.7
        self.size = size
        factor = self.envelope(self.steps)
        for (p, g), b in zip(gradient, before, strict=True):
            p.copy_(b - size * factor * g)
        self.steps += 1


@dataclass(frozen=True)
class Arm:
    """
    Attributes:
        kind: "fixed", "ours", "control", "rival" (follows the loss or the gradient) or "free" (its authors say that it
            needs no schedule, or no LR; it is not part of the LR grid).
        knobs: values of the main knob to tune; the first is the default.
    """

    build: Callable[[Setting], Method]
    kind: str
    knobs: Sequence[dict[str, Any]] = ({},)


ARMS: dict[str, Arm] = {
    "constant": Arm(from_transformers("constant_with_warmup"), "fixed"),
    "linear": Arm(from_transformers("linear"), "fixed"),
    "cosine": Arm(
        from_transformers("cosine_with_min_lr", min_lr_rate=0.0),
        "fixed",
        [{}] + [{"min_lr_rate": x} for x in (0.02, 0.05, 0.1)],
    ),
    "wsd": Arm(
        from_transformers("warmup_stable_decay", decay=0.2, decay_type="linear"),
        "fixed",
        [{}] + [{"decay": x} for x in (0.1, 0.4, 0.6)],
    ),
    "step": Arm(multistep, "fixed", [{}] + [{"gamma": x} for x in (0.2, 0.3, 0.5)]),
    "polynomial": Arm(
        from_transformers("polynomial", power=2.0, lr_end=0.0), "fixed", [{}] + [{"power": x} for x in (0.5, 1.5, 3.0)]
    ),
    "plateau": Arm(plateau, "rival", [{}] + [{"patience": x} for x in (0, 1, 4)]),
    "greedy": Arm(Ours, "ours", [{}] + [{"rate": x} for x in (4.0, 6.0, 12.0)]),
    "greedy, no horizon": Arm(lambda s: Ours(s, horizon=False), "ours"),
    "greedy, validation loss": Arm(OursOnValidation, "ours", [{}] + [{"factor": x} for x in (0.5, 0.7, 0.9)]),
    "paper": Arm(paper, "rival", [{}, {"factor": 0.99}, {"patience": 5}, {"factor": 0.99, "patience": 0}]),
    "transformers": Arm(transformers_greedy, "rival", [{}] + [{"patience": x} for x in (0, 1, 2)]),
    "trunk": Arm(lambda s: Ours(s, horizon=False, decay=False), "ours"),
    "open loop": Arm(
        factor_of(lambda s, t: min(math.exp(s.knob.get("climb", 1.0) * t), 10.0)),
        "control",
        [{}] + [{"climb": x} for x in (0.5, 2.0, 4.0)],
    ),
    "envelope": Arm(factor_of(lambda s, t: 1.0), "control"),
    "yoked to another seed": Arm(yoked, "control"),
    "yoked to another workload": Arm(yoked, "control"),
    "range test": Arm(RangeTest, "control", [{}] + [{"share": x} for x in (0.1, 0.6, 1.0)]),
    "hypergradient": Arm(lambda s: Hypergradient(s, "one"), "rival", [{}] + [{"beta": x} for x in (0.005, 0.05, 0.1)]),
    "hypergradient, groups": Arm(lambda s: Hypergradient(s, "group"), "rival"),
    "hypergradient, tensors": Arm(lambda s: Hypergradient(s, "parameter"), "rival"),
    "line search": Arm(LineSearch, "rival", [{}] + [{"c": x} for x in (0.01, 0.3, 0.5)]),
    "schedule-free AdamW": Arm(
        lambda s: ScheduleFree(s, "adamw"), "free", [{}] + [{"lr": x} for x in (1e-3, 1e-2, 3e-2)]
    ),
    "schedule-free SGD": Arm(lambda s: ScheduleFree(s, "sgd"), "free", [{}] + [{"lr": x} for x in (0.1, 0.3, 3.0)]),
    "Prodigy": Arm(prodigy, "free", [{}] + [{"d_coef": x} for x in (0.5, 2.0, 4.0)]),
    "D-Adaptation": Arm(d_adaptation, "free", [{}] + [{"d0": x} for x in (1e-5, 1e-4, 1e-3)]),
    "DoG": Arm(DoG, "free", [{}] + [{"reps_rel": x} for x in (1e-5, 1e-4, 1e-3)]),
}
FIXED = [name for name, arm in ARMS.items() if arm.kind == "fixed"]
