"""The rule of a learned policy: it divides the run into blocks and acts once after each."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from greedylr_integrations.checks import check, check_state, is_count, is_finite, is_list_of, is_positive
from greedylr_integrations.controller import ControllerConfig, GreedyController
from greedylr_integrations.decision import (
    CEILING,
    FILLING,
    FLOOR,
    HELD,
    HOLD,
    LOWER,
    NONFINITE,
    POLICY,
    RAISE,
    Decision,
)
from greedylr_integrations.learned.observation import RECENT, observe
from greedylr_integrations.learned.policy import Policy
from greedylr_integrations.rule import OneScaleRule

LARGEST_MEAN = 1e150


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(ControllerConfig):
    """A learned policy in place of a rule written by hand.

        scheduler = GreedyLR(optimizer, PolicyConfig.load("network"), total_steps=1000)
        callback = GreedyLRCallback(PolicyConfig.load("network"))

    It needs the length of the run.
    """

    policy: Policy
    """The policy, from `Policy.load`; `PolicyConfig.load` fills it in."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.policy, Policy):
            raise TypeError(f"policy={self.policy!r:.80} is not allowed: it must be a Policy, as from Policy.load")

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str], **fields: Any) -> PolicyConfig:
        """The configuration with the policy in a file, or with one that comes with the package.

        Args:
            name_or_path (str or path): a path, or "network" or "nmf"; `Policy.load` says what is refused.
            **fields: fields of `ControllerConfig`.

        Raises:
            PolicyError: if the file cannot be used as a policy.
            FileNotFoundError: if the file does not exist.
        """
        return cls(policy=Policy.load(name_or_path), **fields)

    @property
    def decay_ratio(self) -> float:
        """Share of the run that the final decay took when the policy was trained: the default of a scheduler."""
        return self.policy.decay_ratio

    def plan(self, horizon: int | None, first_pass: int | None = None) -> str:
        return f"follows a learned policy ({self.policy.digest})"

    def rule(self, base_lrs: Sequence[float], horizon: int | None, first_pass: int | None = None) -> PolicyRule:
        return PolicyRule(self.policy, horizon, base_lrs, maximize=self.mode == "max")

    def hyperparameters(self) -> dict[str, Any]:
        return {**self.said(self.shared()), "policy": self.policy.digest}

    def resumed(self, hyperparameters: Mapping[str, Any]) -> PolicyConfig:
        stored = hyperparameters["policy"]
        if stored != self.policy.digest:
            raise ValueError(
                f"the checkpoint was written with the policy {stored}, this run has {self.policy.digest}: load the"
                " same file, or set on_resume='config' to go on with this one"
            )
        return super().resumed({**hyperparameters, "policy": self.policy})  # type: ignore[return-value]


