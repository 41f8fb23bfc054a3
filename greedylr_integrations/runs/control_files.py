"""What may become a control file, and what may be in it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from greedylr_integrations.runs.run import RunError
from greedylr_integrations.steering import LARGEST_FILE, make_command


def value_of(command: str, value: str | None) -> float | int | None:
    number: Any = value
    with contextlib.suppress(TypeError, ValueError):  # the error below names what is not a number
        number = int(value) if command == "decay" else float(value)  # type: ignore[arg-type]
    try:
        return make_command(command, number).value
    except (TypeError, ValueError) as error:
        raise RunError(f"{command}: {error}") from None


def check_place(path: Path) -> None:
    """RunError unless the path is of a control file, or may become one."""
    if not path.exists():
        if path.suffix == ".json" and path.parent.is_dir():
            return
        raise RunError(f"{path}: this is neither a run's folder nor the path of a control file (.json)")
    content: Any = None
    if path.is_file() and path.stat().st_size <= LARGEST_FILE:
        with contextlib.suppress(ValueError, RecursionError):
            content = json.loads(path.read_bytes() or b"{}")
    if not isinstance(content, dict) or content.keys() - {"order", "value", "id"}:
        raise RunError(f"{path}: this is not a control file, and it would be overwritten: delete it first")
