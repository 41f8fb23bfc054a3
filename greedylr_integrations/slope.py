"""The slope meter: does the loss still fall in the direction of the weights' displacement, and how far have they moved?

    slope    = <g, w - w0> / (|g| |w - w0|)
    distance = |w - w0| / |w0|

g is the gradient at an optimizer step, w the weights that it was taken at, w0 the weights at the start of training.
The slope is the derivative of the loss in the direction of the displacement w - w0, as a cosine. Below 0, moving
further in that direction would lower the loss: the LR is too low. Above 0, the weights have overshot: the LR is too
high. The distance counts the weight matrices that did not start at 0; it leaves out biases and the scales of norms,
unless FSDP1 has flattened them.

`measure` only queues work on the device of the weights: a few dot products of a sample of coordinates. The sums travel
with the loss in its all-reduce.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from greedylr_integrations.checks import as_json, check, check_integer, fits, is_count, is_flag, is_number
from greedylr_integrations.distributed import is_flat, is_sharded, part_of, rank, sum_over_ranks, world_size
from greedylr_integrations.log import logger

Sums = list[torch.Tensor | float]
"""<g, d>, <g, g> and <d, d> with d = w - w0; <d, d> and <w0, w0> of what the distance counts; and how many steps had a
gradient."""
SUMS = 6


def slope_of(sums: Sequence[float]) -> float | None:
    """The slope that follows from the sums of all ranks, from -1 to 1.

    None if no rank saw a gradient; NaN if a gradient was not finite, or the weights have not moved yet.
    """
    dot, gradients, way, _, _, count = sums
    if not count:
        return None
    norms = math.sqrt(gradients) * math.sqrt(way) if gradients >= 0 and way >= 0 else math.nan
    return min(max(dot / norms, -1.0), 1.0) if 0 < norms < math.inf else math.nan


def distance_of(sums: Sequence[float]) -> float | None:
    """The distance that follows from the sums of all ranks: 0.1 if the weights have moved by a tenth of their size.

    None if no rank saw a gradient; NaN if all matrices started at 0, or a weight is not finite.
    """
    *_, way, start, count = sums
    if not count:
        return None
    return math.sqrt(way / start) if 0 < start < math.inf and 0 <= way < math.inf else math.nan


class SlopeMeter:
    """Sums over optimizer steps, from which `slope_of` and `distance_of` follow.

    The sample is taken from the parameters that require a gradient at the first measurement; parameters that are added
    or unfrozen later are not in it. Parameters with sparse gradients are left out.

    Memory per sampled coordinate: w0 in the weights' own dtype, 8 bytes for the gradient and the displacement, and one
    byte that says whether it counts for the distance. During a measurement, there are 4 bytes more.

    Args:
        optimizer (torch.optim.Optimizer): its parameters are the weights.
        sample (int): about how many coordinates to measure, at most. If the weights have more, evenly spaced rows of
            each tensor are used, the same on every rank. Default 1,000,000, which gives the cosine an error of 0.001.
    """

    def __init__(self, optimizer: Optimizer, sample: int = 1_000_000) -> None:
        self.sample = check_integer("slope_sample", sample, least=1)
        self._optimizer: Optimizer | None = optimizer
        self._parts: list[_Part] | None = None
        self._loaded: Sequence[torch.Tensor] | None = None  # references from a checkpoint, until the first measurement
        self._sharded = False  # whether the references are of shards
        self.lost = ""  # why the loaded state had no reference
        self._step: torch.Tensor | None = None  # sums of the step under way
        self._total: torch.Tensor | None = None  # sums of the steps since the last reading
        self._count = 0  # number of those steps

    def measure(self) -> None:
        """Measure the step under way: call it when the gradients are complete and the weights have not moved."""
        with torch.no_grad():
            if self._parts is None:
                self._parts = self._start()
            if not any(part.has_gradient for part in self._parts):
                return
            first, *others = [part.sums() for part in self._parts]
            self._step = sum((other.to(first.device) for other in others), start=first)

    def _start(self) -> list[_Part]:
        assert self._optimizer is not None
        parameters = [
            p
            for group in self._optimizer.param_groups
            for p in group["params"]
            if p.requires_grad and (p.grad is None or not p.grad.is_sparse)
        ]
        check(len(parameters) > 0, "optimizer", type(self._optimizer).__name__, "given weights that are trained")
        stride = math.ceil(sum(p.numel() for p in parameters) / self.sample)
        alike: dict[tuple[torch.device, int], list[torch.Tensor]] = {}
        for p in parameters:
            alike.setdefault((p.device, part_of(p).copies), []).append(p)
        parts = [_Part(group, stride, copies) for (_, copies), group in alike.items()]
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            if [reference.shape for reference in loaded] == [part.reference.shape for part in parts]:
                for part, reference in zip(parts, loaded, strict=True):
                    part.refer_to(reference)
            else:
                self.lost = "the checkpoint's reference is of other weights"
        return parts

    def end_step(self) -> None:
        """The optimizer has stepped."""
        if self._step is not None:
            self._total = self._step if self._total is None else self._total.to(self._step) + self._step
            self._count += 1
            self._step = None

    def discard_step(self) -> None:
        """Forget the measurement of the step under way: the optimizer skipped it."""
        self._step = None

    def take(self) -> Sums:
        """This rank's sums since the last call; zeros if nothing was measured."""
        total, count = self._total, self._count
        self._total, self._count = None, 0
        return [0.0] * SUMS if total is None else [*total.unbind(), float(count)]

    def synchronize(self) -> None:
        """Replace the sums that await a decision by their mean over the ranks; every rank must call it."""
        ranks = world_size() or 1
        if ranks > 1:
            total = torch.zeros(SUMS - 1, dtype=torch.float64) if self._total is None else self._total
            total = sum_over_ranks(total.clone()) / ranks
            self._total = total if self._count else None

    # ---- state ----

    def state_dict(self) -> dict[str, Any]:
        """The reference as a tuple of tensors on the CPU, and the sums that wait for their decision.

        A tuple, since torch.distributed.checkpoint asks for as many tensors of a list as there are when it loads.
        """
        reference = self._loaded
        if self._parts is not None:
            reference = tuple([part.reference.cpu() for part in self._parts])
            self._sharded = any(is_sharded(p) for part in self._parts for p in part.parameters)
        return {
            "reference": reference,
            "sharded": self._sharded,
            "rank": rank(),
            "sums": [] if self._total is None else [as_json(float(number)) for number in self._total],
            "count": self._count,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` gave on this rank, or on any rank if the weights are not sharded."""
        reference = state["reference"]
        self.lost = "the checkpoint has no reference" if reference is None else ""
        if reference is not None and state["sharded"] and (state["rank"] != rank() or (world_size() or 1) == 1):
            reference, self.lost = None, "the checkpoint's reference is of another rank's shard"
        self._loaded = None if reference is None else tuple(reference)
        self._parts, self._sharded = None, state["sharded"]
        self._total = (
            torch.tensor([float(number) for number in state["sums"]], dtype=torch.float64) if state["sums"] else None
        )
        self._count, self._step = state["count"], None

    def start_anew(self) -> None:
        """Measure from the present weights on every rank, since one of them has lost its reference; log a WARNING."""
        logger.warning(
            "GreedyLR measures slope and distance from here on, not from the start of the run: %s",
            self.lost or "another rank's part of the checkpoint has no reference",
        )
        self.forget()
        self.lost = ""

    def detach(self) -> None:
        """Let go of the weights, at the end of a run; the state stays."""
        self._loaded, self._parts = self.state_dict()["reference"], None
        self._optimizer = None

    def forget(self) -> None:
        """Free the memory: the slope is no longer needed."""
        self._parts = self._loaded = self._step = self._total = None
        self._count = 0


class _Part:
    """The sampled weights on one device that have the same number of copies across the ranks."""

    def __init__(self, parameters: list[torch.Tensor], stride: int, copies: int) -> None:
        self.parameters = parameters
        self._stride = stride  # of so many rows, one is in the sample
        self._copies = copies
        self._buffers: _Buffers | None = None
        sample = [self._rows(p).reshape(-1) for p in parameters]
        of_matrices = [torch.full_like(t, p.ndim > 1 or is_flat(p)) for p, t in zip(parameters, sample, strict=True)]
        self._matrices = torch.cat(of_matrices).bool()
        self.refer_to(torch.cat(sample))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_buffers": None}  # its tensors share memory, and would not after pickle

    def refer_to(self, reference: torch.Tensor) -> None:
        """Measure the way from these weights, which are ordered as in a sample."""
        reference = reference.to(self._matrices.device)
        # the way is taken in float32: what has not moved must differ by 0
        self.reference = reference.float() if reference.dtype == torch.float64 else reference
        # a coordinate that starts at 0 has no size to compare its way with
        self._sized = self._matrices & (self.reference != 0)
        self._size = (self.reference * self._sized).float().square().sum()

    @property
    def has_gradient(self) -> bool:
        return any(p.grad is not None for p in self.parameters)

    def sums(self) -> torch.Tensor:
        """The sums of this rank, but for the count, so that copies on several ranks count once."""
        if self._buffers is None:
            self._buffers = _Buffers([self._rows(p) for p in self.parameters])
        both = self._buffers.fill(self.parameters, self._rows)
        both[1] -= self.reference
        products = both @ both.T
        sized = both[1] * self._sized
        sums = torch.stack((products[0, 1], products[0, 0], products[1, 1], sized @ sized, self._size))
        return sums.to(torch.float32 if sums.device.type == "mps" else torch.float64) / self._copies

    def _rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """Every `stride`-th row of the whole tensor that is on this rank, or coordinate if it has few rows."""
        local, rows, first, _ = part_of(tensor)
        if self._stride == 1:
            return local
        if rows >= self._stride:
            return local[-first % self._stride :: self._stride]
        return local.reshape(-1)[-(first * (tensor.numel() // max(rows, 1))) % self._stride :: self._stride]


class _Buffers:
    """Where the sampled gradients and weights of all tensors are gathered.

    It saves time on the host, which many small calls from Python cost: each tensor has its place, and the views of the
    weights are kept.
    """

    def __init__(self, sample: list[torch.Tensor]) -> None:
        sizes = [rows.numel() for rows in sample]
        self._both = torch.zeros(2, sum(sizes), dtype=torch.float32, device=sample[0].device)
        self._gradients, self._weights = (
            [place.view(rows.shape) for place, rows in zip(half.split(sizes), sample, strict=True)]
            for half in self._both
        )
        self._views: list[torch.Tensor] = list(sample)
        self._pointers = [0] * len(sample)

    def fill(self, parameters: list[torch.Tensor], rows_of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """The gradients, 0 where there is none, and the weights."""
        for i, p in enumerate(parameters):
            # a DTensor has no pointer, and the rows of weights that are not contiguous may be a copy
            pointer = p.data_ptr() if p.is_contiguous() else 0
            if not pointer or pointer != self._pointers[i]:
                self._views[i], self._pointers[i] = rows_of(p), pointer
        places, gradients = self._gradients, [p.grad for p in parameters]
        seen = [rows_of(gradient) for gradient in gradients if gradient is not None]
        if len(seen) < len(gradients):
            self._both[0].zero_()
            places = [place for place, gradient in zip(places, gradients, strict=True) if gradient is not None]
        if seen:
            torch._foreach_copy_(places, seen)
        torch._foreach_copy_(self._weights, self._views)
        return self._both


def without_reference(scheduler_state: Mapping[str, Any]) -> dict[str, Any]:
    """A state of `GreedyLR` without the tensors of the reference, as plain JSON."""
    return {**scheduler_state, "slope": {**scheduler_state["slope"], "reference": None}}


def for_all_ranks(scheduler_state: dict[str, Any]) -> dict[str, Any]:
    """A state of `GreedyLR` that one rank can save for all of them: without the reference if it is only of a shard."""
    sharded = scheduler_state["slope"]["sharded"] and (world_size() or 1) > 1
    return without_reference(scheduler_state) if sharded else scheduler_state


is_slope_state = fits(
    {
        "reference": lambda value: (
            value is None or (isinstance(value, list | tuple) and all(isinstance(item, torch.Tensor) for item in value))
        ),
        "sharded": is_flag,
        "rank": is_count,
        "sums": lambda value: (
            isinstance(value, list) and len(value) in (0, SUMS - 1) and all(is_number(item) for item in value)
        ),
        "count": is_count,
    }
)
NOTHING_MEASURED: dict[str, Any] = {"reference": None, "sharded": False, "rank": 0, "sums": [], "count": 0}
