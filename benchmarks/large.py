"""Larger models, to illustrate the suite: the kind that people train, with few seeds.

    python -m benchmarks.large lora             LoRA on SmolLM2-135M, 3 epochs of chats; about 15 minutes on two cores
    python -m benchmarks.large classify         MiniLM on film reviews; about 15 minutes on two cores
    python -m benchmarks.large gpu              decoders of 30M, 125M and 1B parameters from scratch, on one large GPU

Three schedules at three base LRs each. Continues where it stopped; `python -m benchmarks.report` shows what is there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.store import RESULTS, Job, Results

SCHEDULES = ("greedy", "cosine", "wsd")
SIZES = {"tiny": (64, 2), "30M": (384, 8), "125M": (768, 12), "1B": (1792, 24)}  # width, layers
RECIPES = {
    "lora": (
        "recipes.finetune_llm",
        (2e-5, 2e-4, 6e-4),
        ["--num-train-epochs", "3", "--rows", "112", "--max-length", "64"],
    ),
    "classify": ("recipes.accelerate_text", (1e-5, 1e-4, 3e-4), ["--max-steps", "60"]),
}


def by_recipe(name: str, results: Results) -> None:
    """The recipe's own command line, whose metrics.json is read."""
    module, lrs, flags = RECIPES[name]
    for lr, schedule in itertools.product(lrs, ("greedy", "cosine", "linear")):
        job = Job(name, name, schedule, lr, 0, 0)
        if job.key in results.runs:
            continue
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            words = ["--schedule", schedule, "--learning-rate", str(lr), "--output-dir", str(out), *flags]
            subprocess.run([sys.executable, "-W", "ignore", "-m", module, *words], check=True)
            (run,) = json.loads((out / "metrics.json").read_text())["runs"]
        losses = [loss for _, loss in run["train_loss"]]
        results.add(job, {"loss": run["validation_loss"][-1][1], "start": losses[0], "seconds": run["seconds"]})


def decoder(size: str, device: str) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    width, layers = SIZES[size]
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).to(device)


def train_decoder(
    size: str, arm: str, lr: float, seed: int, steps: int, device: str, length: int = 256
) -> dict[str, Any]:
    """A decoder on chats, bf16 if there is a GPU: final validation loss."""
    from benchmarks.arms import ARMS, Setting
    from benchmarks.workloads import Task, chats

    torch.manual_seed(seed)
    model, (data, held_out) = decoder(size, device), chats(4096)
    g = torch.Generator().manual_seed(1000 + seed)

    def loss_of(source: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        tokens = source[starts[:, None] + torch.arange(length)].to(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=device != "cpu"):
            return model(input_ids=tokens, labels=tokens).loss

    def loss(step: int, g: torch.Generator) -> torch.Tensor:
        return loss_of(data, torch.randint(len(data) - length, (16,), generator=g))

    def validate() -> torch.Tensor:
        return loss_of(held_out, torch.linspace(0, len(held_out) - length, 64).long())

    setting = Setting(Task(model, loss, validate), lambda p, lr: torch.optim.AdamW(p, lr=lr), lr, steps)
    method, begun = ARMS[arm].build(setting), time.perf_counter()
    start = setting.validate()
    for step in range(steps):
        value = loss(step, g)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        method.optimizer.step()
        method.optimizer.zero_grad()
        method.step(float(value.detach()))
    return {"loss": setting.validate(), "start": start, "seconds": round(time.perf_counter() - begun, 1)}


def on_gpu(results: Results, sizes: list[str], steps: int, device: str) -> None:
    for size, multiple, arm, seed in itertools.product(sizes, (0.1, 1.0, 3.0), SCHEDULES, range(2)):
        lr = 1e-3 * multiple
        job = Job("gpu", f"decoder-{size}", arm, lr, seed, steps, multiple)
        if job.key not in results.runs:
            results.add(job, train_decoder(size, arm, lr, seed, steps, device))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large", description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=[*RECIPES, "gpu"])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--sizes", nargs="+", default=["30M", "125M", "1B"], choices=list(SIZES))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args(argv)
    if args.what == "gpu" and args.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here: run it on a machine with one, or try --device cpu --sizes tiny --steps 20")
    results = Results(args.results / "large.jsonl")
    if args.what == "gpu":
        on_gpu(results, args.sizes, args.steps, args.device)
    else:
        by_recipe(args.what, results)


if __name__ == "__main__":
    main()
