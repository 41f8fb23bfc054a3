"""The picture: final loss over base LR, four schedules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from benchmarks.search import stages
from benchmarks.search.scoring import geometric_mean

if TYPE_CHECKING:
    from benchmarks.search.report import Evidence

LINES = {  # arm: what it is called, its colour, its width
    "greedy": ("GreedyLR", "#0b7a75", 3.2),
    "wsd": ("warmup-stable-decay", "#d1495b", 1.8),
    "cosine": ("cosine", "#8d6a9f", 1.8),
    "linear": ("linear", "#c98a2b", 1.8),
}
WORST = 4.0  # loss ratio that a run counts as if it diverged or ended above it
INK, PALE = "#22313a", "#8a979e"


def ratios(e: Evidence, steps: int, arm: str, multiples: Sequence[float]) -> list[float]:
    """At each base LR, the geometric mean over workloads of the final loss over that of the tuned schedule."""
    found = []
    for multiple in multiples:
        values = []
        for place in e.places:
            runs = e.runs(place, arm, multiple) if place.steps == steps else []
            if runs:
                tuned = mean(e.results.losses(stage=f"worth {steps}", workload=place.workload.name, steps=steps))
                loss = mean(math.inf if run["loss"] is None else run["loss"] for run in runs)
                values.append(min(loss / tuned, WORST))
        found.append(geometric_mean(values))
    return found


def lines_of(e: Evidence) -> tuple[int, dict[str, list[float]]]:
    """The ratios of each schedule at 1,000 steps, or at the longest run length available."""
    steps = 1000 if 1000 in e.lengths else max(e.lengths)
    found = {arm: ratios(e, steps, arm, stages.MULTIPLES) for arm in LINES}
    return steps, {arm: values for arm, values in found.items() if not all(map(math.isnan, values))}


def draw(e: Evidence, path: Path) -> None:
    """Draw it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    multiples = list(stages.MULTIPLES)
    steps, lines = lines_of(e)
    workloads = sum(place.steps == steps for place in e.places)
    with plt.rc_context({"font.size": 11.5, "text.color": INK, "axes.labelcolor": INK}):
        figure, axes = plt.subplots(figsize=(8.4, 4.6), dpi=160, layout="constrained")
        axes.axhline(1, color=PALE, lw=1, ls=(0, (4, 3)), zorder=1)
        for arm, values in lines.items():
            _, colour, width = LINES[arm]
            axes.plot(multiples, values, color=colour, lw=width, marker="o", ms=2.6 * width**0.7, zorder=2 + width)
        top = max(max(values) for values in lines.values())
        axes.set(xscale="log", yscale="log", xlim=(0.085, 42), ylim=(0.92, top * 1.22))
        _label(axes, {arm: values[-1] for arm, values in lines.items()}, multiples[-1])
        axes.set_xticks(multiples, [f"{m:g}x" if m != 1 else "tuned" for m in multiples])
        ticks = [tick for tick in (1, 1.2, 1.5, 2, 3, 4) if tick < top * 1.1]
        axes.set_yticks(ticks, [f"{tick:g}x" for tick in ticks])
        axes.minorticks_off()
        axes.grid(axis="y", color="#e6eaec", lw=0.8, zorder=0)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(PALE)
        axes.tick_params(length=0, colors=INK)
        pale = {"color": PALE, "fontsize": 9.5}
        note = "the best fixed schedule, tuned for each workload"
        axes.annotate(note, (0.092, 1), (0, -12), textcoords="offset points", **pale)
        axes.set_xlabel("base LR, as a multiple of the tuned one")
        axes.set_title("Final validation loss, over that of the tuned schedule", loc="left", fontsize=13, pad=22)
        what = f"{workloads} held-out workloads, {steps:,} steps, three seeds, geometric mean"
        axes.text(0, 1.025, f"{what}; a diverged run counts as {WORST:g}x", transform=axes.transAxes, **pale)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        plt.close(figure)


def _label(axes, ends: dict[str, float], x: float) -> None:  # type: ignore[no-untyped-def]
    """Label each line at its end; labels that would overlap are moved apart."""
    low, high = (math.log(limit) for limit in axes.get_ylim())
    gap, last = 0.066 * (high - low), -math.inf
    for arm in sorted(ends, key=ends.__getitem__):
        name, colour, width = LINES[arm]
        last = max(math.log(ends[arm]), last + gap)
        weight = "bold" if width > 2 else "normal"
        axes.annotate(name, (x, ends[arm]), (x * 1.17, math.exp(last)), color=colour, va="center", fontweight=weight)
