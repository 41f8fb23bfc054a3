"""Commands to a running schedule: what they are, a controller that follows one, and the file that brings them.

Standard library only. Unlike the controller, the file looks at the clock; what it brings reaches all ranks with a loss.
"""

from __future__ import annotations

import json
import os
import stat
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

from greedylr_integrations.checks import check, check_choice, check_integer, check_number
from greedylr_integrations.controller import GreedyController
from greedylr_integrations.decision import NONFINITE, ORDERED, ROLLED_BACK, SPIKE, Decision
from greedylr_integrations.log import logger
from greedylr_integrations.rule import moved

COMMANDS = ("hold", "cap", "pin", "release", "decay")
LOOK_EVERY = 1.0  # seconds
LARGEST_FILE = 65536  # bytes


class Command(NamedTuple):
    """What to do from now on.

    Attributes:
        name (str): "hold" keeps the scale where it is, "cap" keeps it from rising above `value`, "pin" sets it to
            `value` and keeps it there, "release" ends these three, "decay" begins the final decay.
        value (float): scale for cap and pin, optimizer steps for decay. None otherwise.
    """

    name: str
    value: float | None = None

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name} {self.value:g}"


def make_command(name: Any, value: Any = None) -> Command:
    """A command that can be followed; TypeError or ValueError otherwise."""
    check_choice("command", name, COMMANDS)
    if name in ("cap", "pin"):
        value = check_number("scale", value)
        check(value > 0, "scale", value, "above 0")
    elif name == "decay":
        value = check_integer("steps", value, least=1)
    else:
        check(value is None, "value", value, f"left out for {name!r}")
    return Command(name, value)


class Steering:
    """A controller under the command in force, if there is one: it keeps observing, within what the command allows.

    The configured bounds hold as before: a command beyond them goes as far as they allow.

    Args:
        controller (GreedyController): what decides.

    Attributes:
        command (Command): hold, cap or pin; None if the controller is free.
    """

    def __init__(self, controller: GreedyController) -> None:
        self.controller = controller
        self.command: Command | None = None

    def obey(self, command: Command | None) -> None:
        """Follow another command from now on, or none."""
        self.command = None if command is None or command.name == "release" else command
        self._move(self.controller.position)

    def observe(self, loss: float, slope: float | None = None, distance: float | None = None) -> Decision:
        """The controller's decision, as far as the command allows it."""
        if self.command is None:
            return self.controller.observe(loss, slope, distance)
        before, position = self.controller.scales, self.controller.position
        decision = self.controller.observe(loss, slope, distance)
        self._move(position)
        scales = self.controller.scales
        if scales == decision.scales:
            return decision
        reason = decision.reason if decision.reason in (NONFINITE, SPIKE, ROLLED_BACK) else ORDERED
        return decision._replace(action=moved(before, scales), reason=reason, scales=scales)

    def _move(self, position: Any) -> None:
        """Move the scale to where the command wants it, given where it was."""
        if self.command is None:
            return
        name, value = self.command
        if name == "hold":
            self.controller.position = position
        elif value is not None:
            self.controller.clamp(value if name == "pin" else 0.0, value)


class CommandFile:
    """A file through which a running job is steered: `{"order": "cap", "value": 2.0, "id": 7}`.

    `order` and `value` are the name and value of a `Command`, which is followed once for each new `id` (text or
    number). The file may be created or changed at any time; if it exists before the run starts, it applies from the
    first decision. One rank checks it once a second. A file that cannot be followed changes nothing and is reported
    once. Replace the file as a whole (write another one, then rename it), so that it is never read half-written.

    Attributes:
        path (str): where it is.
        last (int): mark of the command that was followed last. Part of the state, so that it is not followed again.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.last = 0
        self._sent = 0
        self._look_at = 0.0
        self._stamp: tuple[int, ...] | None = None

    def poll(self) -> tuple[float, float]:
        """A new command as two numbers that can be summed over ranks, code and value; zeros if there is none."""
        now = time.monotonic()
        if now < self._look_at:
            return 0.0, 0.0
        self._look_at = now + LOOK_EVERY
        try:
            status = os.stat(self.path)
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp == self._stamp:
                return 0.0, 0.0
            self._stamp = stamp
            # opening a pipe would wait for a writer, and with it all ranks
            check(stat.S_ISREG(status.st_mode), "control_file", self.path, "a regular file")
            check(status.st_size <= LARGEST_FILE, "its size", status.st_size, f"at most {LARGEST_FILE} bytes")
            with open(self.path, encoding="utf-8") as file:
                command, mark = _parse(json.load(file))
        except FileNotFoundError:
            return 0.0, 0.0  # not there yet, or being replaced
        except (OSError, TypeError, ValueError, RecursionError) as error:
            logger.warning("GreedyLR does not follow control_file %s: %s", self.path, error)
            return 0.0, 0.0
        if mark in (self.last, self._sent):
            return 0.0, 0.0
        self._sent = mark
        # exact in float64: 33 bits of mark, 3 of the command
        return float(mark * 8 + COMMANDS.index(command.name) + 1), float(command.value or 0.0)

    def load(self, last: int) -> None:
        """Continue as a run that followed that command last."""
        self.last = self._sent = last
        self._stamp, self._look_at = None, 0.0


def received(code: float, value: float) -> tuple[int, Command] | None:
    """The mark and the command that two numbers of `CommandFile.poll` stand for; None if there is no command."""
    if not code:
        return None
    mark, index = divmod(int(code), 8)
    name = COMMANDS[index - 1]
    return mark, Command(name, int(value) if name == "decay" else value or None)


def _parse(content: Any) -> tuple[Command, int]:
    if not isinstance(content, Mapping):
        raise ValueError(f"it has {content!r:.80} instead of an object with order, value and id")
    unknown = content.keys() - {"order", "value", "id"}
    if unknown:
        raise ValueError(f"{', '.join(sorted(unknown))} is not allowed: a control file has order, value and id")
    identity = content.get("id")
    if isinstance(identity, bool) or not isinstance(identity, (str, int, float)):
        raise ValueError(f"id={identity!r:.80} is not allowed: it must be text or a number, a new one for each command")
    command = make_command(content.get("order"), content.get("value"))
    return command, zlib.crc32(json.dumps(identity).encode()) + 1


class Steerable(ABC):
    """The commands as methods. Call them on every rank, at the same step; or use a `CommandFile`."""

    @abstractmethod
    def follow(self, command: Command) -> None:
        """Follow a command from now on."""

    def hold(self) -> None:
        """Keep the scale where it is until another command, while the rule goes on observing."""
        self.follow(make_command("hold"))

    def cap(self, scale: float) -> None:
        """Keep the scale from rising above `scale`, within the configured bounds, until another command."""
        self.follow(make_command("cap", scale))

    def pin(self, scale: float) -> None:
        """Set the scale to `scale`, within the configured bounds, and keep it there until another command."""
        self.follow(make_command("pin", scale))

    def release(self) -> None:
        """End hold, cap or pin: the scale goes on from where it is."""
        self.follow(make_command("release"))

    def start_decay(self, steps: int) -> None:
        """Begin the final decay now: linear, from the present LR to 0 in `steps` optimizer steps."""
        self.follow(make_command("decay", steps))
