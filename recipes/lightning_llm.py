"""Fine-tune a language model on chats with LoRA in Lightning, the learning rate following the loss.

    python -m recipes.lightning_llm                                     # SmolLM2-135M on real chats, offline, two cores
    python -m recipes.lightning_llm --compare greedy cosine             # the same start and data under two schedules
    python -m recipes.lightning_llm --devices 2                         # DDP: two GPUs, or two CPU processes
    python -m recipes.lightning_llm --model Qwen/Qwen3-0.6B --dataset HuggingFaceH4/ultrachat_200k --split train_sft \\
        --max-length 1024 --max-steps 1000 --batch-size 8 --devices 4 --dtype bfloat16

The loss counts the replies only, each token of a step alike, on whichever process it is: so two devices with half the
--batch-size are the same run. Ctrl-C saves, and --resume goes on as if nothing had been, on any such split.
Writes metrics.json, loss_and_lr.png and the adapter (greedy/adapter) into --output-dir.
"""

from __future__ import annotations

import os
import sys
import time
import zipfile
from contextlib import ExitStack
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from greedylr_integrations import history
from recipes.common.chat import load_tokens
from recipes.common.flags import finish, parse, parser, run, run_all
from recipes.common.offline import CHITCHAT, SMOLLM2, RecipeError
from recipes.common.report import Run, peak_memory_gib
from recipes.common.schedules import fixed
from recipes.common.stop import StopOnSignal, Stopped
from recipes.common.trainer import load_tokenizer
from recipes.finetune_llm import load_model

PRECISION = {"float32": "32-true", "bfloat16": "bf16-mixed", "float64": "64-true"}  # of the arithmetic, by --dtype


def parse_flags(argv: list[str] | None = None):
    defaults = {"model": SMOLLM2, "dataset": CHITCHAT, "max_steps": 80, "learning_rate": 2e-4, "batch_size": 4}
    made = parser("lightning_llm", __doc__, **defaults, full=False, qlora=False)
    made.add_argument("--split", default="train", help="split of the dataset to train on (default: %(default)s)")
    for flag, default, says in (
        ("--rows", 1500, "rows of the dataset to use; 0 for all"),
        ("--validation-rows", 32, "rows of them that are kept for validation"),
        ("--max-length", 128, "tokens of a row that are used"),
        ("--lora-r", 8, "rank of the LoRA matrices"),
        ("--lora-alpha", 16, "LoRA's scale is alpha / rank"),
        ("--warmup-steps", 3, "steps of a ramp from 0"),
        ("--save-steps", 20, "steps from one checkpoint to the next"),
        ("--devices", 1, "processes, or GPUs, of a node"),
        ("--num-nodes", 1, "nodes"),
    ):
        made.add_argument(flag, type=int, default=default, help=f"{says} (default: %(default)s)")
    made.add_argument("--dtype", default="float32", help="of the weights: float32, bfloat16 or float64")
    args = parse(made, argv)
    if args.devices < 1 or args.num_nodes < 1:
        raise RecipeError(f"--devices {args.devices} and --num-nodes {args.num_nodes}: at least 1 of each")
    return args


def make_module(schedule: str, args, model):
    import lightning.pytorch as pl
    import torch

    class Module(pl.LightningModule):
        strict_loading = False  # a checkpoint has the adapter only

        def __init__(self):
            super().__init__()
            self.model = model.train()
            self.train_loss, self.validation_loss, self.learning_rate = [], [], []

        def loss_sum(self, batch):
            """Sum of the loss over the reply's tokens, and how many they are."""
            logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            labels = batch["labels"][:, 1:]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
            return loss, (labels != -100).sum()

        def training_step(self, batch, batch_idx):
            loss, tokens = self.loss_sum(batch)
            all_loss, all_tokens = self.reduced(loss.detach(), tokens)  # means over the ranks
            self.train_loss.append((self.global_step + 1, all_loss / all_tokens))
            self.learning_rate.append((self.global_step + 1, self.optimizers().param_groups[0]["lr"]))
            return loss / all_tokens  # DDP averages gradients over the ranks: so each token weighs the same

        def reduced(self, *values):
            return self.trainer.strategy.reduce(torch.stack([value.double() for value in values]), reduce_op="mean")

        def on_validation_epoch_start(self):
            self.sums = [0.0, 0]

        def validation_step(self, batch, batch_idx):
            self.sums = [total + value for total, value in zip(self.sums, self.loss_sum(batch), strict=True)]

        def on_validation_epoch_end(self):
            loss, tokens = self.reduced(*self.sums)
            self.validation_loss.append((self.global_step, float(loss / tokens)))

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW((p for p in self.parameters() if p.requires_grad), lr=args.learning_rate)
            if schedule == "greedy":
                return optimizer
            scheduler = fixed(schedule, optimizer, args.max_steps, args.warmup_steps)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

        def on_save_checkpoint(self, checkpoint):
            trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
            checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}
            checkpoint["log"] = self.log_so_far()

        def on_load_checkpoint(self, checkpoint):
            self.train_loss, self.validation_loss, self.learning_rate = checkpoint["log"]

        def log_so_far(self):
            return [(step, float(loss)) for step, loss in self.train_loss], self.validation_loss, self.learning_rate

    return Module()


