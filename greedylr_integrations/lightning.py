"""GreedyLR for Lightning's `Trainer`, in `lightning.pytorch` and in `pytorch_lightning`.

    trainer = Trainer(callbacks=[GreedyLRCallback()])

This module handles the Trainer's events. The loss is what `training_step` returned, taken in `on_train_batch_end` with
Lightning's division by `accumulate_grad_batches` undone. An optimizer step post-hook detects real steps, so steps that
the fp16 scaler skipped do not count. A schedule from `configure_optimizers` steps between that hook and
`on_train_batch_end`, and for that time the optimizer has the schedule's own LRs.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Unpack
from weakref import ref

from greedylr_integrations import _lightning_trainer, summary
from greedylr_integrations._lightning_metric import MonitoredMetric
from greedylr_integrations._lightning_trainer import Callback
from greedylr_integrations.callbacks import CallbackArguments, Run, SharedCallback
from greedylr_integrations.checks import check, check_integer
from greedylr_integrations.controller import ControllerConfig
from greedylr_integrations.finder import RUN, FoundLR, check_data, is_over, result_of, search_config
from greedylr_integrations.optimizers import check_optimizer
from greedylr_integrations.rules import SlopeConfig
from greedylr_integrations.slope import for_all_ranks

SHOW_EVERY = 10  # steps between two values in the progress bar


@dataclass
class _Run(Run):
    saved: Mapping[str, Any] | None = None  # from a checkpoint, until the optimizer is there
    given_lrs: list[float] = field(default_factory=list)  # base LRs before a checkpoint's
    optimizer: Any = None
    hook: Any = None
    ends: ExitStack = field(default_factory=ExitStack)  # what to undo on the Trainer at the end
    stepped: int = 0  # optimizer steps in the batch under way
    suffix: str = ""  # of what is logged


class GreedyLRCallback(SharedCallback, Callback):
    """Finds the learning rate during training, from loss and gradients of each optimizer step on all ranks.

    The arguments are those of `SharedCallback`, plus `optimizer_index`. The step's `greedylr/scale`, `greedylr/lr`,
    `greedylr/action` (what was decided after the step: 1 raise, -1 lower, 0 hold) and, if there is one,
    `greedylr/slope` are sent to the module's loggers. So are the settings, as hyperparameters, and at the end
    `greedylr/found_lr`. For any optimizer but the first, these names end in its index; next to another callback for the
    same optimizer, those of `shadow=True` end in "/shadow". The state is part of each checkpoint.
    """

    _starts_in = "on_train_start"

    def __init__(
        self,
        config: ControllerConfig | dict[str, Any] | None = None,
        *,
        optimizer_index: int = 0,
        **arguments: Unpack[CallbackArguments],
    ) -> None:
        """Check and keep the arguments.

        Args:
            config (ControllerConfig, or a dictionary of its fields): see `SharedCallback`.
            optimizer_index (int): which of the module's optimizers, from 0. Default 0.
            **arguments: see `SharedCallback`.
        """
        super().__init__(config, **arguments)
        self.optimizer_index = check_integer("optimizer_index", optimizer_index, least=0)
        self._fitted: tuple[Any, Any] | None = None  # Trainer and module of the last run, weakly

    @property
    def state_key(self) -> str:
        shadow = {"shadow": True} if self.settings.shadow else {}  # there may be another that is not
        return self._generate_state_key(monitor=self.monitor, optimizer_index=self.optimizer_index, **shadow)

    # ---- the Trainer's events ----

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        metric = None if self.monitor == "loss" else MonitoredMetric(self.monitor)
        self._run = _Run(metric=metric) if stage == "fit" else None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        for optimizer in trainer.optimizers[self.optimizer_index :][:1]:
            check_optimizer(optimizer)
            self._run.given_lrs = _lightning_trainer.base_lrs(optimizer)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        run, index, count = self._run, self.optimizer_index, len(trainer.optimizers)
        check(index < count, "optimizer_index", index, f"below {count}, the optimizers")
        if run.metric is not None:
            validates = trainer.enable_validation
            run.metric.warn_at_start(_lightning_trainer.validations(trainer, pl_module) if validates else 0)
        run.optimizer = trainer.optimizers[index]
        _lightning_trainer.refuse(self, trainer, run.optimizer)
        _lightning_trainer.warn_of_other_weights(self, trainer)
        watches = self.settings.shadow and _lightning_trainer.others(self, trainer)
        run.suffix = (f"/{index}" if index else "") + ("/shadow" if watches else "")
        if run.saved is None and self._last_fit() == (trainer, pl_module):  # a second fit of one Trainer goes on
            run.saved = self._scheduler.state_dict()
            if run.saved["schedule_lrs"] is not None:
                run.saved["schedule_lrs"] = [float(group["lr"]) for group in run.optimizer.param_groups]
        self._build(trainer, pl_module)
        self._resume(run.saved, trainer.global_step // count, trainer.ckpt_path)
        run.saved = None
        self._scheduler.advise(_lightning_trainer.NO_LOSS)
        self._scheduler.take_over()
        self._scheduler.announce(aloud=not self.settings.quiet)
        run.hook = run.optimizer.register_step_post_hook(self._on_step)
        run.ends.callback(run.hook.remove)
        if self._scheduler.controller.config.needs_checkpoints:
            saves = _lightning_trainer.saves_watched(
                trainer, lambda path, whole: self._scheduler.saved(path, whole=whole)
            )
            run.ends.enter_context(saves)
        self._fitted = (ref(trainer), ref(pl_module))

    def _on_step(self, *args: Any) -> None:
        self._run.stepped += 1
        self._scheduler.hand_over()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if optimizer is self._run.optimizer:
            self._scheduler.measure_slope()  # Lightning steps with a closure, so the optimizer's hook cannot

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        run, scheduler = self._run, self._scheduler
        if self.monitor == "loss":
            loss = _lightning_trainer.loss_of(trainer, pl_module, outputs)
            if loss is not None:
                scheduler.meter.update(loss)
        if run.stepped:
            for again in range(run.stepped):  # manual optimization may step more than once in a batch
                scheduler.step() if run.metric is None and not again else scheduler.advance()
            run.stepped = 0
        elif pl_module.automatic_optimization and not _lightning_trainer.accumulates(trainer):
            scheduler.skip_step()  # the scaler skipped it
        scheduler.take_over()
        done, every = scheduler.last_epoch, trainer.log_every_n_steps
        if not run.told and self.history:
            run.told = True
            _lightning_trainer.to_loggers(trainer, "log_hyperparams", self._named(self._facts()))
        to_bar = self.settings.prog_bar and done % SHOW_EVERY == 0
        if to_bar or (trainer.loggers and every and done % every == 0):
            self._log(pl_module)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        metric = self._run and self._run.metric
        known = metric and metric.by_epoch
        if metric and not trainer.sanity_checking and metric.after_validation(trainer.callback_metrics):
            self._decide(trainer, pl_module, anew=known is None)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        metric = self._run.metric
        known = metric and metric.by_epoch
        if metric and metric.after_epoch(trainer.callback_metrics, trainer.enable_validation):
            self._decide(trainer, pl_module, anew=known is None)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._run.ends.close()
        if found := self._named(self._result()):
            _lightning_trainer.to_loggers(trainer, "log_metrics", found, step=trainer.global_step)
        self._end_run()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        if self._run is not None and self._run.hook is not None:
            self._run.ends.close()
        self._run = None

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        _lightning_trainer.detach(self)

    # ---- state ----

    def state_dict(self) -> dict[str, Any]:
        if self._run is not None and self._run.saved is not None:
            return dict(self._run.saved)
        if self.scheduler is None:
            return {}
        self.scheduler.synchronize()  # Lightning asks on every rank, and keeps what rank 0 says
        return for_all_ranks(self.scheduler.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._run is not None:  # not with validate, test or predict
            self._run.saved = state_dict  # the scheduler says what is wrong with it

    def __getstate__(self) -> dict[str, Any]:
        state = {**super().__getstate__(), "_fitted": None}
        return {name: value for name, value in state.items() if name not in _lightning_trainer.ATTACHED}

    def _last_fit(self) -> tuple[Any, Any] | None:
        """The Trainer and the module of the last run, if they are still there."""
        return None if self._fitted is None else tuple(each() for each in self._fitted)

    # ---- pieces ----

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError(
            "this GreedyLRCallback is for Lightning's Trainer; for Hugging Face's, import it from"
            " greedylr_integrations.transformers"
        )

    on_init_end = on_train_begin

    def _build(self, trainer: Any, pl_module: Any) -> None:
        run, settings, metric = self._run, self.settings, self._run.metric
        schedules = _lightning_trainer.schedules(trainer, run.optimizer)
        multiplies = (settings.base_schedule or ("multiply" if schedules else "replace")) == "multiply"
        if multiplies and not schedules:
            raise ValueError(
                "base_schedule='multiply' is not allowed without a schedule: configure_optimizers returns none for"
                f" optimizer {self.optimizer_index}"
            )
        if run.saved is not None and run.given_lrs and not multiplies:
            for group, lr in zip(run.optimizer.param_groups, run.given_lrs, strict=False):
                group["initial_lr"] = lr  # this run's, for on_resume to choose; the optimizer has the checkpoint's
        other = type(schedules[0].scheduler).__name__ if schedules else None
        run.schedule = summary.schedule(other, multiplied=multiplies, shadow=settings.shadow)
        total = settings.total_steps
        if total is None:
            total = _lightning_trainer.optimizer_steps(trainer, pl_module, say=run.hook is None and not multiplies)
        self._make_scheduler(
            run.optimizer,
            total_steps=total,
            steps_per_epoch=settings.steps_per_epoch or _lightning_trainer.steps_per_epoch(trainer, pl_module),
            linear_warmup_steps=settings.linear_warmup_steps or 0,
            base_schedule=schedules[0].scheduler if multiplies else None,
            horizon=None if metric is None else self._decisions(trainer, pl_module),
            history_file=settings.history_file,
            module=pl_module,
            restore=partial(_lightning_trainer.restore, trainer),
        )

    def _decisions(self, trainer: Any, pl_module: Any) -> int:
        """How many values of the metric the run will have; 0 if that is not known."""
        metric, validates = self._run.metric, trainer.enable_validation
        epochs = _lightning_trainer.epochs(trainer, pl_module) or 0
        validations = (_lightning_trainer.validations(trainer, pl_module) or 0) if validates else 0
        if metric.by_epoch is None and validates and not metric.is_of_validation:
            return max(epochs, validations) if epochs and validations else 0  # it may be either
        return epochs if metric.by_epoch or not validates else validations

    def _decide(self, trainer: Any, pl_module: Any, *, anew: bool) -> None:
        """Decide on the metric. `anew`: whether it has only now turned out how often it comes."""
        if anew and self._decisions(trainer, pl_module) != (self._scheduler.controller.horizon or 0):
            state = self._scheduler.state_dict()
            self._build(trainer, pl_module)
            self._scheduler.load_state_dict(state)
        self._observe(trainer.callback_metrics[self.monitor])

    def _named(self, values: dict[str, Any]) -> dict[str, Any]:
        """The values, with names that no other callback's have."""
        return {name + self._run.suffix: value for name, value in values.items()}

    def _log(self, pl_module: Any) -> None:
        for name, value in self._named(self._scheduler.metrics()).items():
            shown = self.settings.prog_bar and name.startswith(("greedylr/scale", "greedylr/lr"))
            pl_module.log(name, value, on_step=True, on_epoch=False, prog_bar=shown, rank_zero_only=True)


