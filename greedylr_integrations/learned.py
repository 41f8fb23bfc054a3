"""A learned policy in GreedyLR's place: `GreedyLRCallback(controller=PolicyController.load("network"))`.

The policy is a small network, trained by reinforcement learning (see docs/learned.md). It looks at the mean losses of
the blocks into which the run is cut, and after each block multiplies the scale by what it chooses. What it looks at is
made here, for training and use alike. Needs numpy and safetensors, no torch.

Idea: Amazon Science, "Learning to learn learning-rate schedules". Observation, action and reward are this project's.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

try:
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import save
except ImportError as error:
    raise ImportError("greedylr_integrations.learned needs safetensors: pip install safetensors") from error

from greedylr_integrations.checks import check, check_number, check_state, is_finite, is_integer, is_numbers
from greedylr_integrations.core import (
    CEILING,
    FILLING,
    FLOOR,
    HELD,
    HOLD,
    LOWER,
    NONFINITE,
    POLICY,
    RAISE,
    ControllerConfig,
    Decision,
    GreedyController,
    new_decision,
)

FORMAT = "greedylr_policy"
FORMAT_VERSION = 1
LARGEST = 1_000_000  # bytes of a policy file
SHIPPED = Path(__file__).parent / "policies"
RECENT = 8  # block means over which trend and noise are taken
OBSERVED = (  # each between -1 and 1; blind to the unit of the loss
    "trend",  # correlation of the last block means with time: -1 where they fall steadily
    "noise",  # their deviation from a line, as a share of itself and all that the loss has moved
    "last change",  # of the block mean, as a share of itself and the deviation of the last ones
    "change before",
    "change before that",
    "relative change",  # of the block mean, ten times
    "height",  # above the best block mean, as a share of itself and the fall from the first to the best
    "moved",  # from the first block mean to the last, relative
    "progress",  # share of the run that is over
    "position",  # of the scale between its bounds, on a log scale
    "last action",
)
LAYERS = 3


class PolicyError(ValueError):
    """A policy file that cannot be used: one sentence with the file and what is wrong."""


# ---- the file ----


def _above(least: float) -> Any:
    return lambda value: is_finite(value) and value > least


SETTINGS = {
    "observed": lambda value: value == list(OBSERVED),
    "blocks": lambda value: is_integer(value) and value >= 1,
    "max_factor": _above(1),
    "min_scale": _above(0),
    "max_scale": _above(0),
    "decay_ratio": lambda value: is_finite(value) and 0 <= value <= 1,
    "trained": lambda value: isinstance(value, Mapping),
}


class Policy:
    """A network of three layers with tanh between them, and how it is to be used. Read-only.

    Attributes:
        blocks (int): blocks into which a run is cut, with one choice after each.
        max_factor (float): the most by which a choice multiplies or divides the scale.
        min_scale, max_scale (float): bounds on LR / base LR.
        decay_ratio (float): share of the run over which the LR decayed linearly to 0 when it was trained.
        trained (dict): how it was made, for whoever reads the file.
        digest (str): of the file's content.
    """

    def __init__(self, layers: Sequence[tuple[Any, Any]], settings: Mapping[str, Any]) -> None:
        settings = {"decay_ratio": 0.0, **settings}
        check_state(settings, SETTINGS, "policy")
        check(settings["min_scale"] < settings["max_scale"], "min_scale", settings["min_scale"], "below max_scale")
        check(len(layers) == LAYERS, "layers", len(layers), f"{LAYERS} of them")
        width = len(OBSERVED)
        for i, (weight, bias) in enumerate(layers):
            for name, array, dimensions in ((f"{i}.weight", weight, 2), (f"{i}.bias", bias, 1)):
                check(array.dtype == np.float32, name, array.dtype, "of float32")
                check(array.ndim == dimensions, name, array.shape, f"of {dimensions} dimensions")
                check(bool(np.isfinite(array).all()), name, "NaN or infinite weights", "finite")
            rows = 1 if i == LAYERS - 1 else len(bias)
            check(weight.shape == (rows, width), f"{i}.weight", weight.shape, f"of shape {(rows, width)}")
            check(bias.shape == (rows,), f"{i}.bias", bias.shape, f"of shape {(rows,)}")
            width = rows
        self.layers = [(np.array(weight), np.array(bias)) for weight, bias in layers]
        self.settings = settings
        self.blocks = settings["blocks"]
        self.max_factor = float(settings["max_factor"])
        self.min_scale = float(settings["min_scale"])
        self.max_scale = float(settings["max_scale"])
        self.decay_ratio = float(settings["decay_ratio"])
        self.trained = settings["trained"]
        self.digest = hashlib.sha256(self.to_bytes()).hexdigest()[:16]
        # in float64, so that no machine's float32 kernels decide about an LR
        (self._w0, self._b0), (self._w1, self._b1), (self._w2, self._b2) = [
            (weight.astype(np.float64), bias.astype(np.float64)) for weight, bias in self.layers
        ]

    def __call__(self, observation: Sequence[float]) -> float:
        """The choice, from -1 (lower as far as a choice can) to 1 (raise likewise)."""
        hidden = np.tanh(self._w0 @ np.array(observation) + self._b0)
        hidden = np.tanh(self._w1 @ hidden + self._b1)
        return min(max(float((self._w2 @ hidden + self._b2)[0]), -1.0), 1.0)

    def __repr__(self) -> str:
        return f"Policy({self.digest})"

    def to_bytes(self) -> bytes:
        tensors = {f"{i}.{name}": array for i, layer in enumerate(self.layers) for name, array in _named(layer)}
        # one entry: safetensors writes several in any order
        return save(tensors, {FORMAT: json.dumps({"version": FORMAT_VERSION, **self.settings})})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, whole or not at all."""
        path = Path(path)
        unfinished = path.with_name(path.name + ".unfinished")
        unfinished.write_bytes(self.to_bytes())
        os.replace(unfinished, path)

    @staticmethod
    def load(name_or_path: str | os.PathLike[str]) -> Policy:
        """Read a policy file, or one that comes with the package: "network" or "nmf".

        Safetensors and JSON, so nothing in it can run. Checked whole before anything is used.

        Raises:
            PolicyError: for a file that is truncated, too long, of another version or not a policy, or has wrong
                shapes, types or NaN weights.
            FileNotFoundError: for a file that is not there.
        """
        path = Path(name_or_path)
        shipped = SHIPPED / f"{name_or_path}.safetensors"
        if path.name == str(name_or_path) and not path.suffix and shipped.exists():
            path = shipped
        if not path.exists():
            names = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.safetensors")))
            raise FileNotFoundError(f"{path} is not there: give a policy file, or the name of a shipped one ({names})")
        try:
            return _read(path)
        except (OSError, SafetensorError, TypeError, ValueError, RecursionError) as error:
            raise PolicyError(f"{path} cannot be used as a policy: {error}") from error


