"""GreedyLR for Hugging Face's `Trainer` and its subclasses.

    trainer = Trainer(model, args, train_dataset=data, callbacks=[GreedyLRCallback()])

This module handles the Trainer's events, in their order. The loss is what `training_step` returns, however it was
computed, as the Trainer itself normalizes it: already divided by the number of micro-batches, or by the number of items
in the whole batch. `_hf_trainer` shows how it is observed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

try:
    from transformers import TrainerCallback
    from transformers.trainer_callback import ExportableState
except ImportError as error:
    raise ImportError(
        "greedylr_integrations.transformers needs transformers: pip install 'greedylr_integrations[transformers]'"
    ) from error

from greedylr_integrations import _hf_provenance, _hf_reference, _hf_setup, _hf_trainer, summary
from greedylr_integrations._hf_metric import MonitoredMetric, is_evaluation
from greedylr_integrations.callbacks import Run, SharedCallback
from greedylr_integrations.distributed import compare
from greedylr_integrations.finder import RUN, FoundLR, check_data, is_over, result_of, search_config
from greedylr_integrations.rules import SlopeConfig
from greedylr_integrations.slope import without_reference


@dataclass
class _Run(Run):
    trainer: Any = None
    attached: Any = None
    start_step: int = 0
    replaces: bool = True  # whether GreedyLR is the schedule
    default_lr: float | None = None  # LR of the optimizer's groups that have none of their own
    resumed_from: str | None = None  # folder of the checkpoint that the run resumes from
    skipped: bool = False  # whether the fp16 scaler skipped the step under way


class GreedyLRCallback(SharedCallback, TrainerCallback, ExportableState):
    """Finds the learning rate during training, from loss and gradients of each optimizer step on all ranks.

    The arguments are those of `SharedCallback`. The callback adds the step's `greedylr/scale`, `greedylr/action` (what
    was decided after the step: 1 raise, -1 lower, 0 hold) and, if there is one, `greedylr/slope` to the Trainer's
    training logs, and so to `log_history` and every tracker in `report_to`; `learning_rate` is the LR that the step
    used. It adds `greedylr/found_lr` to the summary of the run, and its settings to the configuration in W&B, MLflow,
    Trackio and TensorBoard and to model cards. The state is part of each checkpoint (`trainer_state.json`, and
    `greedylr_reference_0.pt` for the slope's reference), and `resume_from_checkpoint` continues from it.
    """

    _starts_in = "on_train_begin"

    # ---- the Trainer's events ----

    def on_init_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        _hf_setup.refuse(self, args, optimizer)
        _hf_setup.remember_lrs(optimizer)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, lr_scheduler: Any = None, **kwargs: Any
    ) -> None:
        if self._run is not None:
            self._run.attached.detach()  # from a run that failed
        trainer, resumed_from = _hf_trainer.find(self)
        _hf_setup.refuse(self, args, optimizer, lr_scheduler, trainer)
        _hf_setup.warn_of_unsaved(self)
        created = _hf_trainer.made_its_schedule(trainer)
        replaces = (self.settings.base_schedule or ("replace" if created else "multiply")) == "replace"
        self._run = run = _Run(
            trainer=trainer, start_step=state.global_step, replaces=replaces, resumed_from=resumed_from
        )
        run.attached = _hf_trainer.Attached(trainer, lambda: self._scheduler.metrics(), self._result)
        run.default_lr = _hf_setup.default_lr(optimizer)
        if self.monitor != "loss":
            run.metric = MonitoredMetric(self.monitor, args)
            run.metric.warn_at_start(state)
        self._build(args, state, optimizer, lr_scheduler, **kwargs)
        # the Trainer's save expects an entry, which a checkpoint from before this callback does not have
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        _hf_setup.warn(self.settings, args, trainer, replaces)
        self._scheduler.announce(aloud=not self.settings.quiet)
        if run.metric is None:
            run.attached.watch_loss(lambda loss: self._scheduler.meter.update(loss))
        self._publish(lr_scheduler)
        other = _hf_setup.kind_of(args) if created else type(lr_scheduler).__name__
        run.schedule = summary.schedule(other, multiplied=not replaces, shadow=self.settings.shadow)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._run.metric is not None:
            self._run.metric.look_for()

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, lr_scheduler: Any = None, **kwargs: Any
    ) -> None:
        run = self._run
        if run.metric is None and state.global_step == run.start_step and not self._scheduler.meter.fed:
            run.metric = _hf_setup.fall_back(args, state)
            self._build(args, state, optimizer, lr_scheduler, **kwargs)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        self._run.skipped = getattr(optimizer, "step_was_skipped", False)
        self._scheduler.hand_over()

    def on_step_end(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, lr_scheduler: Any = None, **kwargs: Any
    ) -> None:
        run = self._run
        if run.skipped:
            self._scheduler.skip_step()
        elif run.metric is None:
            self._scheduler.step()
        else:
            self._scheduler.advance()
        self._publish(lr_scheduler)
        if self.settings.prog_bar and state.is_world_process_zero:
            run.attached.show(self._scheduler)
        if not run.told and (control.should_log or self.history):
            run.told = True
            self._tell(state, kwargs.get("model"), to_trackers=True)
        self._prepare_save(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._prepare_save(control)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Any = None, lr_scheduler: Any = None, **kwargs: Any
    ) -> None:
        metric = self._run and self._run.metric
        if not metric or not logs or is_evaluation(logs) or not _hf_trainer.trains(self._run.trainer):
            return
        # With its NaN filter, the Trainer logs a window of nothing but NaN as a loss of exactly 0.
        if metric.logged(logs) and not (metric.name == "loss" and logs["loss"] == 0):
            self._decide(logs[metric.name], lr_scheduler)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, lr_scheduler: Any = None, **kwargs: Any
    ) -> None:
        if self._run is None or not _hf_trainer.trains(self._run.trainer):
            return
        self._scheduler.synchronize()  # with save_strategy="best", a save may follow
        metric = self._run.metric
        if metric is None or metric.name == "loss" or state.global_step == self._run.start_step:
            return
        name = metric.evaluated(metrics or {})
        if name is not None:
            self._decide(metrics[name], lr_scheduler)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._run.attached.detach()
        self._scheduler.hand_over()
        self._tell(state, kwargs.get("model"))
        self._end_run()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._run is not None:
            folder = _hf_trainer.checkpoint_folder(self._run.trainer, args, state)
            _hf_reference.save(folder, self._scheduler.state_dict())
            self._saved(folder)

    # ---- state ----

    def state(self) -> dict[str, Any]:
        """What the Trainer keeps in `trainer_state.json`: arguments of the constructor, and the scheduler's state."""
        attributes: dict[str, Any] = {"unsaved": self.settings.unsaved()}
        if self.scheduler is not None:
            attributes["saved"] = without_reference(self.scheduler.state_dict())
        if self._run is not None:
            attributes["default_lr"] = self._run.default_lr
        return {"args": self.settings.arguments(), "attributes": attributes}

    def _build(
        self,
        args: Any,
        state: Any,
        optimizer: Any,
        lr_scheduler: Any,
        train_dataloader: Any = None,
        model: Any = None,
        **others: Any,
    ) -> None:
        """Make the scheduler and have it continue from the checkpoint, if there is one."""
        run, settings = self._run, self.settings
        # whether or not the Trainer is set to restore callbacks
        entry = state.stateful_callbacks.get(type(self).__name__) if run.start_step else None
        attributes = _hf_setup.attributes_of(entry)
        if run.replaces and run.start_step:
            _hf_setup.configure_lrs(optimizer, attributes.get("default_lr"))
        best = run.metric is not None and run.metric.is_best_metric()
        per_epoch = settings.steps_per_epoch or _hf_setup.steps_per_epoch(args, train_dataloader)
        self._make_scheduler(
            optimizer,
            greater_is_better=args.greater_is_better if best else None,
            pre_divided=True,
            total_steps=state.max_steps if settings.total_steps is None else settings.total_steps,
            steps_per_epoch=per_epoch,
            linear_warmup_steps=_hf_setup.warmup_steps(
                settings, self._rule_config(), args, state, per_epoch, run.replaces
            ),
            base_schedule=None if run.replaces else lr_scheduler,
            horizon=None if run.metric is None else run.metric.count(state) or 0,
            history_file=_hf_trainer.of_trial(settings.history_file, run.trainer, args, state),
            module=model,
            restore=None if run.trainer is None else partial(_hf_trainer.restore, run.trainer),
        )
        self._resume(_hf_reference.load(attributes.get("saved"), run.resumed_from), run.start_step, run.resumed_from)

    # ---- pieces ----

    @property
    def state_key(self) -> str:
        """The first thing that Lightning's Trainer asks a callback for."""
        raise TypeError(
            "this GreedyLRCallback is for Hugging Face's Trainer; for Lightning's, import it from"
            " greedylr_integrations.lightning"
        )

    def on_exception(self, *args: Any) -> None:
        """Does nothing: Lightning calls it after the error above, which must stay the one that is shown."""

    def _decide(self, value: Any, lr_scheduler: Any) -> None:
        self._observe(value)
        self._publish(lr_scheduler)

    def _publish(self, lr_scheduler: Any) -> None:
        """Write over what the Trainer's own schedule wrote, and let the Trainer log the LR that will be used."""
        self._scheduler.take_over()
        if not self.settings.shadow:
            _hf_trainer.publish(lr_scheduler, self._scheduler.get_last_lr())

    def _saved(self, folder: str) -> None:
        if self._scheduler.controller.config.needs_checkpoints:
            compare("", False)  # until rank 0 has written it
            self._scheduler.saved(folder, whole=_hf_trainer.is_whole(folder))

    def _tell(self, state: Any, model: Any, to_trackers: bool = False) -> None:
        """Say what sets the LR where others say `lr_scheduler_type`."""
        trainer, facts = self._run.trainer, self._facts()
        _hf_provenance.to_cards(trainer, model, facts)
        if to_trackers and trainer is not None and state.is_world_process_zero:
            _hf_provenance.to_trackers(trainer, facts)

    def _prepare_save(self, control: Any) -> None:
        if self._run.metric is not None:
            self._run.metric.expect_evaluation(control.should_evaluate)
        if control.should_save:
            self._scheduler.synchronize()  # only rank 0 writes the state


class _Search(GreedyLRCallback):
    """Ends the training with the search."""

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        super().on_train_begin(*args, **kwargs)
        check_data(self._scheduler)

    def on_step_end(self, args: Any, state: Any, control: Any, *others: Any, **kwargs: Any) -> None:
        super().on_step_end(args, state, control, *others, **kwargs)
        control.should_training_stop = is_over(self._scheduler)

    def _tell(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: a search is not one of the user's runs."""

    def _end_run(self) -> None:
        self._run = None
        self._scheduler.detach()


def find_lr(trainer: Any, *, config: SlopeConfig | None = None, total_steps: int = RUN) -> FoundLR:
    """Search for the LR with a Trainer that is ready to train, then restore the Trainer and its model.

    It trains until the LR has been found and held for a window of slopes, without evaluations, checkpoints, logs, the
    Trainer's callbacks or its schedule. Call it on every rank.

    Args:
        trainer (Trainer): its learning rate is the base LR.
        config (SlopeConfig): the settings of the search. Default None: `SlopeConfig()`.
        total_steps (int): length, in optimizer steps, of the run that the LR is for, at least 60. It determines how
            fast the LR rises, and the search takes at most 40% of it. Default 1,000.

    Raises:
        ValueError: if the run, or a pass over the data, has fewer than 60 steps; with FSDP and DeepSpeed.
        RuntimeError: if no gradients are seen before the optimizer's steps.
    """
    search = _Search(
        search_config(config, total_steps),
        base_schedule="replace",
        linear_warmup_steps=0,
        decay_ratio=0.0,
        prog_bar=False,
        quiet=True,
    )
    with _hf_trainer.lent(trainer, search, total_steps):
        trainer.train()
    return result_of(search._scheduler)