class Batches:
    """This rank's indices of each batch, from the Trainer's step on and without end.

    They depend on seed and step alone, so a resume goes on in the same order.
    """

    def __init__(self, trainer, rows: int, batch_size: int, seed: int):
        self.trainer, self.rows, self.batch_size, self.seed = trainer, rows, batch_size, seed

    def __iter__(self):
        import torch

        rank, world = self.trainer.global_rank, self.trainer.world_size
        step, size = self.trainer.global_step, self.batch_size * world
        per_epoch = self.rows // size
        while True:
            epoch, first = divmod(step, per_epoch)
            order = torch.randperm(self.rows, generator=torch.Generator().manual_seed(self.seed + epoch))
            for batch in range(first, per_epoch):
                yield order[batch * size + rank : (batch + 1) * size : world].tolist()
                step += 1


def last_checkpoint(folder: Path) -> Path | None:
    """The last one that is whole: a kill may leave a part of one."""
    whole = filter(zipfile.is_zipfile, folder.glob("checkpoint-*.ckpt"))
    return max(whole, key=lambda path: int(path.stem.split("-")[1]), default=None)


def save_on_signal(folder: Path):
    import lightning.pytorch as pl

    class SaveOnSignal(pl.Callback):
        def __init__(self):
            self.handlers = ExitStack()

        def on_train_start(self, trainer, module):  # Lightning has set its own handler of SIGTERM: one that broadcasts
            self.stop = self.handlers.enter_context(StopOnSignal())

        def on_train_batch_end(self, trainer, module, *batch):
            if self.stop.asked() and trainer.global_step < trainer.max_steps:
                trainer.save_checkpoint(folder / f"checkpoint-{trainer.global_step}.ckpt")
                raise Stopped(self.stop.number, folder.parent)

        def on_train_end(self, trainer, module):
            self.handlers.close()

        def on_exception(self, trainer, module, exception):
            self.handlers.close()

    return SaveOnSignal()


def train(schedule: str, args, tokenizer, data) -> Run:
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import ModelCheckpoint
    from torch.utils.data import DataLoader
    from transformers import DataCollatorForSeq2Seq

    from greedylr_integrations.lightning import GreedyLRCallback

    folder = args.output_dir / schedule
    checkpoint, log = last_checkpoint(folder), folder / "history.jsonl"
    if checkpoint is None:
        log.unlink(missing_ok=True)  # of a run that ended before its first checkpoint
    callbacks = [
        save_on_signal(folder),
        ModelCheckpoint(
            folder,
            "checkpoint-{step}",
            "step",
            mode="max",
            save_top_k=2,
            every_n_train_steps=args.save_steps,
            auto_insert_metric_name=False,
        ),
    ]
    if schedule == "greedy":
        callbacks.insert(
            0, GreedyLRCallback(linear_warmup_steps=args.warmup_steps, history_file=str(log), prog_bar=True)
        )
    module = make_module(schedule, args, load_model(args, args))
    trainer = pl.Trainer(
        max_steps=args.max_steps,
        max_epochs=-1,
        val_check_interval=max(1, args.max_steps // 4),
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        devices=args.devices,
        num_nodes=args.num_nodes,
        precision=PRECISION[args.dtype],
        use_distributed_sampler=False,
        callbacks=callbacks,
        logger=False,
        enable_model_summary=False,
    )
    collate = DataCollatorForSeq2Seq(tokenizer, padding="longest")
    start = time.perf_counter()
    trainer.fit(
        module,
        DataLoader(
            data["train"],
            batch_sampler=Batches(trainer, len(data["train"]), args.batch_size, args.seed),
            collate_fn=collate,
        ),
        DataLoader(
            data["test"].shard(trainer.world_size, trainer.global_rank, contiguous=False),
            batch_size=8,
            collate_fn=collate,
        ),
        ckpt_path=checkpoint,
    )
    if trainer.is_global_zero:
        module.model.save_pretrained(folder / "adapter")
    train_loss, validation_loss, learning_rate = module.log_so_far()
    decisions = history.read(log)[1] if schedule == "greedy" and trainer.is_global_zero else []
    return Run(
        schedule=schedule,
        train_loss=train_loss,
        validation_loss=validation_loss,
        learning_rate=learning_rate,
        seconds=time.perf_counter() - start,
        peak_memory_gib=peak_memory_gib(),
        next_learning_rate=history.suggested_lr(decisions, args.learning_rate),
        decisions=decisions,
    )


def main(argv: list[str] | None = None) -> None:
    args = parse_flags(argv)
    tokenizer = load_tokenizer(args)
    data = load_tokens(args, tokenizer, args.max_length)
    world = args.devices * args.num_nodes
    for part, rows, least in (
        ("train", len(data["train"]), world * args.batch_size),
        ("test", len(data["test"]), world),
    ):
        if rows < least:
            raise RecipeError(f"{part}: {rows} rows of {args.dataset!r} do not fill one step of {least}: use more rows")
    try:
        runs = run_all(args, lambda schedule: train(schedule, args, tokenizer, data))
    except Stopped:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            sys.exit()  # with an error, Lightning's first process would be killed by its observer of the others
        raise
    finish(runs, args)


if __name__ == "__main__":
    run("lightning_llm", main)
