"""Pre-train a decoder from scratch with Accelerate, the learning rate following the loss.

    python -m recipes.pretrain_llm                                     # 5M parameters on Python's documentation
    python -m recipes.pretrain_llm --compare greedy linear cosine wsd  # the same start and data under four schedules
    python -m recipes.pretrain_llm --config recipes/configs/pretrain_llm/5M.yaml --output-dir runs/5M
    torchrun --nproc-per-node 8 -m recipes.pretrain_llm --config recipes/configs/pretrain_llm/1B.yaml --fsdp

--model is a size, or a hub id or folder whose config.json is taken and whose weights are not. Texts are tokenized, each
followed by an end-of-text token, and cut into rows of --max-length tokens that nothing pads. A dataset is a hub id, a
folder or a json, jsonl, csv, parquet or txt file; --streaming never holds more of it than a buffer.

Saves each --save-steps into --output-dir/SCHEDULE; Ctrl-C and SIGTERM save too, and --resume goes on with the same
learning rates and the same rows. Writes metrics.json and loss_and_lr.png into --output-dir.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from recipes.common.accelerated import Order, add_decisions, make_accelerator, make_scheduler, resumed, save
from recipes.common.data import check_length, load
from recipes.common.flags import (
    agreed,
    check_at_least,
    check_at_least_one,
    finish,
    loading,
    parse,
    parser,
    run,
    run_all,
)
from recipes.common.offline import GPT2_BPE, PYTHON_DOCS, RecipeError, gpt2_bpe, python_docs
from recipes.common.report import Run, peak_memory_gib
from recipes.common.stop import StopOnSignal, Stopped

# width and layers; with GPT-2's 50,257 tokens, one matrix for embeddings and head, 2.1M to 1.0B parameters
SIZES = {"2M": (40, 4), "5M": (96, 4), "30M": (384, 8), "125M": (768, 12), "350M": (1024, 24), "1B": (2048, 18)}
LIMIT = 4096  # tokens, of a model made by size
VALIDATION_SHARE = 0.05  # of the documents
BOOLEAN = argparse.BooleanOptionalAction
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
STREAM_VALIDATION = 500  # documents, at the start of a stream
# dense bf16, from the data sheets; for any other device or precision a matrix product is timed instead
PEAK_TFLOPS = {"H100": 989, "H200": 989, "B200": 2250, "A100": 312, "L40S": 362, "L4": 121}


# ---- model ----


def load_config(args):
    """Tokenizer, and the configuration of the model to make."""
    from transformers import AutoConfig, AutoTokenizer, LlamaConfig

    by_size = args.model in SIZES
    name = args.tokenizer or (GPT2_BPE if by_size else args.model)
    with loading("tokenizer", name):
        tokenizer = gpt2_bpe() if name == GPT2_BPE else AutoTokenizer.from_pretrained(name)
    if tokenizer.eos_token_id is None:
        raise RecipeError(f"--tokenizer {name!r} has no end-of-text token, which parts the documents: use another")
    if by_size:
        width, layers = args.width or SIZES[args.model][0], args.layers or SIZES[args.model][1]
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=max(8, width * 8 // 3 // 8 * 8),
            num_hidden_layers=layers,
            num_attention_heads=max(1, width // (64 if width >= 512 else 32)),
            max_position_embeddings=LIMIT,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        if width % (2 * config.num_attention_heads):
            raise RecipeError(
                f"--width {width} does not part into {config.num_attention_heads} even heads: try another"
            )
    else:
        with loading("model", args.model):
            config = AutoConfig.from_pretrained(args.model)
        if args.width or args.layers:
            raise RecipeError(f"--width and --layers go with a size ({', '.join(SIZES)}), not --model {args.model!r}")
        if len(tokenizer) > config.vocab_size:
            raise RecipeError(
                f"--tokenizer {name!r} has {len(tokenizer)} tokens, --model {args.model!r} has {config.vocab_size}:"
                " use the model's own"
            )
    check_length(args.max_length, config)
    config.use_cache = False
    return tokenizer, config


def make_model(args, config, device):
    """With random weights, the same on every process; sharded with --fsdp."""
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
    """AdamW; norms, which are vectors, do not decay."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    fused = model.device.type == "cuda"
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=args.learning_rate, betas=(0.9, 0.95), fused=fused)


