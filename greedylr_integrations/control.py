"""Orders to a running schedule: what they are, a controller that is under one, and the file by which they come.

Standard library only. Unlike the core, the file looks at the clock; what it brings reaches all ranks with a loss.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from greedylr_integrations.checks import check, check_choice, check_number
from greedylr_integrations.core import (
    HOLD,
    LOWER,
    NONFINITE,
    ORDERED,
    RAISE,
    Controller,
    Decision,
    logger,
)

ORDERS = ("hold", "cap", "pin", "release", "decay")
LOOK_EVERY = 1.0  # seconds


class Order(NamedTuple):
    """What to do from now on.

    Attributes:
        name: "hold" keeps the scale where it is, "cap" keeps it from rising above `value`, "pin" sets it to `value` and
            keeps it there, "release" ends these three, "decay" begins the final decay.
        value: scale for cap and pin, optimizer steps for decay; None otherwise.
    """

    name: str
    value: float | None = None

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name} {self.value:g}"


def make_order(name: Any, value: Any = None) -> Order:
    """An order that can be followed; TypeError or ValueError otherwise."""
    check_choice("order", name, ORDERS)
    if name in ("cap", "pin"):
        check_number("scale", value)
        check(value > 0, "scale", value, "above 0")
    elif name == "decay":
        check_number("steps", value, int)
        check(value >= 1, "steps", value, "at least 1")
    else:
        check(value is None, "value", value, f"left out for {name!r}")
    return Order(name, value)


class Steered:
    """A controller under an order: it goes on observing, and its scale stays where the order wants it.

    The configured bounds hold as before: an order beyond them goes as far as they allow. A controller that has no
    `position` and `clamp` has its decisions' scales cut instead, so that it knows nothing of the order.
    """

    def __init__(self, controller: Controller, order: Order, scales: Sequence[float]) -> None:
        self._controller: Any = controller
        self._order = order
        self._movable = hasattr(controller, "position") and hasattr(controller, "clamp")
        if self._movable:
            self._move(controller.position)  # type: ignore[attr-defined]
            self.scales = controller.scales  # type: ignore[attr-defined]
        else:
            self.scales = tuple(scales)
            self.scales = self._cut(self.scales)

    def observe(self, loss: float) -> Decision:
        before = self.scales
        if self._movable:
            position = self._controller.position
            decision = self._controller.observe(loss)
            self._move(position)
            self.scales = self._controller.scales
        else:
            decision = self._controller.observe(loss)
            self.scales = self._cut(decision.scales)
        if self.scales == decision.scales:
            return decision
        rise = sum(self.scales) - sum(before)
        return decision._replace(
            action=RAISE if rise > 0 else LOWER if rise < 0 else HOLD,
            reason=NONFINITE if decision.reason is NONFINITE else ORDERED,
            scales=self.scales,
        )

    def _move(self, position: Any) -> None:
        name, value = self._order
        if name == "hold":
            self._controller.position = position
        else:
            self._controller.clamp(value if name == "pin" else 0.0, value)

    def _cut(self, scales: Sequence[float]) -> tuple[float, ...]:
        name, value = self._order
        if name == "hold" or value is None:
            return self.scales
        return tuple(value if name == "pin" else min(scale, value) for scale in scales)


class ControlFile:
    """A file with the latest order: {"order": "cap", "value": 2.0, "id": "anything that changes with each order"}.

    It may come and change at any time, and stand there before the run begins: then it counts from the first decision
    on. It is looked at once a second at most, where a decision is made. A file that cannot be followed changes nothing
    and is reported once.

    Attributes:
        path (str): where it is.
        last (int): mark of the order that was followed last, part of the state: its id does not count again.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.last = 0
        self._sent = 0
        self._look_at = 0.0
        self._stamp: tuple[int, ...] | None = None

    def poll(self) -> tuple[float, float]:
        """A new order as two numbers that can be summed over ranks, code and value; zeros where there is none."""
        now = time.monotonic()
        if now < self._look_at:
            return 0.0, 0.0
        self._look_at = now + LOOK_EVERY
        try:
            stat = os.stat(self.path)
        except FileNotFoundError:
            return 0.0, 0.0
        except OSError as error:
            return self._complain(str(error), (error.errno or 0,))
        stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if stamp == self._stamp:
            return 0.0, 0.0
        try:
            with open(self.path, encoding="utf-8") as file:
                order, mark = self._parse(json.load(file))
        except FileNotFoundError:
            return 0.0, 0.0  # it is being replaced
        except (OSError, TypeError, ValueError, RecursionError) as error:
            return self._complain(str(error), stamp)
        self._stamp = stamp
        if mark in (self.last, self._sent):
            return 0.0, 0.0
        self._sent = mark
        # exact in float64: 33 bits of mark, 3 of the order
        return float(mark * 8 + ORDERS.index(order.name) + 1), float(order.value or 0.0)

    def receive(self, code: float, value: float) -> Order | None:
        """The order that the two numbers are, on every rank; None if they are none."""
        if not code:
            return None
        self.last, index = divmod(int(code), 8)
        name = ORDERS[index - 1]
        return Order(name, int(value) if name == "decay" else value or None)

    def load(self, last: int) -> None:
        """Go on as a run that followed that order last."""
        self.last = self._sent = last
        self._stamp, self._look_at = None, 0.0

    @staticmethod
    def _parse(content: Any) -> tuple[Order, int]:
        if not isinstance(content, Mapping):
            raise ValueError(f"it has {content!r:.80} instead of an object with order, value and id")
        unknown = content.keys() - {"order", "value", "id"}
        if unknown:
            raise ValueError(f"{', '.join(sorted(unknown))} is not known there: it takes order, value and id")
        identity = content.get("id")
        if isinstance(identity, bool) or not isinstance(identity, (str, int, float)):
            raise ValueError(f"id={identity!r:.80} is not allowed: it must be text or a number, another one each time")
        return make_order(content.get("order"), content.get("value")), zlib.crc32(json.dumps(identity).encode()) + 1

    def _complain(self, reason: str, stamp: tuple[int, ...]) -> tuple[float, float]:
        if stamp != self._stamp:
            self._stamp = stamp
            logger.warning("GreedyLR does not follow control_file %s: %s", self.path, reason)
        return 0.0, 0.0
