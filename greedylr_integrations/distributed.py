"""Ranks: which one this is, and the one reducer for everything that they agree on.

Every rank must call the reducer at the same time, with the same count of numbers, whatever it has seen itself.
"""

from __future__ import annotations

import math
import sys
import zlib
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from greedylr_integrations.log import environment_rank


def world_size() -> int | None:
    """Number of ranks; None if torch.distributed is not in use."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else None


def rank() -> int:
    """Global rank of this process: torch.distributed's, or the launcher's if that is not in use."""
    return environment_rank() if world_size() is None else dist.get_rank()


def sum_over_ranks(numbers: torch.Tensor, group: Any = None, source: int = 0) -> torch.Tensor:
    """Sum of a vector over the ranks of a group, the same on every rank.

    Args:
        numbers (Tensor): this rank's numbers, one-dimensional.
        group: process group whose numbers count. A rank outside it receives their sum too. Default None: all ranks.
        source (int): with a group, the global rank in it that sends the sum to all others. Default 0.

    Returns:
        Tensor of the same shape; `numbers` itself if there is one rank.
    """
    if (world_size() or 1) == 1:
        return numbers
    if numbers.device.type == "cpu" and dist.get_backend() == "nccl":
        numbers = numbers.cuda()
    if group is None or dist.get_rank(group) >= 0:
        dist.all_reduce(numbers, group=group)
    if group is not None:
        dist.broadcast(numbers, src=source)
    return numbers


class Part(NamedTuple):
    """The part of a tensor that is on this rank.

    Attributes:
        local (Tensor): the part.
        rows (int): size of the whole tensor's first dimension.
        first (int): which of those rows is the part's first.
        copies (int): on how many ranks the same part is; 1 if torch.distributed is not in use.
    """

    local: torch.Tensor
    rows: int
    first: int
    copies: int


def part_of(tensor: torch.Tensor) -> Part:
    """The part of a tensor on this rank: its shard if it is a DTensor (`fully_shard`, tensor parallelism), else all."""
    ranks = world_size() or 1
    # importing it takes over a second, and without that import there is no DTensor
    distributed_tensor = sys.modules.get("torch.distributed.tensor")
    rows = tensor.shape[0] if tensor.ndim else 1
    if distributed_tensor is None or not isinstance(tensor, distributed_tensor.DTensor):
        return Part(tensor, rows, 0, ranks)
    first, shards, mesh = 0, 1, tensor.device_mesh
    for dim, placement in enumerate(tensor.placements):
        if placement.is_shard():
            shards *= mesh.size(dim)
        if placement.is_shard(0):  # as torch.chunk divides it
            first += min(math.ceil(rows / mesh.size(dim)) * mesh.get_local_rank(dim), rows)
    return Part(tensor.to_local(), rows, first, ranks // shards)


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether a parameter is a shard, so that other ranks have other coordinates of it."""
    distributed_tensor = sys.modules.get("torch.distributed.tensor")
    if distributed_tensor is not None and isinstance(tensor, distributed_tensor.DTensor):
        return any(placement.is_shard() for placement in tensor.placements)
    return is_flat(tensor)


def is_flat(tensor: torch.Tensor) -> bool:
    """Whether a parameter is what FSDP1 flattened, by its mark `_fsdp_flattened` (seen in torch 2.6 to 2.13)."""
    return bool(getattr(tensor, "_fsdp_flattened", False))


def compare(text: str, flag: bool) -> tuple[bool, bool]:
    """Whether every rank passed the same text, and whether any has the flag; the same answers on all of them."""
    ranks = world_size() or 1
    if ranks == 1:
        return True, flag
    mark = float(zlib.crc32(text.encode()) % 65536)
    numbers = torch.tensor([mark, mark * mark, flag], dtype=torch.float64)
    total, squares, flags = sum_over_ranks(numbers).tolist()
    # equality in Cauchy-Schwarz; exact, since these are whole numbers
    return total * total == squares * ranks, flags > 0
