"""Fine-tune a language model on chats, the learning rate following the loss.

    python -m recipes.finetune_llm                                      # SmolLM2-135M on real chats, offline, two cores
    python -m recipes.finetune_llm --compare greedy cosine linear       # the same start and data under three schedules
    python -m recipes.finetune_llm --num-train-epochs 3 --packing       # whole epochs, rows packed into full blocks
    python -m recipes.finetune_llm --full --learning-rate 2e-5          # every weight, no LoRA
    python -m recipes.finetune_llm --qlora                              # LoRA on 4-bit weights (bitsandbytes)
    python -m recipes.finetune_llm --output-dir runs/mine --resume      # go on after Ctrl-C, SIGTERM or a crash
    python -m recipes.finetune_llm --config recipes/configs/finetune_llm/qwen3-0.6b.yaml
    torchrun --nproc-per-node 2 -m recipes.finetune_llm --model ... --dataset ...

The loss counts the replies only. A dataset has a column `messages` (a list of {role, content}) or `text`; it is a hub
id, a folder or a json, jsonl, csv, parquet or txt file. Every field of transformers' `TrainingArguments` is a flag.
Writes metrics.json, loss_and_lr.png and checkpoints into --output-dir.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from recipes.common import trainer as common
from recipes.common.chat import load_tokens, pack
from recipes.common.data import check_length
from recipes.common.flags import finish, run, run_all
from recipes.common.offline import RecipeError
from recipes.common.report import Run


@dataclass
class RecipeArguments(common.RecipeArguments):
    max_length: int = field(default=128, metadata={"help": "tokens of a row that are used"})
    packing: bool = field(default=False, metadata={"help": "train on rows end to end, in blocks of --max-length"})
    qlora: bool = field(default=False, metadata={"help": "LoRA on weights in 4 bits"})
    full: bool = field(default=False, metadata={"help": "train every weight instead of LoRA's"})


def parse_flags(argv: list[str] | None = None):
    from transformers import TrainingArguments

    kinds = (RecipeArguments, TrainingArguments)
    recipe, args = common.parse_trainer("finetune_llm", __doc__, kinds, argv, learning_rate=2e-4)
    if recipe.full and recipe.qlora:
        raise RecipeError("--full trains every weight and --qlora LoRA's: choose one")
    return recipe, args


def load_model(recipe: RecipeArguments, args):
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import BitsAndBytesConfig
    from transformers.utils import is_bitsandbytes_available

    if recipe.qlora:
        if not is_bitsandbytes_available():
            raise RecipeError("--qlora needs a package: pip install bitsandbytes")
        compute = getattr(torch, recipe.dtype)
        bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
        model = common.load_model(recipe, quantization_config=bits)
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=args.gradient_checkpointing)
    else:
        model = common.load_model(recipe)
    check_length(recipe.max_length, model.config)
    if recipe.full:
        return model
    lora = LoraConfig(r=recipe.lora_r, lora_alpha=recipe.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, lora)


def train(schedule: str, recipe: RecipeArguments, args, tokenizer, data) -> Run:
    from transformers import DataCollatorForSeq2Seq, Trainer, default_data_collator

    padded = DataCollatorForSeq2Seq(tokenizer, padding="longest")
    folder = recipe.output_dir / schedule
    args = dataclasses.replace(args, output_dir=str(folder))
    trainer = Trainer(
        load_model(recipe, args),
        args,
        train_dataset=data["train"],
        eval_dataset=data["test"],
        data_collator=lambda rows: (default_data_collator if "position_ids" in rows[0] else padded)(rows),
        callbacks=[common.greedy_callback(folder)] if schedule == "greedy" else None,
    )
    return common.train(trainer, schedule)


def main(argv: list[str] | None = None) -> None:
    recipe, args = parse_flags(argv)
    tokenizer = common.load_tokenizer(recipe)
    data = load_tokens(recipe, tokenizer, recipe.max_length)
    if recipe.packing:
        data["train"] = pack(data["train"], recipe.max_length)
    runs = run_all(recipe, lambda schedule: train(schedule, recipe, args, tokenizer, data))
    finish(runs, recipe)


if __name__ == "__main__":
    run("finetune_llm", main)