def _named(layer: tuple[Any, Any]) -> list[tuple[str, Any]]:
    return list(zip(("weight", "bias"), layer, strict=True))


def _read(path: Path) -> Policy:
    size = path.stat().st_size
    check(size <= LARGEST, "its size", size, f"at most {LARGEST} bytes")
    with safe_open(path, "np") as file:
        metadata = file.metadata() or {}
        check(metadata.keys() == {FORMAT}, "metadata", sorted(metadata), f"exactly {FORMAT!r}")
        settings = json.loads(metadata[FORMAT])
        check(isinstance(settings, dict), FORMAT, settings, "an object")
        version = settings.pop("version", None)
        check(version == FORMAT_VERSION, "version", version, f"{FORMAT_VERSION} for this version of the package")
        wanted = {f"{i}.{name}" for i in range(LAYERS) for name in ("weight", "bias")}
        check(set(file.keys()) == wanted, "tensors", sorted(file.keys()), f"exactly {sorted(wanted)}")
        types = {file.get_slice(name).get_dtype() for name in wanted}
        check(types == {"F32"}, "dtypes", sorted(types), "float32 for every tensor")
        layers = [(file.get_tensor(f"{i}.weight"), file.get_tensor(f"{i}.bias")) for i in range(LAYERS)]
    return Policy(layers, settings)


