"""What is likely to be wrong with a run, from its record, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from platform import platform, python_version

import numpy as np

from greedylr_integrations.decision import FINDS
from greedylr_integrations.runs.run import Run
from greedylr_integrations.runs.summary import base_lr_of
from greedylr_integrations.spikes import SpikeDetector

OFTEN = 0.1  # share of the decisions in which the LR was at a bound
FAR = 10.0  # times the base LR, or a part of it, from which the next run should start elsewhere
EARLY = 0.9  # share of the planned steps; as what a run says at its end
PACKAGES = ("torch", "transformers", "lightning", "accelerate", "datasets", "trl", "peft", "deepspeed")
ADAPTERS = {"transformers": "transformers", "lightning": "lightning", "accelerate": "accelerate"}  # and what they need


def findings(run: Run) -> list[str]:
    """A sentence for each thing that is likely to be wrong, with what to do; the most important first."""
    return [*_about_record(run), *_about_search(run), *_about_bounds(run), *_about_length(run), *_about_losses(run)]


def environment() -> list[str]:
    """A line for Python and each package that matters here, and for each adapter that cannot be imported."""
    lines = [f"Python {python_version()} on {platform()}"]
    for name in ("greedylr_integrations", *PACKAGES):
        found = _version(name)
        lines.append(f"{name} {found or 'is not installed'}")
    for adapter, package in ADAPTERS.items():
        if _version(package) is not None:
            try:
                import_module(f"greedylr_integrations.{adapter}")
            except Exception as error:  # whatever a broken installation raises
                lines.append(f"greedylr_integrations.{adapter} cannot be imported: {type(error).__name__}: {error}")
    return lines


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _count(run: Run, *reasons: str) -> int:
    counts = dict(zip(run.reason_names, run.reason_counts(), strict=True))
    return sum(counts.get(reason, 0) for reason in reasons)


def _is_default(run: Run) -> bool:
    return (run.config or {}).get("behaviour") == "SlopeConfig"


def _about_record(run: Run) -> Iterator[str]:
    if not run.has_decisions:
        yield (
            f"The record is a {run.source} without decisions, so only its losses are looked at: set history_file to"
            " record why the LR moves."
        )


def _about_search(run: Run) -> Iterator[str]:
    decisions = int((run.actions >= 0).sum())
    if not decisions:
        return
    found = _count(run, *(reason.name for reason in FINDS))
    lr, base_lr = run.suggested_lr(), base_lr_of(run)
    if _count(run, "TOO_SHORT") == decisions:
        yield (
            "There was no search, and the base LR was held: a search needs 60 decisions in the first pass over the"
            " data. Use a smaller batch, or more data."
        )
    elif _is_default(run) and not run.has("slopes"):
        yield (
            "No slope was measured, so the LR followed the loss alone, which does not find it from far away: the"
            " optimizer's gradients were hidden, as by DeepSpeed's ZeRO, or the metric was not the training loss."
        )
    elif _count(run, "SEARCHING") and not found:
        if run.reason(len(run) - 1) == "SEARCHING":
            yield f"The record ends in the search, after step {int(run.steps[-1]):,}: the LR was not found yet."
        elif lr is not None:
            yield (
                f"The search ran out of time at {lr:.2g}, so a higher LR may fit better: start the next run with a base"
                f" LR of {lr:.2g}."
            )
    elif lr is not None and base_lr > 0 and not 1 / FAR <= lr / base_lr <= FAR:
        yield (
            f"The LR that was found, {lr:.2g}, is far from the base LR, {base_lr:.2g}: start the next run at {lr:.2g},"
            " and its search is shorter."
        )
    if _count(run, "FILLING") == decisions:
        yield "The loss window never filled, so the LR never moved: set a smaller window_size."


def _about_bounds(run: Run) -> Iterator[str]:
    decisions = int((run.actions >= 0).sum())
    for reason, which, change in (
        ("CEILING", "upper", "a higher base LR, or a larger max_scale"),
        ("FLOOR", "lower", "a lower base LR, or a smaller min_scale"),
    ):
        count = _count(run, reason)
        if count > OFTEN * decisions:
            yield f"The LR was at its {which} bound in {count / decisions:.0%} of the decisions: use {change}."
    in_force = next((each for each in reversed(run.commands) if each.order != "decay"), None)
    if in_force is not None and in_force.order in ("hold", "pin"):
        yield f"The LR was under the command {in_force} from step {in_force.step:,} to the end of the record."


def _about_length(run: Run) -> Iterator[str]:
    total, last = run.total_steps, int(run.steps[-1])
    if total is None or not run.has_decisions:
        return
    if any(command.order == "decay" for command in run.commands):
        return
    if last > total:
        yield (
            f"The run went on for {last - total:,} steps after its planned end at step {total:,}, with an LR of 0: set"
            " total_steps to its real length."
        )
    elif last < EARLY * total:
        yield (
            f"The record ends at step {last:,} of {total:,}, before the final decay was over: resume the run, or plan a"
            " shorter one."
        )


def _about_losses(run: Run) -> Iterator[str]:
    finite = np.isfinite(run.losses)
    if not finite.all():
        first = int(run.steps[np.flatnonzero(~finite)[0]])
        yield (
            f"{_losses((~finite).sum())} NaN or infinite, first at step {first:,}: clip the gradients, lower the LR, or"
            ' set on_nonfinite="rollback".'
        )
    back = _count(run, "ROLLED_BACK")
    if back:
        times = "once" if back == 1 else f"{back} times"
        yield f"The weights went back {times}, after loss spikes or NaN: look at the data of these steps."
    elif (run.config or {}).get("on_spike") is None:
        step = _first_rise(run)
        if step is not None:
            yield (
                f'The loss rose at step {step:,}, far above what it had been: on_spike="rollback" puts earlier weights'
                " back in such a case."
            )
    yield from _about_progress(run)


def _about_progress(run: Run) -> Iterator[str]:
    early = run.losses[: len(run) // 10]
    early = early[np.isfinite(early)]
    if len(run) < 100 or not len(early):
        return
    before, after = float(early.mean()), run.final_loss()
    if after <= before if (run.config or {}).get("mode") == "max" else after >= before:
        yield f"The mean loss did not improve: {before:.4g} in the first tenth of the record, {after:.4g} in the last."


def _losses(count: int) -> str:
    return "One loss is" if count == 1 else f"{count:,} losses are"


def _first_rise(run: Run) -> int | None:
    """The step at which the loss rose, as `on_spike` sees it; None if it did not."""
    detector = SpikeDetector((run.config or {}).get("mode") == "max")
    for step, loss in zip(run.steps.tolist(), run.losses.tolist(), strict=True):
        if math.isfinite(loss):
            detector.is_spike(loss)
            if detector.has_risen:
                return int(step)
    return None
