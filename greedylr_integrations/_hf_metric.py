"""A metric of Hugging Face's Trainer that GreedyLR waits for: when it is there, and when it should have been."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

from greedylr_integrations.log import logger


def is_evaluation(logs: Mapping[str, Any]) -> bool:
    """Whether logged values are those of an evaluation, which `on_evaluate` brings too."""
    return any(name.startswith("eval_") or name.endswith("_runtime") for name in logs)


class MonitoredMetric:
    """The values of one metric in the Trainer's logs and evaluations.

    Args:
        name (str): the metric, with or without "eval_"; "loss" if the loss of each step cannot be seen.
        args (TrainingArguments): when the Trainer logs and evaluates.
    """

    def __init__(self, name: str, args: Any) -> None:
        self.name = name
        self._args = args
        self._seen: set[str] = set()  # names of the metrics that came
        self.never = False  # whether it was said at the start that it will not come
        self._found = self._said = False
        self._logged = self._evaluated = self._evaluation_due = False

    def warn_at_start(self, state: Any) -> None:
        """Log a WARNING if the settings never evaluate. It is no error, since a callback of the user may evaluate."""
        self.never = self._said = self.count(state) == 0
        if not self.never:
            return
        if self._args.eval_strategy == "no":
            why = "eval_strategy is 'no': set eval_strategy to 'steps' or 'epoch'"
        else:
            why = (
                f"the first evaluation comes after the {state.max_steps} steps of this run: lower"
                f" eval_steps={state.eval_steps} or eval_delay={self._args.eval_delay}"
            )
        logger.warning(
            "monitor=%r will not appear on its own, because %s; otherwise, the LR will not follow it", self.name, why
        )

    def logged(self, logs: Mapping[str, Any]) -> bool:
        """Take in what the Trainer logs. Returns whether the metric is in it."""
        self._logged = True
        return self._take(logs, self.name)

    def evaluated(self, metrics: Mapping[str, Any]) -> str | None:
        """Take in the results of an evaluation. Returns the metric's name in them, or None if it is not there."""
        self._evaluated = self._evaluation_due
        names = (self.name, f"eval_{self.name}")
        return next((name for name in names if self._take(metrics, name)), None)

    def _take(self, values: Mapping[str, Any], name: str) -> bool:
        self._seen |= values.keys()
        found = name in values
        self._found |= found
        return found

    def expect_evaluation(self, due: bool) -> None:
        """Take note, at the end of a step or epoch, of whether the Trainer will evaluate now."""
        self._evaluation_due |= due

    def look_for(self) -> None:
        """Complain once if the metric has not come when it should have.

        Raises:
            ValueError: if the metric's name begins with "eval_", and it was not in the results of an evaluation.
        """
        evaluated = self._evaluated or self._args.eval_strategy == "no"
        if self._found or self._said or not evaluated:
            return
        message = f"monitor={self.name!r} is neither logged nor evaluated: there are {', '.join(sorted(self._seen))}"
        if self.name.startswith("eval_"):
            raise ValueError(message)
        if self._logged or self._args.logging_strategy == "no":
            self._said = True
            logger.warning("%s so far; the LR will not follow it until it appears", message)

    # ---- how many values to come ----

    def is_best_metric(self) -> bool:
        """Whether it is the `metric_for_best_model`, to which `greater_is_better` applies."""
        best = (self._args.metric_for_best_model or "").removeprefix("eval_")
        return self.name != "loss" and self.name.removeprefix("eval_") == best

    def count(self, state: Any) -> int | None:
        """How many values the whole run will have; None if it does not follow from the settings."""
        args = self._args
        evaluations = _times(args.eval_strategy, state.eval_steps, state, delay=args.eval_delay or 0)
        if self.name.startswith("eval_"):
            return evaluations
        logs = _times(args.logging_strategy, state.logging_steps, state)
        if self.name == "loss":
            return logs or None
        if evaluations and self.is_best_metric():
            return evaluations
        return max(logs or 0, evaluations or 0) or None  # the user's own code may log it


def _times(strategy: str, steps: int, state: Any, delay: float = 0) -> int | None:
    """How often something happens in a run, if not before `delay` epochs or steps; None if that is not known."""
    skipped = max(0, ceil(delay) - 1)
    if strategy == "no":
        return 0
    if strategy == "epoch" and state.num_train_epochs > state.max_steps:
        return None  # a stream has any number of epochs
    if strategy == "epoch":
        return max(0, ceil(state.num_train_epochs) - skipped)
    return max(0, state.max_steps // max(1, steps) - skipped // max(1, steps))
