"""The package's logger, on which only the first process speaks."""

from __future__ import annotations

import logging
import os

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
