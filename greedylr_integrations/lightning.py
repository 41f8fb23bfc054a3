"""GreedyLR for Lightning's `Trainer`, in `lightning.pytorch` and in `pytorch_lightning`.

    trainer = Trainer(callbacks=[GreedyLRCallback()])

Here are the Trainer's events. The loss is what `training_step` returned, taken in `on_train_batch_end` with Lightning's
division by `accumulate_grad_batches` undone. An optimizer step post-hook detects real steps, so steps that the fp16
scaler skipped do not count. A schedule from `configure_optimizers` steps between that hook and `on_train_batch_end`; it
is given its own LRs back for the moment.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from weakref import ref

import torch
from typing_extensions import Unpack

from greedylr_integrations import _lightning_trainer
from greedylr_integrations.callbacks import CallbackArguments, Run, SharedCallback
from greedylr_integrations.checks import check, check_number
from greedylr_integrations.core import ControllerConfig, logger
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

NO_LOSS = (
    "training_step has to return it, as a tensor or as 'loss' in a dictionary, also with manual optimization; or give"
    " GreedyLRCallback(monitor=...) a metric that you log"
)


@dataclass
class _Run(Run):
    saved: Mapping[str, Any] | None = None  # from a checkpoint, until the optimizer is there
    given_lrs: list[list[float]] = field(default_factory=list)  # base LRs of each optimizer before a checkpoint's
    optimizer: Any = None
    hook: Any = None
    stepped: int = 0  # optimizer steps in the batch under way
    turn: str | None = None  # when the metric is there: after "validation" or after an "epoch"; None until it is known
    validated: bool = False


class GreedyLRCallback(SharedCallback, Callback):
    """The learning rate follows the training loss, averaged over micro-batches and ranks, in each optimizer step.

    The arguments are those of `SharedCallback`, and `optimizer_index`. `greedylr/scale`, `greedylr/lr` and
    `greedylr/action` (1 raise, -1 lower, 0 hold) go to the module's loggers, followed by the index of an optimizer that
    is not the first. The state is part of each checkpoint.
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
        check_number("optimizer_index", optimizer_index, int)
        check(optimizer_index >= 0, "optimizer_index", optimizer_index, "at least 0")
        super().__init__(config, **arguments)
        self.optimizer_index = optimizer_index
        self._fitted: tuple[Any, Any] | None = None  # Trainer and module of the last run, weakly

    @property
    def state_key(self) -> str:
        return self._generate_state_key(monitor=self.monitor, optimizer_index=self.optimizer_index)

    # ---- the Trainer's events ----

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._run = _Run() if stage == "fit" else None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self._run.given_lrs = [
            [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
            for optimizer in trainer.optimizers
        ]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        run, index, count = self._run, self.optimizer_index, len(trainer.optimizers)
        check(index < count, "optimizer_index", index, f"below {count}, the optimizers")
        run.optimizer = trainer.optimizers[index]
        self._refuse(trainer)
        if run.saved is None and self._last_fit() == (trainer, pl_module):
            run.saved = self._scheduler.state_dict()  # a second fit of the same Trainer goes on
        self._build(trainer, pl_module)
        self._resume(run.saved, trainer.global_step // count)
        run.saved = None
        self._scheduler.take_over()
        run.hook = run.optimizer.register_step_post_hook(self._on_step)
        self._fitted = (ref(trainer), ref(pl_module))

    def _on_step(self, *args: Any) -> None:
        self._run.stepped += 1
        self._scheduler.hand_over()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        run, scheduler = self._run, self._scheduler
        if self.monitor == "loss":
            self._meter_loss(trainer, pl_module, outputs)
        if run.stepped:
            self._step(NO_LOSS)
            for _ in range(run.stepped - 1):  # manual optimization may step more than once in a batch
                scheduler.step()
            run.stepped = 0
        elif pl_module.automatic_optimization and not _lightning_trainer.accumulates(trainer):
            scheduler.meter.discard_step()  # the scaler skipped it
        scheduler.take_over()
        if self.settings.prog_bar or (trainer.loggers and scheduler.last_epoch % trainer.log_every_n_steps == 0):
            self._log(pl_module)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        run = self._run
        if self.monitor == "loss" or run is None or trainer.sanity_checking:
            return
        run.validated = True
        if run.turn is None and self.monitor in trainer.callback_metrics:
            run.turn = "validation"
        if run.turn == "validation":
            self._observe(trainer.callback_metrics[self.monitor])

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        run, metrics = self._run, trainer.callback_metrics
        if self.monitor == "loss" or run.turn == "validation":
            return
        if self.monitor in metrics:
            if run.turn is None and run.validated:  # it is a metric of training
                state = self._scheduler.state_dict()
                self._build(trainer, pl_module, after="epoch")
                self._scheduler.load_state_dict(state)
            run.turn = "epoch"
            self._observe(metrics[self.monitor])
        elif run.turn is None and (run.validated or not trainer.enable_validation):
            names = ", ".join(sorted(metrics)) or "no metrics"
            raise ValueError(f"monitor={self.monitor!r} is not logged: there are {names}")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._run.hook.remove()
        self._end_run(complete=not trainer.should_stop)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        if self._run is not None and self._run.hook is not None:
            self._run.hook.remove()
        self._run = None

    # ---- state ----

    def state_dict(self) -> dict[str, Any]:
        if self._run is not None and self._run.saved is not None:
            return dict(self._run.saved)
        if self.scheduler is None:
            return {}
        self.scheduler.meter.synchronize()  # Lightning asks on every rank, and keeps what rank 0 says
        return self.scheduler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._run is not None:  # not with validate, test or predict
            self._run.saved = dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_fitted": None}

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

    def _schedules(self, trainer: Any) -> list[Any]:
        return [config for config in trainer.lr_scheduler_configs if config.scheduler.optimizer is self._run.optimizer]

    def _refuse(self, trainer: Any) -> None:
        if self.settings.shadow:
            return
        for config in self._schedules(trainer):
            name = type(config.scheduler).__name__
            if config.reduce_on_plateau or name == "GreedyLR":
                raise ValueError(
                    f"configure_optimizers returns a {name}, which follows a metric too, and only one can set the LR:"
                    " leave it out there, or drop GreedyLRCallback"
                )
        others = [each for each in trainer.callbacks if isinstance(each, GreedyLRCallback) and each is not self]
        if any(each.optimizer_index == self.optimizer_index and not each.settings.shadow for each in others):
            raise ValueError(
                f"the Trainer has more than one GreedyLRCallback for optimizer {self.optimizer_index}, and only one can"
                " set its LR: keep one, or give the others another optimizer_index or shadow=True"
            )
        if _lightning_trainer.averages_weights(trainer):
            logger.warning(
                "StochasticWeightAveraging's swa_lrs are not used, because GreedyLR sets the LR: drop one of the two"
            )

    def _build(self, trainer: Any, pl_module: Any, after: str = "validation") -> None:
        run, settings, schedules = self._run, self.settings, self._schedules(trainer)
        base = settings.base_schedule or ("multiply" if schedules else "replace")
        if base == "multiply" and not schedules:
            raise ValueError(
                "base_schedule='multiply' is not allowed without a schedule: configure_optimizers returns none for"
                f" optimizer {self.optimizer_index}"
            )
        total, why = settings.total_steps, ""
        if total is None:
            total, why = _lightning_trainer.optimizer_steps(trainer, pl_module)
        if total is None and base == "replace" and not settings.shadow:
            logger.warning("GreedyLR does not know the length of this run and makes no final decay, because %s: pass"
                           " total_steps", why)  # fmt: skip
        if base == "replace" and run.saved is not None and run.given_lrs:
            for group, lr in zip(run.optimizer.param_groups, run.given_lrs[self.optimizer_index], strict=False):
                group["initial_lr"] = lr
        count = _lightning_trainer.validations
        if after == "epoch" or not trainer.enable_validation:
            count = _lightning_trainer.epochs
        self._make_scheduler(
            run.optimizer,
            mode=mode_of(self.monitor, self.config.mode),
            total_steps=total,
            linear_warmup_steps=settings.linear_warmup_steps or 0,
            base_schedule=schedules[0].scheduler if base == "multiply" else None,
            horizon=None if self.monitor == "loss" else count(trainer, pl_module) or None,
        )

    def _meter_loss(self, trainer: Any, pl_module: Any, outputs: Any) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if loss is None:
            return  # training_step skipped this batch
        if not isinstance(loss, (torch.Tensor, float, int)):
            raise TypeError(f"training_step returned {type(loss).__name__} as the loss: it must be a single number")
        if pl_module.automatic_optimization and trainer.accumulate_grad_batches > 1:
            loss = loss * trainer.accumulate_grad_batches
        self._scheduler.meter.update(loss)

    def _log(self, pl_module: Any) -> None:
        values = self._scheduler.metrics()
        if self.optimizer_index:
            values = {f"{name}/{self.optimizer_index}": value for name, value in values.items()}
        for name, value in values.items():
            shown = self.settings.prog_bar and name.startswith("greedylr/scale")
            pl_module.log(name, value, on_step=True, on_epoch=False, prog_bar=shown, rank_zero_only=True)
