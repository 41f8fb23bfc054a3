"""Preference tuning with TRL's DPOTrainer and LoRA, with a learning rate that is found in training.

    python -m recipes.dpo_trl                                           # SmolLM2-135M, offline, two cores
    python -m recipes.dpo_trl --compare greedy cosine linear wsd        # four schedules from the same start and data
    python -m recipes.dpo_trl --output-dir runs/mine --resume           # continue after Ctrl-C, SIGTERM or a crash
    python -m recipes.dpo_trl --model Qwen/Qwen3-0.6B --dataset trl-lib/ultrafeedback_binarized --max-length 1024
    python -m recipes.dpo_trl --config recipes/configs/dpo_trl/qwen3-0.6b.yaml

A dataset has the columns `chosen` and `rejected`, and `prompt` if these do not include it, in TRL's preference format.
If it has `messages` instead, as the default does, pairs are made of it: the real reply is chosen, and a reply from
another chat is rejected. That teaches a model to answer what was said, not what people prefer. Every field of TRL's
`DPOConfig` is a flag. Writes metrics.json, loss_and_lr.png, checkpoints and the adapter (greedy/model) to --output-dir.
"""

from __future__ import annotations

from recipes.ask import show
from recipes.common import trainer as common
from recipes.common.chat import check_rows, load_rows
from recipes.common.data import split_rows
from recipes.common.flags import finish, run, run_all
from recipes.common.offline import RecipeError
from recipes.common.report import Run

DEFAULTS = {
    "learning_rate": 5e-5,
    "max_length": 128,
    "max_steps": 40,
    "bf16": False,  # TRL's default is True
    "gradient_checkpointing": False,
}


def parse_flags(argv: list[str] | None = None):
    from trl import DPOConfig

    return common.parse_trainer("dpo_trl", __doc__, (common.RecipeArguments, DPOConfig), argv, **DEFAULTS)


def load_data(recipe: common.RecipeArguments, tokenizer):
    """`train` and `test`, with pairs of replies."""
    rows = load_rows(recipe.dataset, recipe.split, recipe.rows, columns=("chosen", "messages"))
    if "chosen" in rows.column_names:
        if "rejected" not in rows.column_names:
            raise RecipeError(f"dataset {recipe.dataset!r} has a column 'chosen' but no 'rejected': give it both")
        check_rows(rows, ("chosen", "rejected"), tokenizer.chat_template, recipe)
    else:
        check_rows(rows, ("messages",), tokenizer.chat_template, recipe)
        rows = shuffled_pairs(rows, recipe.seed)
        print("pairs: the real reply is chosen, and a reply from another chat, drawn by shuffling, is rejected")
    return split_rows(rows, recipe.validation_rows, recipe.seed, recipe.dataset, "pairs of replies")


def shuffled_pairs(rows, seed: int):
    """Pairs of the first reply of each chat and the first reply of another chat."""
    from datasets import Dataset

    pairs = []
    for messages in rows["messages"]:
        reply = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), 0)
        if reply:
            pairs.append({"prompt": messages[:reply], "chosen": [messages[reply]]})
    if not pairs:
        return rows.select([])
    pairs = Dataset.from_list(pairs).shuffle(seed=seed)
    others = pairs["chosen"][1:] + pairs["chosen"][:1]  # shuffled, so the next one is a random one
    pairs = pairs.add_column("rejected", others)
    return pairs.filter(lambda pair: pair["chosen"] != pair["rejected"])


def train(schedule: str, recipe: common.RecipeArguments, args, tokenizer, data) -> Run:
    from trl import DPOTrainer

    # The reference model is the same model without LoRA.
    return common.train_lora(DPOTrainer, schedule, recipe, args, tokenizer, data)


def main(argv: list[str] | None = None) -> None:
    recipe, args = parse_flags(argv)
    tokenizer = common.load_tokenizer(recipe)
    data = load_data(recipe, tokenizer)
    runs = run_all(recipe, lambda schedule: train(schedule, recipe, args, tokenizer, data))
    finish(runs, recipe)
    show(recipe.output_dir / runs[0].schedule / "model", recipe.ask)


if __name__ == "__main__":
    run("dpo_trl", main)
