"""What GreedyLR costs and gains on one GPU: a 125M decoder from scratch (bf16, compiled), then LoRA on it.

    python -m benchmarks.gpu_recipes            all of it, to RESULTS.md, a few minutes each; continues where it stopped
    python -m benchmarks.gpu_recipes cost       host time and synchronizations a step, throughput, MFU
    python -m benchmarks.gpu_recipes pretrain   1,000 steps from scratch: three schedules at 6e-5, 6e-4 and 6e-3
    python -m benchmarks.gpu_recipes lora       300 steps of LoRA on that decoder, other data: 1e-4, 1e-3 and 1e-2
    python -m benchmarks.gpu_recipes show       the tables, from what is there, to RESULTS.md; needs no GPU
    python -m benchmarks.gpu_recipes --tiny     the same code on CPU in a minute; it prints, and writes no results

It needs torch and transformers, but no network: the data are the bytes of the source files that come with torch (Python
for pre-training, C++ for fine-tuning), and the decoder predicts bytes. For the cost, a run with GreedyLR is compared
with one without a scheduler.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from benchmarks.report import replace_part
from benchmarks.store import RESULTS, Job, Results
from greedylr_integrations import GreedyLR
from recipes.common.decoder import SIZES, llama
from recipes.common.schedules import fixed
from recipes.common.speed import flops_per_token, peak_flops

MULTIPLES = (0.1, 1.0, 10.0)
ARMS = ("greedy", "wsd", "cosine")
VALIDATION = 64  # rows


@dataclass(frozen=True)
class Task:
    """One kind of run."""

    data: str
    lr: float
    steps: int
    batch: int
    length: int


TASKS = {
    "pretrain": Task("Python", 6e-4, 1000, 16, 512),
    "lora": Task("C++", 1e-3, 300, 8, 512),
    "tiny pretrain": Task("Python", 3e-3, 8, 2, 16),
    "tiny lora": Task("C++", 1e-3, 8, 2, 16),
}
FILES = {"Python": "*.py", "C++": "*.h"}


# ---- data and models ----


@cache
def rows_of(language: str, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of bytes for training, and rows from other files for validation."""
    files = sorted(Path(torch.__file__).parent.rglob(FILES[language]))
    sides = []
    for part in ([f for i, f in enumerate(files) if i % 20], files[::20]):
        data = torch.frombuffer(bytearray(b"\0".join(file.read_bytes() for file in part)), dtype=torch.uint8)
        sides.append(data[: len(data) // (length + 1) * (length + 1)].view(-1, length + 1))
    train, held_out = sides
    return train, held_out[:: max(1, len(held_out) // VALIDATION)][:VALIDATION]


def decoder(tiny: bool, device: torch.device, seed: int = 0) -> torch.nn.Module:
    from transformers import LlamaForCausalLM, set_seed

    width, layers = (16, 2) if tiny else SIZES["125M"]
    set_seed(seed)
    return LlamaForCausalLM(llama(256, width, layers, use_cache=False)).to(device)


class Lora(torch.nn.Module):
    """A frozen linear layer, plus the product of two small matrices, which are trained."""

    def __init__(self, layer: torch.nn.Linear, rank: int = 8) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = torch.nn.Linear(layer.in_features, rank, bias=False, device=layer.weight.device)
        self.up = torch.nn.Linear(rank, layer.out_features, bias=False, device=layer.weight.device)
        torch.nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + 2 * self.up(self.down(x))


def with_lora(model: torch.nn.Module) -> torch.nn.Module:
    """LoRA on all linear layers of the decoder's blocks."""
    model.requires_grad_(False)
    for module in [module for module in model.model.layers.modules() if not isinstance(module, Lora)]:
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.Linear):
                setattr(module, name, Lora(child))
    return model


def loss_function(model: torch.nn.Module, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """Mean loss of rows, in bf16 and compiled on a GPU."""
    cuda = device.type == "cuda"

    def loss(rows: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            logits = model(input_ids=rows[:, :-1]).logits
        return F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())

    return torch.compile(loss) if cuda else loss


def optimizer_of(model: torch.nn.Module, lr: float, device: torch.device) -> torch.optim.AdamW:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=(0.9, 0.95), fused=device.type == "cuda")


# ---- cost ----


def where(device: torch.device) -> str:
    return f"{torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}, torch {torch.__version__}"


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def cost(name: str, device: torch.device, steps: int, rounds: int) -> dict[str, Any]:
    task, tiny = TASKS[name], name.startswith("tiny")
    model = decoder(tiny, device)
    config = model.config
    if name.endswith("lora"):
        model = with_lora(model)
    loss_of = loss_function(model, device)
    rows = rows_of(task.data, task.length)[0][: task.batch].long().to(device)

    def timed(greedy: bool) -> tuple[float, float]:
        """Seconds that the steps take, including the work of the device; host seconds in optimizer and scheduler."""
        optimizer = optimizer_of(model, task.lr, device)
        scheduler = GreedyLR(optimizer, total_steps=10**6) if greedy else None  # searches all the time
        begin = host = 0.0
        for step in range(steps + 3):
            if step == 3:
                wait(device)
                begin, host = time.perf_counter(), 0.0
            value = loss_of(rows)
            value.backward()
            before = time.perf_counter()
            optimizer.step()  # in which the slope is measured
            if scheduler is not None:
                scheduler.step(value)
            host += time.perf_counter() - before
            optimizer.zero_grad()
        wait(device)
        return time.perf_counter() - begin, host

    def profiled(greedy: bool) -> dict[str, float]:
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        with profile(activities=activities) as seen:
            timed(greedy)
        events = {event.key: event for event in seen.key_averages()}
        calls = {
            "synchronizations": ("cudaStreamSynchronize", "cudaDeviceSynchronize"),
            "event_waits": ("cudaEventSynchronize",),
        }
        return {what: sum(events[n].count for n in names if n in events) / (steps + 3) for what, names in calls.items()}

    timed(True)  # compiles
    pairs = [(timed(False), timed(True)) for _ in range(rounds)]  # interleaved
    ratios = [without / with_it for (without, _), (with_it, _) in pairs]
    host = statistics.median(with_it - without for (_, without), (_, with_it) in pairs)
    half = 1.96 * statistics.stdev(ratios) / math.sqrt(rounds)
    without, with_it = profiled(False), profiled(True)
    peak, source = peak_flops(device, bf16=device.type == "cuda")
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    flops = flops_per_token(model, config, task.length) - 2 * frozen  # frozen weights get no gradient
    speed = task.batch * task.length * steps / statistics.median(seconds for _, (seconds, _) in pairs)
    return {
        "model": name,
        "where": where(device),
        "host_us": 1e6 * host / steps,
        "synchronizations": with_it["synchronizations"] - without["synchronizations"],
        "event_waits": with_it["event_waits"] - without["event_waits"],
        "throughput": statistics.fmean(ratios),
        "throughput_interval": [statistics.fmean(ratios) - half, statistics.fmean(ratios) + half],
        "tokens_per_second": speed,
        "mfu": speed * flops / peak,
        "peak": source,
    }


# ---- losses ----


def train(task: Task, arm: str, lr: float, model: torch.nn.Module, loss_of, device: torch.device) -> dict[str, Any]:
    """Final validation loss, and what greedy found."""
    train_rows, validation = rows_of(task.data, task.length)
    optimizer = optimizer_of(model, lr, device)
    if arm == "greedy":
        scheduler = GreedyLR(optimizer, total_steps=task.steps)
    else:
        scheduler = fixed(arm, optimizer, task.steps, task.steps // 20)
    drawn = torch.Generator().manual_seed(0)
    begin = time.perf_counter()
    for _ in range(task.steps):
        rows = train_rows[torch.randint(len(train_rows), (task.batch,), generator=drawn)].long()
        loss = loss_of(rows.to(device, non_blocking=True))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step(loss) if arm == "greedy" else scheduler.step()
    wait(device)
    seconds = time.perf_counter() - begin
    with torch.no_grad():
        parts = validation.long().to(device).split(task.batch)
        final = sum(float(loss_of(part)) * len(part) for part in parts) / len(validation)
    found = scheduler.suggested_lr() if arm == "greedy" else None
    loss = final if math.isfinite(final) else None
    return {"loss": loss, "seconds": round(seconds, 1), "found": found, "where": where(device)}


def losses(name: str, device: torch.device, results: Results, pretrained: Path) -> None:
    """All schedules at all LRs from the same weights, with one compiled function."""
    task, tiny = TASKS[name], name.startswith("tiny")
    model = decoder(tiny, device)
    if name.endswith("lora"):
        if not pretrained.exists():
            print(f"gpu_recipes: {name} needs {pretrained.name}, which the pretrain part writes: run that part first")
            return
        model.load_state_dict(torch.load(pretrained, map_location=device))
        model = with_lora(model)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    loss_of = loss_function(model, device)
    for multiple, arm in itertools.product(sorted(MULTIPLES, key=lambda m: abs(math.log(m))), ARMS):
        job = Job("gpu", name, arm, task.lr * multiple, 0, task.steps, multiple)
        keeps = name.endswith("pretrain") and (arm, multiple) == ("wsd", 1.0)
        if job.key in results.runs and (not keeps or pretrained.exists()):
            continue
        model.load_state_dict(start)
        result = train(task, arm, job.lr, model, loss_of, device)
        if keeps:
            torch.save(model.state_dict(), pretrained)
        results.add(job, result)
        print(f"{name}, {arm} from {job.lr:.0e}: {result}", flush=True)


# ---- report ----


def report(costs: list[dict[str, Any]], results: Results) -> str:
    machines = {row["where"] for row in [*costs, *results.of(stage="gpu")]}
    lines = ["; ".join(sorted(machines)) + ".", ""]
    if costs:
        lines += ["| model | host time a step | synchronizations added | event waits added | throughput ratio | MFU |"]
        lines += ["|---|---|---|---|---|---|"]
    for row in costs:
        low, high = row["throughput_interval"]
        host = "" if row["host_us"] is None else f"{row['host_us']:.0f} us"
        lines.append(
            f"| {row['model']} | {host} | {row['synchronizations']:.2f} | {row['event_waits']:.2f} |"
            f" {row['throughput']:.4f} ({low:.4f} to {high:.4f}) | {row['mfu']:.1%} of {row['peak']} |"
        )
    found = results.of(stage="gpu")
    if found:
        lines += ["", f"| final validation loss | {' | '.join(ARMS)} | LR that greedy found |"]
        lines += ["|---|" + "---|" * (len(ARMS) + 1)]
    for workload, lr in sorted({(entry["job"]["workload"], entry["job"]["lr"]) for entry in found}):
        of = {entry["job"]["arm"]: entry for entry in results.of(workload=workload, lr=lr)}
        cells = [f"{of[arm]['loss']:.4f}" if arm in of and of[arm]["loss"] else "" for arm in ARMS]
        lr_found = of.get("greedy", {}).get("found")
        lines.append(f"| {workload}, {lr:.0e} | {' | '.join(cells)} | {f'{lr_found:.1e}' if lr_found else ''} |")
    return "\n".join([*lines, ""])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_recipes", description=__doc__.split("\n")[0])
    parser.add_argument("what", nargs="?", default="all", choices=["all", "cost", "pretrain", "lora", "show"])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--steps", type=int, default=50, help="of one timed part (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=10, help="of one part with and one without (default: %(default)s)"
    )
    parser.add_argument("--tiny", action="store_true", help="small models on CPU, to try the code")
    args = parser.parse_args(argv)
    if not args.tiny and args.what != "show" and not torch.cuda.is_available():
        print("gpu_recipes: there is no GPU here: run it on a machine with one, or try --tiny", file=sys.stderr)
        sys.exit(2)
    device = torch.device("cpu" if args.tiny else "cuda")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if args.tiny else args.results
        file, results = folder / "gpu_cost.json", Results(folder / "gpu_recipes.jsonl")
        costs = json.loads(file.read_text()) if file.exists() else []
        for part in ("pretrain", "lora"):
            name = f"tiny {part}" if args.tiny else part
            if args.what in ("all", "cost") and name not in [row["model"] for row in costs]:
                costs.append(cost(name, device, args.steps, args.rounds))
                file.write_text(json.dumps(costs, indent=1))
            if args.what in ("all", part):
                losses(name, device, results, folder / "gpu_decoder.pt")
        made = report(costs, results)
        print(made)
    if not args.tiny and args.results == RESULTS:
        replace_part(Path(__file__).parent / "RESULTS.md", made, "gpu")


if __name__ == "__main__":
    main()
