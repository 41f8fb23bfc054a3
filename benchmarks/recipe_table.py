"""Greedy against fixed schedules in the recipes: the table of recipes in RESULTS.md.

    python -m benchmarks.recipe_table            all of it: about four hours on one core; continues where it stopped
    python -m benchmarks.recipe_table lora       one of PARTS: the LR that is best for a fixed schedule if it is not
                                                 given, then each schedule at multiples of it
    python -m benchmarks.recipe_table show       the table, from what is there, to RESULTS.md

`pretrain_llm` trains a decoder on Python's documentation, with a vocabulary of 4,096 tokens learned from it, so that a
run of a minute on one core makes progress; `finetune_llm` is SmolLM2-135M on real chats; `lightning_vision` is a CNN on
Fashion-MNIST.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import io
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.report import replace_part
from benchmarks.scoring import reach
from benchmarks.store import RESULTS, Job, Results
from recipes.common.stop import Stopped

NAMES = {"greedy": "greedy", "linear": "linear", "cosine": "cosine", "wsd": "warmup-stable-decay"}
VOCABULARY = 4096
SEARCH_SEED = 100
PRETRAIN = "--model 5M --max-length 128 --batch-size 4 --validation-rows 64 --save-steps 0 "
FINETUNE = "--rows 400 --batch-size 2 --max-length 64 --validation-rows 32 --eval-steps 80 --save-strategy no "


@dataclass(frozen=True)
class Part:
    """A recipe and how it is run."""

    label: str
    recipe: str
    flags: str
    steps: int
    multiples: tuple[float, ...] = (0.1, 1.0, 10.0)
    seeds: int = 3
    arms: tuple[str, ...] = ("greedy", "cosine", "wsd")
    lr: float | None = None  # None: the best of `searched`
    searched: tuple[float, ...] = ()

    @property
    def fixed(self) -> tuple[str, ...]:
        return tuple(arm for arm in self.arms if arm != "greedy")


PARTS = {
    "pretrain": Part(
        "pretrain_llm, 1.3M",
        "pretrain_llm",
        PRETRAIN + "--width 128 --layers 4",
        280,
        multiples=(0.1, 1.0, 3.0, 10.0),
        seeds=5,
        arms=("greedy", "linear", "cosine", "wsd"),
        searched=(3e-4, 1e-3, 3e-3, 1e-2),
    ),
    "pretrain_10M": Part(
        "pretrain_llm, 10M", "pretrain_llm", PRETRAIN + "--width 352 --layers 6", 280, seeds=2, lr=1e-3
    ),
    "lora": Part("finetune_llm, LoRA", "finetune_llm", FINETUNE, 80, lr=2e-4),
    "full": Part("finetune_llm, full", "finetune_llm", FINETUNE + "--full", 80, lr=2e-5),
    "vision": Part(
        "lightning_vision", "lightning_vision", "--save-steps 100000", 1000, searched=(3e-3, 1e-2, 3e-2, 1e-1)
    ),
}


# ---- runs ----


def learn_tokens(texts: list[str], folder: Path) -> None:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2TokenizerFast

    end, bpe = "<|endoftext|>", ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=VOCABULARY, special_tokens=[end], show_progress=False)
    tokenizer = GPT2TokenizerFast(tokenizer_object=bpe._tokenizer, eos_token=end, bos_token=end, unk_token=end)
    tokenizer.save_pretrained(folder)


@functools.cache
def pretraining(flags: str):
    """Tokenizer, configuration and data: the same for all runs."""
    from recipes import pretrain_llm
    from recipes.common.offline import cache_dir, python_docs

    words = flags.split()
    folder = cache_dir() / f"python-docs-bpe-{VOCABULARY}"
    if "--tokenizer" not in words:
        words += ["--tokenizer", str(folder)]
        if not (folder / "tokenizer_config.json").exists():
            learn_tokens(python_docs()["text"], folder)
    args = pretrain_llm.parse_flags(words)
    tokenizer, config = pretrain_llm.load_config(args)
    return words, tokenizer, config, pretrain_llm.load_data(args, tokenizer)


def pretrain(job: Job, flags: str) -> dict[str, Any]:
    from recipes import pretrain_llm

    words, *parts = pretraining(flags)
    with tempfile.TemporaryDirectory() as out:
        given = ["--learning-rate", job.lr, "--seed", job.seed, "--max-steps", job.steps, "--output-dir", out]
        args = pretrain_llm.parse_flags([*words, *map(str, given)])
        run = pretrain_llm.train(job.arm, args, *parts)
    return result_of(run.to_row())


def whole(job: Job, recipe: str, flags: str) -> dict[str, Any]:
    """A run by the recipe's own command."""
    main = importlib.import_module(f"recipes.{recipe}").main
    with tempfile.TemporaryDirectory() as out:
        given = ["--learning-rate", job.lr, "--seed", job.seed, "--max-steps", job.steps, "--schedule", job.arm]
        main([*flags.split(), *map(str, given), "--no-plot", "--output-dir", f"{out}/run"])
        (run,) = json.loads(Path(out, "run/metrics.json").read_text())["runs"]
    return result_of(run)


