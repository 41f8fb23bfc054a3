"""GreedyLR as a torch scheduler: the only place that writes an optimizer's learning rates."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import fields as fields_of
from dataclasses import replace
from math import ceil, inf
from typing import Any

import torch
import torch.distributed as dist
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from greedylr_integrations.checks import check, check_state, is_finite, is_integer, is_numbers, is_pending
from greedylr_integrations.control import ControlFile, Order, Steered, make_order
from greedylr_integrations.core import (
    HOLD,
    LOWER,
    RAISE,
    STATE_VERSION,
    Controller,
    ControllerConfig,
    Decision,
    GreedyController,
    environment_rank,
    logger,
)
from greedylr_integrations.envelope import Envelope
from greedylr_integrations.greedy import GreedyConfig
from greedylr_integrations.history import (
    HISTORY_SIZE,
    VERSION,
    History,
    HistoryFile,
    OrderRecord,
    shadow_summary,
    suggested_lr,
)
from greedylr_integrations.loss import LossMeter


def make_config(config: ControllerConfig | None, fields: Mapping[str, Any]) -> ControllerConfig:
    """`config` with `fields` in place of its own; TypeError for a field that it does not have."""
    if config is not None and not isinstance(config, ControllerConfig):
        raise TypeError(f"config={config!r} is not allowed: it must be a GreedyConfig")
    config = GreedyConfig() if config is None else config
    known = [field.name for field in fields_of(config)]
    for name in fields:
        if name == "warmup_steps":
            raise TypeError(
                "warmup_steps is ambiguous: linear_warmup_steps is a ramp of the LR from 0 at the start of training,"
                " warmup is for how many decisions the LR keeps rising after a raise"
            )
        if name not in known:
            raise TypeError(f"{name} is not a field of {type(config).__name__}: it has {', '.join(known)}")
    return replace(config, **fields)


def mode_of(monitor: str, mode: str | None, greater_is_better: bool | None = None) -> str:
    """Whether a smaller or a larger value of a metric is better: as told, else by `greater_is_better`, else by name."""
    if mode is not None:
        return mode
    if greater_is_better is not None:
        return "max" if greater_is_better else "min"
    if monitor.endswith("loss"):
        return "min"
    raise ValueError(f"mode is not known for monitor={monitor!r}: pass mode='min' if smaller is better, or mode='max'")


def _same(optimizer: Any, other: Any) -> bool:
    """Whether two are one optimizer, in a wrapper or not."""
    return optimizer.param_groups is other.param_groups


def _world_size() -> int | None:
    """None where torch.distributed is not in use."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else None


def _write_lr(group: dict[str, Any], lr: float) -> None:
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(lr)  # in place: a captured or compiled step holds this very tensor
    else:
        group["lr"] = lr


