"""The controller: an observation goes in, a decision on the learning rate comes out.

Standard library only. No clock, no randomness, no tensors: the same observations give the same decisions everywhere.

`GreedyController` checks its input and keeps the state. A `rule.Rule`, which the configuration creates, makes the
decisions, except on losses that `guard.Guard` withholds from it. For a rule of your own, see docs/own-rule.md.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from greedylr_integrations.checks import (
    LARGEST_LR,
    as_loss,
    check,
    check_choice,
    check_integer,
    check_number,
    check_state,
    is_base_lr,
    is_count,
    is_integer,
    is_list_of,
    plain,
)
from greedylr_integrations.decision import Decision
from greedylr_integrations.guard import Guard, Response, is_guard
from greedylr_integrations.log import logger
from greedylr_integrations.rule import Rule, moved

STATE_VERSION = 1
LATER: dict[str, Any] = {"on_spike": None, "snapshot_every": 100}  # not in earlier versions: saved if not the default


@dataclass(frozen=True, kw_only=True)
class ControllerConfig(ABC):
    """What the configurations of all rules have. A subclass adds the fields of its rule, and says how to make it."""

    mode: str | None = None
    """"min" if a smaller loss is better, "max" if a larger one is. Default None: "min", or what an adapter knows of the
    metric."""
    every_n_steps: int = 1
    """Optimizer steps that share one decision, made on the mean of their losses. The schedulers and adapters take the
    mean; the controller sees one loss per decision. Default 1."""
    on_nonfinite: str = "reduce"
    """What to do about a NaN or infinite loss. "reduce" (default) lowers the LR at the first one and raises
    FloatingPointError at the third in a row; "hold" leaves the LR alone; "rollback" restores earlier weights at the
    second in a row, as with `on_spike`; "raise" raises at once. The loss itself is always ignored."""
    on_spike: str | None = None
    """What to do about loss spikes; see `spikes.SpikeDetector`. A single spike is withheld from the rule. If the loss
    has risen, "hold" accepts its new level, "reduce" also lowers the LR, "raise" raises `guard.SpikeError`, and
    "rollback" restores the weights and the optimizer from shortly before and continues with the next batches. A
    rollback within 300 decisions of the previous one also lowers the LR, unless it is the first in a row that comes
    within 20. If the loss rises again within 20 decisions of each of three rollbacks, the data must have changed, and
    "hold" applies. The sixth rollback in a chain, each within 1,000 decisions of the one before, raises
    `guard.SpikeError` instead. Default None: spikes are treated like any other loss."""
    snapshot_every: int | None = 100
    """Optimizer steps between the copies that "rollback" restores. Two are kept, in host memory, each as large as the
    trained weights plus the optimizer's state. None: no copies; "rollback" restores the checkpoints that the run saves,
    and acts as "reduce" until there is one. Default 100."""
    on_resume: str = "checkpoint"
    """Which hyperparameters win if the checkpoint's differ: "checkpoint" (default), "config", or "error". A changed
    run length is not a difference: the new one is used."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))
        if self.mode is not None:
            check_choice("mode", self.mode, ("min", "max"))
        check_integer("every_n_steps", self.every_n_steps, least=1)
        check_choice("on_nonfinite", self.on_nonfinite, ("hold", "reduce", "rollback", "raise"))
        if self.on_spike is not None:
            check_choice("on_spike", self.on_spike, ("hold", "reduce", "rollback", "raise"))
        if self.snapshot_every is not None:
            check_integer("snapshot_every", self.snapshot_every, least=1)
        check_choice("on_resume", self.on_resume, ("checkpoint", "config", "error"))

    @abstractmethod
    def rule(self, base_lrs: Sequence[float], horizon: int | None, first_pass: int | None = None) -> Rule:
        """A fresh rule for a run.

        Args:
            base_lrs (sequence of float): base LR of each parameter group.
            horizon (int): decisions that the run will have. None if unknown.
            first_pass (int): decisions in the first pass over the data. Default None: all data is new.
        """

    def plan(self, horizon: int | None, first_pass: int | None = None) -> str:
        """What a run will do, in words that continue "GreedyLR ..."; `horizon` and `first_pass` are as for `rule`."""
        return f"follows the loss by {type(self).__name__}"

    def concern(self, horizon: int | None, first_pass: int | None) -> str | None:
        """What will keep such a run's LR from moving, in words; None if nothing is known to."""
        return None

    @property
    def rolls_back(self) -> bool:
        """Whether weights may have to go back to earlier ones."""
        return "rollback" in (self.on_nonfinite, self.on_spike)

    @property
    def needs_checkpoints(self) -> bool:
        """Whether a rollback goes back to the run's own checkpoints."""
        return self.rolls_back and self.snapshot_every is None

    def without_rollback(self) -> Self:
        """The same with "reduce" in place of "rollback"."""
        nonfinite = "reduce" if self.on_nonfinite == "rollback" else self.on_nonfinite
        spike = "reduce" if self.on_spike == "rollback" else self.on_spike
        return dataclasses.replace(self, on_nonfinite=nonfinite, on_spike=spike)

    @property
    def decay_ratio(self) -> float:
        """Share of the run that the final decay takes, unless the scheduler is given another."""
        return 0.3

    def searches(self, horizon: int | None, first_pass: int | None) -> bool:
        """Whether the rule of such a run begins far below the base LR, and so takes the place of a warmup."""
        return False

    def first_scale(self, horizon: int | None) -> float:
        """LR / base LR at which a run of so many decisions begins."""
        return 1.0

    def without_slope(self) -> ControllerConfig:
        """What to follow if the slope cannot be measured; the configuration itself if it needs none."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON from which `rules.config_from_dict` makes the configuration again."""
        return {"behaviour": type(self).__name__, "on_resume": self.on_resume, **self.hyperparameters()}

    def shared(self) -> dict[str, Any]:
        """The fields that all rules have, with their values."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(ControllerConfig)}

    def said(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that are hyperparameters, without those of `LATER` that have their defaults."""
        return {
            name: value
            for name, value in fields.items()
            if name != "on_resume" and not (name in LATER and value == LATER[name])
        }

    def hyperparameters(self) -> dict[str, Any]:
        """The fields as plain JSON, without `on_resume`, which is about loading."""
        fields = self.said(dataclasses.asdict(self))
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    def resumed(self, hyperparameters: Mapping[str, Any]) -> ControllerConfig:
        """The configuration with the hyperparameters of a checkpoint."""
        return dataclasses.replace(self, **hyperparameters)


