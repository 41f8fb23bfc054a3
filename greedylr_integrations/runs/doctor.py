"""What is likely to be wrong with a run, from its record, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from platform import platform, python_version
from typing import Any

import numpy as np

from greedylr_integrations.columns import CommandRecord
from greedylr_integrations.decision import FINDS, SEARCHES, Reason
from greedylr_integrations.rules.slope import SHORTEST
from greedylr_integrations.runs.run import Integers, Run
from greedylr_integrations.runs.summary import base_lr_of
from greedylr_integrations.spikes import SpikeDetector
from greedylr_integrations.summary import EARLY

OFTEN = 0.1  # share of the decisions in which the LR was at a bound
FAR = 10.0  # times the base LR, or a part of it, from which the next run should start elsewhere
PACKAGES = (
    "torch",
    "transformers",
    "lightning",
    "pytorch-lightning",
    "accelerate",
    "datasets",
    "trl",
    "peft",
    "deepspeed",
)
ADAPTERS = {"transformers": "transformers", "lightning": "lightning", "accelerate": "accelerate"}  # and what they need
FOLLOWS_LOSS = (Reason.FILLING, Reason.IMPROVED, Reason.INSIGNIFICANT, Reason.PATIENCE)  # of the loss window
CUT_SHORT = {
    Reason.NONFINITE.name: "a loss that was NaN or infinite",
    Reason.SPIKE.name: "a loss spike",
    Reason.ROLLED_BACK.name: "a loss spike or NaN",
}


def findings(run: Run, is_loss: bool = True) -> list[str]:
    """A sentence for each thing that is likely to be wrong, with what to do; the most important first.

    Args:
        run (Run): the record.
        is_loss (bool): whether its losses are losses, and not another metric that the user has named. Default True.
    """
    found = [*_about_search(run), *_about_bounds(run), *_about_length(run), *_about_nonfinite(run)]
    return [*found, *_about_spikes(run), *_about_progress(run)] if is_loss else found


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


def _rows(run: Run, *reasons: Reason) -> Integers:
    """The rows with one of these reasons."""
    names = [reason.name for reason in reasons]
    return np.flatnonzero(np.isin(run.reasons, [i for i, name in enumerate(run.reason_names) if name in names]))


def _count(run: Run, *reasons: Reason) -> int:
    return len(_rows(run, *reasons))


def _is_default(run: Run) -> bool:
    return _value(run, "behaviour") == "SlopeConfig"


def _value(run: Run, field: str) -> Any:
    """A field of the run's configuration; None if it has none."""
    return (run.config or {}).get(field)


def _about_search(run: Run) -> Iterator[str]:
    if run.base_lrs and not any(run.base_lrs):
        yield "The base LR is 0, so nothing was trained: give the optimizer an LR above 0."
        return
    if not _is_default(run) or not run.has_decisions:
        return
    lr, base_lr = run.suggested_lr(), base_lr_of(run)
    searching = _rows(run, *SEARCHES)
    row = int(searching[-1]) if len(searching) else None
    bounded = _is_often(run, Reason.CEILING)  # `_about_bounds` says so
    if _count(run, Reason.TOO_SHORT) and row is None:
        yield f"There was no search, and the LR was left as it was: {_needs_more(run)}"
    elif _count(run, *FOLLOWS_LOSS):
        yield (
            "No slope was measured, so the LR followed the loss alone, which cannot find the LR if the base LR is far"
            " off: the optimizer's gradients were hidden, as with DeepSpeed's ZeRO."
        )
    elif _count(run, *FINDS):
        if lr is not None and not bounded and not 1 / FAR <= lr / base_lr <= FAR:
            yield (
                f"The LR that was found, {lr:.2g}, is far from the base LR, {base_lr:.2g}: start the next such run at"
                f" {lr:.2g}."
            )
    elif row == len(run) - 1:
        yield f"The record ends in the search, after step {int(run.steps[-1]):,}: the LR was not found yet."
    elif row is not None:
        after, ordered = run.reason(row + 1), _rows(run, Reason.ORDERED)
        if after == Reason.ORDERED.name or (ordered < row).any():
            if not _held_to_the_end(run):  # `_about_bounds` says so
                step = int(run.steps[ordered[0]])
                yield (
                    f"The search was held up from step {step:,} on by {_command_at(run, step)}, so the LR may not be"
                    " the one that fits: let the search end first."
                )
        elif after in CUT_SHORT:
            yield (
                f"The search ended at step {int(run.steps[row + 1]):,} because of {CUT_SHORT[after]}, so the LR may not"
                " be the one that fits."
            )
        elif after == Reason.HOLDING.name and lr is not None and not bounded:
            yield (
                f"The search ran out of time at an LR of {lr:.2g}, so the best LR may be higher: start the next run"
                f" with a base LR of {lr:.2g}."
            )


def _command_at(run: Run, step: int) -> str:
    """The command that was in force at a step."""
    given = [each for each in run.commands if each.order != "decay" and each.step <= step]
    return f"the command `{given[-1]}`" if given else "a command"


def _held_to_the_end(run: Run) -> CommandRecord | None:
    """The command that kept the LR still to the end of the record."""
    in_force = next((each for each in reversed(run.commands) if each.order != "decay"), None)
    return in_force if in_force is not None and in_force.order in ("hold", "pin") else None


