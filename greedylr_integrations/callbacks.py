"""What the callbacks of the two Trainers share: the constructor, the life of a scheduler, and steering.

A framework's callback says when a run begins and ends, when there is a loss, and when the optimizer has stepped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Unpack, cast

from greedylr_integrations.checks import check, check_choice, check_hook, check_integer, plain
from greedylr_integrations.controller import ControllerConfig, GreedyController
from greedylr_integrations.history import History, Record
from greedylr_integrations.log import logger
from greedylr_integrations.loss import LossMeter
from greedylr_integrations.rules import ConfigFields, GreedyConfig, config_from_dict, make_config
from greedylr_integrations.schedulers import GreedyLR
from greedylr_integrations.steering import Command, Steerable

UNSAVED = ("process_group", "on_decision")  # arguments that JSON does not take


class CallbackArguments(ConfigFields, total=False):
    """The keyword arguments of `SharedCallback`, for constructors that pass them on."""

    monitor: str
    base_schedule: str | None
    controller: GreedyController | None
    total_steps: int | None
    steps_per_epoch: int | None
    linear_warmup_steps: int | None
    decay_ratio: float | None
    shadow: bool
    loss_lag: int | None
    process_group: Any
    history_file: str | os.PathLike[str] | None
    on_decision: Callable[[Record], object] | None
    control_file: str | os.PathLike[str] | None
    decay_on_resume: int | None
    prog_bar: bool
    quiet: bool


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The arguments of the constructor, checked."""

    config: ControllerConfig
    monitor: str
    base_schedule: str | None
    total_steps: int | None
    steps_per_epoch: int | None
    linear_warmup_steps: int | None
    decay_ratio: float | None
    shadow: bool
    loss_lag: int | None
    process_group: Any
    history_file: str | None
    on_decision: Callable[[Record], object] | None
    control_file: str | None
    decay_on_resume: int | None
    prog_bar: bool
    quiet: bool

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            object.__setattr__(self, name, plain(value))  # the Trainer writes them as JSON
        if not isinstance(self.monitor, str) or not self.monitor:
            raise TypeError(f"monitor={self.monitor!r} is not allowed: it must be the name of a metric")
        if self.base_schedule is not None:
            check_choice("base_schedule", self.base_schedule, ("replace", "multiply"))
        check_hook("on_decision", self.on_decision, "a history.Record")
        if self.decay_on_resume is not None:
            check_integer("decay_on_resume", self.decay_on_resume, least=1)
        if self.steps_per_epoch is not None:
            check_integer("steps_per_epoch", self.steps_per_epoch, least=1)

    def arguments(self) -> dict[str, Any]:
        """Arguments of the constructor as plain JSON, without those that cannot be saved."""
        return {**vars(self), "config": self.config.to_dict(), **dict.fromkeys(UNSAVED)}

    def unsaved(self) -> list[str]:
        """Names of the arguments that were given and cannot be saved."""
        return [name for name in UNSAVED if getattr(self, name) is not None]


@dataclass
class Run:
    """What a callback knows of the run under way. Each run has a new one, so nothing of another run is left."""

    metric: Any = None  # the metric to wait for; None: the loss of each step
    schedule: str = ""  # what sets the LR, in words
    told: bool = False  # whether the trackers know it