CONTROLLER_STATE = {
    "version": lambda value: value == STATE_VERSION and is_integer(value),
    "behaviour": lambda value: isinstance(value, str),
    "config": lambda value: isinstance(value, Mapping),
    "base_lrs": is_list_of(is_base_lr),
    "horizon": lambda value: value is None or (is_integer(value) and value >= 1),
    "nonfinite": is_count,
    "rule": lambda value: isinstance(value, Mapping),
}
GUARD_STATE = {"guard": is_guard}  # if the configuration asks for one


class GreedyController:
    """Turns observations into scales by the rule of a configuration.

    Args:
        config (ControllerConfig): `SlopeConfig()`, `GreedyConfig()`, `PaperConfig()`, `TransformersConfig()`, or one of
            your own.
        base_lrs (sequence of float): base LR of each parameter group; needed by absolute bounds. Default: one, of 1.0.
        horizon (int): decisions that the run will have. Default None: unknown.
        first_pass (int): decisions in the first pass over the data. Default None: all data is new.

    Attributes:
        horizon (int), first_pass (int): the arguments.
        guard (Guard): what looks at each loss before the rule does.
        ending (Decision): what `observe` would have returned if it had not raised an error about the loss. None so far.
        monitor (str): what the losses are, for errors. "loss" at first.

    Raises:
        ValueError, TypeError: if the base LRs or the horizon are not valid, or the bounds do not fit the base LRs.
    """

    def __init__(
        self,
        config: ControllerConfig,
        base_lrs: Sequence[float] = (1.0,),
        horizon: int | None = None,
        first_pass: int | None = None,
    ) -> None:
        if not isinstance(config, ControllerConfig):
            raise TypeError(f"config={config!r} is not allowed: it must be a ControllerConfig, such as SlopeConfig()")
        for lr in base_lrs:
            check_number("base_lrs", lr)
            check(is_base_lr(plain(lr)), "base_lrs", lr, f"from 0 to {LARGEST_LR:g}")
        check(len(base_lrs) > 0, "base_lrs", base_lrs, "one base LR for each parameter group")
        self.horizon = None if horizon is None else check_integer("horizon", horizon, least=1)
        self.first_pass = first_pass
        self.config = config
        self.base_lrs = tuple(float(lr) for lr in base_lrs)
        self._rule = config.rule(self.base_lrs, self.horizon, first_pass)
        self.guard = Guard(config)
        self.ending: Decision | None = None
        self.monitor = "loss"

    @property
    def nonfinite(self) -> int:
        """Non-finite losses in a row."""
        return self.guard.nonfinite

    @property
    def rule(self) -> Rule:
        """The rule that decides. `load_state_dict` replaces it."""
        return self._rule

    @property
    def scales(self) -> tuple[float, ...]:
        """Scale of each parameter group now."""
        return self._rule.scales

    @property
    def wants_slope(self) -> bool:
        """Whether the next observation should have a slope."""
        return self._rule.wants_slope

    @property
    def position(self) -> Any:
        """Where the LRs are. Set it to a value that you read earlier to return there."""
        return self._rule.position

    @position.setter
    def position(self, position: Any) -> None:
        self._rule.position = position

    def clamp(self, low: float, high: float) -> None:
        """Bring the scales into the range from `low` to `high`, as far as the configured bounds allow."""
        self._rule.clamp(low, high)

    def observe(self, loss: float, slope: float | None = None, distance: float | None = None) -> Decision:
        """Decide on one observation.

        Args:
            loss (float): the raw (unsmoothed) loss since the last decision.
            slope (float): the slope, from -1 to 1; see `slope.SlopeMeter`. NaN if it could not be computed. Default
                None: not measured.
            distance (float): how far the weights have moved, relative to their norm at the start; NaN and None
                likewise.

        Raises:
            TypeError: if the loss is not a number.
            ValueError: if the slope or the distance is out of range.
            FloatingPointError: on a non-finite loss with `on_nonfinite="raise"`, or at the third in a row with
                "reduce".
            SpikeError: if the loss has risen with `on_spike="raise"`, or after too many rollbacks.
        """
        if type(loss) is not float:
            loss = as_loss(loss)
        if slope is not None and not -1 <= slope <= 1 and slope == slope:
            raise ValueError(f"slope={slope!r} is not allowed: it must be from -1 to 1, NaN or None")
        if distance is not None and distance < 0:
            raise ValueError(f"distance={distance!r} is not allowed: it must be at least 0, NaN or None")
        guard = self.guard
        if guard.sees_all or loss - loss != 0.0:
            response = guard.look(loss, self.monitor)
            if response is not None:
                return self._respond(response, loss)
        guard.nonfinite = 0
        return self._rule.update(loss, slope, distance)

    def _respond(self, response: Response, loss: float) -> Decision:
        before = self.scales
        if response.lower:
            self._rule.lower()
            if response.limit is not None:
                logger.warning(
                    "GreedyLR lowers the LR, since the loss has risen far above what it was (a spike is above %.4g)%s",
                    response.limit,
                    self.guard.alone,
                )
        decision = Decision(moved(before, self.scales), response.reason, self.scales, loss, best=response.limit)
        if response.error is not None:
            self.ending = decision
            raise response.error
        return decision

    def add_group(self, base_lr: float) -> None:
        """Include a parameter group that was added to the optimizer during the run, with the scale of the others."""
        self._rule.add_group(base_lr)
        self.base_lrs += (base_lr,)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next decisions depend on, as plain JSON."""
        return {
            "version": STATE_VERSION,
            "behaviour": type(self.config).__name__,
            "config": self.config.hyperparameters(),
            "base_lrs": list(self.base_lrs),
            "horizon": self.horizon,
            "nonfinite": self.nonfinite,
            "rule": self._rule.state_dict(),
            **({"guard": self.guard.state_dict()} if self.guard.sees_all else {}),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from `state_dict`. `config.on_resume` decides on the hyperparameters; the horizon stays this run's.

        Raises:
            ValueError: if the state has missing, unknown or ill-typed keys, another version or behaviour or, with
                `on_resume="error"`, other hyperparameters; nothing has changed then.
        """
        guarded = isinstance(state_dict, Mapping) and "guard" in state_dict
        check_state(state_dict, {**CONTROLLER_STATE, **(GUARD_STATE if guarded else {})}, "GreedyController")
        behaviour = type(self.config).__name__
        if state_dict["behaviour"] != behaviour:
            raise ValueError(
                f"the checkpoint was written with {state_dict['behaviour']}, this run has {behaviour}: pass"
                f" {state_dict['behaviour']}() as the config, or start without the controller's state"
            )
        if len(state_dict["base_lrs"]) != len(self.base_lrs):
            raise ValueError(
                f"the checkpoint has {len(state_dict['base_lrs'])} parameter groups, this run has {len(self.base_lrs)}:"
                " make them equal, or start without the controller's state"
            )
        config, base_lrs = self._resumed(state_dict["config"], state_dict["base_lrs"])
        rule = config.rule(base_lrs, self.horizon, self.first_pass)
        rule.load_state_dict(state_dict["rule"])
        if state_dict["horizon"] != self.horizon:
            logger.info(
                "GreedyLR resumes with a run length of %s decisions, was %s", self.horizon, state_dict["horizon"]
            )
        self.config, self.base_lrs, self._rule, self.guard = config, base_lrs, rule, Guard(config)
        self.guard.nonfinite = state_dict["nonfinite"]
        if guarded:
            self.guard.load_state_dict(state_dict["guard"])

    def _resumed(
        self, config: Mapping[str, Any], base_lrs: Sequence[float]
    ) -> tuple[ControllerConfig, tuple[float, ...]]:
        """Config and base LRs to go on with, by `on_resume`."""
        own, config = {**LATER, **self.config.hyperparameters()}, {**LATER, **config}
        check_state(config, dict.fromkeys(own, lambda value: True), "GreedyController config")
        stored = {**config, "base_lrs": list(base_lrs)}
        own["base_lrs"] = list(self.base_lrs)
        differences = [f"{key}: {stored[key]!r} there, {own[key]!r} here" for key in own if stored[key] != own[key]]
        policy = self.config.on_resume
        if differences and policy == "error":
            raise ValueError(
                f"hyperparameters differ from the checkpoint's ({'; '.join(differences)}): make them equal, or set"
                " on_resume to 'checkpoint' or 'config'"
            )
        if differences:
            logger.warning("GreedyLR resumes with the %s's hyperparameters (%s)", policy, "; ".join(differences))
        if policy == "config" or not differences:
            return self.config, self.base_lrs
        try:
            resumed = self.config.resumed(config)
        except (TypeError, ValueError) as error:
            raise ValueError(f"GreedyController config does not load, nothing was changed: {error}") from error
        return resumed, tuple(float(lr) for lr in base_lrs)