class GreedyLR(LRScheduler):
    """The learning rate follows the loss: LR of a group = its base LR x scale x envelope.

        scheduler = GreedyLR(optimizer, total_steps=1000)
        for batch in loader:
            loss = model(batch); loss.backward()
            optimizer.step(); optimizer.zero_grad()
            scheduler.step(loss)

    Where torch.distributed is initialized, the loss is averaged over the ranks before each decision, so every rank
    must call `step` with one; all of them then have the same LR.

    Args:
        optimizer (torch.optim.Optimizer): its groups' LRs, or `initial_lr` where set, are the base LRs.
        config (GreedyConfig): how losses move the LR. Default: `GreedyConfig()`.
        controller (Controller): another policy, in place of a config. Its decisions have one scale for each group, or
            one for all.
        total_steps (int): optimizer steps of the run, if known: fits window and rate to it, and decays the LR to 0 at
            its end. Default None.
        linear_warmup_steps (int): optimizer steps of a ramp from 0, in which no decision is made. Default 0.
        decay_ratio (float): share of `total_steps` that the final decay takes. Default None: 0.3, or the controller's
            own `decay_ratio`.
        base_schedule (LRScheduler): another schedule of the same optimizer, stepped by this one; LR = its LR x scale,
            and ramp and decay are its own. No decision is made while its LR first rises. Its state is not part of this
            one's: save and load it too. Default None.
        horizon (int): decisions of the run, where they are not one every `every_n_steps`. Default: from total_steps.
        shadow (bool): decide, but leave the optimizer alone. Default False.
        loss_lag (int): 1 decides on each loss one optimizer step later, so that the host does not wait for the device;
            0 at once. Default None: 1 for losses on a CUDA device, else 0.
        process_group: data-parallel ranks, over which to average the loss; all others take their number. Default None:
            all ranks. See `LossMeter` for the rank that tells them.
        meter (LossMeter): in place of the two, what averages the losses over micro-batches, steps and ranks.
        history_file (path): where rank 0 appends every decision and order; see `history.read`. Default None: nowhere.
        control_file (path): where orders may come from while it runs; see `control.ControlFile`. Default None.
        monitor (str): what the losses are, for the history. Default "loss".
        **fields: fields of the config, in place of its own.

    Attributes:
        history (History): the last 100,000 decisions, a sequence of `history.Record`.
        orders (deque of OrderRecord): the orders so far: `hold`, `cap`, `pin`, `release`, `start_decay`.

    Raises:
        TypeError, ValueError: for what does not fit, with the field, the value and what is allowed.
    """

    base_lrs: list[float]  # type: ignore[assignment]

    def __init__(
        self,
        optimizer: Optimizer,
        config: ControllerConfig | None = None,
        *,
        controller: Controller | None = None,
        total_steps: int | None = None,
        linear_warmup_steps: int = 0,
        decay_ratio: float | None = None,
        base_schedule: LRScheduler | None = None,
        horizon: int | None = None,
        shadow: bool = False,
        loss_lag: int | None = None,
        process_group: Any = None,
        meter: LossMeter | None = None,
        history_file: str | os.PathLike[str] | HistoryFile | None = None,
        control_file: str | os.PathLike[str] | None = None,
        monitor: str = "loss",
        **fields: Any,
    ) -> None:
        if controller is not None and (config is not None or fields):
            raise TypeError("controller and config are both given: a controller brings its own configuration")
        config = make_config(config, fields)
        if base_schedule is not None:
            if linear_warmup_steps:
                raise ValueError(
                    f"linear_warmup_steps={linear_warmup_steps} is not allowed with a base_schedule, which has its own"
                )
            if isinstance(base_schedule, ReduceLROnPlateau) or not _same(base_schedule.optimizer, optimizer):
                raise ValueError(
                    f"base_schedule={type(base_schedule).__name__} is not allowed: it must be a schedule of the same"
                    " optimizer that steps without a metric"
                )
        if decay_ratio is None:
            decay_ratio = getattr(controller, "decay_ratio", 0.3)
        envelope = Envelope(linear_warmup_steps=linear_warmup_steps, total_steps=total_steps, decay_ratio=decay_ratio)
        self.shadow = shadow
        self.base_schedule = base_schedule
        self._schedule_lrs: list[float] | None = None  # the base schedule's LRs now
        self._decides_from: float = linear_warmup_steps if base_schedule is None else inf
        self._handed_over = False
        self._loaded: tuple[int, float | None] = (-1, None)  # step and envelope of the checkpoint gone on from
        self._metered = True  # whether a float must go through the meter
        self._scales: Sequence[float] = (1.0,)
        self.history = History(HISTORY_SIZE)
        self._entries = self.history.entries
        self.orders: deque[OrderRecord] = deque(maxlen=HISTORY_SIZE)
        self.history_file = history_file if isinstance(history_file, HistoryFile | None) else HistoryFile(history_file)
        self.monitor = monitor
        self._set_envelope(envelope if base_schedule is None else Envelope())
        self.meter = LossMeter(lag=loss_lag, process_group=process_group) if meter is None else meter
        self.meter.control = None if control_file is None else ControlFile(control_file)
        super().__init__(optimizer)  # sets base_lrs from the groups' initial_lr, last_epoch, and calls _initial_step
        self._total_steps = total_steps
        self._steps_to_decide = None if total_steps is None or horizon else max(1, total_steps - linear_warmup_steps)
        self._own_controller = controller is None
        if isinstance(controller, GreedyController):
            config = controller.config
        self._every = config.every_n_steps
        horizon = horizon or self._decisions(self._every)
        if controller is None:
            controller = GreedyController(config, self.base_lrs, horizon)
        elif hasattr(controller, "set_horizon"):
            controller.set_horizon(horizon)
        self.controller = controller
        self._obey(None)
        self._scales = self._decider_scales()
        self._apply()

    def _decisions(self, every: int) -> int | None:
        return None if self._steps_to_decide is None else ceil(self._steps_to_decide / every)

    # ---- stepping ----

    def step(self, loss: float | torch.Tensor | None = None) -> Decision | None:  # type: ignore[override]
        """Go on by one optimizer step; with a loss, decide too.

        Args:
            loss (float or tensor with one element, on any device): the training loss of this optimizer step on this
                rank. None: that of the micro-batches that `meter` was fed, or, if there were none, no decision.

        Returns:
            The decision, if one was made: none in the ramp, nor between decisions with `every_n_steps`.
        """
        step, decision = self.last_epoch, None
        moved = len(self.optimizer.param_groups) != len(self.base_lrs)
        if moved:
            self._add_groups()
        if step < self._decides_from:
            self.begin_history()
            self.meter.discard_step()
        elif loss is not None or self.meter.fed:
            if type(loss) is not float or self._metered:
                loss = self._measure(loss)
            if loss is not None:
                decision = self._decider.observe(loss)
                scales = decision[2]
                if scales is not self._scales:
                    self._scales = scales
                    moved = True
        self.last_epoch = step = step + 1
        if moved or not self._constant_from < step < self._constant_until:
            if self.base_schedule is not None:
                self._step_base_schedule()
            self._apply()
        if decision is not None:
            # `_keep`, written out: this is the hot path
            nonfinite = 0 if decision[4] is not None else getattr(self.controller, "nonfinite", 0)
            self._entries.append((step, self._schedule_lrs or self.base_lrs, self._factor, decision, nonfinite))
            if self.history_file is not None:
                self.history_file.write(self.history[-1])
        return decision

    def observe(self, loss: float | torch.Tensor) -> Decision | None:
        """Decide without a step, on a validation loss, say. It is averaged over all ranks; each must call it."""
        if self.ramping:
            return None
        self.begin_history()
        loss = self.meter.agree(loss)
        self._follow(self.last_epoch)
        decision = self._decider.observe(loss)
        self._scales = decision.scales
        self._apply()
        self._keep(decision)
        return decision

    def _measure(self, loss: float | torch.Tensor | None) -> float | None:
        """Mean loss of all ranks and of all steps since the last decision; None between decisions."""
        # asked here, not in the constructor: the process group may come later, though not after the first loss
        self._metered = (
            self._every > 1 or self.meter.lag == 1 or self.meter.control is not None or _world_size() is not None
        )
        self.begin_history()
        if loss is not None:
            self.meter.update(loss)
        self.meter.end_step()
        if self.meter.steps < self._every:
            return None
        mean = self.meter.compute()
        self._follow(self.last_epoch + 1)
        return mean

    @property
    def scale(self) -> float:
        """Scale of the first parameter group now."""
        return self._scales[0]

    @property
    def factor(self) -> float:
        """What the envelope makes of the LR now, from 0 to 1."""
        return self.envelope(self.last_epoch)

    @property
    def ramping(self) -> bool:
        """Whether the LR is still on its way up to the base LR, where no decision is made."""
        return self.last_epoch < self._decides_from

    # ---- steering: on every rank, at the same step; or by the control file ----

    def hold(self) -> None:
        """Keep the scale where it is until another order, while the rule goes on observing."""
        self._order(make_order("hold"))

    def cap(self, scale: float) -> None:
        """Keep the scale from rising above `scale`, within the configured bounds, until another order."""
        self._order(make_order("cap", scale))

    def pin(self, scale: float) -> None:
        """Set the scale to `scale`, within the configured bounds, and keep it there until another order."""
        self._order(make_order("pin", scale))

    def release(self) -> None:
        """End hold, cap or pin: the scale goes on from where it stands."""
        self._order(make_order("release"))

    def start_decay(self, steps: int) -> None:
        """Begin the final decay now: linear, from where the LR stands to 0 in `steps` optimizer steps."""
        self._order(make_order("decay", steps))

    @property
    def decaying(self) -> bool:
        """Whether a final decay was begun by `start_decay`."""
        return self.envelope.decay_start is not None

    def _order(self, order: Order) -> None:
        self.begin_history()
        self._carry_out(order, self.last_epoch)
        self._scales = self._decider_scales()
        if not self._handed_over:
            self._apply()

    def _follow(self, step: int) -> None:
        """Carry out the order that came with a loss, if one did; the decision that follows brings the LR."""
        if self.meter.order is not None:
            self._carry_out(self.meter.take_order(), step)  # type: ignore[arg-type]

    def _carry_out(self, order: Order, step: int) -> None:
        logger.info("GreedyLR follows the order %s at step %d", order, step)
        if order.name == "decay":
            loaded, factor = self._loaded
            # after a resume for another number of steps, from where the LR stood and not where it would stand now
            factor = factor if loaded == step else None
            self._set_envelope(self.envelope.decaying(step, order.value, factor))  # type: ignore[arg-type]
        else:
            self._obey(None if order.name == "release" else order)
        self.orders.append(record := OrderRecord(step, *order))
        if self.history_file is not None:
            self.history_file.write(record)

    def _obey(self, order: Order | None) -> None:
        """Put the controller under an order, or under none."""
        self._in_force = order
        self._decider = self.controller if order is None else Steered(self.controller, order, self._scales)

    def _decider_scales(self) -> Sequence[float]:
        return getattr(self._decider, "scales", self._scales)

    def _set_envelope(self, envelope: Envelope) -> None:
        self.envelope = envelope
        self._constant_from, self._constant_until = envelope.constant()
        if self.base_schedule is not None:
            self._constant_until = 0

    # ---- composing with another schedule ----

    def hand_over(self) -> None:
        """Give the optimizer the base schedule's own LRs back, so that whoever owns the schedule can step it.

        The next `step` or `take_over` then takes up what the schedule made of them.
        """
        if self._schedule_lrs is not None and not self._handed_over:
            self._handed_over = True
            if not self.shadow:
                for group, lr in zip(self.optimizer.param_groups, self._schedule_lrs, strict=True):
                    _write_lr(group, lr)

    def _step_base_schedule(self) -> None:
        before = self._schedule_lrs
        if not self._handed_over:
            self.hand_over()
            self.base_schedule.step()  # type: ignore[union-attr]
        self._schedule_lrs = self._read()
        self._handed_over = False
        if self._decides_from == inf and (before is None or self._schedule_lrs[0] <= before[0]):
            self._decides_from = self.last_epoch  # its first rise is over

    # ---- the optimizer's LRs ----

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """LR of each group now: a list of floats."""
        groups = len(self.optimizer.param_groups)
        if groups != len(self.base_lrs):
            self._add_groups()
        scales = self._scale_of_each(groups)
        lrs, factor = self._schedule_lrs or self.base_lrs, self.factor
        return [lr * (scale * factor) for lr, scale in zip(lrs, scales, strict=True)]

    def get_last_lr(self) -> list[float]:  # type: ignore[override]
        """LR of each group now: a list of floats. With `shadow`, what it would be."""
        return self.get_lr()

    def take_over(self) -> None:
        """Write the LRs into the optimizer: after a step that it skipped, or where something else writes them too."""
        if self._handed_over:
            self._schedule_lrs = self._read()
            self._handed_over = False
        self._apply()

    def _apply(self) -> None:
        groups, scales = self.optimizer.param_groups, self._scales
        if len(groups) != len(scales):
            scales = self._scale_of_each(len(groups))
        step = self.last_epoch
        self._factor = factor = 1.0 if self._constant_from <= step < self._constant_until else self.envelope(step)
        if self.shadow:
            return
        for group, lr, scale in zip(groups, self._schedule_lrs or self.base_lrs, scales):  # noqa: B905 (has a price)
            if type(group["lr"]) is float:
                group["lr"] = lr * (scale * factor)
            else:
                _write_lr(group, lr * (scale * factor))

    def _scale_of_each(self, groups: int) -> Sequence[float]:
        scales = self._scales
        if len(scales) == groups:
            return scales
        check(len(scales) == 1, "scales", scales, f"one scale for all, or one for each of {groups} parameter groups")
        return tuple(scales) * groups

    def _read(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def _initial_step(self) -> None:
        # torch's own calls step(); SequentialLR calls this once more
        self.base_lrs = [float(lr) for lr in self.base_lrs]
        if self.base_schedule is not None:
            self._schedule_lrs = self._read()
        self._step_count = 1  # torch's, for its own step(), which this class does not use
        self.last_epoch += 1
        self._apply()

    def _add_groups(self) -> None:
        for group in self.optimizer.param_groups[len(self.base_lrs) :]:
            # new lists: the history holds the old ones
            self.base_lrs = [*self.base_lrs, float(group.setdefault("initial_lr", group["lr"]))]
            if self._schedule_lrs is not None:
                self._schedule_lrs = [*self._schedule_lrs, float(group["lr"])]
            if isinstance(self.controller, GreedyController):
                self.controller.add_group(self.base_lrs[-1])
        self._scales = self._decider_scales()

    # ---- history ----

    def begin_history(self) -> None:
        """Once a run, on every rank: refuse a history file of another run before anything is written to it.

        Raises:
            ValueError: on all ranks, if this run is at step 0 and the file on rank 0 has a history already.
        """
        file = self.history_file
        if file is None or file.begun:
            return
        rank = environment_rank() if _world_size() is None else dist.get_rank()
        refused = float(rank == 0 and file.is_anothers(self.last_epoch))
        if LossMeter(lag=0).agree(refused) > 0:
            raise ValueError(
                f"history_file={file.path!r} has the history of another run already: name another file, delete this"
                " one, or resume that run from its checkpoint"
            )
        controller = self.controller
        header = {
            "greedylr_history": VERSION,
            "config": controller.config.to_dict() if isinstance(controller, GreedyController) else None,
            "base_lrs": list(self.base_lrs),
            "total_steps": self._total_steps,
            "monitor": self.monitor,
            "world_size": _world_size() or 1,
        }
        file.begin(self.last_epoch, header, writes=rank == 0)

    def _keep(self, decision: Decision) -> None:
        nonfinite = 0 if decision[4] is not None else getattr(self.controller, "nonfinite", 0)
        bases = self._schedule_lrs or self.base_lrs
        self._entries.append((self.last_epoch, bases, self._factor, decision, nonfinite))
        if self.history_file is not None:
            self.history_file.write(self.history[-1])

    def metrics(self) -> dict[str, float]:
        """For a logger: scale and LR of the first group now, and the last decision (1 raise, -1 lower, 0 hold)."""
        action = self.history[-1].decision.action if self.history else HOLD
        return {
            "greedylr/scale": self.scale,
            "greedylr/lr": self.get_last_lr()[0],
            "greedylr/action": {RAISE: 1.0, LOWER: -1.0, HOLD: 0.0}[action],
        }

    def suggested_lr(self) -> float | None:
        """Where the next such run should start, from the LRs that this one settled on; None if it was too short."""
        return suggested_lr(list(self.history), self.base_lrs[0])

    def finish(self) -> None:
        """At the end of a run: say at INFO what it suggests for the next, or what `shadow` saw, and close the history.

        The two Trainers' callbacks call it; a loop of your own may.
        """
        if self.history_file is not None:
            self.history_file.close()
            self.history_file = None
        if self.shadow:
            if self.history:
                logger.info("GreedyLR in shadow: %s", shadow_summary(self.history, self.base_lrs[0]))
            return
        lr = self.suggested_lr()
        if lr is not None:
            logger.info(
                "next time start at %.2g: the LR settled on %.2g x the base LR, the median scale over the later half of"
                " the decisions between ramp and final decay",
                lr,
                lr / self.base_lrs[0] if self.base_lrs[0] else self.scale,
            )

    # ---- state ----

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on, as plain JSON."""
        decay = [self.envelope.decay_start, self.envelope.decay_steps, self.envelope.decay_from]
        return {
            "version": STATE_VERSION,
            "last_epoch": self.last_epoch,
            "base_lrs": list(self.base_lrs),
            "scales": list(self._scales),
            "envelope": self.factor,
            "decay": None if decay[0] is None else decay,
            "order": None if self._in_force is None else list(self._in_force),
            "last_order": 0 if self.meter.control is None else self.meter.control.last,
            "schedule_lrs": self._schedule_lrs,
            "schedule_ramps": self._decides_from == inf,
            "pending": self.meter.state_dict(),
            "controller": self.controller.state_dict(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from `state_dict`, and give the optimizer the LRs that go with it.

        Raises:
            ValueError: for a state with missing, unknown or ill-typed keys, of another version, of another number of
                parameter groups, or that the controller refuses; then nothing has changed.
        """
        check_state(state_dict, SCHEDULER_STATE, "GreedyLR")
        groups = len(self.optimizer.param_groups)
        check(
            len(state_dict["base_lrs"]) == groups,
            "base_lrs",
            state_dict["base_lrs"],
            f"a list of {groups}, one for each parameter group of this optimizer",
        )
        if (state_dict["schedule_lrs"] is None) != (self.base_schedule is None):
            there, here = ("without", "with") if self.base_schedule else ("with", "without")
            raise ValueError(
                f"the checkpoint was written {there} a base_schedule, this run goes on {here} one: make them equal"
            )
        self.controller.load_state_dict(state_dict["controller"])
        self.base_lrs = list(state_dict["base_lrs"])
        if self._own_controller and isinstance(self.controller, GreedyController):
            self.base_lrs = list(self.controller.base_lrs)
            if self.controller.config.every_n_steps != self._every and self._steps_to_decide is not None:
                horizon = self._decisions(self.controller.config.every_n_steps)
                self.controller = self.controller.with_horizon(horizon)
        if isinstance(self.controller, GreedyController):
            self._every = self.controller.config.every_n_steps
            self._metered = True
        self._scales = tuple(state_dict["scales"])
        self._obey(None if state_dict["order"] is None else make_order(*state_dict["order"]))
        self._scales = self._decider_scales()
        self.last_epoch = state_dict["last_epoch"]
        self._loaded = self.last_epoch, state_dict["envelope"]
        for done in (self.history, self.orders):
            while done and done[-1].step > self.last_epoch:
                done.pop()
        if self.history_file is not None:
            self.history_file.begun = False
        if self.meter.control is not None:
            self.meter.control.load(state_dict["last_order"])
        start, steps, factor = state_dict["decay"] or (None, None, 1.0)
        self._set_envelope(replace(self.envelope, decay_start=start, decay_steps=steps, decay_from=factor))
        if state_dict["schedule_lrs"] is not None:
            self._schedule_lrs = list(state_dict["schedule_lrs"])
            self._decides_from = inf if state_dict["schedule_ramps"] else 0
        self.meter.load_state_dict(state_dict["pending"])
        self._apply()


def _is_order(value: object) -> bool:
    try:
        return value is None or make_order(*value).name in ("hold", "cap", "pin")  # type: ignore[misc]
    except (TypeError, ValueError):
        return False


SCHEDULER_STATE = {
    "version": lambda value: value == STATE_VERSION and is_integer(value),
    "last_epoch": is_integer,
    "base_lrs": is_numbers,
    "scales": is_numbers,
    "envelope": is_finite,
    "decay": lambda value: (
        value is None or (is_numbers(value) and len(value) == 3 and is_integer(value[0]) and is_integer(value[1]))
    ),
    "order": _is_order,
    "last_order": is_integer,
    "schedule_lrs": lambda value: value is None or is_numbers(value),
    "schedule_ramps": lambda value: isinstance(value, bool),
    "pending": is_pending,
    "controller": lambda value: isinstance(value, Mapping),
}
