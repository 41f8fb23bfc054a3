"""What GreedyLR costs and gains on one large GPU: decoders from scratch (125M, 1B, bf16, compiled) and LoRA.

    python -m benchmarks.gpu_recipes             all of it, to RESULTS.md; continues where it stopped
    python -m benchmarks.gpu_recipes cost        host time and synchronizations a step, throughput, MFU
    python -m benchmarks.gpu_recipes losses      final losses of greedy, cosine and wsd at 0.1x, 1x, 3x of the base LR
    python -m benchmarks.gpu_recipes --tiny      the same code on CPU in a minute; it prints, and writes no results

The cost is measured in a plain loop of `pretrain_llm`'s model and loss; LoRA likewise with peft's model, so not through
the Trainer. "With" has a GreedyLR that steps after the optimizer, "without" has no scheduler.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.report import replace_part
from benchmarks.store import RESULTS, Job, Results
from greedylr_integrations import GreedyLR

BASE_LRS = {"125M": 6e-4, "1B": 3e-4, "lora": 2e-4, "tiny": 3e-3, "tiny-lora": 2e-4}
FLAGS = {
    "125M": "--model 125M --max-length 512 --batch-size 16 --bf16 --compile --max-steps 400",  # 3.3M tokens: one epoch
    "1B": "--model 1B --max-length 512 --batch-size 8 --bf16 --compile --max-steps 400 --gradient-checkpointing",
    "tiny": "--model 2M --max-length 16 --batch-size 2 --max-steps 8 --validation-rows 4",
}
MULTIPLES = (0.1, 1.0, 3.0)
ARMS = ("greedy", "cosine", "wsd")


# ---- cost ----


def decoder(name: str, device: torch.device) -> tuple[Callable[[], torch.Tensor], Any, float, int]:
    """A closure that computes a loss, the model, FLOPs per token, tokens per step."""
    from recipes import pretrain_llm
    from recipes.common.speed import flops_per_token

    args = pretrain_llm.parse_flags(FLAGS[name].split())
    _, config = pretrain_llm.load_config(args)
    model = pretrain_llm.make_model(args, config, device)
    loss_of = pretrain_llm.next_token_loss
    loss_of = torch.compile(loss_of, backend=args.compile) if args.compile else loss_of
    rows = torch.randint(config.vocab_size, (args.batch_size, args.max_length + 1), device=device)

    def loss() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
            return loss_of(model, rows)

    flops = flops_per_token(model, config, args.max_length)
    return loss, model, flops, args.batch_size * args.max_length


def lora(name: str, device: torch.device) -> tuple[Callable[[], torch.Tensor], Any, float, int]:
    """LoRA of rank 8 on SmolLM2-135M: 4 FLOPs per parameter and token, since the frozen weights get no gradient."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig

    from recipes.common.offline import smollm2

    if name == "lora":
        base, rows, length = AutoModelForCausalLM.from_pretrained(smollm2(), dtype=torch.bfloat16), 32, 512
    else:
        tiny = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
        base, rows, length = AutoModelForCausalLM.from_config(LlamaConfig(**tiny, num_attention_heads=2)), 2, 16
    adapter = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, adapter).to(device)
    ids = torch.randint(base.config.vocab_size, (rows, length), device=device)
    parameters = sum(parameter.numel() for parameter in base.parameters())
    return lambda: model(input_ids=ids, labels=ids).loss, model, 4.0 * parameters, rows * length


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def steps_of(loss, optimizer, scheduler: GreedyLR | None, steps: int, device: torch.device) -> float:
    """Seconds of a number of steps, including the work of the device."""
    wait(device)
    begin = time.perf_counter()
    for _ in range(steps):
        value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        if scheduler is not None:
            with record_function("greedylr"):
                scheduler.step(value)
    wait(device)
    return time.perf_counter() - begin


def cost(name: str, device: torch.device, steps: int, rounds: int) -> dict[str, Any]:
    from recipes.common.speed import peak_flops

    torch.manual_seed(0)
    loss, model, flops, tokens = (lora if "lora" in name else decoder)(name, device)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def timed(greedy: bool) -> float:
        optimizer = torch.optim.AdamW(parameters, lr=BASE_LRS[name], fused=device.type == "cuda")
        scheduler = GreedyLR(optimizer, total_steps=10**6) if greedy else None  # no decay while it is timed
        steps_of(loss, optimizer, scheduler, 3, device)
        return steps_of(loss, optimizer, scheduler, steps, device)

    def profiled(greedy: bool) -> dict[str, float]:
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        with profile(activities=activities) as seen:
            timed(greedy)
        events = {event.key: event for event in seen.key_averages()}
        calls = {
            "synchronizations": ("cudaStreamSynchronize", "cudaDeviceSynchronize"),
            "event waits": ("cudaEventSynchronize",),
        }
        found = {
            what: sum(events[n].count for n in names if n in events) / (steps + 3) for what, names in calls.items()
        }
        host = events["greedylr"].cpu_time_total / events["greedylr"].count if greedy else 0.0
        return {"host_us": host, **found}

    timed(True)  # compiles
    pairs = [(timed(False), timed(True)) for _ in range(rounds)]  # interleaved
    ratios = [without / with_it for without, with_it in pairs]
    half = 1.96 * statistics.stdev(ratios) / math.sqrt(rounds)
    without, with_it = profiled(False), profiled(True)
    peak, source = peak_flops(device, bf16=device.type == "cuda")
    speed = tokens * steps / statistics.median(seconds for _, seconds in pairs)
    return {
        "model": name,
        "host_us": with_it["host_us"],
        "synchronizations": with_it["synchronizations"] - without["synchronizations"],
        "event_waits": with_it["event waits"] - without["event waits"],
        "throughput": statistics.fmean(ratios),
        "throughput_interval": [statistics.fmean(ratios) - half, statistics.fmean(ratios) + half],
        "tokens_per_second": speed,
        "mfu": speed * flops / peak,
        "peak": source,
    }


