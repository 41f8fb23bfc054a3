"""GreedyLR as a torch scheduler: measure, decide, write, record.

`deciding` measures and decides, `learning_rates` writes, `history` records.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from greedylr_integrations.checks import check, check_hook
from greedylr_integrations.controller import ControllerConfig, GreedyController
from greedylr_integrations.deciding import Decider, RunLength
from greedylr_integrations.decision import ROLLED_BACK, Decision
from greedylr_integrations.distributed import compare, rank, world_size
from greedylr_integrations.envelope import Envelope
from greedylr_integrations.guard import MOST_ROLLBACKS, SpikeError
from greedylr_integrations.history import Record, Recorder
from greedylr_integrations.history_file import HistoryFile
from greedylr_integrations.learning_rates import LearningRates
from greedylr_integrations.log import logger
from greedylr_integrations.loss import LossMeter
from greedylr_integrations.optimizers import check_optimizer
from greedylr_integrations.readings import Readings
from greedylr_integrations.rollback import Rollback, rollback_of
from greedylr_integrations.rules import make_config
from greedylr_integrations.scheduler_state import STATE_VERSION, checked_state
from greedylr_integrations.signals import Signals
from greedylr_integrations.slope import SlopeMeter
from greedylr_integrations.steering import Command, Steerable
from greedylr_integrations.suggestion import Settling

if TYPE_CHECKING:
    from greedylr_integrations.rules import ConfigFields


class GreedyLR(Readings, Steerable):
    """A scheduler that finds the learning rate during training: LR of a group = its base LR x scale x envelope.

        scheduler = GreedyLR(optimizer, total_steps=1000)
        for batch in loader:
            loss = model(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step(loss)

    If torch.distributed is initialized, loss and slope are averaged over the ranks before each decision, so every rank
    must call `step`; all of them then have the same LR.

    Args:
        optimizer (torch.optim.Optimizer): its groups' LRs, or `initial_lr` if set, are the base LRs.
        config (ControllerConfig): the rule and its settings. Default None: `SlopeConfig()`, or `GreedyConfig()` if only
            that has one of `fields`.
        controller (GreedyController): a controller whose config is used, in place of `config`. Default None.
        total_steps (int): optimizer steps of the run. The rule is fitted to it, and the LR decays to 0 at its end.
            Default None: unknown, no decay.
        steps_per_epoch (int): optimizer steps of one pass over the data. The slope is measured during the first pass
            only, since the gradient of a batch that has been trained on misleads. Default None: all data is new.
        linear_warmup_steps (int): optimizer steps of a linear warmup from 0, without decisions. Default 0.
        decay_ratio (float): share of `total_steps` that the final decay takes. Default None: the config's, usually 0.3.
        base_schedule (LRScheduler): another schedule of the same optimizer, which this one steps: LR = its LR x scale,
            and warmup and decay are left to it. No decision is made during the initial rise of its LR. Its state is not
            part of this scheduler's: save and load it as well. Default None.
        horizon (int): number of decisions in the run, if there is not one every `every_n_steps`; 0 if unknown. Default
            None: computed from `total_steps`.
        shadow (bool): decide, but leave the optimizer alone. Default False.
        loss_lag (int): 1 decides on each loss one optimizer step later, so that the host does not wait for the device;
            0 at once. Default None: 1 for losses on a CUDA device, else 0.
        process_group: data-parallel ranks over which to average; all other ranks receive the result, from the rank
            that is `source` in `LossMeter`. Default None: all ranks.
        meter (LossMeter): averages the losses over micro-batches, steps and ranks; replaces `loss_lag` and
            `process_group`. Default None: one is made from these two.
        slope_sample (int): about how many coordinates of the weights to measure the slope on, at most. Default
            1,000,000.
        history_file (path): file to which rank 0 appends every decision and command; see `history.read`. If it has the
            history of an earlier run, that file is renamed. Default None: no file.
        on_decision (callable): a function that is called on every rank with the `history.Record` of each decision,
            after its LR has been written to the optimizer. Default None.
        control_file (path): file from which commands are read during the run; see `steering.CommandFile`. Default None.
        monitor (str): what the losses are called in the history. Default "loss".
        module (torch.nn.Module): module whose buffers, such as batch norm's running means, a rollback restores along
            with the weights. Default None: buffers stay as they are.
        restore (callable): a function that loads a checkpoint, for a rollback with `snapshot_every=None`. It is called
            on every rank with a path that was passed to `saved`, and must restore the weights and the optimizer. It may
            be the function with which you resume: while it loads, the LRs of this optimizer, the base schedule, every
            GreedyLR and the random numbers stay as they are. Default None.
        **fields: fields of the config, which override its own.

    Raises:
        TypeError, ValueError: if an argument is not allowed; the message has its name, its value and what is allowed.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        config: ControllerConfig | None = None,
        *,
        controller: GreedyController | None = None,
        total_steps: int | None = None,
        steps_per_epoch: int | None = None,
        linear_warmup_steps: int = 0,
        decay_ratio: float | None = None,
        base_schedule: LRScheduler | None = None,
        horizon: int | None = None,
        shadow: bool = False,
        loss_lag: int | None = None,
        process_group: Any = None,
        meter: LossMeter | None = None,
        slope_sample: int = 1_000_000,
        history_file: str | os.PathLike[str] | HistoryFile | None = None,
        on_decision: Callable[[Record], object] | None = None,
        control_file: str | os.PathLike[str] | None = None,
        monitor: str = "loss",
        module: torch.nn.Module | None = None,
        restore: Callable[[Any], object] | None = None,
        **fields: Unpack[ConfigFields],
    ) -> None:
        check_hook("restore", restore, "the path of a checkpoint")
        check_optimizer(optimizer)
        if controller is not None:
            check(config is None and not fields, "controller", controller, "None if a config or its fields are given")
            config, horizon = controller.config, horizon or controller.horizon
        config = make_config(config, fields, GreedyLR)
        if shadow:
            config = config.without_rollback()  # it would wait for the effect of what is not done
        if restore is not None and not config.needs_checkpoints:
            logger.warning("GreedyLR does not use `restore`: it is for on_spike='rollback' with snapshot_every=None")
        check(isinstance(monitor, str) and 0 < len(monitor) <= 1000, "monitor", monitor, "a name")
        self.shadow, self.monitor, self.base_schedule = shadow, monitor, base_schedule
        ratio = config.decay_ratio if decay_ratio is None else decay_ratio
        envelope = Envelope(linear_warmup_steps=linear_warmup_steps, total_steps=total_steps, decay_ratio=ratio)
        length = RunLength(envelope.decided_steps, horizon, steps_per_epoch)
        self.meter = LossMeter(lag=loss_lag, process_group=process_group) if meter is None else meter
        signals = Signals(self.meter, SlopeMeter(optimizer, slope_sample), control_file)
        super().__init__(optimizer)  # sets the groups' initial_lr, and calls _initial_step
        self._rates = LearningRates(optimizer, envelope, base_schedule, shadow=shadow)
        self._decider = Decider(config, signals, length, monitor, self._carry_out, self._rates.look)
        self._recorder, self._total_steps = Recorder(history_file, on_decision), envelope.total_steps
        self._settling, self._module, self._restore = Settling(), module, restore
        self._begun = self._goes_on = False
        self._fresh = True  # neither begun nor loaded
        self._concerns: list[str] = []  # those that were logged
        self._run: str | None = None  # the run's id, if it has a history file; empty if it began before there were ids
        self._decider.begin(optimizer, self.base_lrs)
        self._set_rollback(self._rollback_of(config))
        self._write()

    def _initial_step(self) -> None:
        # torch's own calls step(); SequentialLR calls this once more
        self._step_count = 1  # torch's, for its own step(), which this class does not use
        self.last_epoch += 1

    # ---- stepping ----

    def step(self, loss: float | torch.Tensor | None = None) -> Decision | None:  # type: ignore[override]
        """Advance by one optimizer step: measure, decide, write, record.

        Args:
            loss (float or tensor with one element, on any device): the training loss of this optimizer step on this
                rank. Default None: the loss of the micro-batches that were passed to `meter`. If no rank has a loss, no
                decision is made.

        Returns:
            The decision; None during the warmup and, with `every_n_steps`, between decisions.
        """
        if not self._begun:
            self._begin()
        self._take_up_groups()
        step = self.last_epoch + 1
        decision = None
        try:
            if self._rates.ramps and self.ramping:
                self._decider.advance(step)
            else:
                decision = self._decider.step(loss, step)
            self._go_on(step, decision)
        except (FloatingPointError, SpikeError) as error:
            raise self._ended(error, step, decision) from error
        if decision is not None:
            self._record(decision)
        return decision

    def advance(self) -> None:
        """Advance by one optimizer step without a loss on any rank: only warmup, decay and base schedule progress."""
        self._begin()
        self._take_up_groups()
        self._decider.advance(self.last_epoch + 1)
        self._go_on(self.last_epoch + 1)

    def observe(self, loss: float | torch.Tensor) -> Decision | None:
        """Decide without a step, for example on a validation loss. Every rank must call it: their mean counts."""
        return None if self.ramping else self._decide_apart(lambda: self._decider.observe(loss))

    def skip_step(self, loss: float | torch.Tensor | None = None) -> Decision | None:
        """The optimizer skipped the step under way: forget what was measured for it. Every rank must call it.

        After 20 skipped steps in a row, there is a WARNING, and a loss that is NaN or infinite leads to a decision, as
        `on_nonfinite` says.

        Args:
            loss (float or tensor with one element): the loss of the step that was skipped. Default None: that of the
                micro-batches that were passed to `meter`.
        """
        return self._decide_apart(self._decider.observe_skipped) if self._decider.skip_step(loss) else None

    def _decide_apart(self, decide: Callable[[], Decision | None]) -> Decision | None:
        """A decision that no step of the optimizer belongs to."""
        self._begin()
        self._take_up_groups()
        decision = None
        try:
            decision = decide()
            if self._rollback is not None:
                self._rollback.follow(decision, self.last_epoch, self.controller.guard)
        except (FloatingPointError, SpikeError) as error:
            raise self._ended(error, self.last_epoch, decision) from error
        self._write()
        if decision is not None:
            self._record(decision)
        return decision

    def _begin(self) -> None:
        """Once a run, on every rank: compare the arguments, and open the history."""
        if self._begun:
            return
        self._begun = True
        if self._fresh and not self.shadow:
            self._concerns = self._decider.concerns(self.optimizer, self._rates)
            for concern in self._concerns:
                logger.warning("GreedyLR: %s", concern)
        self._fresh = False
        config = self.controller.config.to_dict()
        header: dict[str, Any] = {"config": config, "base_lrs": list(self.base_lrs), "total_steps": self._total_steps}
        alike, lost = compare(json.dumps([header, self.controller.horizon], sort_keys=True), self._decider.lost)
        if not alike:
            raise ValueError("GreedyLR has different arguments on different ranks: pass the same ones on every rank")
        if lost:
            self._decider.signals.slopes.start_anew()
        if self.history_file is not None:
            self._run = uuid.uuid4().hex if self._run is None else self._run
            header = {"run": self._run, **header, "monitor": self.monitor, "world_size": world_size() or 1}
            self._recorder.begin(header, resumed=self.last_epoch, writes=rank() == 0)

    def _go_on(self, step: int, decision: Decision | None = None) -> None:
        if self._rollback is not None:
            ramping = self._rates.ramps and self.ramping
            self._rollback.follow(decision, step, self.controller.guard, ramping=ramping)
        self.last_epoch = step
        if self._rates.factor == 0.0 and not (self._goes_on or self._rates.ramping(step - 1) or self.shadow):
            self._goes_on = True
            logger.warning(
                "the LR has decayed to 0, and the run goes on: nothing is learned from step %d on. Pass the length of"
                " the whole run as total_steps",
                step,
            )
        rates, scales = self._rates, self._decider.controller.scales
        self._used = rates.bases, rates.factor, rates.written
        if rates.schedule is not None:
            rates.schedule.advance()
        if scales is not rates.written or not rates.steady_from < step < rates.steady_until:
            rates.write(scales, step)

    def _ended(self, error: Exception, step: int, decision: Decision | None) -> Exception:
        """The error that ends the run, with the step and the rollbacks before it; the loss is recorded."""
        back = [record for record in self.history if record.decision.reason is ROLLED_BACK][-MOST_ROLLBACKS:]
        decision = decision or self.controller.ending
        if decision is not None:
            rates = self._rates
            self._recorder.decision(step, rates.bases, rates.factor, decision, self.controller.nonfinite)
        places = ", ".join(f"step {record.step:,} (loss {record.decision.loss:.4g})" for record in back)
        return type(error)(f"step {step:,}: {error}" + (f". The last rollbacks: {places}" if places else ""))

    def _rollback_of(self, config: ControllerConfig) -> Rollback[Any] | None:
        if self.shadow:
            return None
        return rollback_of(config, self.optimizer, self._module, self.base_schedule, self._restore)

    def _set_rollback(self, rollback: Rollback[Any] | None) -> None:
        self._rollback = rollback
        self.controller.guard.can_go_back = False  # before the first step, or after a resume

    def _write(self) -> None:
        self._rates.write(self.controller.scales, self.last_epoch)

    def _record(self, decision: Decision) -> None:
        rates, nonfinite = self._rates, self._decider.controller.nonfinite
        if rates.factor == 1.0:
            self._settling.push(decision.scales)
        if self._recorder.tells:
            self._write()  # a Trainer may have stepped a schedule of its own
        self._recorder.decision(self.last_epoch, rates.bases, rates.factor, decision, nonfinite)

    def _take_up_groups(self) -> None:
        if len(self.optimizer.param_groups) != len(self._rates.base_lrs):
            for base_lr in self._rates.new_groups(self.controller.scales):
                self.controller.add_group(base_lr)
            self._decider.steering.obey(self._decider.steering.command)  # the bounds may be wider now
            self._write()

    # ---- commands ----

    def follow(self, command: Command) -> None:
        """Follow a command from now on; the history may be begun later."""
        self._take_up_groups()
        self._carry_out(command, self.last_epoch)
        if not self._rates.lent:
            self._write()

    def _carry_out(self, command: Command, step: int) -> None:
        logger.info("GreedyLR follows the command %s at step %d", command, step)
        if command.name == "decay":
            self._rates.start_decay(step, int(command.value or 0))
        else:
            self._decider.steering.obey(command)
        self._recorder.command(step, command)

    # ---- another owner of the optimizer's LRs ----

    def hand_over(self) -> None:
        """Put the base schedule's own LRs back into the optimizer, so that the schedule's owner can step it.

        The next `step` or `take_over` then picks up the LRs that the schedule has set.
        """
        if self._rates.schedule is not None:
            self._rates.schedule.lend()

    def take_over(self) -> None:
        """Write the LRs into the optimizer: after a step that it skipped, or if something else writes them too."""
        self._take_up_groups()
        if self._rates.schedule is not None:
            self._rates.schedule.take_back()
        self._write()

    # ---- state ----

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_begun": False, "_rollback": None, "_restore": None}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self._decider.watch(self.optimizer)
        config = self.controller.config
        self._set_rollback(None if config.needs_checkpoints else self._rollback_of(config))

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on: plain JSON, but for the tensors of `["slope"]["reference"]`."""
        self._take_up_groups()
        return {
            "version": STATE_VERSION,
            "run": self._run,
            "monitor": self.monitor,
            "last_epoch": self.last_epoch,
            "base_lrs": list(self.base_lrs),
            "scales": list(self.controller.scales),
            "envelope": self.envelope_value,
            "decisions": self._recorder.decision_count,
            "commands": self._recorder.command_count,
            "settling": self._settling.state_dict(self._rates.speaker),
            **self._rates.state_dict(),
            **self._decider.state_dict(),
        }

    def saved(self, path: str | os.PathLike[str], *, whole: bool = True) -> None:
        """Report a checkpoint that was saved or resumed from: with `snapshot_every=None`, a rollback may go back to it.

        Call it on every rank, after saving or loading. The callbacks of the two Trainers do this themselves.

        Args:
            path (path): what `restore` will be called with. If it is gone by then, an earlier checkpoint is used.
            whole (bool): whether the checkpoint has the optimizer's state; if not, it is not used. Default True.
        """
        if self._rollback is not None:
            self._rollback.saved(path, self.last_epoch, self.controller.guard, whole=whole)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from `state_dict`, and give the optimizer the LRs that go with it.

        During a rollback of a GreedyLR in this process, it does nothing.

        Raises:
            ValueError: if the state has missing, unknown or wrong values, another version, another number of parameter
                groups or another `monitor`, or if the controller refuses it; nothing has changed then.
        """
        if Rollback.restoring:
            return
        self._take_up_groups()
        with_schedule, groups = self._rates.schedule is not None, len(self.base_lrs)
        state = checked_state(state_dict, groups, with_schedule=with_schedule, monitor=self.monitor)
        controller = self._decider.loaded(state, self.base_lrs)
        rollback = self._rollback_of(controller.config)
        self._decider.load(controller, state)
        self._rates.load_state_dict(state, list(controller.base_lrs))
        self.last_epoch, self._run, self._begun = state["last_epoch"], state["run"], False
        self._fresh = False
        self._recorder.rewind(state["decisions"], state["commands"])
        self._settling.load_state_dict(state["settling"], groups)
        self._set_rollback(rollback)
        self._write()
