"""Texts as rows of tokens to pre-train on: tokenized, each followed by an end-of-text token, cut without padding."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader

from recipes.common.accelerated import Order
from recipes.common.data import load
from recipes.common.flags import loading
from recipes.common.offline import PYTHON_DOCS, RecipeError, python_docs

VALIDATION_SHARE = 0.05  # share of the documents kept for validation
STREAM_VALIDATION = 500  # number of documents kept for validation, at the start of a stream


def load_documents(args):
    """Documents with --column: a `Dataset`, or an `IterableDataset` with --streaming."""
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
    """Rows of max_length + 1 tokens, the last of which is only predicted.

    Documents are packed 1,000 at a time; the tokens left over at the end are dropped.
    """
    size = args.max_length + 1

    def cut(batch):
        stream = []
        for ids in tokenizer(batch[args.column], verbose=False)["input_ids"]:
            stream += [*ids, tokenizer.eos_token_id]
        return {"input_ids": [stream[i : i + size] for i in range(0, len(stream) - size + 1, size)]}

    columns = documents.column_names or list(next(iter(documents), {}))  # a stream may not know its columns
    return documents.map(cut, batched=True, remove_columns=columns).with_format("torch")


def load_data(args, tokenizer):
    """Packed training rows, and a tensor of validation rows from documents that are not trained on."""
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
        parts = documents.train_test_split(share, seed=0)  # the same for every seed of the run
        rows, held_out = (pack(part, args, tokenizer) for part in (parts["train"], parts["test"]))
        found, some = held_out["input_ids"][:] if len(held_out) else torch.empty(0), len(rows) > 0
    if not some:
        raise RecipeError(
            f"dataset {args.dataset!r} has less than one row of {args.max_length} tokens to train on, apart from those"
            f" kept for validation ({f'{STREAM_VALIDATION} documents' if args.streaming else '5%'}): use more data"
        )
    if len(found) < args.validation_rows:
        raise RecipeError(
            f"dataset {args.dataset!r} has {len(found)} rows of {args.max_length} tokens for validation, and"
            f" --validation-rows asks for {args.validation_rows}: use fewer, a smaller --max-length, or more data"
        )
    return rows, found[torch.linspace(0, len(found) - 1, args.validation_rows).long()]


def make_loader(args, rows, batch: int, start: int, stop: int) -> DataLoader:
    """Rows number `start` to `stop` of the run, in batches of `batch` over all processes."""
    if args.streaming:
        rows = rows.repeat(None).skip(start).take(stop - start)
        return DataLoader(rows, batch_size=batch, drop_last=True)
    return DataLoader(rows, batch_size=batch, sampler=Order(len(rows), args.seed, start, stop), drop_last=True)