def result_of(run: dict[str, Any]) -> dict[str, Any]:
    """Final validation loss, None for a run that diverged: it ends above its start, or is NaN or infinite.

    The start is the validation loss before the first step, if there was one: the first batch may be an easy one.
    """
    (step, first), (_, loss) = run["validation_loss"][0], run["validation_loss"][-1]
    start = run["train_loss"][0][1] if step else first
    result = {"loss": loss if loss < start else None, "start": start, "seconds": round(run["seconds"], 1)}
    return {**result, "found": run["next_learning_rate"]}


def do(results: Results, jobs: list[Job]) -> None:
    import torch

    torch.set_num_threads(1)
    missing = [job for job in jobs if job.key not in results.runs]
    for i, job in enumerate(missing, 1):
        part, begun = PARTS[job.workload], time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            train = pretrain(job, part.flags) if part.recipe == "pretrain_llm" else whole(job, part.recipe, part.flags)
        results.add(job, train)
        seconds = time.perf_counter() - begun
        print(
            f"{i}/{len(missing)} {job.stage} {job.workload} {job.arm} {job.lr:.0e}: {train['loss']}, {seconds:.0f} s",
            flush=True,
        )


def search_jobs(name: str) -> list[Job]:
    part = PARTS[name]
    return [
        Job("search", name, arm, lr, SEARCH_SEED, part.steps)
        for lr, arm in itertools.product(part.searched, part.fixed)
    ]


def base_lr(results: Results, name: str) -> float | None:
    """The LR of 1x: that of the lowest loss of the search, if there is one. None before it is done."""
    jobs = search_jobs(name)
    if not jobs:
        return PARTS[name].lr
    if not all(job.key in results.runs for job in jobs):
        return None
    best = min(jobs, key=lambda job: loss_of(results.runs[job.key]))
    return best.lr


def loss_of(entry: dict[str, Any]) -> float:
    return math.inf if entry["loss"] is None else entry["loss"]


def table_jobs(name: str, lr: float) -> list[Job]:
    """All runs of one seed first, so that there is a complete table at any time."""
    part = PARTS[name]
    return [
        Job("table", name, arm, lr * multiple, seed, part.steps, multiple)
        for seed, multiple, arm in itertools.product(range(part.seeds), part.multiples, part.arms)
    ]


