"""GreedyLR for Hugging Face's `Trainer` and its subclasses.

    trainer = Trainer(model, args, train_dataset=data, callbacks=[GreedyLRCallback()])

A `TrainerCallback` is given neither the trainer nor the loss. The trainer is found once, up the stack from
`on_train_begin`; then what its `training_step` returns is the loss, on every loss path and as the Trainer itself
normalizes it: already divided by the number of micro-batches, or by the items of the whole batch.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import wraps
from math import ceil
from typing import Any

try:
    from transformers import TrainerCallback
    from transformers.trainer_callback import ExportableState
except ImportError as error:
    raise ImportError(
        "greedylr_integrations.transformers needs transformers: pip install 'greedylr_integrations[transformers]'"
    ) from error

from greedylr_integrations.callbacks import SharedCallback
from greedylr_integrations.core import Controller, ControllerConfig, logger
from greedylr_integrations.schedulers import mode_of


class GreedyLRCallback(SharedCallback, TrainerCallback, ExportableState):
    """The learning rate follows the training loss, averaged over micro-batches and ranks, in each optimizer step.

    Args:
        config (GreedyConfig, or a dictionary from `state`): how losses move the LR. Default: `GreedyConfig()`.
        monitor (str): "loss" (default), the training loss of every optimizer step; or any metric that is logged or
            evaluated, with or without "eval_": then each of its values is one decision. It must be logged on every
            rank. A metric whose name does not end in "loss" needs `mode`, unless it is the `metric_for_best_model`,
            which has `greater_is_better`.
        base_schedule (str): "replace": GreedyLR is the schedule, with the warmup steps of the TrainingArguments as its
            ramp. "multiply": LR = the Trainer's schedule x our scale. Default None: multiply if a scheduler object
            was passed to the Trainer, else replace.
        controller (Controller): another policy, in place of a config.
        total_steps (int): optimizer steps of the run. Default None: the Trainer's.
        linear_warmup_steps (int): optimizer steps of the ramp from 0. Default None: the TrainingArguments'.
        decay_ratio (float): share of the run that the final decay to 0 takes. Default None: 0.3, or the
            controller's own `decay_ratio`. Not with "multiply".
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
        scheduler (GreedyLR): the scheduler of the current or last `train()`.
        history (History): its last 100,000 decisions, a sequence of `history.Record`.

    `greedylr/scale`, `greedylr/lr` and `greedylr/action` (1 raise, -1 lower, 0 hold) stand in the Trainer's training
    logs, so in `log_history` and in whatever `report_to` names. The state is part of each checkpoint
    (`trainer_state.json`) and continues with `resume_from_checkpoint`.
    """

    _starts_in = "on_train_begin"

    def __init__(
        self,
        config: ControllerConfig | Mapping[str, Any] | None = None,
        *,
        monitor: str = "loss",
        base_schedule: str | None = None,
        controller: Controller | None = None,
        total_steps: int | None = None,
        linear_warmup_steps: int | None = None,
        decay_ratio: float | None = None,
        shadow: bool = False,
        loss_lag: int | None = None,
        process_group: Any = None,
        history_file: str | None = None,
        control_file: str | None = None,
        decay_on_resume: int | None = None,
        prog_bar: bool = False,
        **fields: Any,
    ) -> None:
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
        self._training = self._skipped = False
        self._given_lrs: list[float] | None = None  # of an optimizer that the user passed to the Trainer
        self._watched: tuple[Any, Any] | None = None  # trainer, and its own `training_step` attribute if it had one

    # ---- the Trainer's events ----

    def on_init_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        self._refuse(args, None)
        if optimizer is not None:
            self._given_lrs = [float(group["lr"]) for group in optimizer.param_groups]

    def on_train_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, lr_scheduler: Any = None, **kwargs: Any
    ) -> None:
        trainer = _find_trainer(self)
        self._refuse(args, lr_scheduler, trainer)
        self._replaces = (self.base_schedule or self._default_base_schedule(trainer)) == "replace"
        self._start_step = state.global_step
        self._names: set[str] = set()  # of metrics seen
        self._metric_found = self._missing_said = False
        self._logged = self._evaluated = self._epoch_ended = False
        self._from_logs = False
        self._build(args, state, optimizer, lr_scheduler)
        self._restore(state)
        # the Trainer's save expects an entry, which a checkpoint from before this callback does not have
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        if self._replaces and not self.shadow:
            logger.info(
                "GreedyLR is the schedule; lr_scheduler_type %r is set aside", str(args.lr_scheduler_type.value)
            )
        if self.monitor == "loss":
            self._watch(trainer)
        self._log_first(trainer)
        self._publish(lr_scheduler)
        self._training = True

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.monitor != "loss" and not self._metric_found:
            self._look_for_metric(args)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        self._skipped = getattr(optimizer, "step_was_skipped", False)
        self._scheduler.hand_over()

    def on_step_end(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, lr_scheduler: Any = None, **kwargs: Any
    ) -> None:
        if self.monitor == "loss" and state.global_step == self._start_step + 1 and not self._scheduler.meter.fed:
            self._fall_back(args, state, optimizer, lr_scheduler)
        if self._skipped:
            self._scheduler.meter.discard_step()
        else:
            self._scheduler.step()
        self._publish(lr_scheduler)
        if self.prog_bar and state.is_world_process_zero:
            self._show()
        self._prepare_save(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._epoch_ended = True
        self._prepare_save(control)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Any = None, lr_scheduler: Any = None, **kwargs: Any
    ) -> None:
        logs = logs or {}
        if not self._training or any(name.startswith("eval_") for name in logs):
            return
        self._logged = True
        self._names |= logs.keys()
        if self._from_logs or self.monitor != "loss":
            loss = logs.get(self.monitor)
            # With its NaN filter, the Trainer logs a window of nothing but NaN as exactly 0.
            if loss is not None and not (self._from_logs and loss == 0):
                self._observe(loss, state, lr_scheduler)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, lr_scheduler: Any = None, **kwargs: Any
    ) -> None:
        if not self._training:
            return
        self._scheduler.meter.synchronize()  # with save_strategy="best", a save may follow
        if self.monitor == "loss" or state.global_step == self._start_step:
            return
        self._evaluated = True
        metrics = metrics or {}
        self._names |= metrics.keys()
        for name in (self.monitor, f"eval_{self.monitor}"):
            if name in metrics:
                self._observe(metrics[name], state, lr_scheduler)
                break

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._training = False
        self._unwatch()
        if self._handler is not None:
            self._handler.callbacks = [cb for cb in self._handler.callbacks if not isinstance(cb, _AddMetrics)]
        self._scheduler.hand_over()
        self._scheduler.finish()
        if (self.monitor != "loss" or self._from_logs) and not self._metric_found:
            logger.warning("GreedyLR saw no value of %r in this run: the LR did not follow it", self.monitor)

    # ---- state ----

    def state(self) -> dict[str, Any]:
        """What the Trainer keeps in `trainer_state.json`."""
        names = [
            *("monitor", "base_schedule", "total_steps", "linear_warmup_steps", "decay_ratio", "shadow", "loss_lag"),
            *("history_file", "control_file", "decay_on_resume", "prog_bar"),
        ]
        args = {name: getattr(self, name) for name in names}
        if self.controller is None:
            args["config"] = self.config.to_dict()
        attributes = {} if self.scheduler is None else {"saved": self.scheduler.state_dict()}
        return {"args": args, "attributes": attributes}

    def _restore(self, state: Any) -> None:
        """Continue from the checkpoint, whether or not the Trainer was told to restore callbacks."""
        saved = (state.stateful_callbacks.get(type(self).__name__) or {}) if self._start_step > 0 else {}
        self._resume(saved.get("attributes", {}).get("saved"), self._start_step)

    # ---- pieces ----

    @property
    def state_key(self) -> str:
        """The first thing that Lightning's Trainer asks a callback for."""
        raise TypeError(
            "this GreedyLRCallback is for Hugging Face's Trainer; for Lightning's, import it from"
            " greedylr_integrations.lightning"
        )

    def on_exception(self, *args: Any) -> None:
        """Lightning's too, so that the error above is the one that is seen."""

    def _refuse(self, args: Any, lr_scheduler: Any, trainer: Any = None) -> None:
        kind = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
        if kind in ("greedy", "reduce_lr_on_plateau") and not self.shadow:
            raise ValueError(
                f"lr_scheduler_type={kind!r} follows a metric too, and only one can set the LR: drop it from the"
                " TrainingArguments, or drop GreedyLRCallback"
            )
        if type(lr_scheduler).__name__ in ("GreedyLR", "ReduceLROnPlateau") and not self.shadow:
            raise ValueError(
                f"the Trainer was given a {type(lr_scheduler).__name__}, which follows a metric too, and only one can"
                " set the LR: leave it out of `optimizers`, or drop GreedyLRCallback"
            )
        callbacks = trainer.callback_handler.callbacks if trainer is not None else [self]
        if sum(isinstance(callback, GreedyLRCallback) for callback in callbacks) > 1:
            raise ValueError("the Trainer has more than one GreedyLRCallback, and only one can set the LR: keep one")

    @staticmethod
    def _default_base_schedule(trainer: Any) -> str:
        return "replace" if trainer is None or trainer._created_lr_scheduler else "multiply"

    def _build(self, args: Any, state: Any, optimizer: Any, lr_scheduler: Any) -> None:
        every_step = self.monitor == "loss" and not self._from_logs
        ramp = self.linear_warmup_steps
        if ramp is None:
            ramp = args.get_warmup_steps(state.max_steps)
        if self.linear_warmup_steps and not self._replaces:
            raise ValueError(
                f"linear_warmup_steps={self.linear_warmup_steps} is not allowed with base_schedule='multiply': the"
                " schedule has its own ramp"
            )
        mode = self._mode(args)
        if self._replaces and self._start_step:
            self._configure_lrs(args, optimizer)
        self._make_scheduler(
            optimizer,
            mode=mode,
            pre_divided=True,
            total_steps=state.max_steps if self.total_steps is None else self.total_steps,
            linear_warmup_steps=ramp if self._replaces else 0,
            base_schedule=None if self._replaces else lr_scheduler,
            horizon=None if every_step else self._metric_values(args, state),
        )

    def _mode(self, args: Any) -> str:
        config = getattr(self.controller, "config", self.config)
        mode = mode_of(self.monitor, config.mode, args.greater_is_better if self._is_best_metric(args) else None)
        if self.controller is not None and mode == "max" != config.mode:
            raise ValueError(
                f"the controller takes a smaller {self.monitor} for better, and greater_is_better says otherwise: give"
                " its config mode='max'"
            )
        return mode

    def _is_best_metric(self, args: Any) -> bool:
        best = (args.metric_for_best_model or "").removeprefix("eval_")
        return self.monitor != "loss" and self.monitor.removeprefix("eval_") == best

    def _metric_values(self, args: Any, state: Any) -> int:
        """How many values of the metric the run will have."""

        def values(strategy: str, steps: int) -> int:
            if strategy == "epoch":
                return min(ceil(state.num_train_epochs), state.max_steps)  # epochs may be infinite
            return 0 if strategy == "no" else state.max_steps // max(1, steps)

        counts = []
        if not self._from_logs:
            counts.append(values(args.eval_strategy, state.eval_steps))
        if not self.monitor.startswith("eval_"):
            counts.append(values(args.logging_strategy, state.logging_steps))
        if counts[0] and len(counts) == 2 and self._is_best_metric(args):
            counts.pop()  # it is known to be evaluated
        return max(1, *counts)

    def _configure_lrs(self, args: Any, optimizer: Any) -> None:
        """Give a resumed optimizer the base LRs of this run's arguments, for `on_resume` to choose between."""
        groups = optimizer.param_groups
        lrs = self._given_lrs
        if lrs is None and len({float(group["initial_lr"]) for group in groups}) == 1:
            lrs = [args.learning_rate] * len(groups)
        for group, lr in zip(groups, lrs or (), strict=False):
            group["initial_lr"] = lr

    def _look_for_metric(self, args: Any) -> None:
        """Complain about a metric that does not come: early in the log, with an error once it should have."""
        evaluated = self._evaluated or args.eval_strategy == "no"
        if not (self._evaluated if self.monitor.startswith("eval_") else self._logged and evaluated):
            return
        message = (
            f"monitor={self.monitor!r} is neither logged nor evaluated: there are {', '.join(sorted(self._names))}"
        )
        if self.monitor.startswith("eval_") or self._epoch_ended:
            raise ValueError(message)
        if not self._missing_said:
            self._missing_said = True
            logger.warning("%s; if it has not come by the end of the epoch, that is an error", message)

    def _observe(self, value: float, state: Any, lr_scheduler: Any) -> None:
        self._metric_found = True
        self._scheduler.observe(value)
        self._publish(lr_scheduler)

    def _publish(self, lr_scheduler: Any) -> None:
        """Write over what the Trainer's own schedule wrote, and let the Trainer log the LR that will be used."""
        self._scheduler.take_over()
        if not self.shadow:
            lr_scheduler._last_lr = list(self._scheduler.get_last_lr())

    def _prepare_save(self, control: Any) -> None:
        if control.should_save:
            self._scheduler.meter.synchronize()  # only rank 0 writes the state

    def _watch(self, trainer: Any) -> None:
        """See what `training_step` returns; if there is no trainer, the first step will find the meter empty."""
        self._unwatch()
        if trainer is None:
            return
        training_step, meter = trainer.training_step, lambda: self._scheduler.meter

        @wraps(training_step)
        def observed(*args: Any, **kwargs: Any) -> Any:
            loss = training_step(*args, **kwargs)
            meter().update(loss)
            return loss

        self._watched = (trainer, vars(trainer).get("training_step"))
        trainer.training_step = observed

    def _unwatch(self) -> None:
        if self._watched is None:
            return
        trainer, own = self._watched
        self._watched = None
        if own is None:
            del trainer.training_step
        else:
            trainer.training_step = own

    def _log_first(self, trainer: Any) -> None:
        """Have a callback of our own before those that report, to add to what they report."""
        self._handler = handler = None if trainer is None else trainer.callback_handler
        self._bars = []
        if handler is not None:
            others = [callback for callback in handler.callbacks if not isinstance(callback, _AddMetrics)]
            handler.callbacks = [_AddMetrics(self), *others]  # a new list: the handler is going through the old one
            self._bars = [callback for callback in others if hasattr(callback, "training_bar")]

    def _show(self) -> None:
        for callback in self._bars:
            set_postfix = getattr(callback.training_bar, "set_postfix", None)  # a notebook's bar has none
            if set_postfix is not None:
                set_postfix({"scale": f"{self._scheduler.scale:.3g}"}, refresh=False)

    def _fall_back(self, args: Any, state: Any, optimizer: Any, lr_scheduler: Any) -> None:
        logger.warning(
            "GreedyLR cannot see the loss of each step in this Trainer and follows the logged one instead"
            " (logging_strategy %r, logging_steps %s)",
            str(getattr(args.logging_strategy, "value", args.logging_strategy)),
            state.logging_steps,
        )
        self._from_logs = True
        self._build(args, state, optimizer, lr_scheduler)
        self._restore(state)


class _AddMetrics(TrainerCallback):
    """Adds scale, LR and decision to the training logs before any callback reports them."""

    def __init__(self, owner: GreedyLRCallback) -> None:
        self._owner = owner

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs is None or "learning_rate" not in logs or not self._owner._training:
            return
        metrics = self._owner._scheduler.metrics()
        logs.update(metrics)
        if state.log_history:
            state.log_history[-1].update(metrics)


def _find_trainer(callback: TrainerCallback) -> Any:
    """The Trainer that is calling this callback, from the frames above; None if there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        if "self" in frame.f_code.co_varnames:
            handler = getattr(frame.f_locals.get("self"), "callback_handler", None)
            if any(known is callback for known in getattr(handler, "callbacks", ())):
                return frame.f_locals["self"]
        frame = frame.f_back  # type: ignore[assignment]
    return None