class SharedCallback(Steerable):
    """The base of a framework's `GreedyLRCallback`, with the one constructor.

    Args:
        config (ControllerConfig, or a dictionary of its fields): the rule and its settings. Default None:
            `SlopeConfig()`, or `GreedyConfig()` if `monitor` is not the loss or if only `GreedyConfig` has one of
            `fields`.
        monitor (str): "loss" for the training loss of each optimizer step, or the name of a metric, each value of
            which leads to one decision. In Hugging Face's Trainer, this can be any metric that is evaluated or that
            is logged on every rank, with or without "eval_"; in Lightning, any logged metric, which is read after
            each validation or, if it is not available by then, at the end of each training epoch. A metric whose
            name does not end in "loss" needs `mode`, unless it is the Trainer's `metric_for_best_model`. Default
            "loss".
        base_schedule (str): "replace": GreedyLR is the schedule. "multiply": LR = the LR of the Trainer's or the
            module's own schedule x the scale. Default None: "multiply" if a schedule was passed to Hugging Face's
            Trainer or returned by `configure_optimizers`, otherwise "replace".
        controller (GreedyController): a controller whose config is used, in place of `config`. Default None.
        total_steps (int): length of the run in optimizer steps. Default None: taken from the Trainer, if it is
            known there.
        steps_per_epoch (int): optimizer steps of one pass over the data; the slope is measured in the first one only.
            Pass it if a loader repeats its data without end. Default None: taken from the length of the loader.
        linear_warmup_steps (int): optimizer steps of a linear warmup from 0, without decisions. Not with
            "multiply". Default None: the TrainingArguments', unless the rule's search takes the place of a warmup;
            0 in Lightning.
        decay_ratio (float): share of the run that the final decay to 0 takes, from 0 to 1. Not with "multiply".
            Default None: 0.3.
        shadow (bool): record decisions and change nothing. Default False.
        loss_lag (int): 1 decides on each loss one optimizer step later, so that the host does not wait for the
            device; 0 decides at once. Default None: 1 for losses on a CUDA device, otherwise 0.
        process_group (ProcessGroup): data-parallel ranks over which to average the loss. Default None: all ranks.
        history_file (path): file to which rank 0 appends each decision and command as a line of JSON; see
            `history.read`. In Hugging Face's hyperparameter search, each trial has its own file, in a folder named
            after the trial, such as out/run-0/history.jsonl. Default None: no file.
        on_decision (callable): a function that is called on every rank with the `history.Record` of each decision,
            after its LR has been written to the optimizer: for an alert, or a tracker of your own. Default None.
        control_file (path): file through which the run can be steered from outside; see `steering.CommandFile`.
            Default None: no file.
        decay_on_resume (int): after a resume, begin the final decay at once, over this many optimizer steps. This
            makes a finished model from any checkpoint; set `max_steps` so that the run ends with the decay. Default
            None: no such decay.
        prog_bar (bool): show LR and scale in the progress bar. Default True.
        quiet (bool): omit the line at the start that says what will be done, and the one at the end that says what
            was found. On rank 0, they go to stderr, or to logging if it is set up for INFO. Default False.
        **fields: fields of the config, which override its own.

    Raises:
        TypeError, ValueError: for an argument that is not allowed, with its name and value.

    Attributes:
        scheduler (GreedyLR): the scheduler of the current or last run; None before the first.
        history (History): its last 100,000 decisions, a sequence of `history.Record`.
    """

    _starts_in: ClassVar[str]  # the event in which the callback builds its scheduler

    def __init__(
        self,
        config: ControllerConfig | dict[str, Any] | None = None,
        *,
        monitor: str = "loss",
        base_schedule: str | None = None,
        controller: GreedyController | None = None,
        total_steps: int | None = None,
        steps_per_epoch: int | None = None,
        linear_warmup_steps: int | None = None,
        decay_ratio: float | None = None,
        shadow: bool = False,
        loss_lag: int | None = None,
        process_group: Any = None,
        history_file: str | os.PathLike[str] | None = None,
        on_decision: Callable[[Record], object] | None = None,
        control_file: str | os.PathLike[str] | None = None,
        decay_on_resume: int | None = None,
        prog_bar: bool = True,
        quiet: bool = False,
        **fields: Unpack[ConfigFields],
    ) -> None:
        if controller is not None:
            check(config is None and not fields, "controller", controller, "None if a config or its fields are given")
            config = controller.config
        if isinstance(config, Mapping) and "behaviour" in config:
            config = config_from_dict(config)
        elif isinstance(config, Mapping):
            fields = cast("ConfigFields", {**config, **fields})
            config = None
        if config is None and monitor != "loss":
            config = GreedyConfig()  # a metric has no slope
        self.settings = Settings(
            config=make_config(config, fields, SharedCallback),
            monitor=monitor,
            base_schedule=base_schedule,
            total_steps=total_steps,
            steps_per_epoch=steps_per_epoch,
            linear_warmup_steps=linear_warmup_steps,
            decay_ratio=decay_ratio,
            shadow=shadow,
            loss_lag=loss_lag,
            process_group=process_group,
            history_file=None if history_file is None else os.fspath(history_file),
            on_decision=on_decision,
            control_file=None if control_file is None else os.fspath(control_file),
            decay_on_resume=decay_on_resume,
            prog_bar=prog_bar,
            quiet=quiet,
        )
        self.scheduler: GreedyLR | None = None
        self._run: Any = None

    @property
    def config(self) -> ControllerConfig:
        """How losses move the LR."""
        return self.settings.config

    @property
    def monitor(self) -> str:
        """What the decisions are made on."""
        return self.settings.monitor

    # ---- the life of a scheduler ----

    def _make_scheduler(
        self,
        optimizer: Any,
        *,
        restore: Callable[[Any], object] | None,
        greater_is_better: bool | None = None,
        pre_divided: bool = False,
        **schedule: Any,
    ) -> None:
        """Make the scheduler of a run that begins.

        Args:
            optimizer (torch.optim.Optimizer): the one whose LR to set.
            restore (callable): see `GreedyLR`.
            greater_is_better (bool): what the Trainer knows of the metric. Default None: nothing.
            pre_divided (bool): see `LossMeter`. Default False.
            **schedule: arguments of `GreedyLR`.
        """
        settings, config = self.settings, self._rule_config()
        if self.scheduler is not None:  # of an earlier run, which may have failed
            self.scheduler.hand_over()  # its LRs must not count as the schedule's
            self.scheduler.detach()
        if schedule.get("horizon") == 0 and getattr(config, "window_size", 0) is None and not self._run.metric.never:
            logger.warning(
                "GreedyLR does not know how often %r will come in this run, so it uses the window for runs of unknown"
                " length (50 values): set window_size",
                settings.monitor,
            )
        self.scheduler = GreedyLR(
            optimizer,
            replace(config, mode=mode_of(settings.monitor, config.mode, greater_is_better)),
            decay_ratio=settings.decay_ratio,
            shadow=settings.shadow,
            meter=LossMeter(pre_divided=pre_divided, lag=settings.loss_lag, process_group=settings.process_group),
            on_decision=settings.on_decision,
            control_file=settings.control_file,
            monitor=settings.monitor,
            restore=restore if config.needs_checkpoints else None,
            **schedule,
        )
        self.scheduler.restore_with(restore)

    def _resume(self, saved: Mapping[str, Any] | None, step: int, path: str | os.PathLike[str] | None) -> None:
        """Continue from the state that a checkpoint has, at an optimizer step."""
        if saved is not None:
            self._scheduler.load_state_dict(saved)
        elif step > 0:
            logger.warning("GreedyLR starts anew: the checkpoint was written without it")
            self._scheduler.last_epoch = step
        if step > 0 and path is not None:
            self._saved(path)
        decay = self.settings.decay_on_resume
        if step > 0 and decay is not None and not self._scheduler.decaying:
            self._scheduler.start_decay(decay)

    def _saved(self, path: Any) -> None:
        """A checkpoint was saved, or the run resumed from it."""
        self._scheduler.saved(path)

    def _rule_config(self) -> ControllerConfig:
        """The configuration of the run's rule: a metric has no slope."""
        return self.config if self._run.metric is None else self.config.without_slope()

    def _observe(self, value: Any) -> None:
        """Decide on a value of the metric."""
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise TypeError(f"monitor={self.monitor!r} has the value {value!r}: it must be a single number") from None
        self._scheduler.observe(number)

    def _facts(self) -> dict[str, Any]:
        """What sets the LR, for the configuration of trackers."""
        return {**self._scheduler.describe(), "greedylr/schedule": self._run.schedule}

    def _result(self) -> dict[str, float]:
        """What the run found, for the framework's summary of the run; empty if it found nothing."""
        found = None if self.settings.shadow else self.suggested_lr()
        return {} if found is None else {"greedylr/found_lr": found}

    def _end_run(self) -> None:
        """Log what the run found, and let go of the optimizer and everything that it holds."""
        metric, scheduler, self._run = self._run.metric, self._scheduler, None
        if scheduler.history or metric is None or not metric.never:  # else it was said at the start
            scheduler.finish(aloud=not self.settings.quiet)
        scheduler.detach()

    @property
    def history(self) -> History:
        """The last 100,000 decisions of the current or last run."""
        return History() if self.scheduler is None else self.scheduler.history

    @property
    def _scheduler(self) -> GreedyLR:
        if self.scheduler is None:
            raise RuntimeError(f"training has not begun: GreedyLRCallback has a scheduler from {self._starts_in} on")
        return self.scheduler

    def __repr__(self) -> str:
        state = "not begun" if self.scheduler is None else repr(self.scheduler)
        return f"<{type(self).__name__} of {self.monitor!r} with {type(self.config).__name__}: {state}>"

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: a run that is under way stays behind."""
        under_way = {} if self._run is None else {"scheduler": None, "_run": None}
        return {**vars(self), **under_way}

    def follow(self, command: Command) -> None:
        """Follow a command from now on; see `Steerable`."""
        self._scheduler.follow(command)

    def suggested_lr(self) -> float | None:
        """LR with which to start the next such run, from the LRs of this one; None if it was too short."""
        return self._scheduler.suggested_lr()


def mode_of(monitor: str, mode: str | None, greater_is_better: bool | None = None) -> str:
    """Whether a smaller ("min") or a larger ("max") value of a metric is better: by the mode, or by the metric's name.

    Raises:
        ValueError: if neither says so.
    """
    if mode is not None:
        return mode
    if greater_is_better is not None:
        return "max" if greater_is_better else "min"
    if monitor.endswith("loss"):
        return "min"
    raise ValueError(f"mode is not known for monitor={monitor!r}: pass mode='min' if smaller is better, or mode='max'")