def next_token_loss(model, rows):
    """Mean over the tokens of each row but the first."""
    logits = model(input_ids=rows[:, :-1]).logits
    return cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


class Sharded:
    """Model and optimizer of --fsdp in one checkpoint file, which any number of processes can read."""

    def __init__(self, model, optimizer) -> None:
        self.parts = model, optimizer

    def state_dict(self):
        return get_state_dict(*self.parts, options=WHOLE)

    def load_state_dict(self, state) -> None:
        set_state_dict(*self.parts, model_state_dict=state[0], optim_state_dict=state[1], options=WHOLE)


# ---- data ----


def load_documents(args):
    """Rows with --column, as a `Dataset`, or an `IterableDataset` with --streaming."""
    if args.dataset == PYTHON_DOCS:
        rows = python_docs()
    else:
        more = {"sample_by": "paragraph"} if args.dataset.endswith(".txt") else {}
        rows = load(args.dataset, args.split, args.subset, streaming=args.streaming, **more)
    if args.streaming and hasattr(rows, "to_iterable_dataset"):
        rows = rows.to_iterable_dataset()
    with loading("dataset", args.dataset):
        columns = rows.column_names or list(next(iter(rows), {}))
    if columns and args.column not in columns:
        raise RecipeError(f"dataset {args.dataset!r} has no column {args.column!r}, only: {', '.join(columns)}")
    return rows


def pack(documents, args, tokenizer):
    """Rows of max_length + 1 tokens: the last is only predicted. What is left over of 1,000 documents is dropped."""
    size = args.max_length + 1

    def cut(batch):
        stream = []
        for ids in tokenizer(batch[args.column], verbose=False)["input_ids"]:
            stream += [*ids, tokenizer.eos_token_id]
        return {"input_ids": [stream[i : i + size] for i in range(0, len(stream) - size + 1, size)]}

    columns = documents.column_names or list(next(iter(documents), {}))  # a stream may not know them
    return documents.map(cut, batched=True, remove_columns=columns).with_format("torch")


def load_data(args, tokenizer):
    """Packed training rows, and the validation rows: a tensor, from documents of which nothing is trained on."""
    documents = load_documents(args)
    if args.streaming:
        held_out, documents = documents.take(STREAM_VALIDATION), documents.skip(STREAM_VALIDATION)
        found = torch.stack([row["input_ids"] for row in pack(held_out, args, tokenizer)] or [torch.empty(0)])
        some = next(iter(pack(documents, args, tokenizer)), None) is not None
        rows = pack(documents.shuffle(seed=args.seed, buffer_size=10_000), args, tokenizer)
    else:
        if len(documents) < 2:
            raise RecipeError(
                f"dataset {args.dataset!r} has {len(documents)} documents, and validation alone needs one"
            )
        share = max(1, round(VALIDATION_SHARE * len(documents)))
        parts = documents.train_test_split(share, seed=0)  # whatever the seed of the run
        rows, held_out = (pack(part, args, tokenizer) for part in (parts["train"], parts["test"]))
        found, some = held_out["input_ids"][:] if len(held_out) else torch.empty(0), len(rows) > 0
    if not some:
        raise RecipeError(
            f"dataset {args.dataset!r} has less than one row of {args.max_length} tokens to train on, beside those kept"
            f" for validation ({f'{STREAM_VALIDATION} documents' if args.streaming else '5%'}): use more data"
        )
    if len(found) < args.validation_rows:
        raise RecipeError(
            f"dataset {args.dataset!r} has {len(found)} rows of {args.max_length} tokens for validation, and"
            f" --validation-rows asks for {args.validation_rows}: use fewer, a smaller --max-length, or more data"
        )
    return rows, found[torch.linspace(0, len(found) - 1, args.validation_rows).long()]


def make_loader(args, rows, batch: int, start: int, stop: int):
    """Of rows number `start` to `stop` of the run, `batch` at a time over all processes."""
    if args.streaming:
        rows = rows.repeat(None).skip(start).take(stop - start)
        return DataLoader(rows, batch_size=batch, drop_last=True)
    return DataLoader(rows, batch_size=batch, sampler=Order(len(rows), args.seed, start, stop), drop_last=True)


