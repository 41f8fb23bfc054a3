"""What other configurations would have done with the losses of a run, and why it did what it did at a step."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np

from greedylr_integrations.core import Action, ControllerConfig, GreedyController, Reason
from greedylr_integrations.greedy import GreedyConfig, config_from_dict
from greedylr_integrations.runs import ACTIONS, NO_DECISION, Run, RunError, make_run, sentence
from greedylr_integrations.window import RollingWindow

PRESETS = {"greedy": "GreedyConfig", "paper": "PaperConfig", "transformers": "TransformersConfig"}


def parse_config(text: str) -> ControllerConfig:
    """A configuration from words such as "paper factor=.9 patience=5"; the preset comes first and may be left out.

    Raises:
        RunError: for words that are no field or have no allowed value.
    """
    words = text.replace(",", " ").split()
    behaviour = PRESETS["greedy"]
    if words and "=" not in words[0]:
        if words[0] not in PRESETS:
            raise RunError(f"{words[0]!r} is no preset; there are {', '.join(PRESETS)}")
        behaviour = PRESETS[words.pop(0)]
    fields: dict[str, Any] = {"behaviour": behaviour}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise RunError(f"{word!r} is not of the form field=value, as in factor=0.9")
        fields[name.replace("-", "_")] = _value(value)
    if "every_n_steps" in fields:
        raise RunError("every_n_steps has no meaning here: a replay makes one decision for each recorded loss")
    return make_config(fields)


def make_config(fields: Mapping[str, Any]) -> ControllerConfig:
    try:
        return config_from_dict(fields)
    except (TypeError, ValueError) as error:
        known = str(error)
        if "unexpected keyword argument" in known:
            name = known.rpartition(" ")[2]
            known = f"{name} is not a field of {fields['behaviour']}"
        raise RunError(known) from None


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return None if text.lower() == "none" else text


def replay(run: Run, config: ControllerConfig, base_lr: float, horizon: int | None, name: str) -> Run:
    """The run that `config` would have made of the recorded losses, ramp and final decay aside.

    Raises:
        RunError: where the controller would have ended the run, or cannot be made.
    """
    try:
        controller = GreedyController(config, (base_lr,), horizon)
    except (TypeError, ValueError) as error:
        raise RunError(str(error)) from None
    observe = controller.observe
    scales, smoothed, best = array("d"), array("d"), array("d")
    actions: list[Action] = []
    reasons: list[Reason] = []
    nan = math.nan
    try:
        for loss in run.losses.tolist():
            action, reason, (scale,), _, mean, reference = observe(loss)
            scales.append(scale)
            actions.append(action)
            reasons.append(reason)
            smoothed.append(nan if mean is None else mean)
            best.append(nan if reference is None else reference)
    except FloatingPointError as error:
        raise RunError(f"{run.name}: at step {run.steps[len(scales)]} {error}") from None
    action_of = {id(action): i for i, action in enumerate(Action)}  # hashing an Enum's member is slow
    name_of = {id(reason): reason.name for reason in Reason}
    return make_run(
        name,
        "replay of the recorded losses",
        run.steps,
        run.losses,
        scales=scales,
        lrs=base_lr * np.asarray(scales),
        smoothed=smoothed,
        best=best,
        actions=[action_of[id(action)] for action in actions],
        reasons=[name_of[id(reason)] for reason in reasons],
        config=config.to_dict(),
        base_lrs=[base_lr],
        total_steps=horizon,
        monitor=run.monitor,
    )


# ---- why ----


def explain(run: Run, step: int) -> list[str]:
    """In words, what happened to the LR at a step and why; honest about what the record lacks.

    Raises:
        RunError: for a step outside the run.
    """
    first, last = int(run.steps[0]), int(run.steps[-1])
    if not first <= step <= last:
        raise RunError(f"{run.name}: step {step} is not in the record, which goes from step {first} to {last}")
    row = int(np.searchsorted(run.steps, step, side="right")) - 1
    lines = []
    if run.steps[row] != step:
        lines.append(f"Nothing was recorded at step {step}; the last row before it is step {run.steps[row]}.")
    lines.append(_what_happened(run, row))
    if run.actions[row] == NO_DECISION:
        lines.append(_without_decision(run))
        return lines
    reason = run.reason(row)
    lines.append(f"Reason {reason}: {sentence(reason)}." if sentence(reason) != reason else f"Reason {reason}.")
    lines += _numbers(run, row)
    lines += _context(run, row)
    return lines


def _number(value: float) -> str:
    return f"{value:.6g}"


def _what_happened(run: Run, row: int) -> str:
    at = f"Step {run.steps[row]}"
    lr, scale = float(run.lrs[row]), float(run.scales[row])
    if row == 0 or not math.isfinite(lr) or not math.isfinite(run.lrs[row - 1]):
        known = f"the LR was {_number(lr)}" if math.isfinite(lr) else "the record has no LR"
        return f"{at}: {known}; there is no earlier LR to compare it with." if row == 0 else f"{at}: {known}."
    before = float(run.lrs[row - 1])
    since = f"from {_number(before)} (step {run.steps[row - 1]}) to {_number(lr)}"
    happened = "stayed at " + _number(lr) if lr == before else ("rose " if lr > before else "fell ") + since
    if not math.isfinite(scale) or not math.isfinite(run.scales[row - 1]):
        return f"{at}: the LR {happened}."
    was = float(run.scales[row - 1])
    action = ACTIONS[run.actions[row]] if run.actions[row] != NO_DECISION else "hold"
    moved = "the scale stayed at " + _number(scale)
    if scale != was:
        moved = f"scale {_number(was)} to {_number(scale)}, x {_number(scale / was)}"
    return f"{at}: decision {action}; the LR {happened} ({moved})."


def _without_decision(run: Run) -> str:
    if run.has_decisions:
        return "No decision was made here: during a ramp, or with every_n_steps above 1, there is none."
    return (
        f"The record is a {run.source}: it has the loss and the LR as they were logged, and no decisions, so it cannot"
        " say why. A history file (history_file=) has the reason of each."
    )


def _numbers(run: Run, row: int) -> list[str]:
    loss, mean, best = float(run.losses[row]), float(run.smoothed[row]), float(run.best[row])
    if not math.isfinite(loss):
        return [f"The loss was {loss}: it took no part in the mean."]
    lines = [f"Loss {_number(loss)}."]
    if not math.isfinite(mean):
        return [*lines, "The record has no smoothed loss here."]
    window = _window(run, row)
    over = f"of the last {len(window)} losses" if window else "of the recent losses"
    lines[0] += f" Mean {over} {_number(mean)}"
    if not math.isfinite(best):
        lines[0] += "; there was no reference to compare it with yet."
        return lines
    gap = mean - best
    side = "equal to" if gap == 0 else f"{_number(abs(gap))} " + ("above" if gap > 0 else "below")
    lines[0] += f", {side} the best before it, {_number(best)}."
    lines.append(_threshold(run, mean, best, window))
    return lines


def _window(run: Run, row: int) -> list[float]:
    """The losses whose mean the smoothed loss is: the shortest tail that has this mean; none if none has."""
    losses = run.losses[: row + 1]
    losses = losses[np.isfinite(losses)][::-1]
    sizes = np.arange(1, len(losses) + 1)
    means = np.cumsum(losses) / sizes
    told = (run.config or {}).get("window_size")
    near = np.flatnonzero(np.isclose(means, run.smoothed[row], rtol=1e-9, atol=1e-12))
    if told and len(losses) and run.config and run.config.get("smooth", True):
        near = near[near == min(int(told), len(losses)) - 1]
    return losses[: near[0] + 1][::-1].tolist() if len(near) else []


def _threshold(run: Run, mean: float, best: float, window: list[float]) -> str:
    if run.config is None:
        return "The record has no configuration, so the threshold is not known."
    try:
        config: Any = make_config(run.config)
    except RunError as error:
        return f"The recorded configuration cannot be read, so the threshold is not known ({error})."
    sign = -1.0 if config.mode == "max" else 1.0
    threshold = config.threshold
    if not isinstance(config, GreedyConfig):
        edge = best * (1 - sign * threshold) if config.threshold_mode == "rel" else best - sign * threshold
        return (
            f"Threshold {threshold:g} ({config.threshold_mode}): a mean beyond {_number(edge)} counts as good, any"
            f" other as bad; the LR moves after more than {config.patience} in a row."
        )
    if config.threshold_mode == "se":
        if not window:
            return f"Threshold {threshold:g} standard errors; they cannot be worked out, since the record lacks losses."
        rolling = RollingWindow(len(window))
        for loss in window:
            rolling.push(loss)
        noise = rolling.standard_error()
        margin = threshold * noise
        unit = f"{threshold:g} x the standard error {_number(noise)}, worked out from the recorded losses"
        good = best
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
        lines.append("The record does not say whether ramp or final decay had a part in the LR.")
    elif envelope < 1:
        lines.append(f"Ramp or final decay multiplied the LR by {_number(envelope)} on top of the scale.")
    now = [str(order) for order in run.orders if order.step == run.steps[row]]
    earlier = [order for order in run.orders if order.step < run.steps[row]]
    if now:
        lines.append(f"This order was followed at this step, before the decision: {', '.join(now)}.")
    elif earlier and earlier[-1].order != "release":
        lines.append(f"The last order before it was {earlier[-1]} at step {earlier[-1].step}.")
    if run.group_lrs is not None:
        every = ", ".join(_number(float(lr)) for lr in run.group_lrs[:, row] if math.isfinite(lr))
        lines.append(f"The LRs of all parameter groups after it: {every}. Above is the first.")
    same = run.reasons[row]
    start = row
    while start > 0 and run.reasons[start - 1] == same:
        start -= 1
    if start < row:
        lines.append(f"It was the decision number {row - start + 1} in a row with this reason.")
    return lines
