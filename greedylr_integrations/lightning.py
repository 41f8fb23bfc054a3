"""GreedyLR for Lightning's `Trainer`, in `lightning.pytorch` and in `pytorch_lightning`.

    trainer = Trainer(callbacks=[GreedyLRCallback()])

The loss is what `training_step` returned, taken in `on_train_batch_end` with Lightning's division by
`accumulate_grad_batches` undone. That a step was a real one is told by the optimizer itself (a step post-hook), so one
that the 16-bit scaler skipped does not count. A schedule from `configure_optimizers` steps between that hook and
`on_train_batch_end`; it is given its own LRs back for the moment.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from math import ceil, isfinite
from typing import TYPE_CHECKING, Any

import torch

from greedylr_integrations.callbacks import SharedCallback
from greedylr_integrations.checks import check, check_number
from greedylr_integrations.core import Controller, ControllerConfig
from greedylr_integrations.schedulers import mode_of

# Before 2.6, a Trainer takes callbacks of its own namespace only: the one that the user has imported.
_namespaces = ["lightning.pytorch", "pytorch_lightning"]
if "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
    _namespaces.reverse()
_found = next((name for name in _namespaces if find_spec(name.split(".")[0]) is not None), None)
if _found is None:
    raise ImportError("greedylr_integrations.lightning needs lightning: pip install 'greedylr_integrations[lightning]'")
if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback
else:
    Callback = import_module(f"{_found}.callbacks").Callback


class GreedyLRCallback(SharedCallback, Callback):
    """The learning rate follows the training loss, averaged over micro-batches and ranks, in each optimizer step.

    Args:
        config (GreedyConfig, or a dictionary of its fields): how losses move the LR. Default: `GreedyConfig()`.
        monitor (str): "loss" (default), the training loss of every optimizer step; or any logged metric: then each
            validation is one decision, or each training epoch where there is no validation. A metric whose name does
            not end in "loss" needs `mode`.
        base_schedule (str): "replace": GreedyLR is the schedule. "multiply": LR = the module's schedule x our scale.
            Default None: multiply if `configure_optimizers` gave the optimizer a schedule, else replace.
        controller (Controller): another policy, in place of a config.
        total_steps (int): optimizer steps of the run. Default None: the Trainer's estimate, if it has one.
        linear_warmup_steps (int): optimizer steps of a ramp from 0. Default 0. Not with "multiply".
        decay_ratio (float): share of the run that the final decay to 0 takes. Default None: 0.3, or the
            controller's own `decay_ratio`. Not with "multiply".
        optimizer_index (int): which of the module's optimizers. Default 0.
        shadow (bool): record decisions and change nothing. Default False.
        loss_lag (int): 1 decides on each loss one optimizer step later, so that the host does not wait for the device;
            0 at once. Default None: 1 for losses on a CUDA device, else 0.
        process_group: data-parallel ranks, over which to average the loss. Default None: all ranks.
        history_file (path): where rank 0 appends every decision and order as JSON lines; `history.read` reads it. A run
            that starts at step 0 refuses one that has a history already, a resumed one goes on in it. Default None.
        control_file (path): a file by which to steer the run from outside; see `control.ControlFile`. Default None.
        decay_on_resume (int): after a resume, begin the final decay at once, over so many optimizer steps: a finished
            model from any checkpoint. Let the run end there (`max_steps`). Default None.
        prog_bar (bool): show the scale in the progress bar. Default False.
        **fields: fields of the config, in place of its own.

    Attributes:
        scheduler (GreedyLR): the scheduler of the current or last `fit`.
        history (History): its last 100,000 decisions, a sequence of `history.Record`.

    `greedylr/scale`, `greedylr/lr` and `greedylr/action` (1 raise, -1 lower, 0 hold) go to the module's loggers, with
    the index of an optimizer that is not the first behind them. The state is part of each checkpoint.
    """

    _starts_in = "on_train_start"

    def __init__(
        self,
        config: ControllerConfig | dict[str, Any] | None = None,
        *,
        monitor: str = "loss",
        base_schedule: str | None = None,
        controller: Controller | None = None,
        total_steps: int | None = None,
        linear_warmup_steps: int = 0,
        decay_ratio: float | None = None,
        optimizer_index: int = 0,
        shadow: bool = False,
        loss_lag: int | None = None,
        process_group: Any = None,
        history_file: str | None = None,
        control_file: str | None = None,
        decay_on_resume: int | None = None,
        prog_bar: bool = False,
        **fields: Any,
    ) -> None:
        check_number("optimizer_index", optimizer_index, int)
        check(optimizer_index >= 0, "optimizer_index", optimizer_index, "at least 0")
        self._configure(
            config,
            fields,
            monitor=monitor,
            base_schedule=base_schedule,
            controller=controller,
            total_steps=total_steps,
            decay_ratio=decay_ratio,
            shadow=shadow,
            loss_lag=loss_lag,
            process_group=process_group,
            history_file=history_file,
            control_file=control_file,
            decay_on_resume=decay_on_resume,
            prog_bar=prog_bar,
        )
        self.linear_warmup_steps = linear_warmup_steps
        self.optimizer_index = optimizer_index
        self._saved: dict[str, Any] | None = None  # from a checkpoint, until the optimizer is there
        self._stepped = False

    @property
    def state_key(self) -> str:
        return self._generate_state_key(monitor=self.monitor, optimizer_index=self.optimizer_index)

    # ---- the Trainer's events ----

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        count = len(trainer.optimizers)
        check(self.optimizer_index < count, "optimizer_index", self.optimizer_index, f"below {count}, the optimizers")
        self._optimizer = trainer.optimizers[self.optimizer_index]
        self._refuse(trainer)
        self._build(trainer)
        self._resume(self._saved, trainer.global_step)
        self._saved = None
        self._scheduler.take_over()
        self._handle = self._optimizer.register_step_post_hook(self._on_step)

    def _on_step(self, *args: Any) -> None:
        self._stepped = True
        self._scheduler.hand_over()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.monitor == "loss":
            self._meter_loss(trainer, pl_module, outputs)
        if self._stepped:
            self._stepped = False
            self._scheduler.step()
        elif pl_module.automatic_optimization and not trainer.fit_loop._should_accumulate():
            self._scheduler.meter.discard_step()  # the scaler skipped it
        self._scheduler.take_over()
        if self.prog_bar or (trainer.loggers and self._scheduler.last_epoch % trainer.log_every_n_steps == 0):
            self._log(pl_module)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if self.monitor != "loss" and not trainer.sanity_checking and self.scheduler is not None:
            self._observe(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self.monitor != "loss" and not trainer.enable_validation:
            self._observe(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._handle.remove()
        self._scheduler.finish()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        if self.scheduler is not None:
            self._handle.remove()

    # ---- state ----

    def state_dict(self) -> dict[str, Any]:
        if self.scheduler is None:
            return self._saved or {}
        self.scheduler.meter.synchronize()  # Lightning asks on every rank, and keeps what rank 0 says
        return self.scheduler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = dict(state_dict)

    # ---- pieces ----

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError(
            "this GreedyLRCallback is for Lightning's Trainer; for Hugging Face's, import it from"
            " greedylr_integrations.transformers"
        )

    on_init_end = on_train_begin

    def _schedules(self, trainer: Any) -> list[Any]:
        return [config for config in trainer.lr_scheduler_configs if config.scheduler.optimizer is self._optimizer]

    def _refuse(self, trainer: Any) -> None:
        for config in self._schedules(trainer):
            name = type(config.scheduler).__name__
            if (config.reduce_on_plateau or name == "GreedyLR") and not self.shadow:
                raise ValueError(
                    f"configure_optimizers returns a {name}, which follows a metric too, and only one can set the LR:"
                    " leave it out there, or drop GreedyLRCallback"
                )

    def _build(self, trainer: Any) -> None:
        schedules = self._schedules(trainer)
        mode = self.base_schedule or ("multiply" if schedules else "replace")
        if mode == "multiply" and not schedules:
            raise ValueError(
                "base_schedule='multiply' is not allowed without a schedule: configure_optimizers returns none for"
                f" optimizer {self.optimizer_index}"
            )
        total = self.total_steps
        if total is None and isfinite(trainer.estimated_stepping_batches):
            total = int(trainer.estimated_stepping_batches)
        self._make_scheduler(
            self._optimizer,
            mode=mode_of(self.monitor, self.config.mode),
            total_steps=total,
            linear_warmup_steps=self.linear_warmup_steps,
            base_schedule=schedules[0].scheduler if mode == "multiply" else None,
            horizon=None if self.monitor == "loss" else self._metric_values(trainer),
        )

    @staticmethod
    def _metric_values(trainer: Any) -> int | None:
        """How many values of the metric the run will have; None if that is not known."""
        if trainer.max_epochs is not None and trainer.max_epochs > 0:
            each = trainer.num_training_batches / trainer.val_check_batch if trainer.enable_validation else 1
            return max(1, ceil(trainer.max_epochs * max(each, 1) / (trainer.check_val_every_n_epoch or 1)))
        return None

    def _meter_loss(self, trainer: Any, pl_module: Any, outputs: Any) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if loss is None:
            return  # training_step skipped this batch
        if not isinstance(loss, (torch.Tensor, float, int)):
            raise TypeError(f"training_step returned {type(loss).__name__} as the loss: it must be a single number")
        if pl_module.automatic_optimization and trainer.accumulate_grad_batches > 1:
            loss = loss * trainer.accumulate_grad_batches
        self._scheduler.meter.update(loss)

    def _observe(self, trainer: Any) -> None:
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            raise ValueError(
                f"monitor={self.monitor!r} is not logged: there are {', '.join(sorted(metrics)) or 'no metrics'}"
            )
        self._scheduler.observe(metrics[self.monitor])

    def _log(self, pl_module: Any) -> None:
        values = self._scheduler.metrics()
        if self.optimizer_index:
            values = {f"{name}/{self.optimizer_index}": value for name, value in values.items()}
        for name, value in values.items():
            shown = self.prog_bar and name.startswith("greedylr/scale")
            pl_module.log(name, value, on_step=True, on_epoch=False, prog_bar=shown, rank_zero_only=True)
