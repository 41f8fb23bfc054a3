"""Classify film reviews with Accelerate, the learning rate following the loss.

    python -m recipes.accelerate_text                                # MiniLM on reviews, split by film
    python -m recipes.accelerate_text --compare greedy cosine linear
    accelerate launch --num-processes 2 -m recipes.accelerate_text

Writes metrics.json and loss_and_lr.png into --output-dir.
"""

from __future__ import annotations

import time

from recipes.common.flags import agreed, finish, loading, parse, parser, run, run_all
from recipes.common.offline import minilm, reviews
from recipes.common.report import Run, peak_memory_gib
from recipes.common.schedules import fixed

MINILM = "minilm"


def load_model(args):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    path = minilm() if args.model == MINILM else args.model
    with loading("model", args.model):
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=2)
    return model, tokenizer


def load_data(args):
    """Train and test rows of `text` and `label`."""
    if args.dataset == "reviews":
        return reviews()
    from datasets import load_dataset

    with loading("dataset", args.dataset):
        parts = load_dataset(args.dataset)
        return [parts["train"], parts["test"]]


def train(schedule: str, args, accelerator, data) -> Run:
    import torch
    from torch.utils.data import DataLoader
    from tqdm.auto import tqdm
    from transformers import DataCollatorWithPadding, set_seed

    from greedylr_integrations.accelerate import GreedyLR

    set_seed(args.seed)
    model, tokenizer = load_model(args)
    rows = min(args.validation_rows, len(data[1]))
    tokenized = [
        part.map(lambda row: tokenizer(row["text"], truncation=True, max_length=64), remove_columns=["text"])
        for part in (data[0], data[1].select(range(rows)))
    ]
    collate = DataCollatorWithPadding(tokenizer)
    loaders = [
        DataLoader(tokenized[0], batch_size=args.batch_size, shuffle=True, collate_fn=collate, drop_last=True),
        DataLoader(tokenized[1], batch_size=100, collate_fn=collate),
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate)
    ramp = args.max_steps // 20
    if schedule == "greedy":
        scheduler = GreedyLR(optimizer, total_steps=args.max_steps, linear_warmup_steps=ramp)
    else:
        scheduler = fixed(schedule, optimizer, args.max_steps, ramp)
    # `prepare` would step a fixed schedule once for each process
    model, optimizer, *loaders = accelerator.prepare(model, optimizer, *loaders)
    if schedule == "greedy":
        scheduler = accelerator.prepare(scheduler)

    @torch.no_grad()
    def validate() -> tuple[float, float]:
        model.eval()
        losses, right = [], []
        for batch in loaders[1]:
            outputs = model(**batch)
            hits = (outputs.logits.argmax(-1) == batch["labels"]).float()
            losses.append(accelerator.gather_for_metrics(outputs.loss.repeat(len(hits))))
            right.append(accelerator.gather_for_metrics(hits))
        model.train()
        return float(torch.cat(losses).mean()), float(torch.cat(right).mean())

    result = Run(schedule, [], [], [], 0.0, 0.0)
    start, step, accuracy = time.perf_counter(), 0, 0.0
    progress = tqdm(total=args.max_steps, disable=not accelerator.is_main_process, desc=schedule)
    while step < args.max_steps:
        for batch in loaders[0]:
            lr = scheduler.get_last_lr()[0]
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step(loss) if schedule == "greedy" else scheduler.step()
            optimizer.zero_grad()
            step += 1
            result.train_loss.append((step, loss.item()))
            result.learning_rate.append((step, lr))
            progress.update()
            progress.set_postfix(loss=f"{loss.item():.3f}", lr=f"{lr:.1e}")
            if step % max(1, args.max_steps // 4) == 0:
                validation, accuracy = validate()
                result.validation_loss.append((step, validation))
            if step == args.max_steps:
                break
    progress.close()
    accelerator.print(f"{schedule}: validation accuracy {accuracy:.4f}")
    result.seconds, result.peak_memory_gib = time.perf_counter() - start, peak_memory_gib()
    if schedule == "greedy":
        result.decisions = list(scheduler.history)
        result.next_learning_rate = scheduler.suggested_lr()
    return result


def parse_flags(argv: list[str] | None = None):
    defaults = {"model": MINILM, "dataset": "reviews", "max_steps": 240, "learning_rate": 5e-5, "batch_size": 32}
    made = parser("accelerate_text", __doc__, **defaults)
    made.add_argument("--validation-rows", type=int, default=500, help="of the test split (default: %(default)s)")
    return parse(made, argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_flags(argv)
    from accelerate import Accelerator

    accelerator = Accelerator()
    data = load_data(args)
    args.output_dir = agreed(args.output_dir)
    runs = run_all(args, lambda schedule: train(schedule, args, accelerator, data))
    finish(runs, args)


if __name__ == "__main__":
    run("accelerate_text", main)
