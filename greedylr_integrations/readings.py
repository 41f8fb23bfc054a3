"""What there is to see of a run: its history, where its LR is, what it suggests for the next one."""

from __future__ import annotations

from collections import deque

from torch.optim.lr_scheduler import LRScheduler

from greedylr_integrations.controller import GreedyController
from greedylr_integrations.deciding import Decider
from greedylr_integrations.decision import HOLD, LOWER, RAISE
from greedylr_integrations.envelope import Envelope
from greedylr_integrations.history import CommandRecord, History, Recorder, shadow_summary, steady_scales, suggested_lr
from greedylr_integrations.history_file import HistoryFile
from greedylr_integrations.learning_rates import LearningRates
from greedylr_integrations.log import logger
from greedylr_integrations.loss import LossMeter


class Readings(LRScheduler):
    """What `GreedyLR` shows.

    Attributes:
        shadow (bool): whether the optimizer is left alone.
        monitor (str): what the losses are.
        meter (LossMeter): the losses of this rank.
    """

    shadow: bool
    monitor: str
    meter: LossMeter
    _total_steps: int | None
    _decider: Decider
    _rates: LearningRates
    _recorder: Recorder

    def _take_up_groups(self) -> None:
        """Take up parameter groups that were added to the optimizer."""
        raise NotImplementedError

    @property
    def controller(self) -> GreedyController:
        """What decides."""
        return self._decider.controller

    @property
    def history(self) -> History:
        """The last 100,000 decisions: a sequence of `history.Record`."""
        return self._recorder.history

    @property
    def commands(self) -> deque[CommandRecord]:
        """The commands so far."""
        return self._recorder.commands

    @property
    def history_file(self) -> HistoryFile | None:
        """Where the history goes; None if nowhere."""
        return self._recorder.file

    @property  # type: ignore[override]
    def base_lrs(self) -> list[float]:  # type: ignore[override]
        """Base LR of each parameter group."""
        return self._rates.base_lrs

    @base_lrs.setter
    def base_lrs(self, base_lrs: list[float]) -> None:
        """torch's LRScheduler sets them once; they are kept with the other learning rates."""

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """LR of each group now: a list of floats. With `shadow`, what it would be."""
        self._take_up_groups()
        return self._rates.of(self.controller.scales, self.last_epoch)

    def get_last_lr(self) -> list[float]:  # type: ignore[override]
        """The same as `get_lr`."""
        return self.get_lr()

    @property
    def scale(self) -> float:
        """Scale now of the first parameter group that is not frozen."""
        return self.controller.scales[self._rates.speaker]

    @property
    def envelope(self) -> Envelope:
        """Ramp and final decay."""
        return self._rates.envelope

    @property
    def envelope_value(self) -> float:
        """Factor of ramp and final decay in the LR now, from 0 to 1."""
        return self.envelope(self.last_epoch)

    @property
    def factor(self) -> float:
        """The old name of `envelope_value`."""
        return self.envelope_value

    @property
    def decaying(self) -> bool:
        """Whether a final decay was begun by a command."""
        return self.envelope.decay_start is not None

    @property
    def ramping(self) -> bool:
        """Whether the LR is still on its way up to the base LR, where no decision is made."""
        return self._rates.ramping(self.last_epoch)

    def metrics(self) -> dict[str, float]:
        """For a logger: scale and LR now, and the last decision: 1 raise, -1 lower, 0 hold.

        If there are several parameter groups, they are of the first one that is not frozen.
        """
        speaker = self._rates.speaker
        action = self.history[-1].decision.action if self.history else HOLD
        values = {
            "greedylr/scale": self.scale,
            "greedylr/lr": self.get_lr()[speaker],
            "greedylr/action": {RAISE: 1.0, LOWER: -1.0, HOLD: 0.0}[action],
        }
        slope = self.history[-1].decision.slope if self.history else None
        return values if slope is None or slope != slope else {**values, "greedylr/slope": slope}

    def suggested_lr(self) -> float | None:
        """Where the next such run should start, from the LRs that this one settled on; None if it was too short."""
        speaker = self._rates.speaker
        return suggested_lr(steady_scales(self.history, speaker), self.base_lrs[speaker])

    def finish(self) -> None:
        """At the end of a run: say what it found, or what `shadow` saw, and close the history.

        The two Trainers' callbacks call it; a loop of your own may.
        """
        if self.history_file is not None:
            self.history_file.close()
        if not self.history:
            if self.last_epoch:
                logger.warning(
                    "GreedyLR made no decision in %d optimizer steps: the LR followed nothing", self.last_epoch
                )
            return
        if self.shadow:
            logger.info("GreedyLR in shadow: %s", shadow_summary(self.history, self.base_lrs[self._rates.speaker]))
            return
        self._say_what_was_found()
        total = self._total_steps
        if total is not None and self.last_epoch < 0.9 * total and not self.decaying:
            logger.warning(
                "the run ended after %d of %d optimizer steps, before its final decay: a shorter total_steps would have"
                " given a better model",
                self.last_epoch,
                total,
            )

    def _say_what_was_found(self) -> None:
        base, lr = self.base_lrs[self._rates.speaker], self.suggested_lr()
        if lr is not None:
            logger.info(
                "next time start at %.2g: the LR settled on %.2g x the base LR, the median scale over the later half of"
                " the decisions between ramp and final decay",
                lr,
                lr / base if base else self.scale,
            )
