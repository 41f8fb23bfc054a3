"""What a run shows: its history, its LR now, what it suggests for the next run; and what an adapter asks of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from greedylr_integrations import __version__, summary
from greedylr_integrations.columns import CommandRecord
from greedylr_integrations.controller import GreedyController
from greedylr_integrations.deciding import Decider
from greedylr_integrations.decision import FILLING, HOLD, LOWER, RAISE
from greedylr_integrations.envelope import Envelope
from greedylr_integrations.history import History, Recorder
from greedylr_integrations.history_file import HistoryFile
from greedylr_integrations.learning_rates import LearningRates
from greedylr_integrations.log import logger, say
from greedylr_integrations.loss import LossMeter
from greedylr_integrations.optimizers import refuse_accelerate, without_parameters
from greedylr_integrations.rollback import Rollback
from greedylr_integrations.suggestion import Settling


class Readings(LRScheduler):
    """What `GreedyLR` shows, and what an adapter asks of it.

    Attributes:
        shadow (bool): whether the optimizer is left alone.
        monitor (str): what the losses are.
        meter (LossMeter): the losses of this rank.
        base_schedule (LRScheduler): another schedule of the same optimizer. None if there is none.
    """

    _is_accelerate_prepared = property(refuse_accelerate)  # what `Accelerator.prepare` asks for first
    shadow: bool
    monitor: str
    meter: LossMeter
    base_schedule: LRScheduler | None
    _total_steps: int | None
    _concerns: list[str]
    _decider: Decider
    _rates: LearningRates
    _recorder: Recorder
    _settling: Settling
    _rollback: Rollback[Any] | None
    _module: torch.nn.Module | None
    _restore: Callable[[Any], object] | None
    _used: tuple[Sequence[float], float, Sequence[float]] | None = None  # in the last step: LRs, envelope, scales

    def _take_up_groups(self) -> None:
        """Take up parameter groups that were added to the optimizer."""
        raise NotImplementedError

    @property
    def controller(self) -> GreedyController:
        """What decides."""
        return self._decider.controller

    @property
    def history(self) -> History:
        """The last 100,000 decisions: a sequence of `history.Record`."""
        history = self._recorder.history
        history.group = self._rates.speaker
        return history

    @property
    def commands(self) -> deque[CommandRecord]:
        """The commands so far."""
        return self._recorder.commands

    @property
    def history_file(self) -> HistoryFile | None:
        """The file of the history; None if there is none."""
        return self._recorder.file

    @property  # type: ignore[override]
    def base_lrs(self) -> list[float]:  # type: ignore[override]
        """Base LR of each parameter group."""
        return self._rates.base_lrs

    @base_lrs.setter
    def base_lrs(self, base_lrs: list[float]) -> None:
        """torch's LRScheduler sets them once; they are kept with the other learning rates."""

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """LR of each group now: a list of floats. With `shadow`, what it would be."""
        self._take_up_groups()
        return self._rates.of(self.controller.scales, self.last_epoch)

    def get_last_lr(self) -> list[float]:  # type: ignore[override]
        """The same as `get_lr`."""
        return self.get_lr()

    @property
    def scale(self) -> float:
        """The present scale of the first parameter group that is not frozen."""
        return self.controller.scales[self._rates.speaker]

    @property
    def lr(self) -> float:
        """The present LR of the first parameter group that is not frozen; with `shadow`, what it would be."""
        return self._rates.of(self.controller.scales, self.last_epoch)[self._rates.speaker]

    @property
    def envelope(self) -> Envelope:
        """Warmup and final decay."""
        return self._rates.envelope

    @property
    def envelope_value(self) -> float:
        """Factor of warmup and final decay in the LR now, from 0 to 1."""
        return self.envelope(self.last_epoch)

    @property
    def factor(self) -> float:
        """The old name of `envelope_value`."""
        return self.envelope_value

    @property
    def decaying(self) -> bool:
        """Whether a final decay was begun by a command."""
        return self.envelope.decay_start is not None

    @property
    def ramping(self) -> bool:
        """Whether the LR is still in its warmup, in which no decision is made."""
        return self._rates.ramping(self.last_epoch)

    def metrics(self) -> dict[str, float]:
        """Values for a logger: scale and LR of the last step, and the decision after it (1 raise, -1 lower, 0 hold).

        If there are several parameter groups, scale and LR are those of the first one that is not frozen.
        """
        speaker = self._rates.speaker
        action = self.history[-1].decision.action if self.history else HOLD
        bases, factor, scales = self._used or (self.base_lrs, self.envelope_value, self.controller.scales)
        values = {
            "greedylr/scale": scales[speaker],
            "greedylr/lr": bases[speaker] * (scales[speaker] * factor),
            "greedylr/action": {RAISE: 1.0, LOWER: -1.0, HOLD: 0.0}[action],
        }
        seen = self.history[-1].decision if self.history else None
        for name in ("slope", "distance"):
            value = getattr(seen, name, None)
            if value is not None and value == value:
                values[f"greedylr/{name}"] = value
        return values

    def suggested_lr(self) -> float | None:
        """The LR with which to start the next such run: the one this run settled on. None if it was too short."""
        speaker = self._rates.speaker
        return self._settling.suggested_lr(self.base_lrs[speaker], speaker)

    def describe(self) -> dict[str, Any]:
        """What sets the LR, and what it found: flat names and values, for a tracker's configuration or a model card."""
        speaker, config, envelope = self._rates.speaker, self.controller.config, self.envelope
        other = None if self.base_schedule is None else type(self.base_schedule).__name__
        ratio = None if other or envelope.decay_ratio == config.decay_ratio else envelope.decay_ratio
        what = {
            "schedule": summary.schedule(other, multiplied=True, shadow=self.shadow),
            **summary.settings(config),
            "monitor": None if self.monitor == "loss" else self.monitor,
            "base_lr": self.base_lrs[speaker],
            "total_steps": self._total_steps,
            "linear_warmup_steps": envelope.linear_warmup_steps or None,
            "decay_ratio": ratio,
            "found_lr": None if self.shadow else self.suggested_lr(),
            "version": __version__,
        }
        return {f"greedylr/{name}": value for name, value in what.items() if value is not None}

    def __repr__(self) -> str:
        of = "" if self._total_steps is None else f" of {self._total_steps:,}"
        speaker, config = self._rates.speaker, type(self.controller.config).__name__
        now = f"LR {self.lr:.3g}, {self.scale:.3g} x the base LR of {self.base_lrs[speaker]:.3g}"
        return f"<{type(self).__name__} at step {self.last_epoch:,}{of}: {now}; {config}>"

    def announce(self, *, aloud: bool = False) -> None:
        """At the start of a run, say what will be followed and how the LR will change.

        The callbacks of the two Trainers call this; in a loop of your own, you may call it yourself.

        Args:
            aloud (bool): write to stderr if no logging is set up for INFO. Default False.
        """
        base_lr = self.base_lrs[self._rates.speaker]
        plan, schedule = self._decider.plan(), self.base_schedule
        say(summary.opening(plan, base_lr, self.envelope, self.monitor, schedule, self.shadow), aloud=aloud)

    def finish(self, *, aloud: bool = False) -> None:
        """At the end of a run, say what it found, or what `shadow` saw, and close the history.

        The callbacks of the two Trainers call this; in a loop of your own, you may call it yourself.

        Args:
            aloud (bool): write to stderr if no logging is set up for INFO. Default False.
        """
        file, speaker = self.history_file, self._rates.speaker
        if file is not None:
            file.close()
        if not self.history:
            if self.last_epoch and not self._recorder.decision_count:  # before a resume, there may have been some
                logger.warning(
                    "GreedyLR made no decision in %d optimizer steps: the LR followed nothing", self.last_epoch
                )
            return
        base_lr, path = self.base_lrs[speaker], None if file is None else file.path
        if self.shadow:
            say(summary.shadow(self.history, speaker, base_lr), aloud=aloud)
            return
        lr = self.suggested_lr()
        if lr is not None:
            say(summary.closing(self.history, lr, base_lr, self.last_epoch, path), aloud=aloud)
        controller = self.controller
        said = controller.config.concern(controller.horizon, controller.first_pass) in self._concerns
        if not said and len(self.history) > 1 and all(each.decision.reason is FILLING for each in self.history):
            logger.warning(
                "GreedyLR's window never filled in the %d decisions of this run: the LR did not follow %r; choose a"
                " smaller window_size",
                len(self.history),
                self.monitor,
            )
        total = self._total_steps
        if total is not None and self.last_epoch < summary.EARLY * total and not self.decaying:
            logger.warning(
                "the run ended after %d of %d optimizer steps, before its final decay: resume it, or plan a shorter"
                " one",
                self.last_epoch,
                total,
            )

    def detach(self) -> None:
        """When the run is over: let go of the optimizer, its weights and the base schedule. State and readings stay."""
        self.optimizer = without_parameters(self.optimizer)
        self.base_schedule = None
        self._rates.detach(self.optimizer)
        self._decider.detach()
        self._module = self._rollback = self._restore = None
        if self.history_file is not None:
            self.history_file.end()

    def measure_slope(self) -> None:
        """Measure the slope of the current step. Call it when the gradients are complete and before the weights move.

        This happens automatically before each step of a torch optimizer, unless the step is given a closure.
        """
        self._decider.measure_slope()

    def synchronize(self) -> None:
        """Make what awaits a decision the same on all ranks. Call it on every rank before one of them saves for all."""
        self._decider.signals.synchronize()

    def restore_with(self, restore: Callable[[Any], object] | None) -> None:
        """Set how to load a checkpoint, if a rollback of the configuration in a checkpoint should need it."""
        self._restore = restore

    def advise(self, advice: str) -> None:
        """Set the advice that is logged if the first steps have no loss: an adapter knows better than this class."""
        self._decider.advice = advice
