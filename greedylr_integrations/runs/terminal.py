"""Plots of runs in the terminal, by plotext."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from greedylr_integrations.runs.run import Floats, Integers, Run, RunError, printable
from greedylr_integrations.runs.thin import drawable, loss_to_show, lr_bounds, thinned


def text(runs: Sequence[Run], width: int, colour: bool) -> str:
    """Losses above, LRs below, as lines of `width` characters."""
    try:
        import plotext
    except ImportError:
        raise RunError("a plot in the terminal needs plotext: pip install 'greedylr_integrations[cli]'") from None
    width = max(40, width)
    plotext.main()  # an earlier picture left a part of it active
    plotext.clear_figure()
    plotext.subplots(2, 1)
    plotext.subplot(1, 1)
    _losses(plotext, runs, width)
    plotext.theme("clear")
    plotext.plot_size(width, 15)
    plotext.subplot(2, 1)
    _lrs(plotext, runs, width)
    plotext.theme("clear")
    plotext.plot_size(width, 13)
    plotext.xlabel("optimizer step")
    drawn = plotext.build()
    return drawn if colour else plotext.uncolorize(drawn)


def _losses(plotext: Any, runs: Sequence[Run], width: int) -> None:
    for run in runs:
        rows, values = thinned(run, width), loss_to_show(run)
        label = run.name
        if len(runs) == 1:
            label = run.monitor
            if values is not run.losses:
                _curve(plotext, run.steps[rows], run.losses[rows], run.monitor, colour="gray")
                label = "smoothed " + run.monitor
        _curve(plotext, run.steps[rows], values[rows], label)


def _lrs(plotext: Any, runs: Sequence[Run], width: int) -> None:
    every = np.concatenate([run.lrs for run in runs])
    bounds = lr_bounds(every)
    lowest = bounds[0] if bounds else 0.0
    for run in runs:
        rows = thinned(run, width)
        rows = rows[run.lrs[rows] >= lowest]
        _curve(plotext, run.steps[rows], run.lrs[rows], "learning rate" if len(runs) == 1 else run.name)
    if bounds:
        plotext.yscale("log")
        shown = drawable(every[every >= lowest])
        ticks = np.geomspace(shown.min(), shown.max(), 5)
        plotext.yticks(ticks.tolist(), [f"{tick:.1e}" for tick in ticks])


def _curve(plotext: Any, steps: Integers, values: Floats, label: str, colour: str | None = None) -> None:
    finite = np.isfinite(values)
    if finite.any():
        plotext.plot(
            steps[finite].tolist(),
            drawable(values[finite]).tolist(),
            label=printable(label, 60),
            marker="braille",
            color=colour,
        )
