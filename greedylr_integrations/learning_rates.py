"""The learning rates of an optimizer's parameter groups: the only place that writes them.

LR of a group = its base LR x scale x envelope. With another schedule of the same optimizer, the schedule's LR takes the
place of base LR and envelope.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from greedylr_integrations.base_schedule import BaseSchedule, write_lr
from greedylr_integrations.checks import check
from greedylr_integrations.envelope import Envelope
from greedylr_integrations.log import logger

OVERRIDDEN = 3  # steps in a row with another LR than was written, after which it is not chance


class LearningRates:
    """Base LRs, warmup and decay, and the LR of each parameter group that follows from them.

    Args:
        optimizer (torch.optim.Optimizer): its groups' `initial_lr` are the base LRs.
        envelope (Envelope): warmup and final decay.
        base_schedule (LRScheduler): another schedule of the same optimizer. Default None.
        shadow (bool): leave the optimizer alone. Default False.

    Attributes:
        base_lrs (list of float): base LR of each group. A new list each time it changes.
        factor (float): the envelope's value as it was last written.
        written (tuple of float): the scales as they were last written.
        ramps (bool): whether there is a warmup.
        steady_from, steady_until (float): between these steps, the LRs move with the scales alone.
    """

    def __init__(
        self, optimizer: Optimizer, envelope: Envelope, base_schedule: LRScheduler | None, *, shadow: bool
    ) -> None:
        self._optimizer = optimizer
        self.shadow = shadow
        self.schedule = None if base_schedule is None else BaseSchedule(base_schedule, optimizer, shadow)
        self.base_lrs = [float(group["initial_lr"]) for group in optimizer.param_groups]
        self.factor = 1.0
        self.written: Sequence[float] = ()
        self._given: list[float] = []  # the LRs that were written last
        self._overridden = 0  # steps in a row that were taken with others; negative once that was said
        self._last_speaker: int | None = None  # of an optimizer that was let go of
        self._loaded: tuple[int, float | None] = (-1, None)  # step and envelope of the checkpoint continued from
        if base_schedule is not None:
            steps = envelope.linear_warmup_steps
            check(steps == 0, "linear_warmup_steps", steps, "0 with a base_schedule, which has its own warmup")
        self.set_envelope(envelope if self.schedule is None else Envelope())

    def set_envelope(self, envelope: Envelope) -> None:
        """Follow another warmup and decay from now on."""
        self.envelope = envelope
        self.ramps = self.schedule is not None or envelope.linear_warmup_steps > 0
        self.steady_from: float
        self.steady_until: float
        self.steady_from, self.steady_until = envelope.constant() if self.schedule is None else (0, 0)

    def detach(self, optimizer: Any) -> None:
        """Let go of the optimizer and the base schedule; another has the LRs from now on."""
        self._last_speaker = self.speaker
        self._optimizer = optimizer
        if self.schedule is not None:
            self.schedule.detach(optimizer)

    @property
    def bases(self) -> list[float]:
        """LR of each group before scale and envelope."""
        return self.base_lrs if self.schedule is None else self.schedule.lrs

    @property
    def lent(self) -> bool:
        """Whether the optimizer has the base schedule's own LRs at the moment."""
        return self.schedule is not None and self.schedule.lent

    def of(self, scales: Sequence[float], step: int) -> list[float]:
        """LR of each group at an optimizer step."""
        factor = self.envelope(step)
        return [lr * (scale * factor) for lr, scale in zip(self.bases, scales, strict=True)]

    def write(self, scales: Sequence[float], step: int) -> None:
        """Give the optimizer its LRs at an optimizer step."""
        self.factor = factor = self.envelope(step)
        self.written = scales
        if not self.shadow:
            self._given = [lr * (scale * factor) for lr, scale in zip(self.bases, scales, strict=True)]
            for group, lr in zip(self._optimizer.param_groups, self._given, strict=True):
                write_lr(group, lr)

    def look(self) -> None:
        """Before a step of the optimizer: one WARNING if something else keeps setting its LRs."""
        if self.shadow or self.lent or self._overridden < 0:
            return
        for group, given in zip(self._optimizer.param_groups, self._given, strict=False):
            # a tensor may be on a device that this would wait for
            if not isinstance(group["lr"], torch.Tensor) and abs(group["lr"] - given) > 1e-6 * given:
                break
        else:
            self._overridden = 0
            return
        self._overridden += 1
        if self._overridden == OVERRIDDEN:
            self._overridden = -1
            logger.warning(
                "something else sets the LR too: GreedyLR set %.3g, and the optimizer steps with %.3g. Let only one of"
                " them set it; if it is another schedule, pass it as base_schedule, and GreedyLR multiplies its LR",
                given,
                group["lr"],
            )

    def start_decay(self, step: int, steps: int) -> None:
        """Decay to 0 over this many steps from now on, from the present LR."""
        loaded, factor = self._loaded
        # right after a resume with another run length, from where the LR was, not where it would be now
        self.set_envelope(self.envelope.decaying(step, steps, factor if loaded == step else None))

    def ramping(self, step: int) -> bool:
        """Whether the LR is still on its way up at this step."""
        return step < self.envelope.linear_warmup_steps if self.schedule is None else self.schedule.ramping

    @property
    def speaker(self) -> int:
        """Index of the group whose LR is shown: the first with an LR above 0 and weights that are trained."""
        if self._last_speaker is not None:
            return self._last_speaker
        above = [i for i, lr in enumerate(self.base_lrs) if lr > 0] or [0]
        groups = self._optimizer.param_groups
        return next((i for i in above if any(p.requires_grad for p in groups[i]["params"])), above[0])

    def new_groups(self, scales: Sequence[float]) -> list[float]:
        """Include the groups that were added to the optimizer, and return their base LRs.

        The LR that a group was added with is taken as its present LR. Its base LR is that LR without scale and
        envelope, unless the group has an `initial_lr`.
        """
        added = []
        for group in self._optimizer.param_groups[len(self.base_lrs) :]:
            lr, now = float(group["lr"]), 1.0 if self.shadow else scales[self.speaker] * self.factor
            added.append(float(group.setdefault("initial_lr", lr / now if now else lr)))
            if self.schedule is not None:
                self.schedule.add_group(added[-1])
        self.base_lrs = [*self.base_lrs, *added]
        return added

    def state_dict(self) -> dict[str, Any]:
        """What the LRs depend on besides the scales."""
        decay = [self.envelope.decay_start, self.envelope.decay_steps, self.envelope.decay_from]
        return {
            "decay": None if decay[0] is None else decay,
            "schedule_lrs": None if self.schedule is None else self.schedule.lrs,
            "schedule_ramps": self.schedule is not None and self.schedule.ramping,
        }

    def load_state_dict(self, state: Mapping[str, Any], base_lrs: list[float]) -> None:
        """Continue from what `state_dict` gave, with these base LRs."""
        self.base_lrs = base_lrs
        self._loaded = state["last_epoch"], state["envelope"]
        start, steps, factor = state["decay"] or (None, None, 1.0)
        self.set_envelope(replace(self.envelope, decay_start=start, decay_steps=steps, decay_from=factor))
        if self.schedule is not None:
            self.schedule.load(list(state["schedule_lrs"]), ramping=state["schedule_ramps"])
