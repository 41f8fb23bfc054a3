"""Classify texts, such as film reviews, with Accelerate, with a learning rate that is found in training.

    python -m recipes.accelerate_text                                # MiniLM on reviews, split by film
    python -m recipes.accelerate_text --compare greedy cosine linear
    python -m recipes.accelerate_text --dataset train.csv --model my-encoder
    torchrun --nproc-per-node 2 -m recipes.accelerate_text           # two GPUs, or two CPU processes

A dataset is a hub id, a folder or a json, jsonl, csv or parquet file, with the columns `text` and `label` (numbers or
names) in a split `train`. Validation is on the split `test`, or on rows held out from `train` if there is none.

Saves a checkpoint every --save-steps steps to --output-dir/SCHEDULE, and on Ctrl-C and SIGTERM; --resume continues with
the same learning rates and the same rows. Writes metrics.json, loss_and_lr.png and the model (greedy/model) to
--output-dir.
"""

from __future__ import annotations

import time

from recipes.common.accelerated import Order, add_decisions, make_accelerator, make_scheduler, resumed, save
from recipes.common.data import check_length, load, split_rows
from recipes.common.flags import agreed, check_at_least_one, finish, loading, parse, parser, run, run_all
from recipes.common.offline import RecipeError, minilm, reviews
from recipes.common.report import Run, peak_memory_gib
from recipes.common.stop import StopOnSignal, Stopped

MINILM = "minilm"
REVIEWS = "reviews"


