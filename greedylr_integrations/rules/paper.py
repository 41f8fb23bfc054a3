"""The GreedyLR paper's rule: Algorithms 2 and 3 of https://arxiv.org/abs/2512.14527."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from greedylr_integrations.decision import COOLDOWN, HOLD, IMPROVED, NONFINITE, PATIENCE, WARMUP, WORSENED, Decision
from greedylr_integrations.rolling import RollingMean, is_window
from greedylr_integrations.rules.published import PublishedConfig, PublishedRule


@dataclass(frozen=True, kw_only=True)
class PaperConfig(PublishedConfig):
    """Algorithms 2 and 3 of arXiv 2512.14527; "better" is relative by default, as in the paper.

    `reset_start` counts down on every call in which all groups share one LR. At 0, the best and all counters start
    over, while LR and window stay.
    """

    def rule(self, base_lrs: Sequence[float], horizon: int | None, first_pass: int | None = None) -> PaperRule:
        return PaperRule(self, base_lrs)


class PaperRule(PublishedRule):
    """Algorithms 2 and 3, in their order."""

    STATE: ClassVar = {"window": is_window}

    def __init__(self, config: PaperConfig, base_lrs: Sequence[float]) -> None:
        super().__init__(config, base_lrs)
        self._window = RollingMean(config.window_size if config.smooth else 1)

    def update(self, loss: float, slope: float | None = None, distance: float | None = None) -> Decision:
        c = self._config
        current = self._window.push(loss)
        if not math.isfinite(current):  # the sum overflowed
            return Decision(HOLD, NONFINITE, self.scales, loss)
        best, before, reason = self._best, list(self._lrs), PATIENCE
        self._judge(current)
        if self._cooldown_counter > 0:
            self._cooldown_counter -= 1
            self._num_bad = 0
            reason = COOLDOWN
        if self._warmup_counter > 0:
            self._warmup_counter -= 1
            self._num_good = 0
            reason = WARMUP
        if self._num_bad > c.patience:
            self._lower_lrs()
            self._cooldown_counter = c.cooldown
            self._num_bad = 0
            reason = WORSENED
        if self._num_good > c.patience:
            self._raise_lrs()
            self._warmup_counter = c.warmup
            self._num_good = 0
            reason = IMPROVED
        if self._reset_start == 0:
            self._start_over()
        if len(set(self._lrs)) == 1:
            self._reset_start -= 1
        return self._decision(before, reason, loss, current, best)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "window": self._window.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._window.load_state_dict(state["window"])
