"""All that reaches past the public API of Lightning's Trainer, and what its settings say about the length of a run.

What is used here is in lightning 2.5.0 and in 2.6.6; `tests/test_private_apis.py` names what a newer version has
changed. Private are `fit_loop._should_accumulate`, `val_check_batch`, and what `lent` keeps of the Trainer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from math import ceil, inf, isinf
from typing import TYPE_CHECKING, Any

import torch

from greedylr_integrations.finder import as_it_was, same_attributes
from greedylr_integrations.log import logger
from greedylr_integrations.rollback import NO_CHECKPOINTS, same_options
from greedylr_integrations.summary import as_list

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
DummyLogger = import_module(f"{_found}.loggers.logger").DummyLogger


NO_LOSS = (
    "training_step must return the loss, as a tensor or as 'loss' in a dictionary, even with manual optimization; or"
    " pass GreedyLRCallback(monitor=...) the name of a metric that you log"
)


def loss_of(trainer: Any, pl_module: Any, outputs: Any) -> torch.Tensor | float | None:
    """The loss of a micro-batch in what `training_step` returned; None if it skipped the batch.

    Raises:
        TypeError: if what is there is not a number.
    """
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    if loss is not None and not isinstance(loss, (torch.Tensor, float, int)):
        raise TypeError(f"training_step returned {type(loss).__name__} as the loss: it must be a single number")
    if loss is None or not pl_module.automatic_optimization:
        return loss
    return loss * trainer.accumulate_grad_batches  # by which Lightning has divided it


def accumulates(trainer: Any) -> bool:
    """Whether the current batch only accumulates gradients, without an optimizer step."""
    return trainer.fit_loop._should_accumulate()


ATTACHED = ("log", "log_dict")  # methods of the module that the Trainer gives to each callback


def detach(callback: Any) -> None:
    """Let go of the module, which a callback would keep alive."""
    for name in ATTACHED:
        vars(callback).pop(name, None)


def schedules(trainer: Any, optimizer: Any) -> list[Any]:
    """What `configure_optimizers` returned as schedules of this optimizer, with their settings."""
    return [config for config in trainer.lr_scheduler_configs if config.scheduler.optimizer is optimizer]


def refuse(callback: Any, trainer: Any, optimizer: Any) -> None:
    """Refuse anything else that sets the LR.

    Raises:
        ValueError: if there is one; the message says what to drop.
    """
    if callback.settings.shadow:
        return
    for config in schedules(trainer, optimizer):
        name = type(config.scheduler).__name__
        if config.reduce_on_plateau or name == "GreedyLR":
            raise ValueError(
                f"configure_optimizers returns a {name}, which follows a metric too, and only one can set the LR:"
                " leave it out there, or drop GreedyLRCallback"
            )
    if any(not each.settings.shadow for each in others(callback, trainer)):
        raise ValueError(
            f"the Trainer has more than one GreedyLRCallback for optimizer {callback.optimizer_index}, and only one can"
            " set its LR: keep one, or give the others another optimizer_index or shadow=True"
        )
    if callback.config.needs_checkpoints and not trainer.checkpoint_callbacks:
        logger.warning("%s: give the Trainer a ModelCheckpoint", NO_CHECKPOINTS)
    if _callbacks(trainer, "StochasticWeightAveraging"):
        logger.warning(
            "the swa_lrs of StochasticWeightAveraging are not used, because GreedyLR sets the LR: drop one of the two"
        )


def warn_of_other_weights(callback: Any, trainer: Any) -> None:
    """One WARNING if a rollback leaves the weights of another optimizer as they are."""
    alike = [each for each in trainer.callbacks if isinstance(each, type(callback)) and not each.settings.shadow]
    ours = [each for each in alike if each.config.rolls_back]
    if callback not in ours[:1] or callback.config.needs_checkpoints:  # a checkpoint has all weights
        return
    covered = {each.optimizer_index for each in ours}
    left = [index for index in range(len(trainer.optimizers)) if index not in covered]
    if left:
        logger.warning(
            "a rollback leaves the weights of optimizer %s as they are: give each optimizer a GreedyLRCallback with its"
            " optimizer_index that rolls back, or set snapshot_every=None, to go back to checkpoints",
            " and ".join(map(str, left)),
        )


def others(callback: Any, trainer: Any) -> list[Any]:
    """The other GreedyLRCallbacks for the same optimizer."""
    alike = [each for each in trainer.callbacks if isinstance(each, type(callback)) and each is not callback]
    return [each for each in alike if each.optimizer_index == callback.optimizer_index]


def to_loggers(trainer: Any, method: str, values: Mapping[str, Any], **kwargs: Any) -> None:
    """Give values to a method of each logger. An error of theirs is a WARNING."""
    for each in trainer.loggers:
        try:
            # TensorBoard shows the first hyperparameters that it is given, which are the module's
            if method == "log_hyperparams" and hasattr(each.experiment, "add_text"):
                each.experiment.add_text("greedylr", as_list(values))
            else:
                getattr(each, method)(dict(values), **kwargs)
        except Exception as error:
            logger.warning("GreedyLR could not write to %s: %s", type(each).__name__, error)


def restore(trainer: Any, path: str) -> None:
    """Put weights and optimizers back from a checkpoint, as the Trainer does when it resumes, and only these."""
    strategy, module = trainer.strategy, trainer.lightning_module
    # `weights_only` exists since 2.6; the file can be trusted, because this run has written it
    trusted = "weights_only" in signature(strategy.load_checkpoint).parameters
    with same_options(trainer.optimizers):
        checkpoint = strategy.load_checkpoint(path, **({"weights_only": False} if trusted else {}))
        module.on_load_checkpoint(checkpoint)
        strategy.load_model_state_dict(checkpoint, strict=module.strict_loading)
        for callback in _callbacks(trainer, "WeightAveraging"):  # it saves the average as the model, and the model too
            callback.on_load_checkpoint(trainer, module, checkpoint)
        strategy.load_optimizer_state_dict(checkpoint)


@contextmanager
def saves_watched(trainer: Any, take: Callable[[str, bool], object]) -> Iterator[None]:
    """Call `take` with the path of each saved checkpoint, and whether it is whole; there is no event for this."""
    save, own = trainer.save_checkpoint, vars(trainer).get("save_checkpoint")

    @wraps(save)
    def observed(filepath: Any, weights_only: bool | None = None, *args: Any, **kwargs: Any) -> None:
        save(filepath, weights_only, *args, **kwargs)
        take(str(filepath), not weights_only)

    trainer.save_checkpoint = observed
    yield
    if own is None:
        vars(trainer).pop("save_checkpoint", None)
    else:
        trainer.save_checkpoint = own


@contextmanager
def lent(trainer: Any, pl_module: Any, callback: Callback) -> Iterator[None]:
    """Have the Trainer fit with one callback until that sets `should_stop`; then put it back as it was."""
    loop, strategy = trainer.fit_loop, trainer.strategy
    with as_it_was(pl_module), same_attributes(trainer, strategy, trainer._logger_connector):
        trainer.state, trainer.callbacks, trainer.loggers = copy(trainer.state), [callback], [DummyLogger()]
        trainer.limit_val_batches = 0
        trainer.fit_loop = type(loop)(trainer, min_epochs=0, max_epochs=-1)  # whose progress is its own
        trainer.fit_loop.epoch_loop = type(loop.epoch_loop)(trainer)
        yield


# ---- the length of a run ----


def base_lrs(optimizer: Any) -> list[float]:
    """Base LR of each parameter group."""
    return [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]


def optimizer_steps(trainer: Any, pl_module: Any, say: bool = False) -> int | None:
    """How often the optimizer steps in the whole run; None if it does not follow from the settings.

    Args:
        say (bool): log a WARNING if they do not. Default False.
    """
    steps, why = _optimizer_steps(trainer, pl_module)
    if steps is None and say:
        logger.warning(
            "GreedyLR does not know the length of this run and makes no final decay, because %s: pass total_steps", why
        )
    return steps


def _optimizer_steps(trainer: Any, pl_module: Any) -> tuple[int | None, str]:
    if len(trainer.optimizers) > 1:
        return None, "Lightning counts the steps of all optimizers together"
    if trainer.max_epochs == -1 and trainer.max_steps != -1:
        return trainer.max_steps, ""
    if not pl_module.automatic_optimization:
        return None, "with manual optimization, the module decides how often the optimizer steps"
    batches = trainer.num_training_batches
    if trainer.max_epochs == -1 or isinf(batches):
        steps = None if trainer.max_steps == -1 else trainer.max_steps
        return steps, "neither max_steps nor the length of the data is known"
    steps = sum(ceil(batches / _accumulation(trainer, epoch)) for epoch in range(max(trainer.max_epochs, 1)))
    return (steps if trainer.max_steps == -1 else min(steps, trainer.max_steps)), ""


def steps_per_epoch(trainer: Any, pl_module: Any) -> int | None:
    """Optimizer steps in the first pass over the data; None for a stream.

    With manual optimization, one step a batch is assumed.
    """
    batches = trainer.num_training_batches
    accumulate = _accumulation(trainer, 0) if pl_module.automatic_optimization else 1
    return None if isinf(batches) else max(1, ceil(batches / accumulate))


def epochs(trainer: Any, pl_module: Any) -> int | None:
    """How many training epochs end in the whole run; None if that is not known."""
    total, batches = _batches(trainer, pl_module), trainer.num_training_batches
    if isinf(batches):
        return trainer.max_epochs if trainer.max_epochs > 0 and trainer.max_steps == -1 else None
    return None if isinf(total) else ceil(total / batches)


def validations(trainer: Any, pl_module: Any) -> int | None:
    """How many validations the whole run has, without the sanity check; None if that is not known."""
    every, total = trainer.val_check_batch, _batches(trainer, pl_module)
    if every is None:  # by time
        return None
    if trainer.check_val_every_n_epoch is None:
        return None if isinf(total) else int(total // every)
    if isinf(every):  # a stream, at the end of each epoch
        count = epochs(trainer, pl_module)
        return None if count is None else count // trainer.check_val_every_n_epoch
    if isinf(total):
        return None
    whole, rest = divmod(total, trainer.num_training_batches)
    count = whole // trainer.check_val_every_n_epoch * (trainer.num_training_batches // every)
    if (whole + 1) % trainer.check_val_every_n_epoch == 0:
        count += rest // every
    return int(count)


def _batches(trainer: Any, pl_module: Any) -> float:
    """Batches of the whole run on this rank, infinite if that is not known."""
    batches = trainer.num_training_batches
    by_epochs = inf if trainer.max_epochs == -1 else batches * trainer.max_epochs
    if trainer.max_steps == -1:
        return by_epochs
    if not pl_module.automatic_optimization or _callbacks(trainer, "GradientAccumulationScheduler"):
        return inf
    accumulate = _accumulation(trainer, 0)
    if isinf(batches):
        return trainer.max_steps * accumulate
    whole, rest = divmod(trainer.max_steps, ceil(batches / accumulate))
    return min(by_epochs, whole * batches + rest * accumulate)


def _accumulation(trainer: Any, epoch: int) -> int:
    """Batches of an optimizer step in an epoch, by GradientAccumulationScheduler or the Trainer's argument."""
    for callback in _callbacks(trainer, "GradientAccumulationScheduler"):
        return callback.get_accumulate_grad_batches(epoch)
    return trainer.accumulate_grad_batches


def _callbacks(trainer: Any, name: str) -> list[Any]:
    """The Trainer's callbacks of one of Lightning's classes, in either namespace."""
    return [each for each in trainer.callbacks if any(base.__name__ == name for base in type(each).__mro__)]
