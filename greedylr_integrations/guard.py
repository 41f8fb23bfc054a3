"""What is done about losses that no rule should see: those that are NaN or infinite, and loss spikes.

Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from greedylr_integrations.checks import fits, is_count, is_flag, is_none_or
from greedylr_integrations.decision import NONFINITE, ROLLED_BACK, SPIKE, Reason
from greedylr_integrations.log import logger
from greedylr_integrations.spikes import SpikeDetector, is_detector

if TYPE_CHECKING:
    from greedylr_integrations.controller import ControllerConfig

DEAD_AFTER = 3  # non-finite losses in a row after which `on_nonfinite="reduce"` aborts the run
MOST_ROLLBACKS = 5  # each within APART of the one before
APART = 1000  # decisions
SOON = 300  # decisions after a rollback in which another one lowers the LR
AT_ONCE = 20  # decisions after a rollback in which what caused it is likely to be still there, whatever the LR
ENOUGH = 2  # rollbacks in a row that came at once; another would not help, since it is the data that has changed


class SpikeError(RuntimeError):
    """A loss spike that ends the run: with `on_spike="raise"`, or after too many rollbacks."""


class Response(NamedTuple):
    """What to do about a loss that the rule should not see.

    Attributes:
        reason (Reason): what it was, or that the weights go back.
        lower (bool): whether to lower the LR.
        limit (float): the limit that a spike exceeded. None for a loss that is not finite.
        error (FloatingPointError or SpikeError): what ends the run. None if it goes on.
    """

    reason: Reason
    lower: bool = False
    limit: float | None = None
    error: FloatingPointError | SpikeError | None = None


class Guard:
    """Looks at each loss before the rule does.

    Args:
        config (ControllerConfig): with `on_nonfinite` and `on_spike`.

    Attributes:
        nonfinite (int): non-finite losses in a row.
        rollbacks (int): how many rollbacks there were, each within 1,000 decisions of the one before.
        sees_all (bool): whether finite losses are looked at too.
        can_go_back (bool): whether there are earlier weights; if not, "rollback" acts as "reduce". Initially True.
    """

    def __init__(self, config: ControllerConfig) -> None:
        self._on_nonfinite, self._on_spike = config.on_nonfinite, config.on_spike
        self._detector = None if config.on_spike is None else SpikeDetector(config.mode == "max")
        self._since: int | None = None  # decisions since the last rollback
        self._close = 0  # rollbacks in a row, up to the last one, that came at once after another
        self.nonfinite = self.rollbacks = 0
        self.can_go_back = True
        self.sees_all = config.on_spike is not None or config.rolls_back

    @property
    def calm(self) -> bool:
        """Whether the last loss was finite and no spike."""
        return not self.nonfinite and (self._detector is None or not self._detector.in_a_row)

    @property
    def memory(self) -> Any:
        """The losses with which new ones are compared. Set it to a value that was read earlier to restore them."""
        return None if self._detector is None else self._detector.state_dict()

    @memory.setter
    def memory(self, memory: Any) -> None:
        if self._detector is not None:
            self._detector.load_state_dict({**memory, "in_a_row": 0})

    def look(self, loss: float, monitor: str) -> Response | None:
        """Look at the next loss: None if the rule should see it."""
        if self._since is not None:
            self._since += 1
        what = "the loss" if monitor == "loss" else repr(monitor)
        if loss - loss != 0.0:
            self.nonfinite += 1
            return self._about_nonfinite(loss, what)
        self.nonfinite = 0
        return None if self._detector is None else self._about_spike(loss, what, self._detector)

    def _about_nonfinite(self, loss: float, what: str) -> Response:
        policy = self._now(self._on_nonfinite)
        if policy == "raise":
            return Response(NONFINITE, error=FloatingPointError(f"{what} is {loss}, and on_nonfinite='raise'"))
        if policy == "rollback" and self.nonfinite > 1:
            return self._roll_back(f"{what} was NaN or infinite", NONFINITE, None)
        if policy == "reduce" and self.nonfinite >= DEAD_AFTER:
            error = FloatingPointError(
                f"{what} was NaN or infinite {self.nonfinite} times in a row: the run is dead{self.alone}. Resume from"
                " an earlier checkpoint with a lower LR, or set on_nonfinite='hold' to go on regardless"
            )
            return Response(NONFINITE, error=error)
        return Response(NONFINITE, lower=policy == "reduce" and self.nonfinite == 1)

    def _about_spike(self, loss: float, what: str, detector: SpikeDetector) -> Response | None:
        policy, spike = self._now(self._on_spike), detector.is_spike(loss)
        limit = detector.limit
        if not detector.has_risen:
            return Response(SPIKE, limit=limit) if spike else None
        if policy == "raise":
            error = SpikeError(
                f"{what} has risen to {loss:.4g}, where {limit:.4g} would be a spike, and on_spike='raise': resume from"
                " an earlier checkpoint with a lower LR or other data"
            )
            return Response(SPIKE, limit=limit, error=error)
        if policy == "rollback" and not self._useless:
            return self._roll_back(f"{what} spiked", SPIKE, limit)
        detector.accept()
        if policy == "rollback":
            logger.warning(
                "GreedyLR does not go back again: %s rose right after each rollback, so the data has changed", what
            )
        elif policy == "hold":
            logger.warning("GreedyLR compares with new losses from now on, since %s has risen above %.4g", what, limit)
        return Response(SPIKE, lower=True, limit=limit) if policy == "reduce" else None

    def _now(self, policy: str | None) -> str | None:
        return "reduce" if policy == "rollback" and not self.can_go_back else policy

    @property
    def alone(self) -> str:
        """The end of a sentence, which says that a rollback was wanted but is not possible; empty otherwise."""
        wanted = "rollback" in (self._on_spike, self._on_nonfinite)
        return ", and there are no earlier weights to go back to" if wanted and not self.can_go_back else ""

    @property
    def _at_once(self) -> bool:
        return self._since is not None and self._since < AT_ONCE

    @property
    def _useless(self) -> bool:
        """Whether the loss rose again at once after each of the last rollbacks."""
        return self._at_once and self._close >= ENOUGH

    def _roll_back(self, why: str, reason: Reason, limit: float | None) -> Response:
        if self._since is not None and self._since >= APART:
            self.rollbacks = 0
        if self.rollbacks == MOST_ROLLBACKS:
            error = SpikeError(
                f"{why} after {MOST_ROLLBACKS} rollbacks, so another would not help: resume from an earlier checkpoint"
                " with a lower LR, or look at the data of these steps"
            )
            return Response(reason, limit=limit, error=error)
        soon = self._since is not None and self._since < SOON
        self._close = self._close + 1 if self._at_once else 0
        lower = soon and self._close != 1
        self.rollbacks += 1
        self._since = self.nonfinite = 0
        if self._detector is not None:
            self._detector.go_back()
        return Response(ROLLED_BACK, lower=lower, limit=limit)

    def state_dict(self) -> dict[str, Any]:
        return {"spikes": self.memory, "rollbacks": self.rollbacks, "close": self._close, "since": self._since}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rollbacks, self._close, self._since = state["rollbacks"], int(state["close"]), state["since"]
        if state["spikes"] is not None and self._detector is not None:
            self._detector.load_state_dict(state["spikes"])


is_guard = fits(
    {
        "spikes": is_none_or(is_detector),
        "rollbacks": is_count,
        "close": lambda value: is_count(value) or is_flag(value),  # it was a flag
        "since": is_none_or(is_count),
    }
)
