"""All that reaches past the callback API of Hugging Face's Trainer.

A `TrainerCallback` is given neither the trainer nor the loss. What is used here instead is in transformers 4.57.1 and
in 5.23.0; `tests/test_private_apis.py` names what a newer version has changed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from functools import wraps
from types import FrameType
from typing import Any

from transformers import SchedulerType, TrainerCallback

from greedylr_integrations.checks import check
from greedylr_integrations.finder import as_it_was, same_attributes
from greedylr_integrations.schedulers import GreedyLR


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back


def find(callback: TrainerCallback) -> tuple[Any, str | None]:
    """The Trainer that is calling this callback, and the checkpoint that it resumes from; None for either if not found.

    Both are looked up in the calling frames: the Trainer is the `self` whose `callback_handler` has this callback, and
    the checkpoint is the argument `resume_from_checkpoint` of `_inner_training_loop`.
    """
    for frame in _frames():
        if "self" in frame.f_code.co_varnames:
            trainer = frame.f_locals.get("self")
            handler = getattr(trainer, "callback_handler", None)
            if any(known is callback for known in getattr(handler, "callbacks", ())):
                return trainer, frame.f_locals.get("resume_from_checkpoint")
    return None, None


def trains(trainer: Any) -> bool:
    """Whether this call comes from the training loop of the Trainer, whose `is_in_train` stays True after an error."""
    loops = (frame.f_locals for frame in _frames() if frame.f_code.co_name == "_inner_training_loop")
    return trainer is None or any(names.get("self") is trainer for names in loops)


def made_its_schedule(trainer: Any) -> bool:
    """Whether the Trainer made its `lr_scheduler` from its arguments, by `_created_lr_scheduler`."""
    return trainer is None or trainer._created_lr_scheduler


def publish(lr_scheduler: Any, lrs: Sequence[float]) -> None:
    """Have the Trainer log the LRs that will be used: it asks `lr_scheduler.get_last_lr()`, which gives `_last_lr`."""
    lr_scheduler._last_lr = list(lrs)


def checkpoint_folder(trainer: Any, args: Any, state: Any) -> str:
    """The folder of the checkpoint that was saved in this step; a hyperparameter search has one for each trial."""
    return os.path.join(args.output_dir, trial_folder(trainer, args, state), f"checkpoint-{state.global_step}")


def trial_folder(trainer: Any, args: Any, state: Any) -> str:
    """The folder of a trial of a hyperparameter search, such as "run-0", in `output_dir`; empty without a search."""
    if trainer is None or not state.is_hyper_param_search:
        return ""
    return os.path.relpath(trainer._get_output_dir(trial=trainer._trial), args.output_dir)


def of_trial(path: str | None, trainer: Any, args: Any, state: Any) -> str | None:
    """Where a trial of a hyperparameter search keeps a file: in the trial's folder. Without a search, `path` itself."""
    return path and os.path.join(os.path.dirname(path), trial_folder(trainer, args, state), os.path.basename(path))


def is_whole(folder: str) -> bool:
    """Whether a checkpoint exists and has the optimizer's state, in a file or, with FSDP, in a folder."""
    return os.path.isdir(folder) and any(name.startswith("optimizer") for name in os.listdir(folder))


def restore(trainer: Any, folder: str) -> None:
    """Put weights and optimizer back from a checkpoint, as the Trainer does when it resumes, and only these."""
    schedule = trainer.lr_scheduler.state_dict()
    trainer._load_from_checkpoint(folder, trainer.model_wrapped if trainer.is_fsdp_enabled else None)
    trainer._load_optimizer_and_scheduler(folder)
    trainer.lr_scheduler.load_state_dict(schedule)


@contextmanager
def lent(trainer: Any, callback: TrainerCallback, steps: int) -> Iterator[None]:
    """Have the Trainer train so many steps with one callback and a constant schedule; then put it back as it was."""
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    check(not sharded, "trainer", type(trainer).__name__, "without FSDP and DeepSpeed, which change the model for good")
    handler, args = trainer.callback_handler, copy(trainer.args)
    args.max_steps, args.lr_scheduler_type, args.lr_scheduler_kwargs = steps, SchedulerType.CONSTANT, None
    args.load_best_model_at_end = args.eval_on_start = args.push_to_hub = False
    with same_attributes(trainer, handler, trainer.control), as_it_was(trainer.model, trainer.optimizer):
        trainer.args, trainer.lr_scheduler, handler.callbacks = args, None, [callback]
        yield


class Attached:
    """What is attached to a Trainer for one run.

    Args:
        trainer (Trainer): None if it was not found; then nothing is attached.
        metrics (callable): gives what to add to the Trainer's training logs.
        result (callable): gives what to add to its summary of the run.
    """

    def __init__(
        self, trainer: Any, metrics: Callable[[], dict[str, float]], result: Callable[[], dict[str, float]]
    ) -> None:
        self.trainer = trainer
        self._watching = False
        self._bars: list[Any] = []
        if trainer is not None:
            others = [each for each in trainer.callback_handler.callbacks if not isinstance(each, _AddMetrics)]
            # before those that report; a new list, because the handler is going through the old one
            trainer.callback_handler.callbacks = [_AddMetrics(metrics, result), *others]
            self._bars = [each for each in others if hasattr(each, "training_bar")]

    def watch_loss(self, take: Callable[[Any], None]) -> None:
        """Call `take` with what `training_step` returns: the loss, however computed, as the Trainer normalizes it."""
        if self.trainer is None:
            return
        training_step = self.trainer.training_step
        self._own = vars(self.trainer).get("training_step")
        self._watching = True

        @wraps(training_step)
        def observed(*args: Any, **kwargs: Any) -> Any:
            loss = training_step(*args, **kwargs)
            take(loss)
            return loss

        self.trainer.training_step = observed

    def show(self, scheduler: GreedyLR) -> None:
        """Show LR and scale in the progress bars; a notebook's bar has no `set_postfix`."""
        for callback in self._bars:
            set_postfix = getattr(callback.training_bar, "set_postfix", None)
            if set_postfix is not None:
                set_postfix({"lr": f"{scheduler.lr:.2e}", "scale": f"{scheduler.scale:.3g}"}, refresh=False)

    def detach(self) -> None:
        """Leave the Trainer as it was."""
        if self._watching and self._own is None:
            del self.trainer.training_step
        elif self._watching:
            self.trainer.training_step = self._own
        if self.trainer is not None:
            handler = self.trainer.callback_handler
            handler.callbacks = [each for each in handler.callbacks if not isinstance(each, _AddMetrics)]


class _AddMetrics(TrainerCallback):
    """Adds to the training logs before any callback reports them."""

    def __init__(self, metrics: Callable[[], dict[str, float]], result: Callable[[], dict[str, float]]) -> None:
        self._metrics, self._result = metrics, result

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs is None:
            return
        values: dict[str, float] = {}
        if "learning_rate" in logs:
            values = self._metrics()
            del values["greedylr/lr"]  # the row's learning_rate
        elif "train_runtime" in logs:
            values = self._result()
        logs.update(values)
        if state.log_history:
            state.log_history[-1].update(values)
