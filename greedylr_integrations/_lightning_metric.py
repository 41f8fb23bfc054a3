"""A metric of Lightning's Trainer that GreedyLR waits for: it is there after each validation or after each epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class MonitoredMetric:
    """When to read a metric from the Trainer's `callback_metrics`.

    A metric that is there after the first validation is read after each validation. One that is there only at the end
    of a training epoch is a metric of training, and is read at the end of each epoch.

    Args:
        name (str): the metric, as the module logs it.

    Attributes:
        by_epoch (bool): whether it is read at the end of each epoch. None until that is known.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.by_epoch: bool | None = None
        self._validated = False

    def after_validation(self, metrics: Mapping[str, Any]) -> bool:
        """Whether it is to be read now, after a validation."""
        self._validated = True
        if self.by_epoch is None and self.name in metrics:
            self.by_epoch = False
        return self.by_epoch is False

    def after_epoch(self, metrics: Mapping[str, Any], validates: bool) -> bool:
        """Whether it is to be read now, at the end of a training epoch.

        Raises:
            ValueError: if it has not come by now, and no validation is left that may bring it for the first time.
        """
        if self.by_epoch is False:
            return False
        if self.name in metrics:
            self.by_epoch = True
            return True
        if self.by_epoch is None and (self._validated or not validates):
            names = ", ".join(sorted(name for name in metrics if not name.startswith("greedylr/"))) or "no metrics"
            raise ValueError(f"monitor={self.name!r} is not logged: there are {names}")
        return False
