"""The controller: a loss goes in, a decision on the learning rate comes out.

Standard library only. No clock, no randomness, no tensors: the same losses give the same decisions everywhere.

`GreedyController` validates losses, handles the non-finite ones and the state; a *rule* decides. The project's own
rule is here; the paper's and transformers' are in `presets`.

Vocabulary: the *scale* of a parameter group multiplies its base LR; *raise* divides the scale by `factor`, *lower*
multiplies it. Source: GreedyLR, https://arxiv.org/abs/2512.14527.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, Protocol

from greedylr_integrations.checks import (
    as_loss,
    check,
    check_bounds,
    check_choice,
    check_number,
    check_shared,
    check_state,
    is_finite,
    is_integer,
    is_numbers,
    is_recent,
    is_window,
    per_group,
)
from greedylr_integrations.window import RecentBest, RollingWindow

logger = logging.getLogger("greedylr_integrations")
logger.addFilter(lambda record: _rank() == 0)

STATE_VERSION = 1
DEAD_AFTER = 3  # non-finite losses in a row with which `on_nonfinite="reduce"` gives the run up


def _rank() -> int:
    """Rank as torchrun, Slurm or Lightning's launcher set it; 0 without one."""
    return next((int(os.environ[name]) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in os.environ), 0)


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


# An Enum's members and a NamedTuple's constructor are slow to look up and to call in every decision.
new_decision = tuple.__new__
RAISE, LOWER, HOLD = Action
FILLING, IMPROVED, WORSENED, INSIGNIFICANT, PATIENCE, WARMUP, COOLDOWN, CEILING, FLOOR, NONFINITE, RESET = Reason


class Decision(NamedTuple):
    """What one loss led to.

    Attributes:
        action: raise, lower or hold.
        reason: why.
        scales: scale of each parameter group after it.
        smoothed: the smoothed loss; None where no finite loss has been seen.
        best: the reference that it was compared with; None where there was none.
    """

    action: Action
    reason: Reason
    scales: tuple[float, ...]
    smoothed: float | None = None
    best: float | None = None


class Controller(Protocol):
    """Anything that turns losses into scales; every scheduler and adapter takes one as `controller=`."""

    def observe(self, loss: float) -> Decision: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None: ...


class Rule(Protocol):
    """How a controller judges finite losses."""

    @property
    def scales(self) -> tuple[float, ...]: ...

    def update(self, loss: float) -> Decision: ...

    def lower(self) -> None: ...

    def add_group(self, base_lr: float) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


# ---- configuration ----


@dataclass(frozen=True, kw_only=True)
class ControllerConfig:
    """What every behaviour has.

    Attributes:
        mode (str): "min" where a smaller loss is better, "max" where a larger one is. Default "min".
        every_n_steps (int): optimizer steps that share one decision, made on the mean of their losses; the schedulers
            and adapters take the mean, the controller sees one loss a decision. Default 1.
        on_nonfinite (str): what a NaN or infinite loss does. "reduce" (default) lowers once for a run of them and
            raises FloatingPointError at the third decision in a row, "hold" leaves the LR, "raise" raises at once. The
            loss itself is forgotten either way.
        on_resume (str): which hyperparameters win where a checkpoint's differ. "checkpoint" (default), "config", or
            "error". A changed horizon is no difference: the new one is used.
    """

    mode: str = "min"
    every_n_steps: int = 1
    on_nonfinite: str = "reduce"
    on_resume: str = "checkpoint"

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, ("min", "max"))
        check_number("every_n_steps", self.every_n_steps, int)
        check(self.every_n_steps >= 1, "every_n_steps", self.every_n_steps, "at least 1")
        check_choice("on_nonfinite", self.on_nonfinite, ("hold", "reduce", "raise"))
        check_choice("on_resume", self.on_resume, ("checkpoint", "config", "error"))

    def rule(self, base_lrs: Sequence[float], horizon: int | None) -> Rule:
        raise NotImplementedError

    def hyperparameters(self) -> dict[str, Any]:
        """The fields as plain JSON; `on_resume`, which is about loading, is not one of them."""
        fields = dataclasses.asdict(self)
        del fields["on_resume"]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


