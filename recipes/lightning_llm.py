"""Fine-tune a language model on chats with LoRA in Lightning, with a learning rate that is found in training.

    python -m recipes.lightning_llm                                     # SmolLM2-135M on real chats, offline, two cores
    python -m recipes.lightning_llm --compare greedy cosine             # two schedules from the same start and data
    python -m recipes.lightning_llm --devices 2                         # DDP: two GPUs, or two CPU processes
    python -m recipes.lightning_llm --model Qwen/Qwen3-0.6B --dataset HuggingFaceH4/ultrachat_200k --split train_sft \\
        --max-length 1024 --max-steps 1000 --batch-size 8 --devices 4 --dtype bfloat16

The loss counts only the replies, and all tokens of a step equally, whichever process they are on. So two devices with
half the --batch-size do the same run. Ctrl-C saves, and --resume continues as if there had been no interruption, on any
such number of devices. Writes metrics.json, loss_and_lr.png and the adapter (greedy/model) to --output-dir.
"""

from __future__ import annotations

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from transformers import DataCollatorForSeq2Seq

from recipes.ask import show
from recipes.common import lightning as common
from recipes.common.chat import load_tokens
from recipes.common.flags import check_at_least, check_at_least_one, finish, parse, parser, run, run_all
from recipes.common.llm import load_model
from recipes.common.offline import CHITCHAT, SMOLLM2
from recipes.common.report import Run
from recipes.common.trainer import load_tokenizer

PRECISION = {
    "float32": "32-true",
    "bfloat16": "bf16-mixed",
    "float64": "64-true",
}  # for each --dtype


def parse_flags(argv: list[str] | None = None):
    defaults = {"model": SMOLLM2, "dataset": CHITCHAT, "max_steps": 80, "learning_rate": 2e-4, "batch_size": 4}
    made = parser("lightning_llm", __doc__, **defaults, full=False, qlora=False)
    made.add_argument("--split", default="train", help="split of the dataset to train on (default: %(default)s)")
    for flag, default, says in (
        ("--rows", 1500, "rows of the dataset to use; 0 for all"),
        ("--validation-rows", 32, "how many of them to keep for validation"),
        ("--max-length", 128, "tokens of a row to use"),
        ("--lora-r", 8, "rank of the LoRA matrices"),
        ("--lora-alpha", 16, "the scale of LoRA is alpha / rank"),
        ("--warmup-steps", 3, "steps of linear warmup"),
        ("--save-steps", 20, "steps between checkpoints"),
        ("--devices", 1, "processes, or GPUs, per node"),
        ("--num-nodes", 1, "nodes"),
    ):
        made.add_argument(flag, type=int, default=default, help=f"{says} (default: %(default)s)")
    made.add_argument("--dtype", choices=PRECISION, default="float32", help="dtype of weights (default: %(default)s)")
    made.add_argument("--ask", default="", metavar="TEXT", help="a question for the trained model; prints its reply")
    same = ("max_steps", "learning_rate", "split", "rows", "validation_rows", "max_length", "lora_r", "lora_alpha")
    args = parse(made, argv, same=(*same, "warmup_steps", "dtype"))
    check_at_least_one(args, "max_steps", "batch_size", "save_steps", "devices", "num_nodes")
    check_at_least_one(args, "validation_rows", "max_length", "lora_r", "lora_alpha")
    check_at_least(0, args, "rows", "warmup_steps")
    return args


class Module(common.Module):
    strict_loading = False  # a checkpoint has only the adapter

    def __init__(self, schedule: str, args, model):
        super().__init__(schedule, args, args.warmup_steps)
        self.model = model.train()

    def make_optimizer(self, parameters):
        return torch.optim.AdamW(parameters, lr=self.args.learning_rate)

    def loss_sum(self, batch):
        """Sum of the loss over the tokens of the replies, and their number."""
        logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        labels = batch["labels"][:, 1:]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        return loss, (labels != -100).sum()

    def training_step(self, batch, batch_idx):
        loss, tokens = self.loss_sum(batch)
        all_loss, all_tokens = self.reduced(loss.detach(), tokens)
        self.log_step(all_loss / all_tokens)
        return loss / all_tokens  # DDP averages gradients over the ranks, so each token has the same weight

    def on_validation_epoch_start(self):
        self.sums = [0.0, 0]

    def validation_step(self, batch, batch_idx):
        self.sums = [total + value for total, value in zip(self.sums, self.loss_sum(batch), strict=True)]

    def on_validation_epoch_end(self):
        loss, tokens = self.reduced(*self.sums)
        self.validation_loss.append((self.global_step, float(loss / tokens)))

    def on_save_checkpoint(self, checkpoint):
        super().on_save_checkpoint(checkpoint)
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}


def train(schedule: str, args, tokenizer, data) -> Run:
    module = Module(schedule, args, load_model(args, args))
    collate = DataCollatorForSeq2Seq(tokenizer, padding="longest")
    more = {"num_nodes": args.num_nodes, "precision": PRECISION[args.dtype]}
    run, trainer = common.train(module, (data["train"], data["test"]), 8, collate, **more)
    if trainer.is_global_zero:
        for each in (module.model, tokenizer):
            each.save_pretrained(args.output_dir / schedule / "model")
    return run


def main(argv: list[str] | None = None) -> None:
    args = parse_flags(argv)
    tokenizer = load_tokenizer(args)
    data = load_tokens(args, tokenizer, args.max_length)
    common.check_rows(args, (data["train"], data["test"]), args.devices * args.num_nodes)
    runs = run_all(args, lambda schedule: train(schedule, args, tokenizer, data))
    finish(runs, args)
    show(args.output_dir / runs[0].schedule / "model", args.ask)


if __name__ == "__main__":
    run("lightning_llm", main)