class PolicyRule(OneScaleRule):
    """Divides the run into blocks of losses, and after each lets the policy move the scale.

    Args:
        policy (Policy): the policy. In training, an object with the same settings: the learner then calls `push` and
            `act` itself.
        horizon (int): decisions of the run. None if unknown: then it cannot decide.
        base_lrs (sequence of float): base LR of each parameter group. Default: one group.
        maximize (bool): whether larger values are better, as for an accuracy. Default False.

    Attributes:
        means (list of float): mean losses of the last blocks, at most `RECENT` of them.
    """

    def __init__(
        self, policy: Any, horizon: int | None, base_lrs: Sequence[float] = (1.0,), maximize: bool = False
    ) -> None:
        self._policy = policy
        self._low, self._high = policy.min_scale, policy.max_scale
        self._limit = math.inf
        super().__init__(base_lrs, lambda lrs: ([self._low] * len(lrs), [self._high] * len(lrs)))
        self._horizon = horizon
        self._sign = -1 if maximize else 1  # all losses are multiplied by it in here
        self._seen = 0  # number of losses so far
        self._count = 0  # number of losses in this block
        self._sum = 0.0  # sum of the losses in this block
        self.means: list[float] = []
        self._first = self._best = 0.0  # first and lowest block mean
        self._action = 0.0  # last action
        self._log_range = math.log(self._high / self._low)

    @property
    def limit(self) -> float:
        """Highest scale allowed now: a stability bound, which may be set anew before each step. Default: infinity."""
        return self._limit

    @limit.setter
    def limit(self, limit: float) -> None:
        check(limit > 0, "limit", limit, "above 0")
        self._limit = limit
        self.set_scale(self.scale)

    def set_scale(self, scale: float) -> None:
        super().set_scale(scale)
        if self.scale > self._limit:
            self.scales = (self._limit,) * len(self.scales)

    def update(self, loss: float, slope: float | None = None, distance: float | None = None) -> Decision:
        """Decide on a finite loss; the slope is not used."""
        observation = self.push(self._sign * loss)
        if observation is None:
            return Decision(HOLD, HELD if self.means else FILLING, self.scales, loss, *self._smoothed_and_best())
        if not observation:
            return Decision(HOLD, NONFINITE, self.scales, loss)
        before = self.scales[0]
        action = self._policy(observation)
        self.act(action)
        after = self.scales[0]
        if after == before:
            move, reason = HOLD, CEILING if action > 0 else FLOOR if action < 0 else POLICY
        else:
            move, reason = RAISE if after > before else LOWER, POLICY
        return Decision(move, reason, self.scales, loss, *self._smoothed_and_best())

    def _smoothed_and_best(self) -> tuple[float, float | None]:
        """Last block mean and the best so far, with the sign of the loss that was observed."""
        if not self.means:
            return self._sign * (self._sum / self._count), None
        return self._sign * self.means[-1], self._sign * self._best

    def push(self, loss: float) -> list[float] | None:
        """Take in a finite loss, where lower is better.

        Returns:
            The observation at the end of a block, None within one; an empty list if the losses of the block were too
            large to be added up.
        """
        if self._horizon is None:
            raise ValueError(
                "a learned policy needs the length of the run: pass total_steps to the scheduler or adapter, or horizon"
                " to the controller"
            )
        self._seen += 1
        self._count += 1
        self._sum += loss
        if self._count < self._horizon / self._policy.blocks:
            return None
        mean = self._sum / self._count
        self._count, self._sum = 0, 0.0
        if not abs(mean) < LARGEST_MEAN:  # infinite, NaN, or its square would be
            return []
        if not self.means:
            self._first = self._best = mean
        self.means = [*self.means[1 - RECENT :], mean]
        observation = observe(
            self.means,
            self._first,
            self._best,
            progress=min(self._seen / self._horizon, 1.0),
            position=self._place(),
            action=self._action,
        )
        self._best = min(self._best, mean)
        return observation

    def _place(self) -> float:
        """Where the scale is between its bounds, logarithmically: 1 at the upper one or the limit, -1 at the lower."""
        high = min(self._high, self._limit)
        return max(1 + 2 * math.log(self.scales[0] / high) / self._log_range, -1.0)

    def act(self, action: float) -> None:
        """Multiply the scale by `max_factor ** action`, within the bounds; `action` is from -1 to 1."""
        self._action = action
        scale = min(self.scale, self._limit) * self._policy.max_factor**action
        self.set_scale(min(scale, max(self._limit, self._low)))

    def lower(self) -> None:
        self.act(-1.0)

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "seen": self._seen,
            "count": self._count,
            "sum": self._sum,
            "means": list(self.means),
            "first": self._first,
            "best": self._best,
            "action": self._action,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_state(state, RULE_STATE, "policy rule")
        self._seen, self._count, self._sum = state["seen"], state["count"], state["sum"]
        self.means = list(state["means"])
        self._first, self._best, self._action = state["first"], state["best"], state["action"]
        self.set_scale(state["scale"])


def _is_mean(value: object) -> bool:
    return is_finite(value) and abs(value) < LARGEST_MEAN  # type: ignore[arg-type]


RULE_STATE = {
    "scale": is_positive,
    "seen": is_count,
    "count": is_count,
    "sum": is_finite,
    "means": lambda value: is_list_of(_is_mean)(value) and len(value) <= RECENT,
    "first": _is_mean,
    "best": _is_mean,
    "action": lambda value: is_finite(value) and abs(value) <= 1,
}


class PolicyController(GreedyController):
    """A controller with a learned policy; `PolicyConfig.load` makes the config alone."""

    @classmethod
    def load(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        base_lrs: Sequence[float] = (1.0,),
        horizon: int | None = None,
        **fields: Any,
    ) -> PolicyController:
        """A controller with the policy in a file, or with one that comes with the package.

        Args:
            name_or_path (str or path): a path, or "network" or "nmf"; `Policy.load` says what is refused.
            base_lrs (sequence of float): base LR of each parameter group. Default: one, of 1.0.
            horizon (int): decisions of the run. Default None: a scheduler that is given the controller knows it.
            **fields: fields of `ControllerConfig`.
        """
        return cls(PolicyConfig.load(name_or_path, **fields), base_lrs, horizon)
