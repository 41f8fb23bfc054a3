"""Tables and pictures of the comparison."""

from __future__ import annotations

import math
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from greedylr_integrations.learned import Policy
from recipes.common.bootstrap import interval
from recipes.research.nmf.problem import Factorization
from recipes.research.nmf.schedules import METHODS, TRIALS
from recipes.research.nmf.store import KNOWN, VALIDATION, Runs

DIVERGED = 1.0  # loss that a diverged run counts as: that of factors of zeros


def finals(runs: list[dict[str, Any]]) -> np.ndarray:
    return np.array([DIVERGED if run["loss"] is None else run["loss"] for run in runs])


def ratio(own: list[dict[str, Any]], other: list[dict[str, Any]]) -> tuple[float, float, float]:
    """Median ratio of the losses of two methods on the same seeds, with its 95% bootstrap interval."""
    return interval(finals(own) / finals(other), np.median)


@cache
def floor(matrix: str, solver: str, seed: int) -> float:
    """Loss of scikit-learn's NMF after at most 500 passes over all rows."""
    from sklearn.decomposition import NMF
    from sklearn.exceptions import ConvergenceWarning

    problem = KNOWN[matrix](seed)
    x = Factorization(problem).x
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = NMF(problem.rank, init="nndsvda", solver=solver, max_iter=500).fit(x)
    return float(fitted.reconstruction_err_**2 / 2)


def tables(runs: Runs, steps: int, policy: Policy) -> str:
    methods = list(METHODS)
    seeds = len(next(iter(runs.values()))["learned"][1])
    command = "python -m recipes.research.nmf" + (" --validation" if runs.keys() <= VALIDATION.keys() else "")
    command += f" --seeds {seeds}"
    lines = [
        "# Schedules of stochastic NMF",
        "",
        f"Written by `{command}`. {steps} steps, {seeds} seeds; policy `{policy.digest}`"
        f" ({policy.trained.get('decisions', 0):,} decisions of PPO on planted matrices of up to rank 12 and parts of"
        f" Reuters). Every tuned schedule gets {TRIALS} trials on each matrix, each with 3 other seeds; `at the bound`"
        " and `learned` get none. Each seed of a planted matrix is a matrix of its own. A loss of 1 is that of factors"
        " of zeros; a run that ends above it has diverged and counts as 1.",
        "",
        "## Median final loss",
        "",
        "| schedule | " + " | ".join(runs) + " |",
        "|---" * (len(runs) + 1) + "|",
    ]
    for method in methods:
        medians = {matrix: float(np.median(finals(of[method][1]))) for matrix, of in runs.items()}
        best = {matrix: min(float(np.median(finals(of[m][1]))) for m in methods) for matrix, of in runs.items()}
        cells = [f"**{x:.4f}**" if x == best[matrix] else f"{x:.4f}" for matrix, x in medians.items()]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    for solver in ("cd", "mu"):
        cells = [f"{np.median([floor(matrix, solver, s) for s in _floor_seeds(matrix, seeds)]):.4f}" for matrix in runs]
        lines.append(f"| scikit-learn, `{solver}`, all rows | " + " | ".join(cells) + " |")
    lines += [
        "",
        "## Learned compared with each",
        "",
        "Loss of the learned schedule / loss of the other schedule on the same seed: median over the seeds, with its"
        " 95% bootstrap interval. Below 1, the learned schedule is better.",
        "",
        "| against | " + " | ".join(runs) + " |",
        "|---" * (len(runs) + 1) + "|",
    ]
    for method in methods:
        if method != "learned":
            cells = [
                "{:.4f} ({:.4f} to {:.4f})".format(*ratio(of["learned"][1], of[method][1])) for of in runs.values()
            ]
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "## Stability",
        "",
        "`capped`: the cap keeps every step at or below the bound, whatever the schedule asks for. `(edge)`: the lowest"
        " or highest peak that was tried.",
        "",
        "| schedule | diverged | runs with a step over the bound | tuned settings |",
        "|---|---|---|---|",
    ]
    for method in methods:
        every = [run for of in runs.values() for run in of[method][1]]
        diverged = sum(run["loss"] is None for run in every)
        over = "capped" if METHODS[method].cap else sum(run["over"] > 0 for run in every)
        settings = "; ".join(shown(method, of[method][0]) for of in runs.values() if of[method][0]) or "none"
        lines.append(f"| {method} | {diverged} of {len(every)} | {over} | {settings} |")
    return "\n".join([*lines, ""])


def _floor_seeds(matrix: str, seeds: int) -> range:
    return range(min(seeds, 5) if matrix.startswith(("planted", "part")) else 1)


def shown(method: str, setting: dict[str, Any]) -> str:
    peak = f"{setting['peak']:g}"
    tried = [trial["peak"] for trial in METHODS[method].trials]
    if setting["peak"] in (min(tried), max(tried)):
        peak += " (edge)"
    if "at" in setting:
        peak += f" x {setting['factor']:g} at " + ", ".join(f"{share:.0%}" for share in setting["at"])
    return peak


def draw(runs: Runs, folder: Path) -> None:
    """Draw nmf-schedules.png, the LRs of several seeds under their bounds, and nmf-losses.png, median losses."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    columns = math.ceil(len(runs) / 2)
    pictures = {"nmf-schedules.png": _draw_schedules, "nmf-losses.png": _draw_losses}
    for name, draw_one in pictures.items():
        figure, axes = plt.subplots(2, columns, figsize=(4.2 * columns, 6.5), layout="constrained", squeeze=False)
        for ax in axes.flat[len(runs) :]:
            ax.set_axis_off()
        for ax, (matrix, of) in zip(axes.flat, runs.items(), strict=False):
            draw_one(ax, of)
            ax.set(title=matrix, yscale="log", xlabel="optimizer step")
            ax.grid(alpha=0.3)
        figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        figure.savefig(folder / name, dpi=110)
        plt.close(figure)


def _draw_schedules(ax: Any, of: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]) -> None:
    for seed, run in enumerate(of["learned"][1][:4]):
        ax.plot(run["step"], run["bound"], ":", color=f"C{seed}", linewidth=1, label="bound" if seed == 0 else None)
        ax.plot(run["step"], run["lr"], color=f"C{seed}", label=f"learned, seed {seed}")
    for method, style in (("cosine", "--"), ("step decay", "-.")):
        run = of[method][1][0]
        ax.plot(run["step"], run["lr"], style, color="grey", linewidth=1, label=f"{method}, tuned")
    ax.set_ylabel("LR / bound at the start")
    ax.set_ylim(2e-3, None)


def _draw_losses(ax: Any, of: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]) -> None:
    least = 1.0
    for method, (_, runs) in of.items():
        losses = np.median([run["loss_at"] for run in runs], axis=0)
        least = min(least, losses.min())
        learned = method == "learned"
        colour = {"color": "black"} if learned else {}
        ax.plot(runs[0]["step"], losses, linewidth=2 if learned else 1.2, label=method, **colour)
    ax.set_ylabel("loss (1: factors of zeros)")
    ax.set_ylim(0.9 * least, 1)  # higher losses at the start are cut off
