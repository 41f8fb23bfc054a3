"""Shared by the recipes that fine-tune a language model: flags, model, data and Trainer."""

from __future__ import annotations

from dataclasses import dataclass, field

from recipes.common import trainer as common
from recipes.common.chat import load_tokens, pack
from recipes.common.data import check_length
from recipes.common.offline import RecipeError


@dataclass
class RecipeArguments(common.RecipeArguments):
    max_length: int = field(default=128, metadata={"help": "number of tokens of a row to use"})
    packing: bool = field(
        default=False, metadata={"help": "join rows end to end and cut them into blocks of --max-length"}
    )
    qlora: bool = field(default=False, metadata={"help": "LoRA on 4-bit weights"})
    full: bool = field(default=False, metadata={"help": "train all weights instead of LoRA's"})


def parse_flags(recipe: str, description: str, kind: type[RecipeArguments], argv: list[str] | None, **defaults):
    from transformers import TrainingArguments
    from transformers.utils import is_bitsandbytes_available

    args, training_args = common.parse_trainer(recipe, description, (kind, TrainingArguments), argv, **defaults)
    if args.full and args.qlora:
        raise RecipeError("--full trains all weights and --qlora only LoRA's: choose one")
    if args.qlora and not is_bitsandbytes_available():
        raise RecipeError("--qlora needs a package: pip install bitsandbytes")
    return args, training_args


def load_model(recipe, args):
    """The model with LoRA weights to train, or with all of its weights to train with --full."""
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import BitsAndBytesConfig

    if recipe.qlora:
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


def load_data(recipe: RecipeArguments, tokenizer):
    data = load_tokens(recipe, tokenizer, recipe.max_length)
    if recipe.packing:
        data["train"] = pack(data["train"], recipe.max_length)
        if not len(data["train"]):
            raise RecipeError(
                f"--packing: the rows of {recipe.dataset!r} together do not fill one block of --max-length"
                f" {recipe.max_length} tokens: use more rows, or a smaller --max-length"
            )
    return data


def make_trainer(model, args, tokenizer, data, callbacks):
    from transformers import DataCollatorForSeq2Seq, Trainer, default_data_collator

    padded = DataCollatorForSeq2Seq(tokenizer, padding="longest")
    return Trainer(
        model,
        args,
        train_dataset=data["train"],
        eval_dataset=data["test"],
        processing_class=tokenizer,
        data_collator=lambda rows: (default_data_collator if "position_ids" in rows[0] else padded)(rows),
        callbacks=callbacks,
    )
