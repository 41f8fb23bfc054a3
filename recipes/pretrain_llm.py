"""Pre-train a decoder from scratch with Accelerate, with a learning rate that is found in training.

    python -m recipes.pretrain_llm                                     # 5M parameters on Python's documentation
    python -m recipes.pretrain_llm --compare greedy linear cosine wsd  # four schedules from the same start and data
    python -m recipes.pretrain_llm --config recipes/configs/pretrain_llm/5M.yaml --output-dir runs/5M
    torchrun --nproc-per-node 8 -m recipes.pretrain_llm --config recipes/configs/pretrain_llm/1B.yaml --fsdp

--model is a size, or a hub id or folder, of which only config.json is used, not the weights. Texts are tokenized, each
followed by an end-of-text token, and cut into rows of --max-length tokens without padding. A dataset is a hub id, a
folder or a json, jsonl, csv, parquet or txt file; --streaming never holds more than a buffer of it in memory.

Saves a checkpoint every --save-steps steps to --output-dir/SCHEDULE, and on Ctrl-C and SIGTERM; --resume continues with
the same learning rates and the same rows. Writes metrics.json, loss_and_lr.png and the model (greedy/model) to
--output-dir.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from recipes.ask import show
from recipes.common.accelerated import WHOLE, Sharded, add_decisions, make_accelerator, make_scheduler, resumed, save
from recipes.common.decoder import load_config
from recipes.common.flags import (
    agreed,
    check_at_least,
    check_at_least_one,
    finish,
    parse,
    parser,
    run,
    run_all,
)
from recipes.common.offline import PYTHON_DOCS, RecipeError
from recipes.common.packed import load_data, make_loader
from recipes.common.report import Run, peak_memory_gib
from recipes.common.speed import Speedometer, flops_per_token
from recipes.common.stop import StopOnSignal, Stopped

BOOLEAN = argparse.BooleanOptionalAction


def make_model(args, config, device):
    """A model with random weights, the same on every process; sharded with --fsdp."""
    from transformers import AutoModelForCausalLM, set_seed

    set_seed(args.seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64 if args.float64 else torch.float32)
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.to(device)
    if args.fsdp:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if args.bf16 else MixedPrecisionPolicy()
        for layer in model.get_decoder().layers:
            fully_shard(layer, mp_policy=policy)
        fully_shard(model, mp_policy=policy)
    return model


def make_optimizer(args, model):
    """AdamW, without weight decay for the norms, which are vectors."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    fused = model.device.type == "cuda"
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=args.learning_rate, betas=(0.9, 0.95), fused=fused)


def next_token_loss(model, rows):
    """Mean loss over all tokens of the rows except the first of each."""
    logits = model(input_ids=rows[:, :-1]).logits
    return cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


@torch.no_grad()
def validate(model, loss_of, rows, batch: int, accelerator) -> float:
    """Mean loss over the rows, which are shared out to the processes."""
    own = rows[accelerator.process_index :: accelerator.num_processes].split(batch)
    losses = [loss_of(model, part.to(accelerator.device)).detach() * len(part) for part in own]
    return float(accelerator.reduce(torch.stack(losses).sum())) / len(rows)


def prepare(schedule: str, args, config, accelerator, steps_per_epoch: int | None):
    """Model, optimizer and scheduler."""
    model = make_model(args, config, accelerator.device)
    kind, count = type(next(model.parameters())).__name__, sum(parameter.numel() for parameter in model.parameters())
    accelerator.print(f"{count / 1e6:.1f}M parameters, each a {kind}, on {accelerator.num_processes} process(es)")
    optimizer = make_optimizer(args, model)
    if args.fsdp:
        from accelerate.optimizer import AcceleratedOptimizer

        accelerator.register_for_checkpointing(Sharded(model, optimizer))
        optimizer = AcceleratedOptimizer(optimizer)  # `prepare` would save the shards of one process
    else:
        model, optimizer = accelerator.prepare(model, optimizer)
    scheduler = make_scheduler(schedule, optimizer, args, steps_per_epoch)
    return model, optimizer, accelerator.prepare(scheduler)


