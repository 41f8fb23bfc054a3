"""What `find_lr` finds, next to the best LR of a scan: the table of the LR finder in RESULTS.md.

    python -m benchmarks.find           what is missing, ten minutes on one core, then the table
    python -m benchmarks.find show      the table, from what is there

`find_lr` starts from 0.1x, 1x and 10x the best LR of the scan. A scan trains fixed schedules to the end at several LRs:
the one of `benchmarks.suite search` for the plain loops, and the one of `benchmarks.recipe_table` for the two recipes.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from benchmarks.recipe_table import PARTS, loss_of
from benchmarks.report import replace_part
from benchmarks.store import RESULTS, Job, Results, load_tuned
from greedylr_integrations import FoundLR, find_lr

MULTIPLES = (0.1, 1.0, 10.0)
PLAIN = ("docs-transformer", "digits-mlp", "chats-gru", "tweets-conv", "fashion-cnn")
STEPS = 1000  # total_steps of find_lr, its default


def plain(name: str, lr: float) -> FoundLR:
    """A plain training loop: a workload of the suite, with a fresh batch in each step."""
    from benchmarks.workloads import OPTIMIZERS, WORKLOADS

    torch.manual_seed(0)
    workload, batches = WORKLOADS[name], torch.Generator().manual_seed(1000)
    task = workload.build(STEPS)
    optimizer = OPTIMIZERS[workload.optimizer](task.model.parameters(), lr)
    return find_lr(task.model, range(STEPS), optimizer, lambda step: task.loss(step, batches))


def lora(lr: float) -> FoundLR:
    """SmolLM2-135M on chats, by the recipe's Trainer."""
    from greedylr_integrations import transformers
    from recipes.common import llm
    from recipes.common import trainer as common
    from recipes.finetune_llm import parse_flags

    with tempfile.TemporaryDirectory() as folder:
        words = (
            f"--rows 800 --batch-size 2 --max-length 64 --validation-rows 32 --save-strategy no --output-dir {folder}"
        )
        recipe, args = parse_flags([*words.split(), "--learning-rate", str(lr)])
        tokenizer = common.load_tokenizer(recipe)
        data = llm.load_data(recipe, tokenizer)
        trainer = llm.make_trainer(llm.load_model(recipe, args), args, tokenizer, data, [])
        return transformers.find_lr(trainer, total_steps=STEPS)


def vision(lr: float) -> FoundLR:
    """A CNN on Fashion-MNIST, by the recipe's module."""
    import lightning.pytorch as pl
    from torch.utils.data import DataLoader

    from greedylr_integrations import lightning
    from recipes.common.offline import images
    from recipes.lightning_vision import Module, parse_flags

    pl.seed_everything(0, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        args = parse_flags(["--learning-rate", str(lr), "--output-dir", folder])
        data, _ = images(args.dataset)
        module = Module("greedy", args, side=round(len(data[0]["image"]) ** 0.5))
        trainer = pl.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
        loader = DataLoader(data, args.batch_size, shuffle=True)
        return lightning.find_lr(trainer, module, loader, total_steps=STEPS)


def scans(folder: Path) -> Iterator[tuple[str, float, float, float]]:
    """Name, best LR, and the lowest and highest LR whose final loss is at most 5% above that of the best."""
    searched, recipes = Results(folder / "search.jsonl"), Results(folder / "recipe_table.jsonl")
    for name in PLAIN:
        yield name, *flat(searched.of(workload=name, stage="search"), load_tuned(folder)[name]["arm"])
    for name in ("lora", "vision"):
        runs = [run for run in recipes.of(workload=name) if run["job"]["arm"] != "greedy"]
        if runs := [run for run in runs if run["job"]["steps"] == PARTS[name].steps]:
            best = min(runs, key=loss_of)["job"]["arm"]
            yield name, *flat(runs, best)


def flat(runs: list[dict[str, Any]], arm: str) -> tuple[float, float, float]:
    """The LR with the lowest final loss, averaged over seeds, and the lowest and highest LR that come close to it."""
    by_lr: dict[float, list[float]] = {}
    for run in runs:
        if run["job"]["arm"] == arm:
            by_lr.setdefault(run["job"]["lr"], []).append(loss_of(run))
    means = {lr: sum(losses) / len(losses) for lr, losses in by_lr.items()}
    best = min(means, key=means.__getitem__)
    near = [lr for lr, loss in means.items() if loss <= 1.05 * means[best]]
    return best, min(near), max(near)


def main(argv: list[str]) -> None:
    if argv not in ([], ["show"]):
        raise SystemExit("usage: python -m benchmarks.find [show]")
    torch.set_num_threads(1)
    results = Results(RESULTS / "find.jsonl")
    for name, lr, *_ in [] if argv else list(scans(RESULTS)):
        for multiple in MULTIPLES:
            job = Job("find", name, "find", lr * multiple, 0, STEPS, multiple)
            if job.key not in results.runs:
                find = {"lora": lora, "vision": vision}.get(name, lambda lr, name=name: plain(name, lr))
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    found = find(job.lr)
                results.add(job, {"found": found.lr, "steps": found.steps})
                print(name, f"{job.lr:.1e}: {found.lr}, {found.steps} steps", flush=True)
    replace_part(Path(__file__).with_name("RESULTS.md"), table(results), "find")


def table(results: Results) -> str:
    heads = " | ".join(f"found from {multiple:g}x" for multiple in MULTIPLES)
    lines = [
        f"| training | best LR of the scan | within 5% of its loss | {heads} |",
        "|---|---|---|" + "---|" * len(MULTIPLES),
    ]
    for name, lr, low, high in scans(RESULTS):
        cells = []
        for multiple in MULTIPLES:
            (run,) = results.of(workload=name, multiple=multiple, lr=lr * multiple) or [None]
            cells.append(
                "not run" if run is None else f"{run['found']:.1e}, {run['steps']} steps" if run["found"] else "none"
            )
        lines.append(f"| {name} | {lr:.1e} | {low:.0e} to {high:.0e} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main(sys.argv[1:])