def _needs_more(run: Run) -> str:
    """Why a run was not searched in, and what to do about it."""
    total, every, gap = run.total_steps, _value(run, "every_n_steps") or 1, _gap(run) or 1
    warmup = max(int(run.steps[0] - gap), 0)  # the record does not say, but there are no decisions in it
    decisions = None if total is None else math.ceil(max(total - warmup, 1) / gap)
    needs = f"a search needs {SHORTEST} decisions"
    if total is None or decisions is None or decisions >= SHORTEST:
        return f"{needs} in the first pass over the data. Use a smaller batch, or more data."
    settings = [f"every_n_steps={every}"] * (every > 1) + [f"linear_warmup_steps={warmup}"] * (warmup > 0)
    advice = (
        f"Lower {' and '.join(settings)}."
        if settings and total >= SHORTEST
        else "Train for longer, or use a smaller batch."
    )
    return f"{needs}, and the run had {decisions}. {advice}"


def _gap(run: Run) -> float:
    """Optimizer steps from one row to the next, such as those between evaluations."""
    return float(np.median(np.diff(run.steps))) if len(run) > 1 else 0.0


def _is_often(run: Run, reason: Reason) -> bool:
    return _count(run, reason) > OFTEN * int((run.actions >= 0).sum())


def _about_bounds(run: Run) -> Iterator[str]:
    decisions = int((run.actions >= 0).sum())
    for reason, which, bound, larger, higher in (
        (Reason.CEILING, "upper", "max", "larger", "higher"),
        (Reason.FLOOR, "lower", "min", "smaller", "lower"),
    ):
        if _is_often(run, reason):
            given = [f"{bound}_{of}" for of in ("lr", "scale") if _value(run, f"{bound}_{of}") is not None]
            advice = f"a {larger} {given[0]}" if given else f"a {higher} base LR, or a {larger} {bound}_scale"
            share = _count(run, reason) / decisions
            yield f"The LR was at its {which} bound in {share:.0%} of the decisions: use {advice}."
    held = _held_to_the_end(run)
    if held is not None:
        yield f"The command `{held}` was in force from step {held.step:,} to the end of the record."


def _about_length(run: Run) -> Iterator[str]:
    total, last = run.total_steps, int(run.steps[-1])
    at_end = total is None or last >= EARLY * total
    if at_end and 0 < _count(run, Reason.FILLING) == int((run.actions >= 0).sum()):
        yield "The loss window never filled, so the LR never moved: set a smaller window_size."
    if total is None or not run.has_decisions or any(command.order == "decay" for command in run.commands):
        return
    over = run.steps > total
    if over.any() and not run.lrs[over].any():
        yield (
            f"The run went on for {last - total:,} steps after its planned end at step {total:,}, with an LR of 0: set"
            " total_steps to its real length."
        )
    elif last + _gap(run) < EARLY * total:
        yield f"The record ends at step {last:,} of {total:,}: resume the run, or plan a shorter one."


def _about_nonfinite(run: Run) -> Iterator[str]:
    finite = np.isfinite(run.losses)
    if not finite.all():
        first = int(run.steps[np.flatnonzero(~finite)[0]])
        advice = "clip the gradients, or lower the LR"
        if _value(run, "on_nonfinite") != "rollback":
            advice = 'clip the gradients, lower the LR, or set on_nonfinite="rollback"'
        yield f"{_losses((~finite).sum(), len(run))} NaN or infinite, first at step {first:,}: {advice}."


def _about_spikes(run: Run) -> Iterator[str]:
    back = run.steps[_rows(run, Reason.ROLLED_BACK)].tolist()
    if back:
        where = ", ".join(f"{step:,}" for step in back[:5]) + (" and later" if len(back) > 5 else "")
        yield f"Earlier weights were restored at step {where}: look at the data before it."
    elif _value(run, "on_spike") is None:
        step = _first_rise(run)
        if step is not None:
            yield (
                f'The loss rose at step {step:,}, far above what it had been: on_spike="rollback" would have restored'
                " earlier weights."
            )


def _about_progress(run: Run) -> Iterator[str]:
    early = run.losses[: len(run) // 10]
    early = early[np.isfinite(early)]
    if len(run) < 100 or not len(early):
        return
    before, after = float(early.mean()), run.final_loss()
    if after <= before if _value(run, "mode") == "max" else after >= before:
        what = "loss" if run.monitor == "loss" else repr(run.monitor)
        yield f"The mean {what} did not improve: {before:.4g} in the first tenth of the rows, {after:.4g} in the last."


def _losses(count: int, of: int) -> str:
    if count == of:
        return "All losses are"
    return "One loss is" if count == 1 else f"{count:,} losses are"


def _first_rise(run: Run) -> int | None:
    """The step at which the loss rose, as `on_spike` sees it; None if it did not."""
    detector = SpikeDetector(_value(run, "mode") == "max")
    for step, loss in zip(run.steps.tolist(), run.losses.tolist(), strict=True):
        if math.isfinite(loss):
            detector.is_spike(loss)
            if detector.has_risen:
                return int(step)
    return None
