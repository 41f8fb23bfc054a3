"""A metric of Lightning's Trainer that GreedyLR waits for: it is there after each validation or after each epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from greedylr_integrations.log import logger


class MonitoredMetric:
    """When to read a metric from the Trainer's `callback_metrics`.

    A metric that is there after the first validation is read after each validation. One that is there only at the end
    of a training epoch is a metric of training, and is read at the end of each epoch.

    Args:
        name (str): the metric, as the module logs it.

    Attributes:
        by_epoch (bool): whether it is read at the end of each epoch. None until that is known.
        never (bool): whether it was said at the start that it will not come.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.by_epoch: bool | None = None
        self.never = False
        self._validated = False

    def warn_at_start(self, validations: int | None) -> None:
        """Log a WARNING if it is a metric of validation, by its name, and the run has none."""
        self.never = validations == 0 and self.is_of_validation
        if self.never:
            logger.warning(
                "monitor=%r will not appear on its own, because this run has no validation: pass a validation loader,"
                " and check limit_val_batches and check_val_every_n_epoch; otherwise, the LR will not follow it",
                self.name,
            )

    @property
    def is_of_validation(self) -> bool:
        """Whether its name says that it is logged in validation."""
        return self.name.startswith("val")

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
        if self.by_epoch is None and not self.never and (self._validated or not validates):
            names = ", ".join(sorted(name for name in metrics if not name.startswith("greedylr/"))) or "no metrics"
            raise ValueError(
                f"monitor={self.name!r} is not logged: there are {names}. Log it with `self.log`, or choose another"
                " monitor"
            )
        return False