# ---- the controller ----


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(ControllerConfig):
    """A policy as the behaviour of a controller.

    Attributes:
        policy (Policy): from `Policy.load`.
    """

    policy: Policy

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.policy, Policy):
            raise TypeError(f"policy={self.policy!r:.80} is not allowed: it must be what Policy.load gives")

    def rule(self, base_lrs: Sequence[float], horizon: int | None) -> PolicyRule:
        return PolicyRule(self.policy, len(base_lrs), horizon, maximize=self.mode == "max")

    def hyperparameters(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in ("mode", "every_n_steps", "on_nonfinite")}
        return {**fields, "policy": self.policy.digest}

    def resumed(self, hyperparameters: Mapping[str, Any]) -> PolicyConfig:
        stored = hyperparameters["policy"]
        if stored != self.policy.digest:
            raise ValueError(
                f"the checkpoint was written with the policy {stored}, this run has {self.policy.digest}: load the"
                " same file, or set on_resume='config' to go on with this one"
            )
        return super().resumed({**hyperparameters, "policy": self.policy})  # type: ignore[return-value]


class PolicyController(GreedyController):
    """A learned policy, wherever a controller is taken.

        callback = GreedyLRCallback(controller=PolicyController.load("network"))
        scheduler = GreedyLR(optimizer, controller=PolicyController.load("network"), total_steps=1000)

    It needs to know how long the run is. The final decay is the one with which the policy was trained, unless the
    scheduler or adapter is given a `decay_ratio`.
    """

    config: PolicyConfig  # type: ignore[assignment]
    _rule: PolicyRule

    @property
    def decay_ratio(self) -> float:
        return self.config.policy.decay_ratio

    @classmethod
    def load(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        base_lrs: Sequence[float] = (1.0,),
        horizon: int | None = None,
        **fields: Any,
    ) -> PolicyController:
        """A controller with the policy in a file, or with one that comes with the package: "network" or "nmf".

        Args:
            name_or_path (str or path): see `Policy.load` for what is refused.
            base_lrs (sequence of float): base LR of each parameter group. Default: one, which serves for all.
            horizon (int): decisions that the run will have. Default None: a scheduler that knows it tells.
            **fields: of `ControllerConfig`.
        """
        return cls(PolicyConfig(policy=Policy.load(name_or_path), **fields), base_lrs, horizon)

    def set_horizon(self, horizon: int | None) -> None:
        """Decisions that the run will have; None leaves what was known."""
        if horizon is not None:
            check_number("horizon", horizon, int)
            check(horizon >= 1, "horizon", horizon, "at least 1 decision")
            self.horizon = self._rule.horizon = horizon

    def limit(self, scale: float) -> None:
        """Keep the scale at or below this one until told another: a stability bound, which each step may move."""
        check(scale > 0, "limit", scale, "above 0")
        self._rule.limit = scale


