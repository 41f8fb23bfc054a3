"""A policy: a small network with its settings, and the file that holds them. Needs numpy and safetensors, no torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

try:
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import save
except ImportError as error:
    raise ImportError("greedylr_integrations.learned needs safetensors: pip install safetensors") from error

from greedylr_integrations.atomic import write_whole
from greedylr_integrations.checks import check, check_state, is_finite, is_integer, is_share
from greedylr_integrations.learned.observation import OBSERVED

FORMAT = "greedylr_policy"
FORMAT_VERSION = 1
MAX_BYTES = 1_000_000  # of a policy file
SHIPPED = Path(__file__).parent
LAYERS = 3


class PolicyError(ValueError):
    """A policy file that cannot be used. The message names the file and the fault in one sentence."""


def _above(bound: float) -> Callable[[object], bool]:
    return lambda value: is_finite(value) and value > bound  # type: ignore[operator]


SETTINGS = {
    "observed": lambda value: value == list(OBSERVED),
    "blocks": lambda value: is_integer(value) and value >= 1,
    "max_factor": _above(1),
    "min_scale": _above(0),
    "max_scale": _above(0),
    "decay_ratio": is_share,
    "trained": lambda value: isinstance(value, Mapping),
}


class Policy:
    """A network of three layers with tanh between them, and the settings that it was trained for. Read-only.

    Args:
        layers (sequence of pairs of float32 arrays): weight, of shape (outputs, inputs), and bias, of shape (outputs,),
            of each layer. The first has one input for each name in `OBSERVED`, the last has one output.
        settings (mapping): the attributes below except `digest`, plus `observed`, the names of the inputs.
            `decay_ratio` defaults to 0.

    Attributes:
        blocks (int): number of blocks that a run is divided into, with one choice after each.
        max_factor (float): the most that a choice can multiply or divide the scale by; above 1.
        min_scale, max_scale (float): bounds on LR / base LR.
        decay_ratio (float): share of the run over which the LR decayed linearly to 0 in training, from 0 to 1.
        trained (dict): how the policy was made, for people who read the file.
        digest (str): hash of the file's content, as 16 hexadecimal digits.

    Raises:
        ValueError: if a setting is missing, unknown or not allowed, or a layer has another shape or type, or weights
            that are not finite.
    """

    def __init__(self, layers: Sequence[tuple[Any, Any]], settings: Mapping[str, Any]) -> None:
        settings = {"decay_ratio": 0.0, **settings}
        check_state(settings, SETTINGS, "policy")
        check(settings["min_scale"] < settings["max_scale"], "min_scale", settings["min_scale"], "below max_scale")
        _check_layers(layers)
        self.layers = [(np.array(weight), np.array(bias)) for weight, bias in layers]
        self.settings = settings
        self.blocks = settings["blocks"]
        self.max_factor = float(settings["max_factor"])
        self.min_scale = float(settings["min_scale"])
        self.max_scale = float(settings["max_scale"])
        self.decay_ratio = float(settings["decay_ratio"])
        self.trained = settings["trained"]
        self.digest = hashlib.sha256(self.to_bytes()).hexdigest()[:16]
        # In float64, so that the LR does not depend on the float32 kernels of a machine.
        (self._w0, self._b0), (self._w1, self._b1), (self._w2, self._b2) = [
            (weight.astype(np.float64), bias.astype(np.float64)) for weight, bias in self.layers
        ]

    def __call__(self, observation: Sequence[float]) -> float:
        """The action for an observation, from -1 (lower the LR as far as possible) to 1 (raise it as far)."""
        hidden = np.tanh(self._w0 @ np.array(observation) + self._b0)
        hidden = np.tanh(self._w1 @ hidden + self._b1)
        return min(max(float((self._w2 @ hidden + self._b2)[0]), -1.0), 1.0)

    def __repr__(self) -> str:
        return f"Policy({self.digest})"

    def to_bytes(self) -> bytes:
        """Content of the policy file."""
        tensors = {f"{i}.{name}": array for i, layer in enumerate(self.layers) for name, array in _named(layer)}
        # One entry, because safetensors writes several in any order.
        return save(tensors, {FORMAT: json.dumps({"version": FORMAT_VERSION, **self.settings})})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the policy file, whole or not at all."""
        write_whole(path, self.to_bytes())

    @staticmethod
    def load(name_or_path: str | os.PathLike[str]) -> Policy:
        """Read a policy file, or one that comes with the package.

        The file is safetensors and JSON, so nothing in it can run. All of it is checked before any of it is used.

        Args:
            name_or_path (str or path): a path, or "network" or "nmf" for a shipped policy.

        Raises:
            PolicyError: if the file is truncated, too long, of another version or not a policy, or has wrong shapes,
                wrong types or NaN weights.
            FileNotFoundError: if the file does not exist.
        """
        path = Path(name_or_path)
        shipped = SHIPPED / f"{name_or_path}.safetensors"
        if path.name == str(name_or_path) and not path.suffix and shipped.exists():
            path = shipped
        if not path.exists():
            names = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.safetensors")))
            raise FileNotFoundError(
                f"{path} does not exist: give a policy file, or the name of a shipped one ({names})"
            )
        try:
            return _read(path)
        except (OSError, SafetensorError, TypeError, ValueError, RecursionError) as error:
            raise PolicyError(f"{path} cannot be used as a policy: {error}") from error


def _check_layers(layers: Sequence[tuple[Any, Any]]) -> None:
    check(len(layers) == LAYERS, "layers", len(layers), str(LAYERS))
    inputs = len(OBSERVED)
    for i, (weight, bias) in enumerate(layers):
        for name, array, dimensions in ((f"{i}.weight", weight, 2), (f"{i}.bias", bias, 1)):
            check(array.dtype == np.float32, name, array.dtype, "of float32")
            check(array.ndim == dimensions, name, array.shape, f"of {dimensions} dimensions")
            check(bool(np.isfinite(array).all()), name, "NaN or infinite weights", "finite")
        outputs = 1 if i == LAYERS - 1 else len(bias)
        check(weight.shape == (outputs, inputs), f"{i}.weight", weight.shape, f"of shape {(outputs, inputs)}")
        check(bias.shape == (outputs,), f"{i}.bias", bias.shape, f"of shape {(outputs,)}")
        inputs = outputs


def _named(layer: tuple[Any, Any]) -> list[tuple[str, Any]]:
    return list(zip(("weight", "bias"), layer, strict=True))


def _read(path: Path) -> Policy:
    size = path.stat().st_size
    check(size <= MAX_BYTES, "its size", size, f"at most {MAX_BYTES} bytes")
    with safe_open(path, "np") as file:
        metadata = file.metadata() or {}
        check(metadata.keys() == {FORMAT}, "metadata", sorted(metadata), f"exactly {FORMAT!r}")
        settings = json.loads(metadata[FORMAT])
        check(isinstance(settings, dict), FORMAT, settings, "an object")
        version = settings.pop("version", None)
        check(version == FORMAT_VERSION, "version", version, f"{FORMAT_VERSION} for this version of the package")
        expected = {f"{i}.{name}" for i in range(LAYERS) for name in ("weight", "bias")}
        check(set(file.keys()) == expected, "tensors", sorted(file.keys()), f"exactly {sorted(expected)}")
        types = {file.get_slice(name).get_dtype() for name in expected}
        check(types == {"F32"}, "dtypes", sorted(types), "float32 for every tensor")
        layers = [(file.get_tensor(f"{i}.weight"), file.get_tensor(f"{i}.bias")) for i in range(LAYERS)]
    return Policy(layers, settings)