@dataclass(frozen=True, kw_only=True)
class GreedyConfig(ControllerConfig):
    """The project's own rule, made for the training loss of every optimizer step.

    The mean of the last `window_size` losses is compared with the best such mean of the last `best_window` decisions.
    A new best raises the LR; a mean above the best by more than the threshold lowers it; between, it holds. So the LR
    can rise again after a spike or a change of data, and noise alone does not wear it down. Decisions begin once the
    window has filled.

    Fields named as in the GreedyLR paper mean what they mean there, except where noted.

    Attributes:
        factor (float): a raise divides the scale by it, a lowering multiplies; in (0, 1). Default None: exp(-4/T) for a
            horizon of T decisions, at least 0.5, or 0.99 without a horizon.
        patience (int): good (bad) losses in a row before the first raise (lowering); the LR moves on the next. Default
            0: the window does the smoothing.
        window_size (int): decisions in the rolling mean. Default None: 8% of the horizon, or 50 without one.
        best_window (int): decisions over which the best mean is remembered. Default None: 4 x window_size.
        threshold (float): how far above the best the mean must be to count as worse. Default 1.
        threshold_mode (str): unit of `threshold`: "se" (default) standard errors of the mean, "rel" a share of the
            best's magnitude, "abs" the unit of the loss. For "rel" and "abs" a gain must exceed it too.
        warmup (int): after a raise the LR keeps rising for this many decisions, even if the trend reverses (as the
            Amazon Science article on GreedyLR has it; the presets hold instead). Not a ramp: that is
            `linear_warmup_steps`. Default 0.
        cooldown (int): after a lowering the LR keeps falling for this many decisions likewise. Default 0.
        min_scale, max_scale (float): bounds on LR / base LR. Defaults 0.01 and 10.
        min_lr, max_lr (float or list of float): absolute bounds in place of them, one value or one a group. The groups
            keep their ratios until one of them meets its bound, and find them again when it leaves it. Default None.
        reset_start (int): decisions after which the best and the streaks are forgotten, again and again. Default None:
            never, since the best is recent anyway.
    """

    factor: float | None = None
    patience: int = 0
    window_size: int | None = None
    best_window: int | None = None
    threshold: float = 1.0
    threshold_mode: str = "se"
    warmup: int = 0
    cooldown: int = 0
    min_scale: float | None = None
    max_scale: float | None = None
    min_lr: float | Sequence[float] | None = None
    max_lr: float | Sequence[float] | None = None
    reset_start: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shared(self)
        check_choice("threshold_mode", self.threshold_mode, ("se", "rel", "abs"))
        if self.best_window is not None:
            check_number("best_window", self.best_window, int)
            check(self.best_window >= 1, "best_window", self.best_window, "at least 1")
        for bound in ("min", "max"):
            scale, lr = getattr(self, bound + "_scale"), getattr(self, bound + "_lr")
            if scale is not None:
                check_number(bound + "_scale", scale)
                check(scale > 0, bound + "_scale", scale, "above 0")
                check(lr is None, bound + "_scale", scale, f"None where {bound}_lr is given ({lr!r})")
        if self.max_lr is None:
            check((self.min_scale or 0) <= self._max_scale, "min_scale", self.min_scale, f"at most {self._max_scale}")
        if self.min_lr is None:
            check(self._min_scale <= self._max_scale, "max_scale", self.max_scale, f"at least {self._min_scale}")

    @property
    def _min_scale(self) -> float:
        return 0.01 if self.min_scale is None else self.min_scale

    @property
    def _max_scale(self) -> float:
        return 10.0 if self.max_scale is None else self.max_scale

    @staticmethod
    def paper(**fields: Any) -> ControllerConfig:
        """Algorithms 2 and 3 of the paper: see `presets.PaperConfig` for the fields."""
        from greedylr_integrations.presets import PaperConfig

        return PaperConfig(**fields)

    @staticmethod
    def transformers(**fields: Any) -> ControllerConfig:
        """The LRs of `transformers.optimization.GreedyLR` with the same keywords: see `presets.TransformersConfig`."""
        from greedylr_integrations.presets import TransformersConfig

        return TransformersConfig(**fields)

    def fitted(self, horizon: int | None) -> GreedyConfig:
        """The configuration with every open default filled in for a horizon, in decisions."""
        window_size = self.window_size or (50 if horizon is None else max(1, round(0.08 * horizon)))
        factor = self.factor or (0.99 if horizon is None else max(0.5, math.exp(-4 / horizon)))
        best_window = self.best_window or 4 * window_size
        return dataclasses.replace(self, factor=factor, window_size=window_size, best_window=best_window)

    def scale_bounds(self, base_lrs: Sequence[float]) -> tuple[list[float], list[float]]:
        """Lowest and highest scale of each group."""
        groups = len(base_lrs)
        lows, highs = [self._min_scale] * groups, [self._max_scale] * groups
        for field, bounds, inward in (("min_lr", lows, math.inf), ("max_lr", highs, 0.0)):
            value = getattr(self, field)
            if value is None:
                continue
            check_bounds(field, value, groups)
            for i, (lr, base) in enumerate(zip(per_group(value, groups), base_lrs, strict=True)):
                if base == 0:
                    continue  # a frozen group stays at 0
                scale = lr / base
                # rounding must not carry base x scale over the bound
                while (base * scale < lr) if inward else (base * scale > lr):
                    scale = math.nextafter(scale, inward)
                bounds[i] = scale
        for low, high in zip(lows, highs, strict=True):
            if low > high:
                raise ValueError(
                    f"lower bound {low:g} x base LR is above upper bound {high:g} x base LR for base LRs"
                    f" {list(base_lrs)}: change min_lr, max_lr, min_scale or max_scale"
                )
        return lows, highs

    def rule(self, base_lrs: Sequence[float], horizon: int | None) -> GreedyRule:
        return GreedyRule(self.fitted(horizon), base_lrs)


