"""Fine-tune a language model on chats with LoRA, the learning rate following the loss.

    python -m recipes.finetune_llm                                      # SmolLM2-135M on real chats, offline, two cores
    python -m recipes.finetune_llm --compare greedy cosine linear       # the same start and data under three schedules
    python -m recipes.finetune_llm --model Qwen/Qwen3-0.6B --dataset HuggingFaceH4/ultrachat_200k --split train_sft \\
        --max-length 1024 --max-steps 1000 --bf16
    torchrun --nproc-per-node 2 -m recipes.finetune_llm --model ... --dataset ...

The loss counts the replies only. A dataset has a column `messages` (a list of {role, content}) or `text`; it is a hub
id, a folder or a json, jsonl, csv, parquet or txt file. Every field of transformers' `TrainingArguments` is a flag.
Writes metrics.json and loss_and_lr.png into --output-dir.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from recipes.common import trainer as common
from recipes.common.chat import check_length, load_tokens
from recipes.common.flags import finish, loading, run, run_all
from recipes.common.report import Run


@dataclass
class RecipeArguments(common.RecipeArguments):
    max_length: int = field(default=128, metadata={"help": "tokens of a row that are used"})
    lora_r: int = field(default=8, metadata={"help": "rank of the LoRA matrices"})
    lora_alpha: int = field(default=16, metadata={"help": "LoRA's scale is alpha / rank"})


def parse_flags(argv: list[str] | None = None):
    from transformers import TrainingArguments

    kinds = (RecipeArguments, TrainingArguments)
    return common.parse_trainer("finetune_llm", __doc__, kinds, argv, learning_rate=2e-4)


def load_model(recipe: RecipeArguments, args):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, set_seed

    set_seed(args.seed)
    dtype = torch.bfloat16 if args.bf16 else torch.float32
    with loading("model", recipe.model):
        model = AutoModelForCausalLM.from_pretrained(common.model_path(recipe), dtype=dtype)
    check_length(recipe.max_length, model.config)
    model.config.use_cache = False
    lora = LoraConfig(r=recipe.lora_r, lora_alpha=recipe.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, lora)


def train(schedule: str, recipe: RecipeArguments, args, tokenizer, data) -> Run:
    from transformers import DataCollatorForSeq2Seq, Trainer

    folder = recipe.output_dir / schedule
    args = dataclasses.replace(args, output_dir=str(folder))
    trainer = Trainer(
        load_model(recipe, args),
        args,
        train_dataset=data["train"],
        eval_dataset=data["test"],
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding="longest"),
        callbacks=[common.greedy_callback(folder)] if schedule == "greedy" else None,
    )
    return common.train(trainer, schedule)


def main(argv: list[str] | None = None) -> None:
    recipe, args = parse_flags(argv)
    tokenizer = common.load_tokenizer(recipe)
    data = load_tokens(recipe, tokenizer, recipe.max_length)
    runs = run_all(recipe, lambda schedule: train(schedule, recipe, args, tokenizer, data))
    finish(runs, recipe)


if __name__ == "__main__":
    run("finetune_llm", main)
