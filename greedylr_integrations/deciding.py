"""From the loss of an optimizer step to a decision: measure, and let the controller decide."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.optim import Optimizer

from greedylr_integrations.checks import check_integer
from greedylr_integrations.concerns import concerns
from greedylr_integrations.controller import ControllerConfig, GreedyController
from greedylr_integrations.decision import Decision
from greedylr_integrations.learning_rates import LearningRates
from greedylr_integrations.log import logger
from greedylr_integrations.signals import Observation, Signals, watch_steps
from greedylr_integrations.steering import Command, Steering, make_command

SKIPPED = 20  # steps in a row; at first, a gradient scaler skips some until its scale fits
LOSSLESS = 3  # steps without a loss at the start of a run, after which a WARNING is logged
CALL_STEP = (
    "call scheduler.step(loss). With a framework, use its adapter in greedylr_integrations instead:"
    " transformers.GreedyLRCallback, lightning.GreedyLRCallback or accelerate.GreedyLR"
)


class RunLength:
    """How long a run is, as far as it is known.

    Args:
        steps (int): optimizer steps in which decisions are made. None if unknown.
        horizon (int): number of decisions; 0 if unknown. None if there is one every `every_n_steps`.
        steps_per_epoch (int): optimizer steps of one pass over the data. None if all data is new.
    """

    def __init__(self, steps: int | None, horizon: int | None, steps_per_epoch: int | None) -> None:
        self._steps, self._horizon = steps, horizon
        self._epoch = None if steps_per_epoch is None else check_integer("steps_per_epoch", steps_per_epoch, least=1)

    def decisions(self, config: ControllerConfig) -> int | None:
        """How many decisions there are; None if unknown."""
        if self._horizon is not None or self._steps is None:
            return self._horizon or None
        return math.ceil(self._steps / config.every_n_steps)

    def first_pass(self, config: ControllerConfig) -> int | None:
        """How many decisions there are in the first pass over the data; None if all data is new."""
        return None if self._epoch is None else math.ceil(self._epoch / config.every_n_steps)

    def of(self, config: ControllerConfig) -> tuple[int | None, int | None]:
        """`decisions` and `first_pass`, as a rule needs them."""
        return self.decisions(config), self.first_pass(config)

    def is_new(self, step: int) -> bool:
        """Whether the data of a step has not been trained on."""
        return self._epoch is None or step < self._epoch


class Decider:
    """Decides for one run.

    Args:
        config (ControllerConfig): the rule and its settings.
        signals (Signals): what measures loss and slope.
        length (RunLength): how long the run is. After the first pass over the data, no slope is measured.
        monitor (str): what the losses are.
        carry_out (callable): what to do with a command and the number of optimizer steps at which it came.
        before_step (callable): what to do before each step of the optimizer.

    Attributes:
        signals (Signals): what measures.
        controller (GreedyController): what decides.
        steering (Steering): the controller under the command in force.
        decisions (int): how many were made, also before a resume.
        advice (str): what to do if no loss comes.
    """

    def __init__(
        self,
        config: ControllerConfig,
        signals: Signals,
        length: RunLength,
        monitor: str,
        carry_out: Callable[[Command, int], None],
        before_step: Callable[[], None],
    ) -> None:
        self.config = config
        self.signals = signals
        self._length = length
        self._monitor = monitor
        self._carry_out, self._look = carry_out, before_step
        self.advice = CALL_STEP
        self.decisions = 0
        self._lossless = 0  # steps without a loss; negative once no WARNING is due any more
        self._direct = False  # whether a float may go to the controller as it is
        self._step = 0  # optimizer steps done
        self._skipped = 0  # steps in a row that the optimizer skipped
        self._skipped_loss: float | torch.Tensor | None = None  # of the last of these
        self._stepped = self._optimizer_stepped = False  # whether this object, and the optimizer, have been stepped

    def begin(self, optimizer: Optimizer, base_lrs: Sequence[float]) -> None:
        """Start with a fresh controller, and see the gradients before each step of the optimizer."""
        self._decide_by(self._controller(self.config, base_lrs), None)
        self.watch(optimizer)

    def watch(self, optimizer: Optimizer) -> None:
        """See the gradients before each step of the optimizer."""
        self._watch = watch_steps(optimizer, self._before_step)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_watch": None}  # a copy watches an optimizer of its own

    def detach(self) -> None:
        """Let go of the optimizer and its weights."""
        if self._watch is not None:
            self._watch.remove()
            self._watch = None
        self.signals.slopes.detach()

    def _controller(self, config: ControllerConfig, base_lrs: Sequence[float]) -> GreedyController:
        return GreedyController(config, base_lrs, *self._length.of(config))

    def _decide_by(self, controller: GreedyController, command: Command | None) -> None:
        self.controller = controller
        controller.monitor = self._monitor
        self.steering = Steering(controller)
        self.steering.obey(command)
        self._direct = False

    def plan(self) -> str:
        """What the run will do, in words."""
        config = self.controller.config
        return config.plan(*self._length.of(config))

    def concerns(self, optimizer: Optimizer, rates: LearningRates) -> list[str]:
        """What is likely to be wrong, in words."""
        config = self.controller.config
        return concerns(config, optimizer, rates, *self._length.of(config))

    # ---- one step ----

    def step(self, loss: float | torch.Tensor | None, step: int) -> Decision | None:
        """Take in the loss of an optimizer step; `step` is the number of steps done so far, including this one."""
        self._step, self._stepped, self._skipped = step, True, 0
        if self._direct and type(loss) is float:
            self.decisions += 1
            return self.steering.observe(loss)
        every = self.controller.config.every_n_steps
        observation = self.signals.measure(loss, every)
        decision = None if observation is None else self._decide(observation)
        if not self._wants_slope:
            self.signals.slopes.forget()
            self._direct = every == 1 and self.signals.direct
        return decision

    def observe(self, loss: float | torch.Tensor) -> Decision | None:
        """Take in a loss that does not belong to an optimizer step."""
        return self._decide(self.signals.agree(loss))

    def advance(self, step: int) -> None:
        """An optimizer step in which there is nothing to decide on."""
        self._step, self._stepped, self._skipped = step, True, 0
        self._lossless = -1
        self.signals.skip_step()

    def skip_step(self, loss: float | torch.Tensor | None) -> bool:
        """The optimizer skipped a step. Whether it has done so for long: then `observe_skipped` must be called."""
        measured = self.signals.skip_step()
        self._skipped_loss = measured if loss is None else loss
        self._skipped += 1
        if self._skipped == SKIPPED:
            logger.warning(
                "%d steps in a row were skipped, so nothing is learned: with a gradient scaler, this means that the"
                " gradients are infinite or NaN",
                SKIPPED,
            )
        return self._skipped >= SKIPPED and self._monitor == "loss"

    def observe_skipped(self) -> Decision | None:
        """Decide on the loss of the step that was skipped, unless it is finite. Every rank must call it."""
        observation = self.signals.agree(self._skipped_loss)
        if observation.loss is not None and not math.isfinite(observation.loss):
            return self._decide(observation)
        if observation.command is not None:
            self._carry_out(observation.command, self._step)
        return None

    def _decide(self, observation: Observation) -> Decision | None:
        loss, slope, distance, command = observation
        if command is not None:
            self._carry_out(command, self._step)
        if loss is None:
            self._warn_if_lossless()
            return None
        if slope is None and self.controller.wants_slope and not self.decisions:
            self._follow_the_loss()
        self.decisions += 1
        return self.steering.observe(loss, slope, distance)

    def _follow_the_loss(self) -> None:
        """The slope cannot be measured: decide as the config says for that case."""
        config = self.config.without_slope()
        if self._monitor == "loss":
            logger.warning(
                "GreedyLR sees no gradients before the optimizer's steps, so it follows the loss alone (%s), which does"
                " not find the LR from far away",
                type(config).__name__,
            )
        self._decide_by(self._controller(config, self.controller.base_lrs), self.steering.command)

    def _warn_if_lossless(self) -> None:
        if self.decisions or self._lossless < 0:
            return
        self._lossless += 1
        if self._lossless == LOSSLESS:
            self._lossless = -1
            logger.warning(
                "GreedyLR was stepped %d times without a loss, so the LR follows nothing: %s", LOSSLESS, self.advice
            )

    # ---- the slope ----

    @property
    def _wants_slope(self) -> bool:
        return self.controller.wants_slope and self._length.is_new(self._step)

    @property
    def lost(self) -> bool:
        """Whether this rank's part of a checkpoint lacks what the slope is measured from."""
        return self.decisions > 0 and self._wants_slope and bool(self.signals.slopes.lost)

    def measure_slope(self) -> None:
        """Measure the slope of the step under way."""
        if self._wants_slope:
            self.signals.slopes.measure()

    def _before_step(self, complete: bool) -> None:
        if self._stepped and not self._optimizer_stepped:
            warnings.warn(
                "scheduler.step(loss) was called before optimizer.step(): call it after, or decisions are a step late",
                stacklevel=4,
            )
        self._optimizer_stepped = True
        self._look()
        if complete:
            self.measure_slope()

    # ---- state ----

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next decisions depend on."""
        command = self.steering.command
        return {
            **self.signals.state_dict(),
            "order": None if command is None else list(command),
            "controller": self.controller.state_dict(),
        }

    def loaded(self, state: Mapping[str, Any], base_lrs: Sequence[float]) -> GreedyController:
        """A controller that continues from a state; ValueError if that is not possible."""
        stored = state["controller"]
        config = self.config
        if stored.get("behaviour") != type(config).__name__:
            fallback = config.without_slope()
            if stored.get("behaviour") == type(fallback).__name__:
                config = fallback  # the run had no slope
        fields = stored.get("config")
        every = fields.get("every_n_steps") if isinstance(fields, Mapping) else None
        fitted = config
        if config.on_resume == "checkpoint" and isinstance(every, int) and every >= 1:
            fitted = replace(config, every_n_steps=every)
        controller = GreedyController(config, base_lrs, *self._length.of(fitted))
        controller.load_state_dict(stored)
        return controller

    def load(self, controller: GreedyController, state: Mapping[str, Any]) -> None:
        """Continue with a controller that `loaded` returned."""
        self._decide_by(controller, None if state["order"] is None else make_command(*state["order"]))
        self.signals.load_state_dict(state)
        self._step, self.decisions = state["last_epoch"], state["decisions"]