# ---- the rule ----


class GreedyRule:
    """Raise on a new recent best, lower on a significantly worse mean, hold between."""

    def __init__(self, config: GreedyConfig, base_lrs: Sequence[float]) -> None:
        assert config.factor
        assert config.window_size
        assert config.best_window
        self._config = config
        self._factor = config.factor
        self._patience = config.patience
        self._threshold = config.threshold
        self._standard_errors = config.threshold_mode == "se"
        self._reset_start = config.reset_start
        self._maximize = config.mode == "max"  # then all losses are negated in here
        self._window = RollingWindow(config.window_size)
        self._recent = RecentBest(config.best_window)
        self._streak = 0  # good losses in a row, or bad ones as a negative number
        self._stage = 0  # decisions left of a warmup, or of a cooldown as a negative number
        self._until_reset = config.reset_start or 0
        self._base_lrs: list[float] = list(base_lrs)
        self._set_bounds()
        self._set_scale(min(max(1.0, self._floor), self._ceiling))

    def update(self, loss: float) -> Decision:
        smoothed = self._window.push(-loss if self._maximize else loss)
        if smoothed - smoothed != 0.0:  # the sum overflowed
            return Decision(HOLD, NONFINITE, self.scales)
        best = self._recent.push(smoothed)
        if best is None or not self._window.full:
            return Decision(HOLD, FILLING, self.scales, -smoothed if self._maximize else smoothed)
        if self._stage:
            action, reason = self._continue_stage()
        elif smoothed < (best if self._standard_errors else best - self._margin(best)):
            self._streak = self._streak + 1 if self._streak > 0 else 1
            if self._streak <= self._patience:
                action, reason = HOLD, PATIENCE
            else:
                action, reason = RAISE, IMPROVED
                self._streak, self._stage = 0, self._config.warmup
        elif smoothed > best + self._margin(best):
            self._streak = self._streak - 1 if self._streak < 0 else -1
            if self._streak >= -self._patience:
                action, reason = HOLD, PATIENCE
            else:
                action, reason = LOWER, WORSENED
                self._streak, self._stage = 0, -self._config.cooldown
        else:
            action, reason = HOLD, INSIGNIFICANT
            self._streak = 0
        if action is not HOLD and not self._move(action):
            action, reason = HOLD, CEILING if action is RAISE else FLOOR
        if self._reset_start:
            self._count_down(self._reset_start)
        if self._maximize:
            smoothed, best = -smoothed, -best
        return new_decision(Decision, (action, reason, self.scales, smoothed, best))

    def _count_down(self, reset_start: int) -> None:
        self._until_reset -= 1
        if self._until_reset <= 0:
            self._until_reset = reset_start
            self._recent.clear()
            self._streak = self._stage = 0

    def _continue_stage(self) -> tuple[Action, Reason]:
        if self._stage > 0:
            self._stage -= 1
            return RAISE, WARMUP
        self._stage += 1
        return LOWER, COOLDOWN

    def _margin(self, best: float) -> float:
        if self._standard_errors:
            return self._threshold * self._window.standard_error()
        return self._threshold * abs(best) if self._config.threshold_mode == "rel" else self._threshold

    def lower(self) -> None:
        """Lower once, whatever the losses say, and end any warmup."""
        self._stage = 0
        self._move(LOWER)

    def _move(self, action: Action) -> bool:
        """Raise or lower the scale within its bounds; False where it stands at the bound already."""
        if action is RAISE:
            scale = self._scale / self._factor
            if scale > self._ceiling:
                scale = self._ceiling
        else:
            scale = self._scale * self._factor
            if scale < self._floor:
                scale = self._floor
        if scale == self._scale:
            return False
        self._set_scale(scale)
        return True

    def _set_scale(self, scale: float) -> None:
        # One scale for all, cut to each group's bounds only on the way out: the ratios come back by themselves.
        self._scale = scale
        if self._alike:
            self.scales = (scale,) * len(self._lows)
        else:
            self.scales = tuple(min(max(scale, low), high) for low, high in zip(self._lows, self._highs, strict=True))

    def add_group(self, base_lr: float) -> None:
        self._base_lrs.append(base_lr)
        self._set_bounds()
        self._set_scale(self._scale)

    def _set_bounds(self) -> None:
        self._lows, self._highs = self._config.scale_bounds(self._base_lrs)
        self._floor, self._ceiling = min(self._lows), max(self._highs)
        self._alike = self._floor == max(self._lows) and self._ceiling == min(self._highs)

    def state_dict(self) -> dict[str, Any]:
        return {
            "scale": self._scale,
            "until_reset": self._until_reset,
            "streak": self._streak,
            "stage": self._stage,
            "recent": self._recent.state_dict(),
            "window": self._window.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_state(state, GREEDY_STATE, "GreedyLR rule")
        self._until_reset, self._streak, self._stage = state["until_reset"], state["streak"], state["stage"]
        self._recent.load_state_dict(state["recent"])
        self._window.load_state_dict(state["window"])
        self._set_scale(min(max(state["scale"], self._floor), self._ceiling))


# ---- state ----


GREEDY_STATE = {
    "scale": is_finite,
    "until_reset": is_integer,
    "streak": is_integer,
    "stage": is_integer,
    "recent": is_recent,
    "window": is_window,
}


CONTROLLER_STATE = {
    "version": lambda value: value == STATE_VERSION and is_integer(value),
    "behaviour": lambda value: isinstance(value, str),
    "config": lambda value: isinstance(value, Mapping),
    "base_lrs": is_numbers,
    "horizon": lambda value: value is None or is_integer(value),
    "nonfinite": is_integer,
    "ceiling_reached": lambda value: isinstance(value, bool),
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
        config = GreedyConfig() if config is None else config
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
        self._nonfinite = 0  # non-finite losses in a row
        self._ceiling_reached = False

    @property
    def scales(self) -> tuple[float, ...]:
        """Scale of each parameter group now."""
        return self._rule.scales

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
        self._nonfinite = 0
        decision = self._rule.update(loss)
        if decision.reason is CEILING and not self._ceiling_reached:
            self._ceiling_reached = True
            logger.warning(
                "GreedyLR has raised the LR to its upper bound (scale %s) and would raise it further: the base LR is"
                " probably far too low; raise it, or max_scale",
                ", ".join(f"{scale:g}" for scale in decision.scales),
            )
        return decision

    def _observe_nonfinite(self, loss: float) -> Decision:
        self._nonfinite += 1
        policy = self.config.on_nonfinite
        if policy == "raise":
            raise FloatingPointError(f"the loss is {loss}, and on_nonfinite='raise'")
        if policy == "hold":
            return Decision(HOLD, NONFINITE, self.scales)
        if self._nonfinite >= DEAD_AFTER:
            raise FloatingPointError(
                f"the loss was NaN or infinite {self._nonfinite} times in a row: the run is dead. Resume from an"
                " earlier checkpoint with a lower LR, or set on_nonfinite='hold' to go on regardless"
            )
        if self._nonfinite > 1:
            return Decision(HOLD, NONFINITE, self.scales)
        before = self.scales
        self._rule.lower()
        action = LOWER if self.scales != before else HOLD
        return Decision(action, NONFINITE, self.scales)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next decisions depend on, as plain JSON."""
        return {
            "version": STATE_VERSION,
            "behaviour": type(self.config).__name__,
            "config": self.config.hyperparameters(),
            "base_lrs": list(self.base_lrs),
            "horizon": self.horizon,
            "nonfinite": self._nonfinite,
            "ceiling_reached": self._ceiling_reached,
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
        self._nonfinite = state_dict["nonfinite"]
        self._ceiling_reached = state_dict["ceiling_reached"]

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
        return dataclasses.replace(self.config, **config), tuple(float(lr) for lr in base_lrs)

    def add_group(self, base_lr: float) -> None:
        """Take up a parameter group that the optimizer got after the start; its scale is that of the others."""
        self._rule.add_group(base_lr)
        self.base_lrs += (base_lr,)
