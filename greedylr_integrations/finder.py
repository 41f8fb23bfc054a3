"""An LR finder: it runs the search of the default rule alone, then puts everything back as it was.

    found = find_lr(model, loader, optimizer, lambda batch: model(batch).loss)
    print(found.lr)
    found.plot()

This is for a loop of your own; `transformers.find_lr` and `lightning.find_lr` are for the two Trainers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.optim import Optimizer

from greedylr_integrations.checks import check_integer
from greedylr_integrations.decision import CEILING, FINDS
from greedylr_integrations.history import History
from greedylr_integrations.log import logger
from greedylr_integrations.optimizers import unwrapped
from greedylr_integrations.random_numbers import same_random_numbers
from greedylr_integrations.rules.slope import SHORTEST, SlopeConfig, too_short
from greedylr_integrations.schedulers import GreedyLR

RUN = 1000  # optimizer steps of the run whose search is made


@dataclass(frozen=True)
class FoundLR:
    """What a search found.

    Attributes:
        lr (float): the LR that was found, for the first parameter group that is not frozen. None if the search did not
            end; then a WARNING is logged.
        base_lr (float): that group's base LR.
        steps (int): optimizer steps that the search took.
        history (History): its decisions, a sequence of `history.Record`.
    """

    lr: float | None
    base_lr: float
    steps: int
    history: History = field(repr=False)

    def suggestion(self) -> float | None:
        """The same as `lr`, under the name that Lightning's finder uses."""
        return self.lr

    def plot(self) -> Any:
        """Loss, LR and slope of the search, and each decision, as a matplotlib figure."""
        return self.history.plot("LR search")


def find_lr(
    module: torch.nn.Module,
    loader: Iterable[Any],
    optimizer: Optimizer,
    training_step: Callable[[Any], torch.Tensor],
    *,
    config: SlopeConfig | None = None,
    total_steps: int = RUN,
) -> FoundLR:
    """Search for the LR in a loop of your own.

    It trains until the LR has been found and held for a window of slopes. Then it restores weights, buffers, the
    optimizer and the random numbers, and clears the gradients. If torch.distributed is initialized, call it on every
    rank.

    Args:
        module (torch.nn.Module): the module to train.
        loader (iterable): the batches, one per optimizer step. It is iterated over once, and need not be used up.
        optimizer (torch.optim.Optimizer): its groups' LRs are the base LRs.
        training_step (callable): takes a batch and returns the loss, with its graph.
        config (SlopeConfig): the settings of the search. Default None: `SlopeConfig()`.
        total_steps (int): length, in optimizer steps, of the run that the LR is for, at least 60. It determines how
            fast the LR rises, and the search takes at most 40% of it. Default 1,000.

    Raises:
        ValueError: if the run, or a pass over the data, has fewer than 60 steps.
        RuntimeError: if no gradients are seen before the optimizer's steps.
    """
    config = search_config(config, total_steps)
    with as_it_was(module, optimizer):
        per_epoch = len(loader) if isinstance(loader, Sized) else None
        scheduler = GreedyLR(optimizer, config, total_steps=total_steps, decay_ratio=0.0, steps_per_epoch=per_epoch)
        check_data(scheduler)
        module.train()
        for batch in loader:
            optimizer.zero_grad()
            loss = training_step(batch)
            loss.backward()
            optimizer.step()
            scheduler.step(loss)
            if is_over(scheduler):
                break
        scheduler.detach()
    return result_of(scheduler)


# ---- what the finders share ----


def search_config(config: SlopeConfig | None, total_steps: int) -> SlopeConfig:
    """The settings of a search, which must see the slope."""
    check_integer("total_steps", total_steps, least=SHORTEST)
    config = SlopeConfig() if config is None else config
    if not isinstance(config, SlopeConfig):
        raise TypeError(f"config={config!r} is not allowed: only the search by the slope, SlopeConfig(), finds an LR")
    return replace(config.without_rollback(), on_missing_slope="raise")


def check_data(scheduler: GreedyLR) -> None:
    """Refuse data if one pass over it is too short for a search."""
    controller = scheduler.controller
    if not controller.wants_slope:
        raise ValueError(f"find_lr cannot search: {too_short(controller.horizon, controller.first_pass)}")


def is_over(scheduler: GreedyLR) -> bool:
    """Whether the LR was found and held for a while, or cannot be found any more."""
    rule: Any = scheduler.controller.rule
    ended = not rule.wants_slope or scheduler.last_epoch >= (scheduler.envelope.total_steps or RUN)
    return rule.settled or ended or _reached_its_bound(scheduler)


def _reached_its_bound(scheduler: GreedyLR) -> bool:
    return len(scheduler.history) > 0 and scheduler.history[-1].decision.reason is CEILING


def result_of(scheduler: GreedyLR) -> FoundLR:
    """What the search of a scheduler found."""
    steps, lr = scheduler.last_epoch, scheduler.lr
    base_lr = next((each for each in scheduler.base_lrs if each > 0), 0.0)
    found = any(record.decision.reason in FINDS for record in scheduler.history)
    if not found or _reached_its_bound(scheduler):
        logger.warning(
            "no LR was found in %d steps from the base LR %.3g; the search ended at %.3g: start from a base LR that is"
            " closer to that",
            steps,
            base_lr,
            lr,
        )
        found = False
    return FoundLR(lr if found else None, base_lr, steps, scheduler.history)


@contextmanager
def as_it_was(module: torch.nn.Module, optimizer: Any = None) -> Iterator[None]:
    """On exit, restore weights, buffers, modes (train or eval), an optimizer's state and the random numbers.

    Weights that are not trained are not copied. The copies are in host memory.
    """
    raw = unwrapped(optimizer)
    moving = {name: tensor for name, tensor in _tensors(module).items() if _moves(tensor)}
    copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in moving.items()}
    modes = {part: part.training for part in module.modules()}
    state, attributes = (None, {}) if raw is None else (deepcopy(raw.state_dict()), dict(vars(raw)))
    try:
        with same_random_numbers():
            yield
    finally:
        with torch.no_grad():
            tensors = _tensors(module)  # by name, since a framework may have put others in their place
            for name, copy in copies.items():
                tensors[name].copy_(copy)
        for part, mode in modes.items():
            part.training = mode
        module.zero_grad()
        if state is not None:
            raw.load_state_dict(state)
            for name in vars(raw).keys() - attributes.keys():  # what torch's schedulers leave there
                delattr(raw, name)


def _tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _moves(tensor: torch.Tensor) -> bool:
    return tensor.requires_grad or not isinstance(tensor, torch.nn.Parameter)  # trained, or a buffer


@contextmanager
def same_attributes(*objects: Any) -> Iterator[None]:
    """On exit, restore the attributes of the objects."""
    before = [dict(vars(each)) for each in objects]
    try:
        yield
    finally:
        for each, attributes in zip(objects, before, strict=True):
            vars(each).clear()
            vars(each).update(attributes)
