"""Fine-tune a language model on chats, with a learning rate that is found during training.

    python -m recipes.finetune_llm                                      # SmolLM2-135M on real chats, offline, two cores
    python -m recipes.finetune_llm --compare greedy cosine linear       # three schedules from the same start and data
    python -m recipes.finetune_llm --config recipes/configs/finetune_llm/demo.yaml  # the demo: an LR that is too low
    python -m recipes.finetune_llm --num-train-epochs 3 --packing       # whole epochs, rows packed into full blocks
    python -m recipes.finetune_llm --full --learning-rate 2e-5          # all weights, no LoRA
    python -m recipes.finetune_llm --qlora                              # LoRA on 4-bit weights (bitsandbytes)
    python -m recipes.finetune_llm --output-dir runs/mine --resume      # continue after Ctrl-C, SIGTERM or a crash
    python -m recipes.finetune_llm --config recipes/configs/finetune_llm/qwen3-0.6b.yaml
    torchrun --nproc-per-node 2 -m recipes.finetune_llm --model ... --dataset ...

The loss counts only the replies. A dataset is a hub id, a folder or a json, jsonl, csv, parquet or txt file. Its rows
are chats (`messages`, prompt and completion, Alpaca, ShareGPT, question and answer), or have a column `text`. Every
field of transformers' `TrainingArguments` is a flag. Writes metrics.json, loss_and_lr.png, checkpoints and the trained
model to --output-dir.
"""

from __future__ import annotations

import dataclasses

from recipes.ask import show
from recipes.common import llm
from recipes.common import trainer as common
from recipes.common.flags import finish, run, run_all
from recipes.common.report import Run


def parse_flags(argv: list[str] | None = None):
    return llm.parse_flags("finetune_llm", __doc__, llm.RecipeArguments, argv, learning_rate=2e-4)


def train(schedule: str, recipe: llm.RecipeArguments, args, tokenizer, data) -> Run:
    folder = recipe.output_dir / schedule
    args = dataclasses.replace(args, output_dir=str(folder))
    callbacks = [common.greedy_callback(recipe, folder)] if schedule == "greedy" else []
    trainer = llm.make_trainer(llm.load_model(recipe, args), args, tokenizer, data, callbacks)
    run = common.train(trainer, schedule)
    common.save_model(trainer, folder / "model")
    return run


def main(argv: list[str] | None = None) -> None:
    recipe, args = parse_flags(argv)
    common.hush(recipe)
    tokenizer = common.load_tokenizer(recipe)
    data = llm.load_data(recipe, tokenizer)
    runs = run_all(recipe, lambda schedule: train(schedule, recipe, args, tokenizer, data))
    finish(runs, recipe)
    show(recipe.output_dir / runs[0].schedule / "model", recipe.ask)


if __name__ == "__main__":
    run("finetune_llm", main)
