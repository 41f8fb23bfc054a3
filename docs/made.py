"""Which pictures and notebooks of the pages are stale, and making them again: python docs/made.py

`made.json` has a hash of what each of them was made from: code without comments and docstrings, and data. If that has
changed since, it is stale. A picture whose command is None needs hours of training; its page says how.
"""

from __future__ import annotations

import ast
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
MANIFEST = Path(__file__).with_suffix(".json")
RUNS = "greedylr_integrations/runs"
RULES = "greedylr_integrations/rules"
LEARNED = "greedylr_integrations/learned"
RESULTS = "benchmarks/results"


class Made(NamedTuple):
    """What a command makes.

    Attributes:
        files: what it makes.
        command: modules and arguments for the interpreter; None if it takes hours.
        inputs: files, or functions in them as "file.py:function"; not all that runs, but what decides how it looks.
    """

    files: tuple[str, ...]
    command: str | None
    inputs: tuple[str, ...]


SLOPE = (f"{RULES}/slope.py", "greedylr_integrations/slope.py", "greedylr_integrations/envelope.py")
FIGURES = (f"{RUNS}/figures.py", f"{RUNS}/thin.py")
MADE = (
    Made(("docs/img/stages.png",), "docs/pictures.py stages", ("docs/pictures.py:search,draw_stages", *SLOPE)),
    Made(
        ("docs/img/decisions.png", "docs/img/jump.png"),
        "docs/pictures.py window",
        ("docs/pictures.py:train,draw,window", f"{RULES}/window.py", "greedylr_integrations/rolling.py"),
    ),
    Made(
        ("docs/img/plot.png", "docs/img/report.png"),
        "docs/pictures.py commands",
        ("docs/pictures.py:train,commands,screenshot", *SLOPE, *FIGURES, f"{RUNS}/page.py", f"{RUNS}/interactive.py"),
    ),
    Made(
        ("docs/img/tensorboard.png",),
        "docs/pictures.py tensorboard",
        ("docs/pictures.py:tensorboard,_only_charts,screenshot", *SLOPE, "greedylr_integrations/readings.py:metrics"),
    ),
    Made(
        ("docs/img/loss-over-base-lr.png",),
        "-m benchmarks.search report",
        ("benchmarks/search/picture.py", f"{RESULTS}/search-fresh.jsonl"),
    ),
    Made(
        tuple(f"benchmarks/img/{name}.png" for name in ("loss_over_base_lr", "schedules", "loss_histories")),
        "-m benchmarks.report",
        ("benchmarks/report.py:draw", f"{RESULTS}/held-out.jsonl", f"{RESULTS}/tuned.json"),
    ),
    Made(
        ("docs/img/learned-schedules.png", "docs/img/learned-schedules-low.png"),
        None,
        ("recipes/research/learn/pictures.py:draw", f"{LEARNED}/network.safetensors"),
    ),
    Made(
        ("docs/img/learned-policy.png",),
        None,
        ("recipes/research/distill_policy.py:draw", f"{LEARNED}/network.safetensors"),
    ),
    Made(("docs/img/nmf-policy.png",), None, ("recipes/research/distill_policy.py:draw", f"{LEARNED}/nmf.safetensors")),
    Made(
        ("docs/img/nmf-schedules.png", "docs/img/nmf-losses.png"),
        None,
        ("recipes/research/nmf/report.py:draw", f"{LEARNED}/nmf.safetensors"),
    ),
    *(
        Made(
            (f"docs/notebooks/{name}.ipynb",),
            f"docs/notebooks.py {name}",
            (f"docs/notebooks/{name}.ipynb", *SLOPE, *FIGURES),
        )
        for name in ("own-loop", "trainer")
    ),
)


# ---- what they were made from ----


def _code(path: Path, functions: list[str]) -> str:
    """Code without comments and docstrings: all of a file, or the functions of these names."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    for node in nodes:
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):  # a field's docstring is a text below it
            node.body = [each for each in node.body if not _is_text(each)] or [ast.Pass()]
    found = {node.name: node for node in nodes if isinstance(node, ast.FunctionDef)}
    return "\n".join(map(ast.unparse, [found[name] for name in functions] or nodes[:1]))


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _content(source: str) -> bytes:
    name, _, functions = source.partition(":")
    path = ROOT / name
    if path.suffix == ".py":
        return _code(path, functions.split(",") if functions else []).encode()
    if path.suffix == ".ipynb":  # what its code prints and shows is made
        cells = json.loads(path.read_text())["cells"]
        return json.dumps([cell["source"] for cell in cells if cell["cell_type"] == "code"]).encode()
    return path.read_bytes()


def hash_of(made: Made) -> str:
    """Of all its inputs."""
    whole = hashlib.sha256()
    for source in made.inputs:
        whole.update(hashlib.sha256(_content(source)).digest())
    return whole.hexdigest()[:16]


# ---- stale or not ----


def recorded() -> dict[str, str]:
    return json.loads(MANIFEST.read_text()) if MANIFEST.exists() else {}


def stale() -> list[Made]:
    """What has been made from something else than what is there now."""
    known = recorded()
    return [made for made in MADE if any(known.get(file) != hash_of(made) for file in made.files)]


def record(made: Made) -> None:
    known = recorded() | dict.fromkeys(made.files, hash_of(made))
    MANIFEST.write_text(json.dumps(dict(sorted(known.items())), indent=2) + "\n")


def main(arguments: list[str]) -> None:
    for made in stale():
        if made.command is not None:
            print(f"{', '.join(made.files)}: python {made.command}", flush=True)
            subprocess.run([sys.executable, *made.command.split()], cwd=ROOT, check=True)
        elif "--keep" not in arguments:
            print(f"{', '.join(made.files)}: stale; make them as their page says, then run this with --keep")
            continue
        record(made)


if __name__ == "__main__":
    main(sys.argv[1:])
