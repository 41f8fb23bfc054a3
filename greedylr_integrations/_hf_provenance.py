"""What a run of Hugging Face's Trainer records about its LR, in the configurations of trackers and in model cards.

On their own, both would name `lr_scheduler_type`, which may not be what set the LR. Nothing here ends a run: an error
is logged as a WARNING.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from greedylr_integrations.atomic import write_whole
from greedylr_integrations.log import logger
from greedylr_integrations.summary import as_list

Facts = Mapping[str, Any]


def _tensorboard(callback: Any, facts: Facts) -> None:
    callback.tb_writer.add_text("greedylr", as_list(facts))


def _wandb(callback: Any, facts: Facts) -> None:
    sys.modules["wandb"].config.update(dict(facts), allow_val_change=True)


def _trackio(callback: Any, facts: Facts) -> None:
    sys.modules["trackio"].config.update(dict(facts), allow_val_change=True)


def _mlflow(callback: Any, facts: Facts) -> None:
    sys.modules["mlflow"].log_params(dict(facts))


TRACKERS: dict[str, Callable[[Any, Facts], None]] = {
    "TensorBoardCallback": _tensorboard,
    "WandbCallback": _wandb,
    "TrackioCallback": _trackio,
    "MLflowCallback": _mlflow,
}


def to_trackers(trainer: Any, facts: Facts) -> None:
    """Add to the configuration that each of the Trainer's trackers has written."""
    for callback in trainer.callback_handler.callbacks:
        for base in type(callback).__mro__:
            if base.__name__ in TRACKERS:
                _try(base.__name__, TRACKERS[base.__name__], callback, facts)


def to_cards(trainer: Any, model: Any, facts: Facts) -> None:
    """Add the facts to the model cards that the Trainer writes, and that sentence-transformers saves with the model."""
    if trainer is not None:
        trainer.create_model_card = Card(trainer, facts)
    data = getattr(model, "model_card_data", None)
    for name in ("non_default_hyperparameters", "all_hyperparameters"):
        known = getattr(data, name, None)
        if isinstance(known, dict):
            known.update({"lr_scheduler_type": facts["greedylr/schedule"], **facts})


class Card:
    """Takes the place of a Trainer's `create_model_card`, and adds to the card what set the LR.

    Args:
        trainer (Trainer): the Trainer whose method it replaces.
        facts (mapping): what to add.
    """

    def __init__(self, trainer: Any, facts: Facts) -> None:
        known = trainer.create_model_card
        # of an earlier run
        self._create: Callable[..., Any] = known._create if isinstance(known, Card) else known
        self._trainer, self._facts = trainer, facts

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self._create(*args, **kwargs)
        if self._trainer.is_world_process_zero():
            _try("the model card", self._amend)
        return result

    def _amend(self) -> None:
        path = os.path.join(self._trainer.args.output_dir, "README.md")
        with open(path, encoding="utf-8") as file:
            card = file.read()
        write_whole(path, amended(card, self._facts).encode())


def amended(card: str, facts: Facts) -> str:
    """A model card that says what set the LR: in its list of hyperparameters, or else in a section of its own."""
    if "greedylr/" in card:
        return card
    schedule, lines = facts["greedylr/schedule"], as_list(facts)
    if "in place of" in schedule:  # the warmup too was replaced
        card = re.sub("^- lr_scheduler_warmup_steps: .*\n", "", card, flags=re.MULTILINE)
    used = f"- lr_scheduler_type: {schedule}\n{lines}"
    card, found = re.subn("^- lr_scheduler_type: .*$", lambda match: used, card, count=1, flags=re.MULTILINE)
    if found:
        return card
    before, heading, after = card.partition("### Framework versions")
    return f"{before.rstrip()}\n\n### Learning rate\n\n{lines}\n\n{heading}{after}".rstrip() + "\n"


def _try(where: str, write: Callable[..., None], *args: Any) -> None:
    try:
        write(*args)
    except Exception as error:
        logger.warning("GreedyLR could not write its settings to %s: %s", where.removesuffix("Callback"), error)
