"""Why the learning rate of a run moved at a step, or did not, in words."""

from __future__ import annotations

import math

import numpy as np

from greedylr_integrations.rolling import RollingMean
from greedylr_integrations.rules import GreedyConfig, PaperConfig, TransformersConfig
from greedylr_integrations.runs.replay import make_config
from greedylr_integrations.runs.run import ACTIONS, NO_DECISION, Run, RunError, sentence


def explain(run: Run, step: int) -> list[str]:
    """What happened to the LR at a step and why, and what the record does not say about it.

    A step is trained with one LR, and the decision after it leads to the next. Both are reported, whether the row of
    the step has the former, as in the logs of others, or the latter, as in histories. The first step is step 1, even in
    logs that count from 0, as Lightning's do.

    Raises:
        RunError: for a step outside the run.
    """
    first, last = _step_at(run, 0), _step_at(run, -1)
    if not first <= step <= last:
        raise RunError(f"{run.name}: step {step} is not in the record, which goes from step {first} to {last}")
    row = int(np.searchsorted(run.steps, step - _counts_from_0(run), side="right")) - 1
    lines = []
    if _step_at(run, row) != step:
        lines.append(f"Nothing was recorded at step {step}; the last row before it is step {_step_at(run, row)}.")
    lines.append(_what_happened(run, row))
    if run.actions[row] == NO_DECISION:
        lines.append(_without_decision(run))
        return lines
    reason = run.reason(row)
    lines.append(f"Reason {reason}: {sentence(reason)}." if sentence(reason) != reason else f"Reason {reason}.")
    return lines + _numbers(run, row) + _context(run, row)


def _counts_from_0(run: Run) -> bool:
    return not run.lrs_are_next and int(run.steps[0]) == 0


def _step_at(run: Run, row: int) -> int:
    return int(run.steps[row]) + _counts_from_0(run)


def _number(value: float) -> str:
    return f"{value:.6g}"


# ---- the LR ----


def _what_happened(run: Run, row: int) -> str:
    decided = f"decision {ACTIONS[run.actions[row]]}; " if run.actions[row] != NO_DECISION else ""
    own = f" ({run.steps[row]} in this log, which counts from 0)" if _counts_from_0(run) else ""
    at = f"Step {_step_at(run, row)}{own}: {decided}the "
    here = row - 1 if run.lrs_are_next else row  # the row with the LR that the step was trained with
    lr, following = _lr_at(run, here), _lr_at(run, here + 1)
    scale = _scale_of(run, row)
    if math.isnan(lr) and math.isnan(following):
        return at + "record has no LR" + (f"{scale}." if decided else "; there is no LR to compare it with.")
    if math.isnan(lr):
        return f"{at}LR after it is {_number(following)}; there is no earlier LR to compare it with{scale}."
    if math.isnan(following):
        return f"{at}LR was {_number(lr)}; there is no later LR to compare it with{scale}."
    if lr == following:
        return f"{at}LR stayed at {_number(lr)}{scale}."
    later = _step_at(run, here + 1) + run.lrs_are_next
    rose = "rose" if following > lr else "fell"
    return f"{at}LR {rose} from {_number(lr)} to {_number(following)} (step {later}){scale}."


def _lr_at(run: Run, row: int) -> float:
    return float(run.lrs[row]) if 0 <= row < len(run) else math.nan


def _scale_of(run: Run, row: int) -> str:
    scale = float(run.scales[row])
    was = float(run.scales[row - 1]) if row else math.nan
    if not math.isfinite(scale) or not math.isfinite(was):
        return ""
    if scale == was:
        return f"; the scale stayed at {_number(scale)}"
    ratio = f", x {_number(scale / was)}" if was else ""
    return f"; scale {_number(was)} to {_number(scale)}{ratio}"


def _without_decision(run: Run) -> str:
    if run.has_decisions:
        return "No decision was made here: the step is in the warmup or, with every_n_steps above 1, between two."
    return (
        f"The record is a {run.source}: it has the loss and the LR as they were logged, and no decisions, so it cannot"
        " say why. A history file (history_file=) has the reason of each."
    )


# ---- what the decision saw ----


def _numbers(run: Run, row: int) -> list[str]:
    loss, mean, best = float(run.losses[row]), float(run.smoothed[row]), float(run.best[row])
    slope = [_slope(run, row)] if math.isfinite(run.slopes[row]) else []
    if not math.isfinite(loss):
        return [f"The loss was {loss}: it is left out of the mean.", *slope]
    told = f"Loss {_number(loss)}."
    if not math.isfinite(mean):
        return [told, *(slope or ["The record has no smoothed loss here."])]
    window = _window(run, row)
    over = f"of the last {len(window)} losses" if window else "of the recent losses"
    told += f" Mean {over} {_number(mean)}"
    if not math.isfinite(best):
        return [told + "; there was no reference to compare it with yet.", *slope]
    gap = mean - best
    side = "equal to" if gap == 0 else f"{_number(abs(gap))} " + ("above" if gap > 0 else "below")
    return [f"{told}, {side} the best before it, {_number(best)}.", *_threshold(run, mean, best, window), *slope]


