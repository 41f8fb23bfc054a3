"""The rule of `transformers.optimization.GreedyLR`, as of transformers 5.23."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from greedylr_integrations.checks import is_finite, is_numbers
from greedylr_integrations.decision import (
    COOLDOWN,
    HOLD,
    IMPROVED,
    NONFINITE,
    PATIENCE,
    RESET,
    WARMUP,
    WORSENED,
    Decision,
)
from greedylr_integrations.rules.published import PublishedConfig, PublishedRule


@dataclass(frozen=True, kw_only=True)
class TransformersConfig(PublishedConfig):
    """`transformers.optimization.GreedyLR` (5.23) with the same keywords, its running sum and eps included.

    `reset_start` counts decreases that leave every group at its min_lr; then everything starts over, LRs included.
    """

    threshold_mode: str = "abs"
    verbose: bool = False
    """Accepted because the source has it; without effect, since decisions are logged."""

    def rule(self, base_lrs: Sequence[float], horizon: int | None, first_pass: int | None = None) -> TransformersRule:
        return TransformersRule(self, base_lrs)


class TransformersRule(PublishedRule):
    """The step of `transformers.optimization.GreedyLR`."""

    STATE: ClassVar = {"losses": is_numbers, "sum": is_finite}

    def __init__(self, config: TransformersConfig, base_lrs: Sequence[float]) -> None:
        super().__init__(config, base_lrs)
        self._losses: deque[float] = deque()
        self._sum = 0.0

    def _smooth(self, loss: float) -> float:
        # the source's running sum, rounding and all
        if not self._config.smooth:
            return loss
        self._losses.append(loss)
        self._sum += loss
        if len(self._losses) > self._config.window_size:
            self._sum -= self._losses.popleft()
        return self._sum / len(self._losses)

    def update(self, loss: float, slope: float | None = None, distance: float | None = None) -> Decision:
        c = self._config
        current = self._smooth(loss)
        if not math.isfinite(current):  # the source would be poisoned for good; start its window over
            self._losses.clear()
            self._sum = 0.0
            return Decision(HOLD, NONFINITE, self.scales, loss)
        best, before, reason = self._best, list(self._lrs), PATIENCE
        if self._cooldown_counter > 0:
            self._cooldown_counter -= 1
            self._num_bad = self._num_good = 0
            reason = COOLDOWN
        elif self._warmup_counter > 0:
            self._warmup_counter -= 1
            self._num_bad = self._num_good = 0
            reason = WARMUP
        else:
            self._judge(current)
            if self._num_good > c.patience:
                self._raise_lrs()
                self._reset_start = c.reset_start
                self._warmup_counter = c.warmup
                self._num_good = 0
                reason = IMPROVED
            elif self._num_bad > c.patience:
                reason = WORSENED
                self._lower_lrs()
                if all(lr <= low for lr, low in zip(self._lrs, self._min_lrs, strict=True)):
                    self._reset_start -= 1
                    if self._reset_start <= 0:
                        self._reset()
                        reason = RESET
                self._cooldown_counter = c.cooldown
                self._num_bad = 0
        return self._decision(before, reason, loss, current, best)

    def _reset(self) -> None:
        self._set_lrs(list(self._base_lrs))
        self._start_over()
        self._losses.clear()
        self._sum = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "losses": list(self._losses), "sum": self._sum}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._losses, self._sum = deque(state["losses"]), state["sum"]
