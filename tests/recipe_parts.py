"""A tiny chat model, good and bad data in files, and command lines on them, for the tests of recipes."""

import contextlib
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import processes
import pytest
import tiny
from forked import Forked

from recipes.common import flags as common_flags

ROOT = Path(__file__).parents[1]

WRONG = [  # flags of every recipe on chats, and what it says of them
    ({"dataset": "other.csv"}, "has no column 'messages' or 'text', only: a, b"),
    ({"dataset": "empty.csv"}, "is empty: give one that has rows"),
    ({"dataset": "missing.jsonl"}, "is not there: give a file, a folder, or the id of a dataset on the hub"),
    ({"model": "nothing"}, "cannot be loaded"),
    ({"model": "no-template"}, "has no chat template"),
    ({"dataset": "strings.jsonl"}, "row 1: messages is 'w1 w2': make it a list of {role, content}"),
    ({"dataset": "no-role.jsonl"}, "row 1: messages is [{'from': 'user'}]: make it a list of {role, content}"),
    ({"dataset": "no-reply.jsonl"}, "has 0 rows with a reply within --max-length 48, and 4 are kept"),
    ({"dataset": "no-text.jsonl"}, "row 2: text is None: make it text"),
    ({"max_length": 4096}, "is beyond the model's limit of 64 tokens"),
    ({"output_dir": "/dev/null/x"}, "--output-dir /dev/null/x: /dev/null is not a writable folder: choose another"),
    ({"learning_rate": -1}, "--learning-rate -1.0 is not allowed: it must be above 0"),
    ({"batch_size": 0}, "batch-size 0 is not allowed: it must be at least 1"),
    ({"validation_rows": 0}, "--validation-rows 0 is not allowed: it must be at least 1"),
    ({"max_length": 0}, "--max-length 0 is not allowed: it must be at least 1"),
    ({"lora_r": 0}, "--lora-r 0 is not allowed: it must be at least 1"),
    ({"rows": -3}, "--rows -3 is not allowed: it must be at least 0"),
    ({"schedule": "cosin"}, "schedule 'cosin' is unknown: choose from greedy, linear, cosine, wsd, constant"),
]


def make(out):
    """A folder with `model`, and data of every kind."""
    tiny.llama().save_pretrained(out / "model")
    tiny.tokenizer().save_pretrained(out / "model")
    no_template = tiny.tokenizer()
    no_template.chat_template = None
    tiny.llama().save_pretrained(out / "no-template")
    no_template.save_pretrained(out / "no-template")
    words = tiny.WORDS
    rows = [
        {
            "messages": [
                {"role": role, "content": " ".join(words[(i + j + k) % 7] for k in range(4))}
                for j, role in enumerate(["user", "assistant", "user", "assistant"])
            ]
        }
        for i in range(40)
    ]
    (out / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (out / "plain.txt").write_text("\n".join(" ".join(words[:9]) for _ in range(40)))
    pairs = [{"chosen": row["messages"][:2], "rejected": row["messages"][2:]} for row in rows]
    for name, bad in {
        "pairs": pairs,
        "strings": [{"messages": "w1 w2"}],
        "no-role": [{"messages": [{"from": "user"}]}],
        "no-reply": [{"messages": row["messages"][:1]} for row in rows],
        "no-text": [{"text": "w1"}, {"text": None}],
        "no-rejected": [*pairs, {"chosen": pairs[0]["chosen"], "rejected": None}],
    }.items():
        (out / f"{name}.jsonl").write_text("\n".join(map(json.dumps, bad)))
    (out / "other.csv").write_text("a,b\n1,2\n")
    (out / "empty.csv").write_text("messages\n")
    return out


def flags(parts, out, dataset="chats.jsonl", model="model", **more):
    defaults = {
        "model": parts / model,
        "dataset": parts / dataset,
        "output_dir": out,
        "max_length": 48,
        "max_steps": 24,
        "validation_rows": 4,
        "learning_rate": 3e-3,
        "lora_r": 4,
        "disable_tqdm": True,
    }
    words = []
    for name, value in {**defaults, **more}.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return words


def command(recipe, words):
    return [sys.executable, "-W", "ignore", "-m", f"recipes.{recipe}", *words]


def kill_when(recipe, words, there, number, timeout=120):
    """Run until `there()`, send the signal, and give exit code and output."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        process = Forked(["-m", f"recipes.{recipe}", *words], 1, log, out=log, cwd=ROOT)
        deadline = time.monotonic() + timeout
        while not there():
            if process.poll() is not None or time.monotonic() > deadline:
                processes.kill_tree(process.pid)
                process.wait()
                raise AssertionError(f"{words} ended, or was never there:\n{log.read_text()[-4000:]}")
            time.sleep(0.002)
        process.send_signal(number)
        return processes.wait(process, timeout), log.read_text()


def whole_checkpoints(folder):
    return sorted(folder.glob("checkpoint-*/trainer_state.json"))


def runs_of(out):
    return json.loads((out / "metrics.json").read_text())["runs"]


def assert_same(one, other):
    """Of two rows of metrics.json, all but time and memory."""
    for name in one.keys() - {"seconds", "peak_memory_gib"}:
        assert one[name] == other[name], name


@contextlib.contextmanager
def full_disk(monkeypatch, module, function):
    """Once that function of the module has run, no file can grow beyond 8 KiB: as a full disk, to who writes."""
    whole, limits = getattr(module, function), resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(*args):
        made = whole(*args)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
        return made

    monkeypatch.setattr(module, function, fill)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def assert_full_disk_is_one_line(monkeypatch, capsys, recipe, words, module, function):
    name = recipe.__name__.split(".")[-1]
    with full_disk(monkeypatch, module, function), pytest.raises(SystemExit) as ended:
        common_flags.run(name, lambda: recipe.main(words))
    assert ended.value.code == 2
    assert f"{name}: the disk is full (" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (Path(words[words.index("--output-dir") + 1]) / "metrics.json").exists()