def load_model(args, labels: list[str]):
    """Model and tokenizer. The model gets a new head if it has none for that many labels."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    path = minilm() if args.model == MINILM else args.model
    with loading("model", args.model):
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForSequenceClassification.from_pretrained(
            path, id2label=dict(enumerate(labels)), ignore_mismatched_sizes=True
        )
    check_length(args.max_length, model.config)
    return model, tokenizer


def load_data(args):
    """Rows of `text` and `label` to train on and to validate on. Labels are numbered from 0, and keep their names."""
    from datasets import ClassLabel, Dataset

    if args.dataset == REVIEWS:
        return [part.cast_column("label", ClassLabel(names=["rotten", "fresh"])) for part in reviews()]
    parts = load(args.dataset, None)
    if "train" not in parts:
        raise RecipeError(f"dataset {args.dataset!r} has no split 'train', only: {', '.join(parts)}")
    for part in ("train", "test") if "test" in parts else ("train",):
        check_rows(parts[part], f"dataset {args.dataset!r}, split {part!r},")
    if "test" not in parts:
        parts = split_rows(parts["train"], args.validation_rows, args.seed, args.dataset)
    labels = sorted(parts["train"].unique("label"))
    if len(labels) < 2:
        raise RecipeError(f"dataset {args.dataset!r} has only one label, {labels[0]!r}: give one with two or more")
    if unknown := set(parts["test"].unique("label")) - set(labels):
        raise RecipeError(f"dataset {args.dataset!r} has the label {min(unknown)!r} in 'test' but not in 'train'")
    number, names = {label: i for i, label in enumerate(labels)}, ClassLabel(names=[str(label) for label in labels])
    return [
        Dataset.from_dict(
            {"text": parts[part]["text"], "label": [number[label] for label in parts[part]["label"]]}
        ).cast_column("label", names)
        for part in ("train", "test")
    ]


def check_rows(rows, what: str) -> None:
    """Check that there are rows, each with a text and a label."""
    if not len(rows):
        raise RecipeError(f"{what} is empty: give one that has rows")
    for column, is_one, wanted in (("text", is_text, "text"), ("label", is_label, "a name or a whole number")):
        if column not in rows.column_names:
            raise RecipeError(f"{what} has no column {column!r}, only: {', '.join(rows.column_names)}")
        for i, value in enumerate(rows[column]):
            if not is_one(value):
                raise RecipeError(f"{what}, row {i + 1}: the {column} is {value!r}: it must be {wanted}")


def is_text(value) -> bool:
    return isinstance(value, str)


def is_label(value) -> bool:
    """A name or a whole number. In a csv file with a missing label, all others are floats."""
    return isinstance(value, str | int) or (isinstance(value, float) and value.is_integer())


def tokenize(args, data, tokenizer):
    """Token ids of the training rows and of the validation rows."""

    def cut(row):
        return tokenizer(row["text"], truncation=True, max_length=args.max_length)

    parts = data[0], data[1].select(range(min(args.validation_rows, len(data[1]))))
    return [part.map(cut, remove_columns=["text"]) for part in parts]


def train(schedule: str, args, data) -> Run:
    import torch
    from torch.utils.data import DataLoader
    from tqdm.auto import tqdm
    from transformers import DataCollatorWithPadding, set_seed

    accelerator = make_accelerator()
    folder, batch = args.output_dir / schedule, args.batch_size * accelerator.num_processes
    set_seed(args.seed)
    model, tokenizer = load_model(args, data[0].features["label"].names)
    rows, validation_rows = tokenize(args, data, tokenizer)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=args.learning_rate))
    scheduler = accelerator.prepare(make_scheduler(schedule, optimizer, args, max(1, len(rows) // batch)))
    result = resumed(accelerator, schedule, args)
    order = Order(len(rows), args.seed, len(result.train_loss) * batch, args.max_steps * batch)
    # With the default generator, a loader that is started again after a resume would change the dropout.
    more = {"collate_fn": DataCollatorWithPadding(tokenizer), "generator": torch.Generator()}
    loader, validation = accelerator.prepare(
        DataLoader(rows, batch, sampler=order, **more),
        DataLoader(validation_rows, 50 * accelerator.num_processes, **more),
    )

    @torch.no_grad()
    def validate() -> tuple[float, float]:
        """Loss and accuracy."""
        model.eval()
        losses, right = [], []
        for rows in validation:
            logits, labels = accelerator.gather_for_metrics((model(**rows).logits, rows["labels"]))
            losses.append(torch.nn.functional.cross_entropy(logits, labels, reduction="none"))
            right.append((logits.argmax(-1) == labels).float())
        model.train()
        return float(torch.cat(losses).mean()), float(torch.cat(right).mean())

    start, accuracy = time.perf_counter() - result.seconds, 0.0
    if not result.train_loss:
        result.validation_loss.append((0, validate()[0]))
    model.train()
    progress = tqdm(total=args.max_steps, disable=not accelerator.is_main_process, desc=schedule)
    progress.update(len(result.train_loss))
    with StopOnSignal() as stop:
        for step, rows in enumerate(loader, len(result.train_loss) + 1):
            result.learning_rate.append((step, scheduler.get_last_lr()[0]))
            loss = model(**rows).loss
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step(loss) if schedule == "greedy" else scheduler.step()
            optimizer.zero_grad()
            result.train_loss.append((step, float(accelerator.reduce(loss.detach(), "mean"))))
            progress.update()
            progress.set_postfix(loss=f"{result.train_loss[-1][1]:.3f}", lr=f"{result.learning_rate[-1][1]:.1e}")
            last, stopped = step == args.max_steps, stop.asked()
            if last or step % max(1, args.max_steps // 4) == 0:
                loss, accuracy = validate()
                result.validation_loss.append((step, loss))
            result.seconds = time.perf_counter() - start
            if last or stopped or step % args.save_steps == 0:
                save(accelerator, folder, step)
            if stopped and not last:
                progress.close()
                raise Stopped(stop.number, args.output_dir)
    progress.close()
    accelerator.print(f"{schedule}: validation accuracy {accuracy:.4f}")
    result.peak_memory_gib = peak_memory_gib()
    if schedule == "greedy" and accelerator.is_main_process:
        add_decisions(result, scheduler, args.learning_rate)
    if accelerator.is_main_process:
        accelerator.unwrap_model(model).save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
    return result


def parse_flags(argv: list[str] | None = None):
    defaults = {"model": MINILM, "dataset": REVIEWS, "max_steps": 240, "learning_rate": 5e-5, "batch_size": 32}
    made = parser("accelerate_text", __doc__, **defaults)
    made.add_argument(
        "--validation-rows", type=int, default=500, help="validation rows, from test or held out (default: %(default)s)"
    )
    made.add_argument("--max-length", type=int, default=64, help="tokens of a row to use (default: %(default)s)")
    made.add_argument("--save-steps", type=int, default=60, help="steps between checkpoints (default: %(default)s)")
    args = parse(made, argv, same=("max_steps", "learning_rate", "max_length", "validation_rows"))
    check_at_least_one(args, "max_steps", "batch_size", "validation_rows", "max_length", "save_steps")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_flags(argv)
    accelerator = make_accelerator()  # makes the process group
    args.output_dir = agreed(args.output_dir)
    data = load_data(args)
    runs = run_all(args, lambda schedule: train(schedule, args, data))
    finish(runs, args, load="transformers.pipeline('text-classification', {model!r})")
    accelerator.end_training()


if __name__ == "__main__":
    run("accelerate_text", main)
