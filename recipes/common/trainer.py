"""Shared by the recipes on the Trainers of Hugging Face and TRL: flags, checkpoints, Ctrl-C, the report of a run."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import time
import warnings
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from transformers import HfArgumentParser, ProgressCallback, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import SchedulerType

from greedylr_integrations.transformers import GreedyLRCallback
from recipes.common import greedy
from recipes.common.data import check_length
from recipes.common.flags import (
    add_help,
    agreed,
    check_at_least,
    check_at_least_one,
    loading,
    new_parser,
    parse_words,
    settle,
    with_config,
)
from recipes.common.offline import CHITCHAT, SMOLLM2, RecipeError, smollm2
from recipes.common.report import Run, decisions_in, next_learning_rate, peak_memory_gib
from recipes.common.schedules import SCHEDULES, kind_and_arguments
from recipes.common.stop import StopOnSignal, Stopped


@dataclass
class RecipeArguments:
    """The flags of every recipe, in addition to the fields of TrainingArguments."""

    config: str | None = field(default=None, metadata={"help": "YAML file of flags; the command line takes precedence"})
    model: str = field(default=SMOLLM2, metadata={"help": "hub id or folder; the default is from a package"})
    dataset: str = field(default=CHITCHAT, metadata={"help": "hub id, folder or file; the default is from a package"})
    dtype: Literal["float32", "bfloat16", "float64"] = field(default="float32", metadata={"help": "dtype of weights"})
    split: str = field(default="train", metadata={"help": "split of the dataset to train on"})
    rows: int = field(default=1500, metadata={"help": "rows of the dataset to use; 0 for all"})
    validation_rows: int = field(default=32, metadata={"help": "how many of them to keep for validation"})
    schedule: str = field(default="greedy", metadata={"help": "one of " + ", ".join(SCHEDULES)})
    compare: list[str] | None = field(default=None, metadata={"help": "schedules to compare from the same start"})
    resume: bool = field(default=False, metadata={"help": "continue the run in --output-dir from its last checkpoint"})
    lora_r: int = field(default=8, metadata={"help": "rank of the LoRA matrices"})
    lora_alpha: int = field(default=16, metadata={"help": "the scale of LoRA is alpha / rank"})
    plot: bool = field(default=True, metadata={"help": "draw loss_and_lr.png"})
    ask: str = field(default="", metadata={"help": "a question for the trained model; prints its reply"})


# when a run is resumed
MAY_CHANGE = ("config", "schedule", "compare", "resume", "plot", "ask", "workers", "max_failures")
DEFAULTS = {
    "max_steps": 80,
    "per_device_train_batch_size": 4,
    "seed": 0,
    "warmup_steps": 3,
    "logging_steps": 1,
    "eval_strategy": "steps",
    "eval_on_start": True,
    "eval_steps": 0.25,  # share of the run
    "save_strategy": "steps",
    "save_steps": 0.25,
    "save_total_limit": 2,
    "report_to": "none",
}

# of TrainingArguments, what must be the same when a run is resumed
THE_SAME = ("max_steps", "num_train_epochs", "learning_rate", "warmup_steps", "weight_decay", "optim", "bf16", "fp16")
BY_SCHEDULE = f"choose by --schedule, one of {', '.join(SCHEDULES)}"
NOT_HONOURED = {
    "lr_scheduler_type": BY_SCHEDULE,
    "lr_scheduler_kwargs": BY_SCHEDULE,
    "resume_from_checkpoint": "use --resume with the --output-dir of the run",
}


def trainer_parser(recipe: str, description: str, kinds: tuple[type, type], defaults: dict) -> HfArgumentParser:
    """A parser of the recipe's arguments and of TrainingArguments, of which --help has only the names."""
    import torch

    made = new_parser(partial(HfArgumentParser, kinds), recipe, description)
    short = {"dest": "per_device_train_batch_size", "help": "short for --per-device-train-batch-size"}
    made.add_argument("--batch-size", "--batch_size", type=int, metavar="ROWS", **short)
    greedy.add_flags(made)
    listed = [each.name for each in dataclasses.fields(kinds[1]) if each.init and each.name not in NOT_HONOURED]
    add_help(made, {f"fields of {kinds[1].__name__}": listed}, defaults)
    for action in made._actions:
        if action.dest in NOT_HONOURED:
            action.help = argparse.SUPPRESS
    more = {"output_dir": None, "dataloader_pin_memory": torch.cuda.is_available(), **dict.fromkeys(NOT_HONOURED)}
    made.set_defaults(**more, **defaults)
    return made