def train(schedule: str, args, tokenizer, config, data) -> Run:
    parts = args.gradient_accumulation_steps
    accelerator = make_accelerator(gradient_accumulation_steps=parts)
    folder, processes = args.output_dir / schedule, accelerator.num_processes
    rows_a_step = args.batch_size * processes
    per_epoch = None if args.streaming else max(1, len(data[0]) // rows_a_step)
    model, optimizer, scheduler = prepare(schedule, args, config, accelerator, per_epoch)
    loss_of = torch.compile(next_token_loss, backend=args.compile) if args.compile else next_token_loss
    mixed = torch.autocast(accelerator.device.type, torch.bfloat16, enabled=args.bf16)
    result = resumed(accelerator, schedule, args)
    start, step = time.perf_counter() - result.seconds, len(result.train_loss)
    loader = make_loader(args, data[0], rows_a_step // parts, step * rows_a_step, args.max_steps * rows_a_step)
    loader = accelerator.prepare(loader)
    flops = flops_per_token(model, config, args.max_length)
    speedometer = Speedometer(flops, accelerator.device, args.bf16, processes)
    losses, lrs = [], []  # since the last reading
    progress = tqdm(total=args.max_steps, initial=step, desc=schedule, disable=not accelerator.is_main_process)

    def validated() -> tuple[int, float]:
        with mixed:
            return step, validate(model, loss_of, data[1], max(1, args.batch_size // parts), accelerator)

    if not step:
        result.validation_loss.append(validated())
        speedometer.restart()
    with StopOnSignal() as stop:
        for rows in loader:
            with accelerator.accumulate(model):
                lr = scheduler.get_last_lr()[0]
                with mixed:
                    loss = loss_of(model, rows["input_ids"])
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step(loss) if schedule == "greedy" else scheduler.step()
                optimizer.zero_grad()
            losses.append(loss.detach())
            if not accelerator.sync_gradients:
                continue
            step += 1
            lrs.append((step, lr))
            progress.update()
            last = step == args.max_steps
            validates = last or step % max(1, args.max_steps // 4) == 0
            saves = args.save_steps and (last or step % args.save_steps == 0)
            if not (validates or saves or step % args.log_steps == 0):
                continue
            stopped = stop.asked()
            # Mean over micro-batches and processes for each step. This is where the host waits for the device.
            means = accelerator.reduce(torch.stack(losses).unflatten(0, (-1, parts)).mean(1), "mean").tolist()
            result.train_loss += enumerate(means, len(result.train_loss) + 1)
            result.learning_rate += lrs
            speed = speedometer.read(len(lrs) * rows_a_step * args.max_length)
            losses.clear()
            lrs.clear()
            progress.set_postfix_str(f"loss {means[-1]:.3f}, lr {lr:.1e}, {speed}")
            if validates:
                result.validation_loss.append(validated())
            result.seconds = time.perf_counter() - start
            if saves or stopped:
                save(accelerator, folder, step)
            if stopped and not last:
                progress.close()
                raise Stopped(stop.number, args.output_dir)
            speedometer.restart()
    progress.close()
    result.peak_memory_gib = peak_memory_gib()
    result.more = speedometer.summary()
    tokens, mfu = result.more.values()
    accelerator.print(f"{schedule}: {tokens:.0f} tokens/s, MFU {mfu:.1%} of {speedometer.source}")
    if schedule == "greedy" and accelerator.is_main_process:
        add_decisions(result, scheduler, args.learning_rate)
    if args.save_steps:
        save_model(accelerator, model, tokenizer, folder / "model")
    return result


def save_model(accelerator, model, tokenizer, folder) -> None:
    """For `from_pretrained`, with all weights in one place."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    weights = get_model_state_dict(model, options=WHOLE)
    if accelerator.is_main_process:
        accelerator.unwrap_model(model).save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)


def parse_flags(argv: list[str] | None = None):
    defaults = {"model": "5M", "dataset": PYTHON_DOCS, "max_steps": 240, "learning_rate": 3e-3, "batch_size": 8}
    made = parser("pretrain_llm", __doc__, **defaults)
    add = made.add_argument
    add("--width", type=int, help="width of the model, in place of the one for its size")
    add("--layers", type=int, help="number of layers, in place of the one for its size")
    add("--tokenizer", help="hub id or folder (default: GPT-2's for a size, else the model's own)")
    add("--subset", help="subset of a hub dataset that has several")
    add("--split", default="train", help="split to train and validate on (default: %(default)s)")
    add("--column", default="text", help="column that has the text (default: %(default)s)")
    add("--streaming", action=BOOLEAN, default=False, help="read the dataset while training")
    add("--max-length", type=int, default=256, help="tokens of a row (default: %(default)s)")
    add("--validation-rows", type=int, default=32, help="validation rows, of held-out documents (default: %(default)s)")
    add("--gradient-accumulation-steps", type=int, default=1, help="micro-batches per batch (default: %(default)s)")
    add("--bf16", action=BOOLEAN, default=False, help="compute in bfloat16; weights stay in float32")
    add("--float64", action=BOOLEAN, default=False, help="use float64 throughout, to compare runs")
    add("--gradient-checkpointing", action=BOOLEAN, default=False, help="recompute activations to save memory")
    add("--compile", nargs="?", const="inductor", metavar="BACKEND", help="torch.compile (default backend: inductor)")
    add("--fsdp", action=BOOLEAN, default=False, help="shard the model over the processes with `fully_shard`")
    add("--save-steps", type=int, default=60, help="steps between checkpoints; 0 saves nothing (default: %(default)s)")
    add("--log-steps", type=int, default=1, help="steps between readings of the loss, which wait for the device")
    add("--ask", default="", metavar="TEXT", help="text for the trained model to continue; prints the result")
    same = ("max_steps", "learning_rate", "max_length", "width", "layers", "tokenizer", "subset", "split", "column")
    args = parse(made, argv, same=(*same, "streaming", "validation_rows", "bf16", "float64"))
    counts = ("max_steps", "batch_size", "max_length", "validation_rows", "gradient_accumulation_steps", "log_steps")
    check_at_least_one(args, *counts, "width", "layers")
    check_at_least(0, args, "save_steps")
    if args.batch_size % args.gradient_accumulation_steps:
        raise RecipeError(
            f"--batch-size {args.batch_size} is not a multiple of --gradient-accumulation-steps"
            f" {args.gradient_accumulation_steps}: make it one"
        )
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_flags(argv)
    if args.fsdp and "WORLD_SIZE" not in os.environ:
        raise RecipeError("--fsdp needs processes to shard over: start it with torchrun --nproc-per-node 2 or more")
    accelerator = make_accelerator()  # makes the process group
    args.output_dir = agreed(args.output_dir)
    tokenizer, config = load_config(args)
    data = load_data(args, tokenizer)
    tokens = args.max_steps * args.batch_size * accelerator.num_processes * args.max_length
    epochs = None if args.streaming else tokens / (len(data[0]) * args.max_length)
    length = "a stream" if epochs is None else f"{epochs:.2g} epochs of {len(data[0]) * args.max_length:,}"
    accelerator.print(f"{tokens:,} tokens: {length}")
    runs = run_all(args, lambda schedule: train(schedule, args, tokenizer, config, data))
    finish(runs, args, tokens=tokens, epochs=epochs)
    show(args.output_dir / runs[0].schedule / "model", args.ask)
    accelerator.end_training()


if __name__ == "__main__":
    run("pretrain_llm", main)
