"""Greedy against linear, cosine and warmup-stable-decay in two recipes: the table of recipes in RESULTS.md.

    python -m benchmarks.recipe_table            all of it: about an hour on one core; continues where it stopped
    python -m benchmarks.recipe_table search     the LR that is best for the strongest fixed schedule
    python -m benchmarks.recipe_table pretrain   four schedules at a tenth to ten times of it, five seeds
    python -m benchmarks.recipe_table lora       four schedules at finetune_llm's own LR, three seeds
    python -m benchmarks.recipe_table show       the table, from what is there, to RESULTS.md

`pretrain_llm` trains a decoder of 1.3M parameters on Python's documentation, its vocabulary 4,096 tokens learned from
that, so that a run of a minute on one core gets somewhere; `finetune_llm` is LoRA on SmolLM2-135M and real chats.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.report import replace_part
from benchmarks.scoring import reach
from benchmarks.store import RESULTS, Job, Results
from recipes.common.stop import Stopped

FIXED = ("linear", "cosine", "wsd")
SEARCHED = (3e-4, 1e-3, 3e-3, 1e-2)
MULTIPLES = (0.1, 1.0, 3.0, 10.0)
SEEDS, LORA_SEEDS, SEARCH_SEED = 5, 3, 100
STEPS, LORA_STEPS, LORA_LR = 280, 30, 2e-4
VOCABULARY = 4096
PRETRAIN = "--model 5M --width 128 --layers 4 --max-length 128 --batch-size 4 --validation-rows 64 --save-steps 0"
LORA = "--rows 200 --batch-size 2 --max-length 64 --validation-rows 32 --eval-steps 0.5 --save-strategy no --no-plot"
NAMES = {"greedy": "greedy", "linear": "linear", "cosine": "cosine", "wsd": "warmup-stable-decay"}


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


def lora(job: Job, flags: str) -> dict[str, Any]:
    from recipes import finetune_llm

    with tempfile.TemporaryDirectory() as out:
        given = ["--learning-rate", job.lr, "--seed", job.seed, "--max-steps", job.steps, "--schedule", job.arm]
        finetune_llm.main([*flags.split(), *map(str, given), "--output-dir", f"{out}/run"])
        (run,) = json.loads(Path(out, "run/metrics.json").read_text())["runs"]
    return result_of(run)


def result_of(run: dict[str, Any]) -> dict[str, Any]:
    """Final validation loss, None for a run that diverged: it ends above its start, or is NaN or infinite."""
    start, loss = run["train_loss"][0][1], run["validation_loss"][-1][1]
    return {"loss": loss if loss < start else None, "start": start, "seconds": round(run["seconds"], 1)}


def do(results: Results, jobs: list[Job], flags: dict[str, str]) -> None:
    import torch

    torch.set_num_threads(1)
    missing = [job for job in jobs if job.key not in results.runs]
    for i, job in enumerate(missing, 1):
        begun = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            result = (lora if job.workload == "lora" else pretrain)(job, flags[job.workload])
        results.add(job, result)
        seconds = time.perf_counter() - begun
        print(f"{i}/{len(missing)} {job.stage} {job.arm} {job.lr:.0e}: {result['loss']}, {seconds:.0f} s", flush=True)


def search_jobs(steps: int) -> list[Job]:
    return [Job("search", "pretrain", arm, lr, SEARCH_SEED, steps) for lr, arm in itertools.product(SEARCHED, FIXED)]


def tuned(results: Results) -> tuple[float, str] | None:
    """LR and schedule of the lowest loss of the search; None before it is done."""
    found = results.of(stage="search")
    if len(found) < len(SEARCHED) * len(FIXED):
        return None
    best = min(found, key=lambda entry: math.inf if entry["loss"] is None else entry["loss"])
    return best["job"]["lr"], best["job"]["arm"]


def pretrain_jobs(lr: float, steps: int) -> list[Job]:
    """One seed of all first, so that what is there at any time is a table."""
    arms = itertools.product(range(SEEDS), MULTIPLES, NAMES)
    return [Job("table", "pretrain", arm, lr * multiple, seed, steps, multiple) for seed, multiple, arm in arms]


def lora_jobs(steps: int) -> list[Job]:
    return [
        Job("table", "lora", arm, LORA_LR, seed, steps, 1.0)
        for seed, arm in itertools.product(range(LORA_SEEDS), NAMES)
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
    mean, error = mean_and_error([greedy[seed] - other[seed] for seed in seeds])
    if not math.isfinite(mean) or math.isnan(error):
        return "undecided"
    by = f"by {abs(mean):.3f} ± {error:.3f}"
    if abs(mean) <= reach(error, len(seeds)):
        return f"{'behind' if mean > 0 else 'ahead'} {by}, undecided"
    return f"{'**loses**' if mean > 0 else 'wins'} {by}"


def table(results: Results) -> str:
    lines = [f"| run | base LR | seeds | {' | '.join(NAMES.values())} | greedy against the best of the others |"]
    lines += ["|---|" + "---|" * (len(NAMES) + 3)]
    found = tuned(results)
    rows = [("lora", "finetune_llm, LoRA", LORA_LR, 1.0, "")]
    if found is not None:
        labels = {0.1: ", a tenth", 1.0: ", tuned", 3.0: ", three times", 10.0: ", ten times"}
        rows = [("pretrain", "pretrain_llm", found[0] * m, m, labels[m]) for m in MULTIPLES] + rows
    for workload, name, lr, multiple, label in rows:
        losses: dict[str, dict[int, float]] = {arm: {} for arm in NAMES}
        for entry in results.of(stage="table", workload=workload, lr=lr, multiple=multiple):
            losses[entry["job"]["arm"]][entry["job"]["seed"]] = math.inf if entry["loss"] is None else entry["loss"]
        seeds = set.intersection(*map(set, losses.values()))  # those of all schedules, while runs are missing
        if not seeds:
            continue
        losses = {arm: {seed: values[seed] for seed in seeds} for arm, values in losses.items()}
        means = {arm: mean_and_error(list(values.values())) for arm, values in losses.items()}
        cells = [
            "diverged" if not math.isfinite(mean) else f"{mean:.3f}" + ("" if math.isnan(error) else f" ± {error:.3f}")
            for mean, error in means.values()
        ]
        best = min(FIXED, key=lambda arm: means[arm][0])
        against = f"{verdict(losses['greedy'], losses[best])} ({NAMES[best]})"
        lines.append(f"| {name} | {lr:.0e}{label} | {len(seeds)} | {' | '.join(cells)} | {against} |")
    if len(lines) == 2:
        return "No runs yet: `python -m benchmarks.recipe_table`.\n"
    seconds = [entry["seconds"] for entry in results.of(stage="table", workload="pretrain")]
    note = (
        "Final validation loss, mean and standard error over the seeds; wins and losses are paired by seed, and decided"
        " if Student's 95% interval excludes 0."
    )
    if found is not None:
        note += f" The tuned LR is the best of {len(SEARCHED)} for the strongest fixed schedule, {NAMES[found[1]]}."
    if seconds:
        note += (
            f" On one core a run of pretrain_llm took {statistics.median(seconds):.0f} s, at most {max(seconds):.0f} s."
        )
    return "\n".join([*lines, "", note, ""])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipe_table", description=__doc__.split("\n")[0])
    parser.add_argument("what", nargs="?", default="all", choices=["all", "search", "pretrain", "lora", "show"])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of recipe_table.jsonl")
    parser.add_argument("--steps", type=int, default=STEPS, help="of pretrain_llm (default: %(default)s)")
    parser.add_argument("--lora-steps", type=int, default=LORA_STEPS, help="of finetune_llm (default: %(default)s)")
    parser.add_argument("--pretrain-flags", default=PRETRAIN, help="to try it small")
    parser.add_argument("--lora-flags", default=LORA, help="to try it small")
    parser.add_argument("--output", type=Path, help="a folder with RESULTS.md in place of the project's")
    args = parser.parse_args(argv)
    results = Results(args.results / "recipe_table.jsonl")
    flags = {"pretrain": args.pretrain_flags, "lora": args.lora_flags}
    if args.what in ("all", "search"):
        do(results, search_jobs(args.steps), flags)
    if args.what in ("all", "pretrain"):
        found = tuned(results)
        if found is None:
            parser.error("the tuned LR is not known yet: run `search` first")
        do(results, pretrain_jobs(found[0], args.steps), flags)
    if args.what in ("all", "lora"):
        do(results, lora_jobs(args.lora_steps), flags)
    made = table(results)
    print(made)
    if args.what in ("all", "show"):
        replace_part((args.output or Path(__file__).parent) / "RESULTS.md", made, "recipes")


if __name__ == "__main__":
    try:
        main()
    except Stopped as stopped:
        sys.exit(128 + stopped.number)
