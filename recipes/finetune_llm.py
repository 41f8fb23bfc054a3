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
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from recipes.common.flags import SCHEDULES, check_output_dir, check_schedules, finish, new_output_dir, run
from recipes.common.offline import CHITCHAT, SMOLLM2, RecipeError, chitchat, smollm2
from recipes.common.report import Run, peak_memory_gib


@dataclass
class RecipeArguments:
    model: str = field(default=SMOLLM2, metadata={"help": "hub id or folder; the default comes as a package"})
    dataset: str = field(default=CHITCHAT, metadata={"help": "hub id, folder or file; the default comes as a package"})
    split: str = field(default="train", metadata={"help": "split of the dataset to train on"})
    rows: int = field(default=1500, metadata={"help": "rows of the dataset to use; 0 for all"})
    validation_rows: int = field(default=32, metadata={"help": "rows of them that are kept for validation"})
    max_length: int = field(default=128, metadata={"help": "tokens of a row that are used"})
    lora_r: int = field(default=8, metadata={"help": "rank of the LoRA matrices"})
    lora_alpha: int = field(default=16, metadata={"help": "LoRA's scale is alpha / rank"})
    schedule: str = field(default="greedy", metadata={"help": "one of " + ", ".join(SCHEDULES)})
    compare: list[str] | None = field(default=None, metadata={"help": "schedules to run from the same start"})
    plot: bool = field(default=True, metadata={"help": "draw loss_and_lr.png"})


DEFAULTS = {
    "max_steps": 80,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 8,
    "learning_rate": 2e-4,
    "warmup_steps": 3,
    "logging_steps": 1,
    "eval_strategy": "steps",
    "eval_steps": 0.25,  # of the run
    "save_strategy": "no",
    "report_to": "none",
}


def parse(argv: list[str] | None):
    import torch
    from transformers import HfArgumentParser, TrainingArguments

    parser = HfArgumentParser((RecipeArguments, TrainingArguments), description=__doc__.split("\n")[0])
    output_dir = new_output_dir("finetune_llm")
    parser.set_defaults(output_dir=output_dir, dataloader_pin_memory=torch.cuda.is_available(), **DEFAULTS)
    words = " ".join(sys.argv[1:] if argv is None else argv).replace("-", "_")
    if "__num_train_epochs" in words and "__max_steps" not in words:
        parser.set_defaults(max_steps=-1)
    recipe, args = parser.parse_args_into_dataclasses(argv)
    check_schedules(recipe.compare or [recipe.schedule])
    check_output_dir(Path(args.output_dir))
    return recipe, args


def load_rows(recipe: RecipeArguments):
    """Rows with `messages` or `text`."""
    from datasets import load_dataset, load_from_disk

    if recipe.dataset == CHITCHAT:
        return chitchat(recipe.rows or None)
    path = Path(recipe.dataset)
    kinds = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
    try:
        if path.is_file() and path.suffix in kinds:
            rows = load_dataset(kinds[path.suffix], data_files=str(path), split="train")
        elif (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
            rows = load_from_disk(str(path))
            rows = rows[recipe.split] if isinstance(rows, dict) else rows
        else:
            rows = load_dataset(recipe.dataset, split=recipe.split)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise RecipeError(f"dataset {recipe.dataset!r} cannot be loaded ({type(error).__name__}: {reason})") from error
    if not {"messages", "text"} & set(rows.column_names):
        raise RecipeError(
            f"dataset {recipe.dataset!r} has no column 'messages' or 'text', only: {', '.join(rows.column_names)}"
        )
    return rows.select(range(min(recipe.rows, len(rows)))) if recipe.rows else rows


def tokenize(row: dict, tokenizer, max_length: int) -> dict:
    """Token ids, and labels that are -100 everywhere but in the assistant's replies (or nowhere, for plain text)."""
    if "messages" not in row:
        ids = tokenizer(row["text"])["input_ids"][:max_length]
        return {"input_ids": ids, "labels": ids}

    def template(messages, prompt=False):
        return tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)

    messages, ids, labels = row["messages"], [], []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt, reply = template(messages[:i], prompt=True), template(messages[: i + 1])
        if reply[: len(ids)] != ids:
            labels = []  # the template wrote the earlier turns anew (as Qwen3's does): count this reply only
        start = next((k for k, (a, b) in enumerate(zip(prompt, reply, strict=False)) if a != b), len(prompt))
        labels += [-100] * (start - len(labels)) + reply[start:]
        ids = reply
        if len(ids) >= max_length:
            break
    return {"input_ids": ids[:max_length], "labels": labels[:max_length]}


