"""The package's logger, on which only the first process speaks."""

from __future__ import annotations

import logging
import os
import sys

logger = logging.getLogger("greedylr_integrations")


def environment_rank() -> int:
    """Rank of this process as torchrun, Slurm or Lightning's launcher set it in the environment; 0 if none did."""

    def number(name: str) -> int | None:
        value = os.environ.get(name, "")
        return int(value) if value.isdigit() else None

    for name in ("RANK", "SLURM_PROCID"):
        rank = number(name)
        if rank is not None:
            return rank
    # Lightning's launcher sets these two on each node; they only tell zero from not zero
    return (number("NODE_RANK") or 0) + (number("LOCAL_RANK") or 0)


logger.addFilter(lambda record: environment_rank() == 0)


def say(message: str, *, aloud: bool) -> None:
    """Log at INFO or, if nothing handles that level and `aloud` is set, write to stderr on the first process.

    The user's logging setup has precedence: if this logger has a level, or INFO a handler, nothing goes to stderr.
    """
    if logger.level or (logger.isEnabledFor(logging.INFO) and logger.hasHandlers()):
        logger.info(message)
    elif aloud and environment_rank() == 0:
        bars = sys.modules.get("tqdm")  # a progress bar that is shown would be torn
        write = print if bars is None else bars.tqdm.write
        write(message, file=sys.stderr)