class PolicyRule:
    """Cuts the run into blocks of losses, and acts on what `push` shows after each.

    `policy` may be anything with a Policy's settings: training has the agent act in its place.
    """

    def __init__(self, policy: Any, groups: int, horizon: int | None, maximize: bool = False) -> None:
        self._policy = policy
        self._groups = groups
        self.horizon = horizon
        self._maximize = maximize  # then all losses are negated in here
        self._seen = 0  # losses
        self._count = 0  # of them, in the block
        self._sum = 0.0
        self.means: list[float] = []  # mean losses of the last blocks
        self._first = self._best = 0.0  # block means
        self._action = 0.0
        self._low, self._high = policy.min_scale, policy.max_scale
        self._log_range = math.log(self._high / self._low)
        self.limit = math.inf
        self._set_scale(min(max(1.0, self._low), self._high))

    @property
    def scales(self) -> tuple[float, ...]:
        scale = self._scale
        if scale <= self.limit:
            return self._scales
        return (self.limit,) * self._groups

    def update(self, loss: float) -> Decision:
        observation = self.push(-loss if self._maximize else loss)
        if observation is None:
            reason = HELD if self.means else FILLING
            return new_decision(Decision, (HOLD, reason, self.scales, loss, *self._shown()))
        if not observation:
            return Decision(HOLD, NONFINITE, self.scales, loss)
        before = self.scales[0]
        action = self._policy(observation)
        self.act(action)
        after = self.scales[0]
        if after == before:
            made, reason = HOLD, CEILING if action > 0 else FLOOR if action < 0 else POLICY
        else:
            made, reason = RAISE if after > before else LOWER, POLICY
        return new_decision(Decision, (made, reason, self.scales, loss, *self._shown()))

    def _shown(self) -> tuple[float | None, float | None]:
        """Last block mean and the best before it, in the loss's own sign."""
        if not self.means:
            return self._sum / self._count * (-1 if self._maximize else 1), None
        if self._maximize:
            return -self.means[-1], -self._best
        return self.means[-1], self._best

    def push(self, loss: float) -> list[float] | None:
        """Take a finite loss up; what there is to see at the end of a block, None within one.

        The list is empty where the losses of the block were too large to be added up.
        """
        if self.horizon is None:
            raise ValueError(
                "PolicyController needs the length of the run: pass total_steps to the scheduler or adapter, or horizon"
                " to the controller"
            )
        self._seen += 1
        self._count += 1
        self._sum += loss
        if self._count < self.horizon / self._policy.blocks:
            return None
        mean = self._sum / self._count
        self._count, self._sum = 0, 0.0
        if mean - mean != 0.0:
            return []
        if not self.means:
            self._first = self._best = mean
        self.means = [*self.means[1 - RECENT :], mean]
        observation = self._observe()
        self._best = min(self._best, mean)
        return observation

    def _observe(self) -> list[float]:
        """In the order of OBSERVED."""
        means, n = self.means, len(self.means)
        last = means[-1]
        average = sum(means) / n
        centre = (n - 1) / 2
        across = sum((i - centre) * mean for i, mean in enumerate(means))
        squares = sum((mean - average) ** 2 for mean in means)
        along = across * across / (n * (n * n - 1) / 12) if n > 1 else 0.0  # squares that the trend explains
        trend = math.copysign(math.sqrt(min(along / squares, 1.0)), across) if squares > 0 else 0.0
        noise = math.sqrt(max(squares - along, 0.0) / (n - 2)) if n > 2 else 0.0
        deviation = math.sqrt(squares / n)
        changes = [later - earlier for earlier, later in zip(means[-4:-1], means[-3:], strict=False)][::-1]
        changes += [0.0] * (3 - len(changes))
        high = min(self._high, self.limit)
        return [
            trend,
            _share(noise, abs(self._first - last)),
            *(_share(change, deviation) for change in changes),
            min(max(10 * _share(changes[0], abs(last) + abs(last - changes[0])), -1.0), 1.0),
            _share(max(last - self._best, 0.0), self._first - self._best),
            _share(last - self._first, abs(last) + abs(self._first)),
            min(self._seen / self.horizon, 1.0),  # type: ignore[operator]
            max(1 + 2 * math.log(self.scales[0] / high) / self._log_range, -1.0),
            self._action,
        ]

    def act(self, action: float) -> None:
        """Multiply the scale by max_factor to this power, from -1 to 1, within the bounds."""
        self._action = action
        scale = min(self._scale, self.limit) * self._policy.max_factor**action
        self._set_scale(min(max(scale, self._low), self._high, max(self.limit, self._low)))

    def _set_scale(self, scale: float) -> None:
        self._scale = scale
        self._scales = (scale,) * self._groups

    def lower(self) -> None:
        self.act(-1.0)

    @property
    def position(self) -> float:
        return self._scale

    @position.setter
    def position(self, scale: float) -> None:
        self._set_scale(scale)

    def clamp(self, low: float, high: float) -> None:
        self._set_scale(min(max(min(max(self._scale, low), high), self._low), self._high))

    def add_group(self, base_lr: float) -> None:
        self._groups += 1
        self._set_scale(self._scale)

    def state_dict(self) -> dict[str, Any]:
        return {
            "scale": self._scale,
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
        self._set_scale(min(max(state["scale"], self._low), self._high))


def _share(part: float, rest: float) -> float:
    """`part` as a share of itself and the rest, from -1 to 1."""
    whole = abs(part) + rest
    return part / whole if whole > 0 else 0.0


RULE_STATE = {
    "scale": lambda value: is_finite(value) and value > 0,
    "seen": is_integer,
    "count": is_integer,
    "sum": is_finite,
    "means": lambda value: is_numbers(value) and len(value) <= RECENT,
    "first": is_finite,
    "best": is_finite,
    "action": is_finite,
}