def load_data(recipe: RecipeArguments, tokenizer, seed: int):
    rows = load_rows(recipe)
    if "messages" in rows.column_names and tokenizer.chat_template is None:
        raise RecipeError(
            f"model {recipe.model!r} has no chat template, which {recipe.dataset!r} needs: use a chat model"
        )
    data = rows.map(
        tokenize, fn_kwargs={"tokenizer": tokenizer, "max_length": recipe.max_length}, remove_columns=rows.column_names
    )
    data = data.filter(lambda row: any(label != -100 for label in row["labels"]))
    if len(data) <= recipe.validation_rows:
        raise RecipeError(
            f"dataset {recipe.dataset!r} has {len(data)} usable rows, and {recipe.validation_rows} are kept for"
            " validation: use more --rows, a larger --max-length, or fewer --validation-rows"
        )
    return data.train_test_split(recipe.validation_rows, seed=seed)


def load_model(recipe: RecipeArguments, args):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, set_seed

    set_seed(args.seed)
    dtype = torch.bfloat16 if args.bf16 else torch.float32
    model = AutoModelForCausalLM.from_pretrained(model_path(recipe), dtype=dtype)
    limit = getattr(model.config, "max_position_embeddings", recipe.max_length)
    if recipe.max_length > limit:
        raise RecipeError(f"--max-length {recipe.max_length} is beyond the model's limit of {limit} tokens")
    model.config.use_cache = False
    lora = LoraConfig(r=recipe.lora_r, lora_alpha=recipe.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, lora)


def model_path(recipe: RecipeArguments) -> str:
    return smollm2() if recipe.model == SMOLLM2 else recipe.model


def train(schedule: str, recipe: RecipeArguments, args, tokenizer, data) -> Run:
    from transformers import DataCollatorForSeq2Seq, Trainer

    from greedylr_integrations.transformers import GreedyLRCallback

    callback = GreedyLRCallback() if schedule == "greedy" else None
    kind = args.lr_scheduler_type if schedule == "greedy" else schedule
    args = dataclasses.replace(args, lr_scheduler_type=kind, output_dir=os.path.join(args.output_dir, schedule))
    trainer = Trainer(
        load_model(recipe, args),
        args,
        train_dataset=data["train"],
        eval_dataset=data["test"],
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding="longest"),
        callbacks=[callback] if callback else None,
    )
    start = time.perf_counter()
    trainer.train()
    log = trainer.state.log_history
    return Run(
        schedule=schedule,
        train_loss=[(entry["step"], entry["loss"]) for entry in log if "loss" in entry],
        validation_loss=[(entry["step"], entry["eval_loss"]) for entry in log if "eval_loss" in entry],
        learning_rate=[(entry["step"], entry["learning_rate"]) for entry in log if "loss" in entry],
        seconds=time.perf_counter() - start,
        peak_memory_gib=peak_memory_gib(),
        next_learning_rate=callback.suggested_lr() if callback else None,
        decisions=list(callback.history) if callback else [],
    )


def main(argv: list[str] | None = None) -> None:
    recipe, args = parse(argv)
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model_path(recipe))
    except (OSError, ValueError) as error:
        raise RecipeError(f"model {recipe.model!r} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    data = load_data(recipe, tokenizer, args.seed)
    runs = [train(schedule, recipe, args, tokenizer, data) for schedule in recipe.compare or [recipe.schedule]]
    if args.process_index == 0:
        more = {"model": recipe.model, "dataset": recipe.dataset, "base_lr": args.learning_rate}
        finish(runs, Path(args.output_dir), recipe.plot, **more)


if __name__ == "__main__":
    run("finetune_llm", main)