# ---- losses ----


def losses(name: str, results: Results) -> None:
    from recipes import pretrain_llm

    words = [*FLAGS[name].split(), "--save-steps", "0"]
    args = pretrain_llm.parse_flags(words)
    tokenizer, config = pretrain_llm.load_config(args)
    data = pretrain_llm.load_data(args, tokenizer)
    for multiple, arm in itertools.product(MULTIPLES, ARMS):
        lr = BASE_LRS[name] * multiple
        job = Job("gpu", f"pretrain-{name}", arm, lr, 0, args.max_steps, multiple)
        if job.key in results.runs:
            continue
        with tempfile.TemporaryDirectory() as out:
            given = ["--learning-rate", str(lr), "--output-dir", out]
            run = pretrain_llm.train(arm, pretrain_llm.parse_flags([*words, *given]), tokenizer, config, data)
        results.add(job, {"loss": run.validation_loss[-1][1], "seconds": round(run.seconds, 1), **run.more})


# ---- report ----


def report(costs: list[dict[str, Any]], results: Results, where: str) -> str:
    lines = [f"{where}.", ""]
    if costs:
        lines += ["| model | host time a step | synchronizations added | event waits added | throughput ratio | MFU |"]
        lines += ["|---|---|---|---|---|---|"]
    for row in costs:
        low, high = row["throughput_interval"]
        lines.append(
            f"| {row['model']} | {row['host_us']:.0f} us | {row['synchronizations']:.2f} | {row['event_waits']:.2f} |"
            f" {row['throughput']:.4f} ({low:.4f} to {high:.4f}) | {row['mfu']:.1%} of {row['peak']} |"
        )
    found = results.of(stage="gpu")
    if found:
        lines += ["", f"| final validation loss | {' | '.join(ARMS)} |", "|---|" + "---|" * len(ARMS)]
    for workload, multiple in sorted({(entry["job"]["workload"], entry["job"]["multiple"]) for entry in found}):
        cells = [[e["loss"] for e in results.of(workload=workload, multiple=multiple, arm=arm)] for arm in ARMS]
        shown = " | ".join(f"{cell[0]:.4f}" if cell else "" for cell in cells)
        lines.append(f"| {workload}, {multiple:g}x | {shown} |")
    return "\n".join([*lines, ""])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_recipes", description=__doc__.split("\n")[0])
    parser.add_argument("what", nargs="?", default="all", choices=["all", "cost", "losses"])
    parser.add_argument("--models", nargs="+", default=["125M", "1B", "lora"], choices=["125M", "1B", "lora"])
    parser.add_argument("--steps", type=int, default=50, help="of one timed part (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=10, help="of one part with and one without (default: %(default)s)"
    )
    parser.add_argument("--tiny", action="store_true", help="small models on CPU, to try the code")
    args = parser.parse_args(argv)
    if not args.tiny and not torch.cuda.is_available():
        print("gpu_recipes: there is no GPU here: run it on a machine with one, or try --tiny", file=sys.stderr)
        sys.exit(2)
    device = torch.device("cpu" if args.tiny else "cuda")
    models = ["tiny", "tiny-lora"] if args.tiny else args.models
    where = "CPU" if args.tiny else torch.cuda.get_device_name()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if args.tiny else RESULTS
        file, results = folder / "gpu_cost.json", Results(folder / "gpu_recipes.jsonl")
        costs = json.loads(file.read_text()) if file.exists() else []
        for name in models:
            if args.what in ("all", "cost") and name not in [row["model"] for row in costs]:
                costs.append(cost(name, device, args.steps, args.rounds))
                file.write_text(json.dumps(costs, indent=1))
            if args.what in ("all", "losses") and "lora" not in name:
                losses(name, results)
        made = report(costs, results, f"{where}, torch {torch.__version__}")
        print(made)
    if not args.tiny:
        replace_part(Path(__file__).parent / "RESULTS.md", made, "gpu")


if __name__ == "__main__":
    main()