class _Search(GreedyLRCallback):
    """Ends the fit with the search."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        trainer.strategy.lr_scheduler_configs = []  # the module's own schedules
        super().on_fit_start(trainer, pl_module)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        check_data(self._scheduler)

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        super().on_train_batch_end(trainer, *args)
        trainer.should_stop = is_over(self._scheduler)

    def _end_run(self) -> None:
        self._run = None
        self._scheduler.detach()


def find_lr(
    trainer: Any,
    module: Any,
    *data: Any,
    config: SlopeConfig | None = None,
    total_steps: int = RUN,
    optimizer_index: int = 0,
    **named_data: Any,
) -> FoundLR:
    """Search for the LR with Lightning's Trainer, then restore Trainer and module. Also available as `lr_find`.

    It fits until the LR has been found and held for a window of slopes, without validation, checkpoints, loggers, the
    Trainer's callbacks or the module's schedules. With several processes, call it on each of them.

    Args:
        trainer (Trainer): the Trainer that fits.
        module (LightningModule): the LRs of its optimizer are the base LRs.
        *data, **named_data: what `Trainer.fit` takes after the module: a loader, or `datamodule=`.
        config (SlopeConfig): the settings of the search. Default None: `SlopeConfig()`.
        total_steps (int): length, in optimizer steps, of the run that the LR is for, at least 60. It determines how
            fast the LR rises, and the search takes at most 40% of it. Default 1,000.
        optimizer_index (int): which of the module's optimizers, from 0. Default 0.

    Raises:
        ValueError: if the run, or a pass over the data, has fewer than 60 steps.
        RuntimeError: if no gradients are seen before the optimizer's steps, or the processes are started by `fit`.
    """
    search = _Search(
        search_config(config, total_steps),
        optimizer_index=optimizer_index,
        total_steps=total_steps,
        decay_ratio=0.0,
        prog_bar=False,
        quiet=True,
    )
    with _lightning_trainer.lent(trainer, module, search):
        trainer.fit(module, *data, **named_data)
    return result_of(search._scheduler)


lr_find = find_lr  # the name in Lightning's Tuner