# ---- the table ----


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error; infinite if a run diverged, NaN for one value."""
    if not all(map(math.isfinite, values)):
        return math.inf, math.nan
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values), error


def verdict(greedy: dict[int, float], other: dict[int, float]) -> str:
    """Who wins, from the losses by seed: the paired difference decides if its 95% interval excludes 0."""
    seeds = sorted(greedy.keys() & other.keys())
    lost = sum(not math.isfinite(other[seed]) for seed in seeds)
    if lost and all(math.isfinite(greedy[seed]) for seed in seeds):
        return f"wins, since {lost} of {len(seeds)} diverged"
    mean, error = mean_and_error([greedy[seed] - other[seed] for seed in seeds])
    if not math.isfinite(mean) or math.isnan(error):
        return "undecided"
    by = f"by {abs(mean):.3f} ± {error:.3f}"
    if abs(mean) <= reach(error, len(seeds)):
        return f"{'behind' if mean > 0 else 'ahead'} {by}, undecided"
    return f"{'**loses**' if mean > 0 else 'wins'} {by}"


def compared(
    losses: dict[str, dict[int, float]], fixed: Sequence[str]
) -> tuple[set[int], dict[str, tuple[float, float]], str, str] | None:
    """Of losses by arm and seed, from the seeds that all arms have: the seeds, mean and standard error of each arm,
    the best of the `fixed` arms, and whether greedy wins against it. None if there are no such seeds."""
    seeds = set.intersection(*map(set, losses.values()))
    if not seeds:
        return None
    losses = {arm: {seed: values[seed] for seed in seeds} for arm, values in losses.items()}
    means = {arm: mean_and_error(list(values.values())) for arm, values in losses.items()}
    best = min(fixed, key=lambda arm: means[arm][0])
    return seeds, means, best, verdict(losses["greedy"], losses[best])


DECIDED = (
    "Final validation loss, mean and standard error over the seeds; wins and losses are paired by seed, and decided"
    " if Student's 95% interval excludes 0."
)


def table(results: Results) -> str:
    lines = [f"| run | base LR | seeds | {' | '.join(NAMES.values())} | greedy against the best of the others |"]
    lines += ["|---|" + "---|" * (len(NAMES) + 3)]
    for name, part in PARTS.items():
        lr = base_lr(results, name)
        if lr is not None:
            lines += [row for m in part.multiples if (row := row_of(results, name, lr, m))]
    if len(lines) == 2:
        return "No runs yet: `python -m benchmarks.recipe_table`.\n"
    return "\n".join([*lines, "", f"{DECIDED} The tuned LR is the best of four for the strongest fixed schedule.", ""])


def row_of(results: Results, name: str, lr: float, multiple: float) -> str | None:
    """One base LR of a recipe, from the seeds that all its schedules have. None if there are none yet."""
    part = PARTS[name]
    losses: dict[str, dict[int, float]] = {arm: {} for arm in part.arms}
    for job in table_jobs(name, lr):
        if job.multiple == multiple and job.key in results.runs:
            losses[job.arm][job.seed] = loss_of(results.runs[job.key])
    if (found := compared(losses, part.fixed)) is None:
        return None
    seeds, means, best, won = found
    against = f"{won} ({NAMES[best]})"
    cells = " | ".join(cell(*means[arm]) if arm in means else "" for arm in NAMES)
    at = "tuned" if part.searched and multiple == 1 else f"{multiple:g}x"
    return f"| {part.label} | {lr * multiple:.0e}, {at} | {len(seeds)} | {cells} | {against} |"


def cell(mean: float, error: float) -> str:
    return "diverged" if not math.isfinite(mean) else f"{mean:.3f}" + ("" if math.isnan(error) else f" ± {error:.3f}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipe_table", description=__doc__.split("\n")[0])
    parser.add_argument("what", nargs="*", default=["all"], help=f"{', '.join(PARTS)}, or show (default: all of it)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of recipe_table.jsonl")
    parser.add_argument("--output", type=Path, help="a folder with RESULTS.md in place of the project's")
    args = parser.parse_args(argv)
    for name in set(args.what) - {*PARTS, "all", "show"}:
        parser.error(f"{name!r} is unknown: choose from {', '.join(PARTS)}, all and show")
    results = Results(args.results / "recipe_table.jsonl")
    for name in PARTS if "all" in args.what else [name for name in args.what if name in PARTS]:
        do(results, search_jobs(name))
        do(results, table_jobs(name, base_lr(results, name)))
    made = table(results)
    print(made)
    if {"all", "show"} & {*args.what}:
        replace_part((args.output or Path(__file__).parent) / "RESULTS.md", made, "recipes")


if __name__ == "__main__":
    try:
        main()
    except Stopped as stopped:
        sys.exit(128 + stopped.number)