def parse_trainer(recipe: str, description: str, kinds: tuple[type, type], argv: list[str] | None, **defaults):
    """The recipe's arguments and the TrainingArguments, from the command line and --config.

    Raises:
        RecipeError: if a flag is wrong, in one line.
    """
    made = trainer_parser(recipe, description, kinds, {**DEFAULTS, **defaults})
    argv = with_config(made, argv)
    given = {word.split("=")[0].replace("-", "_") for word in argv}
    if "__num_train_epochs" in given and "__max_steps" not in given:
        made.set_defaults(max_steps=-1)
    values = parse_words(made, argv)
    refuse_what_is_not_honoured(values)
    own, theirs, general = ({each.name for each in dataclasses.fields(kind)} for kind in (*kinds, TrainingArguments))
    settle(recipe, values, same=sorted(own - set(MAY_CHANGE) | theirs - general | set(THE_SAME)))
    values.output_dir = str(values.output_dir)
    check_numbers(values)
    try:
        args, training_args = made.parse_dict(vars(values), allow_extra_keys=True)
    except ValueError as error:
        raise RecipeError(str(error).strip().splitlines()[0]) from error
    for name in ("schedules", "settings", "learning_rate", "seed", "greedy"):
        setattr(args, name, getattr(values, name))
    args.output_dir = Path(agreed(values.output_dir))
    return args, training_args


def refuse_what_is_not_honoured(values) -> None:
    """Refuse flags in whose place the recipe has others. If they are not given, TrainingArguments has its defaults."""
    for name, instead in NOT_HONOURED.items():
        if (value := vars(values).pop(name)) is not None:
            raise RecipeError(f"--{name.replace('_', '-')} {value} has no effect in a recipe: {instead}")


def check_numbers(values) -> None:
    """Check what transformers, TRL and PEFT accept here and fail on later."""
    batches = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
    check_at_least_one(values, *batches, "validation_rows", "max_length", "lora_r", "lora_alpha")
    check_at_least(0, values, "rows")
    if values.max_steps == 0 or (values.max_steps < 0 and values.num_train_epochs <= 0):
        raise RecipeError(
            f"--max-steps {values.max_steps} and --num-train-epochs {values.num_train_epochs} train nothing:"
            " make one of them greater than 0"
        )


def model_path(args: RecipeArguments) -> str:
    return smollm2() if args.model == SMOLLM2 else args.model


MANY = 10_000  # rows that take long enough for progress bars


def hush(args: RecipeArguments) -> None:
    """Silence what libraries print when they load a small model or few rows, and a warning of one about another."""
    import datasets
    from transformers.utils.logging import disable_progress_bar

    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    disable_progress_bar()
    if 0 < args.rows <= MANY:
        datasets.disable_progress_bars()


def load_tokenizer(args: RecipeArguments):
    from transformers import AutoTokenizer

    with loading("model", args.model):
        tokenizer = AutoTokenizer.from_pretrained(model_path(args))
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def load_model(args: RecipeArguments, **more):
    """The model, with the same weights for the same seed."""
    import torch
    from transformers import AutoModelForCausalLM, set_seed

    set_seed(args.seed)
    with loading("model", args.model):
        model = AutoModelForCausalLM.from_pretrained(model_path(args), dtype=getattr(torch, args.dtype), **more)
    model.config.use_cache = False
    if args.dtype == "float64":
        model.loss_function = loss_in_float64
    return model


def loss_in_float64(logits, labels, vocab_size, num_items_in_batch=None, **kwargs):
    """Mean over the tokens that count. transformers' own loss for causal models rounds to float32."""
    from torch.nn.functional import cross_entropy

    labels = labels[:, 1:]
    total = cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), reduction="sum")
    return total / ((labels != -100).sum() if num_items_in_batch is None else num_items_in_batch)


class _AtStepEnd(TrainerCallback, ExportableState):
    """Saves and stops after a signal, logs the last step for any --logging-steps, and counts the time of all resumes.

    Attributes:
        seconds (float): since the run began, as far as checkpoints know.
    """

    def __init__(self, stop: StopOnSignal) -> None:
        self.stop, self.start = stop, time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def state(self):
        return {"args": {}, "attributes": {"seconds": self.seconds}}

    def on_train_begin(self, args, state, control, **kwargs):
        mine = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        if state.global_step:
            self.start -= mine["attributes"]["seconds"]

    def on_step_end(self, args, state, control, **kwargs):
        if self.stop.asked():
            control.should_save = control.should_training_stop = True
        if state.global_step == state.max_steps:
            control.should_log = True


