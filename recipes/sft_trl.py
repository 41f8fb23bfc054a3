"""Supervised fine-tuning with TRL's SFTTrainer and LoRA, with a learning rate that is found in training.

    python -m recipes.sft_trl                                           # SmolLM2-135M on real chats, offline, two cores
    python -m recipes.sft_trl --compare greedy cosine linear wsd        # four schedules from the same start and data
    python -m recipes.sft_trl --output-dir runs/mine --resume           # continue after Ctrl-C, SIGTERM or a crash
    python -m recipes.sft_trl --config recipes/configs/sft_trl/qwen3-0.6b.yaml
    torchrun --nproc-per-node 2 -m recipes.sft_trl --model ... --dataset ...

The loss counts only the replies. For that, TRL needs a chat template with `{% generation %}` marks: it has one for the
best-known models, and this recipe has one for SmolLM2. For other models, give one by `--chat-template-path`, or count
every token with `--assistant-only-loss false`. A dataset is a hub id, a folder or a file. Its rows are chats
(`messages`, prompt and completion, Alpaca, ShareGPT, question and answer), or have a column `text`. Every field of
TRL's `SFTConfig` is a flag. Writes metrics.json, loss_and_lr.png, checkpoints and the adapter
(greedy/model) to --output-dir.
"""

from __future__ import annotations

from pathlib import Path

from recipes.ask import show
from recipes.common import trainer as common
from recipes.common.chat import check_rows, has_reply, load_rows
from recipes.common.data import split_rows
from recipes.common.flags import finish, run, run_all
from recipes.common.offline import SMOLLM2, RecipeError
from recipes.common.report import Run

SMOLLM2_TEMPLATE = Path(__file__).parent / "configs" / "sft_trl" / "smollm2.jinja"
DEFAULTS = {
    "learning_rate": 2e-4,
    "max_length": 128,
    "assistant_only_loss": True,
    "bf16": False,  # TRL's default is True
    "gradient_checkpointing": False,
}


def parse_flags(argv: list[str] | None = None):
    from trl import SFTConfig

    recipe, args = common.parse_trainer("sft_trl", __doc__, (common.RecipeArguments, SFTConfig), argv, **DEFAULTS)
    if recipe.model == SMOLLM2 and args.chat_template_path is None:
        args.chat_template_path = str(SMOLLM2_TEMPLATE)
    return recipe, args


def load_data(recipe: common.RecipeArguments, args, tokenizer):
    rows = load_rows(recipe.dataset, recipe.split, recipe.rows)
    column = "messages" if "messages" in rows.column_names else "text"
    check_rows(rows, (column,), args.chat_template_path or tokenizer.chat_template, recipe)
    rows, what = rows.select_columns(column), "rows"
    if column == "text":
        args.assistant_only_loss = False
    elif args.assistant_only_loss:  # TRL refuses data with any other rows
        rows, what = rows.filter(has_reply), "chats with a reply"
    return split_rows(rows, recipe.validation_rows, recipe.seed, recipe.dataset, what)


def check_marks(recipe: common.RecipeArguments, args, tokenizer) -> None:
    """Check that TRL can tell the tokens of the assistant from the others."""
    from trl.chat_template_utils import get_training_chat_template

    if not args.assistant_only_loss or args.chat_template_path is not None:
        return
    try:
        get_training_chat_template(tokenizer)
    except ValueError as error:
        raise RecipeError(
            f"model {recipe.model!r} has a chat template without {{% generation %}} marks, and TRL has none for it:"
            " pass one with --chat-template-path, or use --assistant-only-loss false"
        ) from error


def train(schedule: str, recipe: common.RecipeArguments, args, tokenizer, data) -> Run:
    from trl import SFTTrainer

    return common.train_lora(SFTTrainer, schedule, recipe, args, tokenizer, data)


def main(argv: list[str] | None = None) -> None:
    recipe, args = parse_flags(argv)
    tokenizer = common.load_tokenizer(recipe)
    data = load_data(recipe, args, tokenizer)
    check_marks(recipe, args, tokenizer)
    runs = run_all(recipe, lambda schedule: train(schedule, recipe, args, tokenizer, data))
    finish(runs, recipe)
    show(recipe.output_dir / runs[0].schedule / "model", recipe.ask)


if __name__ == "__main__":
    run("sft_trl", main)
