"""What a decision is: a move of the learning rate, the reason for it, and what it was based on.

Vocabulary: the *scale* of a parameter group multiplies its base LR. An increase *raises* the scale, a decrease *lowers*
it.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Action(Enum):
    """How the scale moved."""

    RAISE = "raise"
    LOWER = "lower"
    HOLD = "hold"


class Reason(Enum):
    """Why a decision is what it is. Files store the name; the text may change."""

    FILLING = "the window is not full yet, or there is no earlier mean to compare with"
    IMPROVED = "the loss is a new recent best"
    WORSENED = "the loss is clearly above its best"
    INSIGNIFICANT = "the change in the loss is within the threshold"
    PATIENCE = "there were fewer good or bad losses in a row than patience asks for"
    WARMUP = "warmup after an increase"
    COOLDOWN = "cooldown after a decrease"
    CEILING = "the scale is at its upper bound"
    FLOOR = "the scale is at its lower bound"
    NONFINITE = "the loss is NaN or infinite"
    SPIKE = "the loss spiked"
    ROLLED_BACK = "the weights went back to earlier ones, after a loss spike or NaN"
    RESET = "reset to the start"
    ORDERED = "a command (hold, cap or pin) determines the scale"
    POLICY = "chosen by the learned policy"
    HELD = "the last choice of the learned policy is held until the next one"
    SEARCHING = "searching: the slope says that a higher LR would have been better"
    FOUND = "found: the slope no longer asks for a higher LR"
    FAR_ENOUGH = "found: the weights have moved a long way in few steps"
    SEARCHING_ON = "searching on: the slope asks for a higher LR again"
    HOLDING = "holding the LR at which the search ended"
    CLIMBING = "climbing to the base LR: the slope has not said anything yet"
    TOO_SHORT = "leaving the LR as it is: the run is too short to search"


# Looking a member up on its Enum is slow on Python 3.11; a module's name is not, and every decision needs some.
RAISE = Action.RAISE
LOWER = Action.LOWER
HOLD = Action.HOLD
FILLING = Reason.FILLING
IMPROVED = Reason.IMPROVED
WORSENED = Reason.WORSENED
INSIGNIFICANT = Reason.INSIGNIFICANT
PATIENCE = Reason.PATIENCE
WARMUP = Reason.WARMUP
COOLDOWN = Reason.COOLDOWN
CEILING = Reason.CEILING
FLOOR = Reason.FLOOR
NONFINITE = Reason.NONFINITE
SPIKE = Reason.SPIKE
ROLLED_BACK = Reason.ROLLED_BACK
RESET = Reason.RESET
ORDERED = Reason.ORDERED
POLICY = Reason.POLICY
HELD = Reason.HELD
SEARCHING = Reason.SEARCHING
FOUND = Reason.FOUND
FAR_ENOUGH = Reason.FAR_ENOUGH
SEARCHING_ON = Reason.SEARCHING_ON
HOLDING = Reason.HOLDING
CLIMBING = Reason.CLIMBING
TOO_SHORT = Reason.TOO_SHORT
FINDS = (FOUND, FAR_ENOUGH)  # with which a search ends by itself
SEARCHES = (SEARCHING, CEILING)  # with which it goes on


class Decision(NamedTuple):
    """What one observation led to.

    Attributes:
        action (Action): raise, lower or hold.
        reason (Reason): why.
        scales (tuple of float): scale of each parameter group after the decision.
        loss (float): the loss that was observed.
        smoothed (float): the smoothed loss; if there was a slope, the mean of the last slopes. None if there is none.
        best (float): the reference that the smoothed loss was compared with. None if there was none.
        slope (float): the slope that was observed, from -1 to 1; see `slope.SlopeMeter`. None if there was none.
        distance (float): the distance that was observed; see `slope.SlopeMeter`. None if there was none.
    """

    action: Action
    reason: Reason
    scales: tuple[float, ...]
    loss: float
    smoothed: float | None = None
    best: float | None = None
    slope: float | None = None
    distance: float | None = None
