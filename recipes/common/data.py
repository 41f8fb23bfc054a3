"""Datasets from a hub id, a folder or a file, and the rows kept for validation."""

from __future__ import annotations

from pathlib import Path

from recipes.common.flags import loading
from recipes.common.offline import RecipeError

FILES = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}


def load(name: str, split: str | None, subset: str | None = None, **more):
    """A split, or a dictionary of all splits if it is None. A file has one split, "train".

    `more` is passed to `load_dataset`.
    """
    from datasets import DatasetDict, load_dataset, load_from_disk

    path = Path(name)
    with loading("dataset", name):
        if path.is_file() and path.suffix in FILES:
            return load_dataset(FILES[path.suffix], data_files=name, split=split and "train", **more)
        if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
            found = load_from_disk(name)
            if not isinstance(found, DatasetDict):
                return found if split else DatasetDict(train=found)
            return found[split] if split else found
        return load_dataset(name, subset, split=split, **more)


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