# ---- how fast ----


def flops_per_token(model, config, length: int) -> float:
    """Of forward and backward, as in PaLM's appendix B: 6 a parameter that multiplies, 12 a layer, width and token."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if not config.tie_word_embeddings:
        parameters -= config.vocab_size * config.hidden_size  # an embedding is looked up
    return 6 * parameters + 12 * config.num_hidden_layers * config.hidden_size * length


def peak_flops(device, bf16: bool) -> tuple[float, str]:
    """Of one device in a second, and where the number comes from."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    for known, tflops in PEAK_TFLOPS.items():
        if bf16 and known in name.replace("-", " ").split():
            return tflops * 1e12, f"{known}'s data sheet"
    size = 8192 if device.type == "cuda" else 1024
    a = torch.ones(size, size, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        (a @ a)[0, 0].item()
        times.append(time.perf_counter() - begin)
    return 2 * size**3 / min(times), "a timed matrix product"


# ---- training ----


def train(schedule: str, args, tokenizer, config, data) -> Run:
    from tqdm.auto import tqdm
    from transformers.utils.logging import disable_progress_bar

    accelerator = make_accelerator(gradient_accumulation_steps=args.gradient_accumulation_steps)
    folder, processes = args.output_dir / schedule, accelerator.num_processes
    model = make_model(args, config, accelerator.device)
    kind, count = type(next(model.parameters())).__name__, sum(parameter.numel() for parameter in model.parameters())
    accelerator.print(f"{count / 1e6:.1f}M parameters, each a {kind}, on {processes} process(es)")
    optimizer = make_optimizer(args, model)
    if args.fsdp:
        from accelerate.optimizer import AcceleratedOptimizer

        accelerator.register_for_checkpointing(Sharded(model, optimizer))
        optimizer = AcceleratedOptimizer(optimizer)  # `prepare` would save one process's shards
    else:
        model, optimizer = accelerator.prepare(model, optimizer)
    scheduler = accelerator.prepare(make_scheduler(schedule, optimizer, folder, args.max_steps))
    loss_of = torch.compile(next_token_loss, backend=args.compile) if args.compile else next_token_loss
    mixed = torch.autocast(accelerator.device.type, torch.bfloat16, enabled=args.bf16)

    result = resumed(accelerator, schedule, folder)
    step = len(result.train_loss)

    batch = args.batch_size // args.gradient_accumulation_steps * processes
    rows_a_step = args.batch_size * processes
    loader = make_loader(args, data[0], batch, step * rows_a_step, args.max_steps * rows_a_step)
    loader = accelerator.prepare(loader)
    peak, peak_source = peak_flops(accelerator.device, args.bf16)
    share_of_peak = flops_per_token(model, config, args.max_length) / (peak * processes)

    @torch.no_grad()
    def validate() -> float:
        losses = []
        own = data[1][accelerator.process_index :: processes]
        with mixed:
            for rows in own.split(max(1, batch // processes)):
                losses.append(loss_of(model, rows.to(accelerator.device)).detach() * len(rows))
        return float(accelerator.reduce(torch.stack(losses).sum())) / len(data[1])

    def read_losses() -> list[float]:
        """Mean over micro-batches and processes of each step since the last reading; waits for the device."""
        means = accelerator.reduce(
            torch.stack(losses).unflatten(0, (-1, args.gradient_accumulation_steps)).mean(1), "mean"
        )
        losses.clear()
        return means.tolist()

    losses, lrs, speeds = [], [], []
    progress = tqdm(total=args.max_steps, initial=step, desc=schedule, disable=not accelerator.is_main_process)
    start = since = time.perf_counter()
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
            last = step == args.max_steps
            validates = last or step % max(1, args.max_steps // 4) == 0
            saves = args.save_steps and (last or step % args.save_steps == 0)
            if not (validates or saves or step % args.log_steps == 0):
                progress.update()
                continue
            stopped = stop.asked()
            first = len(result.train_loss) + 1
            result.train_loss += enumerate(read_losses(), first)
            result.learning_rate += lrs
            lrs.clear()
            now = time.perf_counter()
            speeds.append((step + 1 - first) * rows_a_step * args.max_length / (now - since))
            progress.update()
            progress.set_postfix_str(
                f"loss {result.train_loss[-1][1]:.3f}, lr {lr:.1e}, {speeds[-1]:.3g} tokens/s,"
                f" MFU {speeds[-1] * share_of_peak:.1%}"
            )
            if validates:
                result.validation_loss.append((step, validate()))
            if saves or stopped:
                save(accelerator, folder, step)
            if stopped and not last:
                progress.close()
                raise Stopped(stop.number, args.output_dir)
            since = time.perf_counter()
    progress.close()
    result.seconds, result.peak_memory_gib = time.perf_counter() - start, peak_memory_gib()
    speed = statistics.median(speeds) if speeds else 0.0  # a median, for the first steps compile
    result.more = {"tokens_per_second": speed, "mfu": speed * share_of_peak}
    accelerator.print(f"{schedule}: {speed:.0f} tokens/s, MFU {speed * share_of_peak:.1%} of {peak_source}")
    if schedule == "greedy" and accelerator.is_main_process:
        add_decisions(result, scheduler, folder, args.learning_rate)
    if args.save_steps:
        disable_progress_bar()  # of `save_pretrained`
        weights = get_model_state_dict(model, options=WHOLE)
        if accelerator.is_main_process:
            accelerator.unwrap_model(model).save_pretrained(folder / "model", state_dict=weights)
            tokenizer.save_pretrained(folder / "model")
    return result


def parse_flags(argv: list[str] | None = None):
    defaults = {"model": "5M", "dataset": PYTHON_DOCS, "max_steps": 240, "learning_rate": 3e-3, "batch_size": 8}
    made = parser("pretrain_llm", __doc__, **defaults)
    add = made.add_argument
    add("--width", type=int, help="of the model, in place of its size's")
    add("--layers", type=int, help="of the model, in place of its size's")
    add("--tokenizer", help="hub id or folder (default: GPT-2's for a size, else the model's own)")
    add("--subset", help="of a hub dataset that has several")
    add("--split", default="train", help="of the dataset; validation is taken from it too (default: %(default)s)")
    add("--column", default="text", help="of the dataset, with the text (default: %(default)s)")
    add("--streaming", action=BOOLEAN, default=False, help="read the dataset as it goes")
    add("--max-length", type=int, default=256, help="tokens of a row (default: %(default)s)")
    add("--validation-rows", type=int, default=32, help="from held-out documents (default: %(default)s)")
    add("--gradient-accumulation-steps", type=int, default=1, help="parts of a batch (default: %(default)s)")
    add("--bf16", action=BOOLEAN, default=False, help="compute in bfloat16; weights stay in float32")
    add("--float64", action=BOOLEAN, default=False, help="all in float64, to compare runs")
    add("--gradient-checkpointing", action=BOOLEAN, default=False, help="compute activations again, to save memory")
    add("--compile", nargs="?", const="inductor", metavar="BACKEND", help="torch.compile (default backend: inductor)")
    add("--fsdp", action=BOOLEAN, default=False, help="shard the model over the processes with `fully_shard`")
    add("--save-steps", type=int, default=60, help="steps between checkpoints; 0 saves nothing (default: %(default)s)")
    add("--log-steps", type=int, default=1, help="steps between readings of the loss, which wait for the device")
    args = parse(made, argv, same=("max_steps", "learning_rate", "batch_size", "max_length", "width", "layers"))
    counts = ("max_steps", "batch_size", "max_length", "validation_rows", "gradient_accumulation_steps", "log_steps")
    check_at_least_one(args, *counts, "width", "layers")
    check_at_least(0, args, "save_steps")
    if args.batch_size % args.gradient_accumulation_steps:
        raise RecipeError(
            f"--batch-size {args.batch_size} does not part into --gradient-accumulation-steps"
            f" {args.gradient_accumulation_steps}: make it a multiple"
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
    accelerator.end_training()


if __name__ == "__main__":
    run("pretrain_llm", main)
