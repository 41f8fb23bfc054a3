"""What the callbacks of the two Trainers share: arguments, building the scheduler, history and steering."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, ClassVar

from greedylr_integrations.checks import check, check_choice, check_number
from greedylr_integrations.core import Controller, ControllerConfig, logger
from greedylr_integrations.greedy import config_from_dict
from greedylr_integrations.history import History
from greedylr_integrations.loss import LossMeter
from greedylr_integrations.schedulers import GreedyLR, make_config


class SharedCallback:
    """Mixed into a framework's callback, which says when there is a loss and when the optimizer has stepped."""

    _starts_in: ClassVar[str]  # the event in which the callback builds its scheduler

    def _configure(
        self,
        config: ControllerConfig | Mapping[str, Any] | None,
        fields: Mapping[str, Any],
        *,
        monitor: str,
        base_schedule: str | None,
        controller: Controller | None,
        total_steps: int | None,
        decay_ratio: float | None,
        shadow: bool,
        loss_lag: int | None,
        process_group: Any,
        history_file: str | os.PathLike[str] | None,
        control_file: str | os.PathLike[str] | None,
        decay_on_resume: int | None,
        prog_bar: bool,
    ) -> None:
        """Check and keep the arguments of the constructor."""
        if controller is not None and (config is not None or fields):
            raise TypeError("controller and config are both given: a controller brings its own configuration")
        if not isinstance(monitor, str) or not monitor:
            raise TypeError(f"monitor={monitor!r} is not allowed: it must be the name of a metric")
        if base_schedule is not None:
            check_choice("base_schedule", base_schedule, ("replace", "multiply"))
        if decay_on_resume is not None:
            check_number("decay_on_resume", decay_on_resume, int)
            check(decay_on_resume >= 1, "decay_on_resume", decay_on_resume, "at least 1 optimizer step")
        self.config = make_config(config_from_dict(config) if isinstance(config, Mapping) else config, fields)
        self.monitor = monitor
        self.base_schedule = base_schedule
        self.controller = controller
        self.total_steps = total_steps
        self.decay_ratio = decay_ratio
        self.shadow = shadow
        self.loss_lag = loss_lag
        self.process_group = process_group
        self.history_file = None if history_file is None else os.fspath(history_file)
        self.control_file = None if control_file is None else os.fspath(control_file)
        self.decay_on_resume = decay_on_resume
        self.prog_bar = prog_bar
        self.scheduler: GreedyLR | None = None
        self._controller_start = None if controller is None else controller.state_dict()

    def _make_scheduler(self, optimizer: Any, *, mode: str, pre_divided: bool = False, **schedule: Any) -> None:
        """A fresh scheduler, with its controller as it was given."""
        unfinished = None
        if self.scheduler is not None:
            self.scheduler.hand_over()  # of an earlier run: its LRs must not count as the schedule's
            unfinished = self.scheduler.history_file  # it failed, and the Trainer tries again
            if unfinished is not None:
                unfinished.begun = False
        if self.controller is not None:
            self.controller.load_state_dict(self._controller_start)  # type: ignore[arg-type]
        self.scheduler = GreedyLR(
            optimizer,
            None if self.controller is not None else dataclasses.replace(self.config, mode=mode),
            controller=self.controller,
            decay_ratio=self.decay_ratio,
            shadow=self.shadow,
            meter=LossMeter(pre_divided=pre_divided, lag=self.loss_lag, process_group=self.process_group),
            history_file=unfinished or self.history_file,
            control_file=self.control_file,
            monitor=self.monitor,
            **schedule,
        )

    def _resume(self, saved: Mapping[str, Any] | None, step: int) -> None:
        """Continue from what a checkpoint has of us, at an optimizer step."""
        if saved is not None:
            self._scheduler.load_state_dict(saved)
        elif step > 0:
            logger.warning("GreedyLR starts at scale 1: the checkpoint was written without it")
            self._scheduler.last_epoch = step
        self._scheduler.begin_history()
        if step > 0 and self.decay_on_resume is not None and not self._scheduler.decaying:
            self._scheduler.start_decay(self.decay_on_resume)

    @property
    def history(self) -> History:
        """The last 100,000 decisions of the current or last run."""
        return History() if self.scheduler is None else self.scheduler.history

    @property
    def _scheduler(self) -> GreedyLR:
        if self.scheduler is None:
            raise RuntimeError(f"training has not begun: GreedyLRCallback has a scheduler from {self._starts_in} on")
        return self.scheduler

    # ---- steering: on every rank, at the same step; or by the control file ----

    def hold(self) -> None:
        """Keep the scale where it is until another order."""
        self._scheduler.hold()

    def cap(self, scale: float) -> None:
        """Keep the scale from rising above `scale` until another order."""
        self._scheduler.cap(scale)

    def pin(self, scale: float) -> None:
        """Set the scale to `scale` and keep it there until another order."""
        self._scheduler.pin(scale)

    def release(self) -> None:
        """End hold, cap or pin: the scale goes on from where it stands."""
        self._scheduler.release()

    def start_decay(self, steps: int) -> None:
        """Begin the final decay now: linear to 0 in `steps` optimizer steps."""
        self._scheduler.start_decay(steps)

    def suggested_lr(self) -> float | None:
        """Where the next such run should start, from the LRs that this one settled on; None if it was too short."""
        return self._scheduler.suggested_lr()
