"""Train a language model with Hugging Face's Trainer on Ray Train, with a learning rate that is found in training.

    python -m recipes.ray_train_llm                                   # 7M parameters from scratch, two CPU workers
    python -m recipes.ray_train_llm --compare greedy cosine
    python -m recipes.ray_train_llm --model smollm2-135m --learning-rate 2e-4 --max-steps 40           # LoRA
    RAY_ADDRESS=auto python -m recipes.ray_train_llm --workers 16 --output-dir /shared/run ...        # on a Ray cluster

Model, data and Trainer are those of `finetune_llm`, on each worker; only the default model is made here. Ray keeps its
checkpoints in --output-dir, which all nodes of a cluster must be able to access. If a worker dies, Ray restarts all of
them from the last checkpoint (up to --max-failures times), and the LRs are the same as without the failure. After
Ctrl-C, or the end of Ray itself, `--resume` continues. Every field of transformers' `TrainingArguments` is a flag.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

# Send no usage statistics, do not change the working directory, and leave `print` alone.
os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_CHDIR_TO_TRIAL_DIR="0", RAY_TRAIN_ENABLE_PRINT_PATCH="0")

from recipes.ask import show
from recipes.common import llm
from recipes.common import trainer as common
from recipes.common.data import check_length
from recipes.common.flags import check_at_least_one, finish, loading, run, run_all, write
from recipes.common.offline import SMOLLM2, RecipeError
from recipes.common.report import Run
from recipes.common.stop import StopOnSignal, Stopped

SMALL = "small"
CONTEXT = 512  # tokens, for the small model


@dataclass
class RecipeArguments(llm.RecipeArguments):
    model: str = field(default=SMALL, metadata={"help": "hub id or folder, for LoRA; default: a small new model"})
    workers: int = field(default=2, metadata={"help": "processes, each with a GPU if there are any"})
    max_failures: int = field(default=3, metadata={"help": "how many times to recover from the death of a worker"})


def parse_flags(argv: list[str] | None = None):
    more = {"learning_rate": 2e-3, "max_steps": 200}
    recipe, args = llm.parse_flags("ray_train_llm", __doc__, RecipeArguments, argv, **more)
    check_at_least_one(recipe, "workers")
    if recipe.model == SMALL:
        for name in ("qlora", "lora_r", "lora_alpha", "dtype"):
            if getattr(recipe, name) != getattr(RecipeArguments, name):
                flag = "--" + name.replace("_", "-")
                raise RecipeError(f"{flag} needs a --model to load: all weights of {SMALL!r} are trained, in float32")
    return recipe, args


def load_tokenizer(recipe: RecipeArguments):
    return common.load_tokenizer(dataclasses.replace(recipe, model=SMOLLM2) if recipe.model == SMALL else recipe)


def load_model(recipe: RecipeArguments, args, tokenizer):
    if recipe.model != SMALL:
        return llm.load_model(recipe, args)
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    set_seed(args.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            use_cache=False,
        )
    )


def check(recipe: RecipeArguments) -> None:
    """Check model and data before the workers start: a worker that failed on them would be started again."""
    from transformers import AutoConfig, LlamaConfig

    llm.load_data(recipe, load_tokenizer(recipe))
    with loading("model", recipe.model):
        small = recipe.model == SMALL
        config = (
            LlamaConfig(max_position_embeddings=CONTEXT)
            if small
            else AutoConfig.from_pretrained(common.model_path(recipe))
        )
    check_length(recipe.max_length, config)


class StopOnFile(StopOnSignal):
    """For the workers, to which the driver passes on a signal through a file."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file

    def asked(self) -> bool:
        if self.file.exists():
            self.number = int(self.file.read_text())
        return super().asked()


def train_on_worker(config: dict) -> Run | None:
    """The run, or None if it was stopped. Ray calls this on each worker, and again after a failure."""
    import ray.train
    import torch
    from ray.train.huggingface.transformers import RayTrainReportCallback, prepare_trainer

    from greedylr_integrations.transformers import GreedyLRCallback

    recipe, schedule = config["recipe"], config["schedule"]
    folder = recipe.output_dir / schedule
    callbacks = [RayTrainReportCallback()]
    checkpoint = ray.train.get_checkpoint()
    if schedule == "greedy":
        if checkpoint is None:
            recipe.greedy.forget_unfinished(folder)
        callbacks.append(GreedyLRCallback(**recipe.greedy.arguments(folder)))
    tokenizer = load_tokenizer(recipe)
    data = llm.load_data(recipe, tokenizer)
    # Ray merges the folders of the workers. With a shared one, a worker might upload a file that is only half written.
    with tempfile.TemporaryDirectory() as scratch, checkpoint.as_directory() if checkpoint else nullcontext() as saved:
        main, use_cpu = ray.train.get_context().get_world_rank() == 0, not torch.cuda.is_available()
        args = config["args"]
        args = dataclasses.replace(
            args, output_dir=scratch, use_cpu=use_cpu, disable_tqdm=args.disable_tqdm or not main
        )
        trainer = llm.make_trainer(load_model(recipe, args, tokenizer), args, tokenizer, data, callbacks)
        try:
            run = common.train(
                prepare_trainer(trainer),
                schedule,
                checkpoint=saved and Path(saved) / RayTrainReportCallback.CHECKPOINT_NAME,
                stop=StopOnFile(folder / "stop"),
            )
        except Stopped:
            return None
        common.save_model(trainer, folder / "model")
        return run


def train(schedule: str, recipe: RecipeArguments, args) -> Run:
    import torch
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    stop_file = recipe.output_dir / schedule / "stop"
    stop_file.unlink(missing_ok=True)
    trainer = TorchTrainer(
        train_on_worker,
        train_loop_config={"recipe": recipe, "args": args, "schedule": schedule},
        scaling_config=ScalingConfig(
            num_workers=recipe.workers, use_gpu=torch.cuda.is_available() and not args.use_cpu
        ),
        # If the folder has a run of this name, Ray continues it.
        run_config=RunConfig(
            name=schedule,
            storage_path=str(recipe.output_dir),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=recipe.max_failures),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    with StopOnSignal() as stop, ThreadPoolExecutor(1) as pool:  # in a thread, `fit` does not handle signals
        running = pool.submit(trainer.fit)
        while not running.done():
            wait([running], timeout=0.5)
            if stop.number and not stop_file.exists():
                write(stop_file, str(stop.number))
    row = running.result().return_value
    if row is None:
        raise Stopped(stop.number, recipe.output_dir)
    return row


def main(argv: list[str] | None = None) -> None:
    recipe, args = parse_flags(argv)
    recipe.output_dir = recipe.output_dir.absolute()
    check(recipe)
    import ray

    local = {
        "num_cpus": max(recipe.workers, os.cpu_count() or 1),
        "include_dashboard": False,
        "logging_config": ray.LoggingConfig(log_level="ERROR"),
    }
    ray.init(**({} if "RAY_ADDRESS" in os.environ else local))
    runs = run_all(recipe, lambda schedule: train(schedule, recipe, args))
    finish(runs, recipe)
    show(recipe.output_dir / runs[0].schedule / "model", recipe.ask)


if __name__ == "__main__":
    run("ray_train_llm", main)
