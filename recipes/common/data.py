"""Datasets from a hub id, a folder or a file, and the rows kept for validation."""

from __future__ import annotations

from pathlib import Path

from recipes.common.flags import loading
from recipes.common.offline import RecipeError

FILES = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}


def load(name: str, split: str | None, subset: str | None = None, **more):
    """A split, or a dictionary of all splits if it is None. A file has one split, "train".

    `more` is passed to `load_dataset`.

    Raises:
        RecipeError: if there is no such file, folder, hub id or split, or it cannot be read, in one sentence.
    """
    from datasets import Dataset, load_dataset, load_from_disk

    path = Path(name).expanduser()
    kind = FILES.get(path.suffix.lower())
    if path.is_file() and kind is None:
        raise RecipeError(
            f"dataset {name!r} is a file of an unknown kind: its name must end in one of {', '.join(FILES)}"
        )
    if not path.exists() and (kind or name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise RecipeError(f"dataset {name!r} is not there: give a file, a folder, or the id of a dataset on the hub")
    with loading("dataset", name):
        if path.is_file():
            parts = load_dataset(kind, data_files=str(path), **more)
        elif (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
            parts = load_from_disk(path)
            parts = {"train": parts} if isinstance(parts, Dataset) else parts
        else:
            return load_dataset(str(path), subset, split=split, **more)
    if split is not None and split not in parts:
        raise RecipeError(f"dataset {name!r} has no split {split!r}, only: {', '.join(parts)}")
    return parts[split] if split else parts


def split_rows(rows, validation_rows: int, seed: int, dataset: str, what: str = "rows"):
    """A DatasetDict with `train` and `test`."""
    if len(rows) <= validation_rows:
        raise RecipeError(
            f"dataset {dataset!r} has {len(rows)} {what}, and {validation_rows} are kept for validation:"
            " use more, or fewer --validation-rows"
        )
    return rows.train_test_split(validation_rows, seed=seed)


def check_length(max_length: int, config) -> None:
    limit = getattr(config, "max_position_embeddings", max_length)
    if max_length > limit:
        raise RecipeError(f"--max-length {max_length} is beyond the model's limit of {limit} tokens")
