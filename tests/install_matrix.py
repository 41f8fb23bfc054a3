"""Installs a release in new environments and says what came: make test-install

PYTHONS="python3.12 python3.13" adds interpreters for what needs no torch. Extras with torch are only resolved, to the
pins of constraints.txt; FULL=1 installs them, each with gigabytes of CUDA unless pip finds a torch without it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
CORE = [f"test_{name}.py" for name in ("controller", "window", "rolling", "slope_rule", "atomic")]  # need no torch
SAY = "import greedylr_integrations as g; g.GreedyController(g.GreedyConfig()); print(g.__version__)"
WITH_TORCH = {  # extras, and what must run when one is installed
    "torch": "from greedylr_integrations import GreedyLR",
    "transformers": "from greedylr_integrations.transformers import GreedyLRCallback",
    "lightning": "from greedylr_integrations.lightning import GreedyLRCallback",
    "accelerate": "from greedylr_integrations.accelerate import GreedyLR",
    "learn": "import gymnasium, stable_baselines3, safetensors; from greedylr_integrations import GreedyLR",
    "recipes": "import sys; sys.path.insert(0, sys.argv[1]); import recipes.finetune_llm, recipes.lightning_vision",
    "trackers": "import mlflow, tensorboard, wandb",
}


def run(*words: str | Path) -> str:
    env = {**os.environ, "PYTHONPATH": "", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run([*map(str, words)], cwd=tempfile.gettempdir(), env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def megabytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) >> 20


def install(python: str, file: Path, extra: str, folder: Path) -> None:
    run(python, "-m", "venv", folder)
    own = folder / ("Scripts" if os.name == "nt" else "bin")
    before = megabytes(folder)
    statement = WITH_TORCH.get(extra.strip("[]"))
    pins = [] if statement is None else ["-c", ROOT / "constraints.txt"]
    run(own / "python", "-m", "pip", "install", "--quiet", *pins, f"{file}{extra}")
    run(own / "python", "-W", "error", "-c", SAY)
    if statement is not None:
        run(own / "python", "-c", statement, ROOT)
    size = megabytes(folder) - before
    packages = len(run(own / "python", "-m", "pip", "list", "--format=freeze").split())
    checked = "import"
    if extra == "[cli]":
        run(own / "greedylr", "--help")
        run(own / "python", "-m", "pip", "install", "--quiet", "pytest", "pytest-timeout", "hypothesis")
        tests = [ROOT / "tests" / name for name in CORE]
        run(
            own / "python",
            "-m",
            "pytest",
            "-q",
            "-c",
            ROOT / "pyproject.toml",
            "-p",
            "no:cacheprovider",
            *tests,
        )
        checked = "import, greedylr --help, tests of the core"
    version = run(own / "python", "-V").split()[1]
    print(f"| {version} | {file.suffix[1:]} | `{extra}` | {packages} | {size} MB | {checked} |", flush=True)


def main() -> None:
    (wheel,) = (ROOT / "dist").glob("*.whl")
    (sdist,) = (ROOT / "dist").glob("*.tar.gz")
    print("| Python | from | extra | packages | size | checked |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        jobs = [(sys.executable, sdist, "")]
        jobs += [
            (python, wheel, extra)
            for python in (sys.executable, *os.environ.get("PYTHONS", "").split())
            for extra in ("", "[cli]")
        ]
        for number, job in enumerate(jobs):
            install(*job, Path(folder, str(number)))
        if os.environ.get("FULL"):
            for extra in WITH_TORCH:
                install(sys.executable, wheel, f"[{extra}]", Path(folder, extra))
                shutil.rmtree(Path(folder, extra))  # gigabytes
            return
    for extra in WITH_TORCH:
        plan = run(
            sys.executable,
            "-m",
            "pip",
            "install",
            "--dry-run",
            "--quiet",
            "--ignore-installed",
            "--report",
            "-",
            "-c",
            ROOT / "constraints.txt",
            f"{wheel}[{extra}]",
        )
        print(
            f"| {sys.version.split()[0]} | whl | `[{extra}]` | {plan.count('download_info')} | | resolved only |",
            flush=True,
        )


if __name__ == "__main__":
    main()