class _Bar(ProgressCallback):
    """A progress bar with the loss, and a line for each validation, in place of a dictionary for each log."""

    def __init__(self, schedule: str) -> None:
        super().__init__()
        self._schedule = schedule

    def on_log(self, args, state, control, logs=None, **kwargs):
        bar = self.training_bar
        if bar is None:
            return
        if "eval_loss" in logs:
            bar.write(f"{self._schedule}: validation loss {logs['eval_loss']:.3f} after {state.global_step} steps")
        elif "loss" in logs:
            bar.set_description(f"{self._schedule}, loss {logs['loss']:.3f}", refresh=False)
            if self._schedule != "greedy":  # GreedyLR shows its own
                bar.set_postfix({"lr": f"{logs['learning_rate']:.2e}"}, refresh=False)


def last_checkpoint(folder: Path) -> Path | None:
    """The last complete checkpoint. Its trainer_state.json is written last, and may be cut off by a kill."""
    whole = (file.parent for file in folder.glob("checkpoint-*/trainer_state.json") if _is_json(file))
    return max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)


def _is_json(file: Path) -> bool:
    try:
        json.loads(file.read_text())
    except ValueError:
        return False
    return True


def greedy_callback(args: RecipeArguments, folder: Path) -> GreedyLRCallback:
    """A callback that keeps its decisions in `folder`, across resumes."""
    if last_checkpoint(folder) is None:
        args.greedy.forget_unfinished(folder)
    return GreedyLRCallback(**args.greedy.arguments(folder))


def train_lora(kind, schedule: str, recipe: RecipeArguments, args, tokenizer, data) -> Run:
    """Train LoRA with one of TRL's trainers; `kind` is its class."""
    from peft import LoraConfig

    folder = recipe.output_dir / schedule
    model = load_model(recipe)
    check_length(args.max_length, model.config)
    trainer = kind(
        model,
        args=dataclasses.replace(args, output_dir=str(folder)),
        train_dataset=data["train"],
        eval_dataset=data["test"],
        processing_class=tokenizer,
        peft_config=LoraConfig(r=recipe.lora_r, lora_alpha=recipe.lora_alpha, target_modules="all-linear"),
        callbacks=[greedy_callback(recipe, folder)] if schedule == "greedy" else None,
    )
    run = train(trainer, schedule)
    save_model(trainer, folder / "model")
    return run


def save_model(trainer, folder: Path) -> None:
    """The model or adapter and its tokenizer, for `recipes.ask`. Every rank must call it."""
    trainer.save_model(str(folder))
    if trainer.args.process_index == 0:
        trainer.processing_class.save_pretrained(folder)


def train(trainer, schedule: str, checkpoint: Path | None = None, stop: StopOnSignal | None = None) -> Run:
    """Train from `checkpoint`, else from the trainer's last checkpoint, else from the start.

    Raises:
        Stopped: after Ctrl-C or SIGTERM, when the checkpoint is saved.
    """
    args, folder = trainer.args, Path(trainer.args.output_dir)
    callback = next((cb for cb in trainer.callback_handler.callbacks if isinstance(cb, GreedyLRCallback)), None)
    if callback is None:
        steps = args.max_steps
        if steps <= 0:
            steps = len(trainer.get_train_dataloader()) / args.gradient_accumulation_steps
            steps = math.ceil(math.ceil(steps) * args.num_train_epochs)
        kind, args.lr_scheduler_kwargs = kind_and_arguments(schedule, steps)
        args.lr_scheduler_type = SchedulerType(kind)
    checkpoint = checkpoint or last_checkpoint(folder)
    args.eval_on_start &= checkpoint is None and args.eval_strategy != "no"
    with stop or StopOnSignal() as stop:
        if trainer.pop_callback(ProgressCallback) is not None:
            trainer.add_callback(_Bar(schedule))
        at_step_end = _AtStepEnd(stop)
        trainer.add_callback(at_step_end)
        trainer.train(resume_from_checkpoint=checkpoint)
    if stop.number and trainer.state.global_step < trainer.state.max_steps:
        raise Stopped(stop.number, folder.parent)
    log = trainer.state.log_history
    decisions = decisions_in(callback.scheduler.history_file.path) if callback and args.process_index == 0 else []
    return Run(
        schedule=schedule,
        train_loss=[(entry["step"], entry["loss"]) for entry in log if "loss" in entry],
        validation_loss=[(entry["step"], entry["eval_loss"]) for entry in log if "eval_loss" in entry],
        learning_rate=[(entry["step"], entry["learning_rate"]) for entry in log if "loss" in entry],
        seconds=at_step_end.seconds,
        peak_memory_gib=peak_memory_gib(),
        next_learning_rate=next_learning_rate(decisions, args.learning_rate),
        decisions=decisions,
    )
