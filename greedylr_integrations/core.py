"""The controller: a loss goes in, a decision on the learning rate comes out.

Standard library only. No clock, no randomness, no tensors: the same losses give the same decisions everywhere.

`GreedyController` validates losses, handles the non-finite ones and the state; a *rule* decides. The project's own
rule is in `greedy`, the paper's and transformers' are in `presets`.

Vocabulary: the *scale* of a parameter group multiplies its base LR; *raise* divides the scale by `factor`, *lower*
multiplies it. Source: GreedyLR, https://arxiv.org/abs/2512.14527.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, Protocol

from greedylr_integrations.checks import (
    as_loss,
    check,
    check_choice,
    check_number,
    check_state,
    is_integer,
    is_numbers,
)

logger = logging.getLogger("greedylr_integrations")
logger.addFilter(lambda record: environment_rank() == 0)

STATE_VERSION = 1
DEAD_AFTER = 3  # non-finite losses in a row with which `on_nonfinite="reduce"` gives the run up


def environment_rank() -> int:
    """Rank as torchrun, Slurm or Lightning's launcher set it; 0 without one."""
    told = (os.environ.get(name, "") for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return next((int(rank) for rank in told if rank.isdigit()), 0)


class Action(Enum):
    RAISE = "raise"
    LOWER = "lower"
    HOLD = "hold"


class Reason(Enum):
    """Why a decision is what it is."""

    FILLING = "the window has not filled yet, or there is no earlier mean to compare with"
    IMPROVED = "the loss is a new recent best"
    WORSENED = "the loss is above the recent best by more than the threshold"
    INSIGNIFICANT = "the change of the loss is within the threshold"
    PATIENCE = "fewer good or bad losses in a row than patience asks for"
    WARMUP = "warmup after a raise"
    COOLDOWN = "cooldown after a lowering"
    CEILING = "the scale is at its upper bound"
    FLOOR = "the scale is at its lower bound"
    NONFINITE = "the loss is NaN or infinite"
    RESET = "reset to the start"
    ORDERED = "an order (hold, cap or pin) keeps the scale where it is"
    POLICY = "the learned policy has chosen it"
    HELD = "the last choice of the learned policy is held until the next"


# An Enum's members and a NamedTuple's constructor are slow to look up and to call in every decision.
new_decision = tuple.__new__
RAISE, LOWER, HOLD = Action
FILLING, IMPROVED, WORSENED, INSIGNIFICANT, PATIENCE, WARMUP, COOLDOWN, *more = Reason
CEILING, FLOOR, NONFINITE, RESET, ORDERED, POLICY, HELD = more


class Decision(NamedTuple):
    """What one loss led to.

    Attributes:
        action: raise, lower or hold.
        reason: why.
        scales: scale of each parameter group after it.
        loss: the loss.
        smoothed: the smoothed loss; None where the loss is not finite.
        best: the reference that it was compared with; None where there was none.
    """

    action: Action
    reason: Reason
    scales: tuple[float, ...]
    loss: float
    smoothed: float | None = None
    best: float | None = None


class Controller(Protocol):
    """Anything that turns losses into scales; every scheduler and adapter takes one as `controller=`.

    It may also have `set_horizon(decisions)`, which a scheduler calls at the start with the decisions of the run or
    None, and a `decay_ratio`, the scheduler's default with it.
    """

    def observe(self, loss: float) -> Decision: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None: ...


class Rule(Protocol):
    """How a controller judges finite losses.

    `position` is where its LRs stand, whatever it keeps of them; `clamp` moves them until LR / base LR is between the
    two, as far as the configured bounds allow.
    """

    position: Any

    @property
    def scales(self) -> tuple[float, ...]: ...

    def update(self, loss: float) -> Decision: ...

    def lower(self) -> None: ...

    def clamp(self, low: float, high: float) -> None: ...

    def add_group(self, base_lr: float) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


# ---- configuration ----


@dataclass(frozen=True, kw_only=True)
class ControllerConfig:
    """What every behaviour has.

    Attributes:
        mode (str): "min" where a smaller loss is better, "max" where a larger one is. Default None: "min", or what an
            adapter knows of the metric.
        every_n_steps (int): optimizer steps that share one decision, made on the mean of their losses; the schedulers
            and adapters take the mean, the controller sees one loss a decision. Default 1.
        on_nonfinite (str): what a NaN or infinite loss does. "reduce" (default) lowers once for a run of them and
            raises FloatingPointError at the third decision in a row, "hold" leaves the LR, "raise" raises at once. The
            loss itself is forgotten either way.
        on_resume (str): which hyperparameters win where a checkpoint's differ. "checkpoint" (default), "config", or
            "error". A changed horizon is no difference: the new one is used.
    """

    mode: str | None = None
    every_n_steps: int = 1
    on_nonfinite: str = "reduce"
    on_resume: str = "checkpoint"

    def __post_init__(self) -> None:
        if self.mode is not None:
            check_choice("mode", self.mode, ("min", "max"))
        check_number("every_n_steps", self.every_n_steps, int)
        check(self.every_n_steps >= 1, "every_n_steps", self.every_n_steps, "at least 1")
        check_choice("on_nonfinite", self.on_nonfinite, ("hold", "reduce", "raise"))
        check_choice("on_resume", self.on_resume, ("checkpoint", "config", "error"))

    @property
    def decay_ratio(self) -> float:
        """Share of the run that the final decay takes, unless a scheduler is given another."""
        return 0.3

    def rule(self, base_lrs: Sequence[float], horizon: int | None) -> Rule:
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON from which `config_from_dict` makes it again."""
        return {"behaviour": type(self).__name__, "on_resume": self.on_resume, **self.hyperparameters()}

    def hyperparameters(self) -> dict[str, Any]:
        """The fields as plain JSON; `on_resume`, which is about loading, is not one of them."""
        fields = dataclasses.asdict(self)
        del fields["on_resume"]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    def resumed(self, hyperparameters: Mapping[str, Any]) -> ControllerConfig:
        """The configuration with the hyperparameters of a checkpoint."""
        return dataclasses.replace(self, **hyperparameters)


CONTROLLER_STATE = {
    "version": lambda value: value == STATE_VERSION and is_integer(value),
    "behaviour": lambda value: isinstance(value, str),
    "config": lambda value: isinstance(value, Mapping),
    "base_lrs": is_numbers,
    "horizon": lambda value: value is None or is_integer(value),
    "nonfinite": is_integer,
    "rule": lambda value: isinstance(value, Mapping),
}


class GreedyController:
    """Turns losses into scales by one of the three behaviours.

    Args:
        config (ControllerConfig): `GreedyConfig()` (default), `GreedyConfig.paper()` or `GreedyConfig.transformers()`.
        base_lrs (sequence of float): base LR of each parameter group; needed by absolute bounds. Default: one, of 1.0.
        horizon (int): decisions that the run will have, if known; `GreedyConfig` fits window and factor to it.

    Raises:
        ValueError, TypeError: for base LRs or a horizon that cannot be, and for bounds that do not fit the base LRs.
    """

    def __init__(
        self,
        config: ControllerConfig | None = None,
        base_lrs: Sequence[float] = (1.0,),
        horizon: int | None = None,
    ) -> None:
        if config is None:
            from greedylr_integrations.greedy import GreedyConfig

            config = GreedyConfig()
        if not isinstance(config, ControllerConfig):
            raise TypeError(f"config={config!r} is not allowed: it must be a GreedyConfig")
        for lr in base_lrs:
            check_number("base_lrs", lr)
            check(lr >= 0, "base_lrs", lr, "at least 0")
        check(len(base_lrs) > 0, "base_lrs", base_lrs, "one base LR for each parameter group")
        if horizon is not None:
            check_number("horizon", horizon, int)
            check(horizon >= 1, "horizon", horizon, "at least 1 decision")
        self.config = config
        self.base_lrs = tuple(float(lr) for lr in base_lrs)
        self.horizon = horizon
        self._rule = config.rule(self.base_lrs, horizon)
        self.nonfinite = 0  # non-finite losses in a row

    @property
    def rule(self) -> Rule:
        """The rule that decides; another object after `load_state_dict`."""
        return self._rule

    @property
    def scales(self) -> tuple[float, ...]:
        """Scale of each parameter group now."""
        return self._rule.scales

    @property
    def position(self) -> Any:
        """Where the LRs stand; set it to one that was read before to go back there. See `control.Steered`."""
        return self._rule.position

    @position.setter
    def position(self, position: Any) -> None:
        self._rule.position = position

    def clamp(self, low: float, high: float) -> None:
        """Move the scales between the two, as far as the configured bounds allow."""
        self._rule.clamp(low, high)

    def observe(self, loss: float) -> Decision:
        """Decide on one loss.

        Args:
            loss (float): the loss since the last decision, smoothed by nobody.

        Raises:
            TypeError: if the loss is not a number.
            FloatingPointError: on a non-finite loss with `on_nonfinite="raise"`, or at the third in a row with
                "reduce".
        """
        if type(loss) is not float:
            loss = as_loss(loss)
        if loss - loss != 0.0:
            return self._observe_nonfinite(loss)
        self.nonfinite = 0
        return self._rule.update(loss)

    def _observe_nonfinite(self, loss: float) -> Decision:
        self.nonfinite += 1
        policy = self.config.on_nonfinite
        if policy == "raise":
            raise FloatingPointError(f"the loss is {loss}, and on_nonfinite='raise'")
        if policy == "hold":
            return Decision(HOLD, NONFINITE, self.scales, loss)
        if self.nonfinite >= DEAD_AFTER:
            raise FloatingPointError(
                f"the loss was NaN or infinite {self.nonfinite} times in a row: the run is dead. Resume from an"
                " earlier checkpoint with a lower LR, or set on_nonfinite='hold' to go on regardless"
            )
        if self.nonfinite > 1:
            return Decision(HOLD, NONFINITE, self.scales, loss)
        before = self.scales
        self._rule.lower()
        action = LOWER if self.scales != before else HOLD
        return Decision(action, NONFINITE, self.scales, loss)

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
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; hyperparameters by `config.on_resume`, the horizon is this controller's own.

        Raises:
            ValueError: for a state with missing, unknown or ill-typed keys, of another version or behaviour, or, with
                `on_resume="error"`, with other hyperparameters; then nothing has changed.
        """
        check_state(state_dict, CONTROLLER_STATE, "GreedyController")
        behaviour = type(self.config).__name__
        if state_dict["behaviour"] != behaviour:
            raise ValueError(
                f"the checkpoint was written with {state_dict['behaviour']}, this run has {behaviour}: use the same"
                " one, or start without the controller's state"
            )
        if len(state_dict["base_lrs"]) != len(self.base_lrs):
            raise ValueError(
                f"the checkpoint has {len(state_dict['base_lrs'])} parameter groups, this run has {len(self.base_lrs)}:"
                " make them equal, or start without the controller's state"
            )
        config, base_lrs = self._resumed(state_dict["config"], state_dict["base_lrs"])
        if state_dict["horizon"] != self.horizon:
            logger.info("GreedyLR resumes with a horizon of %s decisions, was %s", self.horizon, state_dict["horizon"])
        rule = config.rule(base_lrs, self.horizon)
        rule.load_state_dict(state_dict["rule"])
        self.config, self.base_lrs, self._rule = config, base_lrs, rule
        self.nonfinite = state_dict["nonfinite"]

    def _resumed(
        self, config: Mapping[str, Any], base_lrs: Sequence[float]
    ) -> tuple[ControllerConfig, tuple[float, ...]]:
        """Config and base LRs to go on with, by `on_resume`."""
        own = self.config.hyperparameters()
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
        return self.config.resumed(config), tuple(float(lr) for lr in base_lrs)

    def with_horizon(self, horizon: int | None) -> GreedyController:
        """The same controller, in the same state, for a run of another length."""
        other = GreedyController(self.config, self.base_lrs, horizon)
        other.load_state_dict(self.state_dict())
        return other

    def add_group(self, base_lr: float) -> None:
        """Take up a parameter group that the optimizer got after the start; its scale is that of the others."""
        self._rule.add_group(base_lr)
        self.base_lrs += (base_lr,)