def _slope(run: Run, row: int) -> str:
    """The slope at a row; see `slope.SlopeMeter`."""
    slope, mean = float(run.slopes[row]), float(run.slope_means[row])
    told = f"Slope {_number(slope)}"
    if math.isfinite(mean):
        side = "above 0: the weights have overshot" if mean > 0 else "below 0: moving further would lower the loss"
        told += f"; the mean of the last ones is {_number(mean)}, {side if mean else 'exactly 0'}"
    distance = float(run.distances[row])
    return told + (f". The weights have moved by {distance:.2g} of their size." if math.isfinite(distance) else ".")


def _window(run: Run, row: int) -> list[float]:
    """The losses whose mean the smoothed loss is: the shortest tail that has this mean; none if none has."""
    losses = run.losses[: row + 1]
    losses = losses[np.isfinite(losses)][::-1]
    means = np.cumsum(losses) / np.arange(1, len(losses) + 1)
    told = (run.config or {}).get("window_size")
    near = np.flatnonzero(np.isclose(means, run.smoothed[row], rtol=1e-9, atol=1e-12))
    if isinstance(told, int) and told >= 1 and run.config and run.config.get("smooth", True):
        near = near[near == min(told, len(losses)) - 1]
    return losses[: near[0] + 1][::-1].tolist() if len(near) else []


def _threshold(run: Run, mean: float, best: float, window: list[float]) -> list[str]:
    if run.config is None:
        return ["The record has no configuration, so the threshold is not known."]
    try:
        config = make_config(run.config)
    except RunError as error:
        return [f"The recorded configuration cannot be read, so the threshold is not known ({error})."]
    if isinstance(config, GreedyConfig):
        return [_threshold_of_window(config, best, window)]
    if not isinstance(config, (PaperConfig, TransformersConfig)):
        return []  # this rule has none
    sign = -1.0 if config.mode == "max" else 1.0
    threshold = config.threshold
    edge = best * (1 - sign * threshold) if config.threshold_mode == "rel" else best - sign * threshold
    return [
        f"Threshold {threshold:g} ({config.threshold_mode}): a mean beyond {_number(edge)} counts as good, any other"
        f" as bad; the LR moves after more than {config.patience} in a row."
    ]


def _threshold_of_window(config: GreedyConfig, best: float, window: list[float]) -> str:
    sign = -1.0 if config.mode == "max" else 1.0
    threshold = config.threshold
    if config.threshold_mode == "se":
        if not window:
            return f"Threshold {threshold:g} standard errors; they cannot be worked out, since the record lacks losses."
        rolling = RollingMean(len(window))
        for loss in window:
            rolling.push(loss)
        noise = rolling.standard_error()
        margin, good = threshold * noise, best
        unit = f"{threshold:g} x the standard error {_number(noise)}, worked out from the recorded losses"
    else:
        margin = threshold * abs(best) if config.threshold_mode == "rel" else threshold
        unit = f"{threshold:g} ({config.threshold_mode})"
        good = best - sign * margin
    bad = best + sign * margin
    low, high = ("below", "above") if sign > 0 else ("above", "below")
    patience = f"; the LR moves after more than {config.patience} in a row" if config.patience else ""
    return (
        f"Threshold {unit}: {low} {_number(good)} is better, {high} {_number(bad)} is worse, between them the LR"
        f" holds{patience}."
    )


def _context(run: Run, row: int) -> list[str]:
    lines = []
    envelope = float(run.envelope[row])
    if not math.isfinite(envelope):
        lines.append("The record does not say whether warmup or final decay had a part in the LR.")
    elif envelope < 1:
        lines.append(f"Warmup or final decay multiplied the LR by {_number(envelope)} on top of the scale.")
    now = [str(command) for command in run.commands if command.step == run.steps[row]]
    earlier = [command for command in run.commands if command.step < run.steps[row]]
    if now:
        lines.append(f"This command was followed at this step, before the decision: {', '.join(now)}.")
    elif earlier and earlier[-1].order != "release":
        lines.append(f"The last command before it was {earlier[-1]} at step {earlier[-1].step}.")
    if run.group_lrs is not None:
        every = [_number(float(lr)) for lr in run.group_lrs[:, row] if math.isfinite(lr)]
        if len(set(every)) > 1:
            groups = ", ".join(every)
            lines.append(f"The LRs of all parameter groups after it: {groups}. Above is group {run.group + 1}.")
    others = np.flatnonzero(run.reasons[: row + 1] != run.reasons[row])
    streak = row - (int(others[-1]) if len(others) else -1)
    if streak > 1:
        lines.append(f"It was decision number {streak} in a row with this reason.")
    return lines
