"""The rules by which a controller decides, one a file, and how their configurations are made."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from greedylr_integrations.checks import check_choice
from greedylr_integrations.controller import ControllerConfig
from greedylr_integrations.rules.fields import ConfigFields
from greedylr_integrations.rules.paper import PaperConfig
from greedylr_integrations.rules.slope import SlopeConfig
from greedylr_integrations.rules.transformers import TransformersConfig
from greedylr_integrations.rules.window import GreedyConfig

__all__ = ["ConfigFields", "GreedyConfig", "PaperConfig", "RULES", "SlopeConfig", "TransformersConfig"]

RULES: dict[str, type[ControllerConfig]] = {
    "slope": SlopeConfig,
    "loss": GreedyConfig,
    "paper": PaperConfig,
    "transformers": TransformersConfig,
}


def config_from_dict(fields: Mapping[str, Any]) -> ControllerConfig:
    """The configuration that `ControllerConfig.to_dict` wrote; without "behaviour", see `make_config`."""
    fields = dict(fields)
    if "behaviour" not in fields:
        return make_config(None, fields)
    by_class = {config.__name__: config for config in RULES.values()}
    behaviour = fields.pop("behaviour")
    check_choice("behaviour", behaviour, list(by_class))
    return by_class[behaviour](**fields)


def make_config(
    config: ControllerConfig | None, fields: Mapping[str, Any], taker: type | None = None
) -> ControllerConfig:
    """`config` with the values in `fields`.

    Without a config, it is that of the default rule: `SlopeConfig`, or `GreedyConfig` if only that has one of the
    fields. `taker` is the class that took the fields as keyword arguments, for error messages.

    Raises:
        TypeError: if the config does not have one of the fields, or is not a configuration.
    """
    if config is not None and not isinstance(config, ControllerConfig):
        raise TypeError(f"config={config!r} is not allowed: it must be a ControllerConfig, such as SlopeConfig()")
    if "warmup_steps" in fields:
        raise TypeError(
            "warmup_steps is ambiguous: linear_warmup_steps is a ramp of the LR from 0 at the start of training, and"
            " warmup is the number of decisions for which the LR keeps rising after an increase"
        )
    if config is None:
        config = SlopeConfig() if fields.keys() <= _names(SlopeConfig()).keys() else GreedyConfig()
    known = _names(config)
    for name in fields:
        if name not in known:
            others = () if taker is None else inspect.signature(taker).parameters
            near = difflib.get_close_matches(name, [*ConfigFields.__annotations__, *known, *others], 1, 0.75)
            if near and near[0] != name:
                raise TypeError(f"{name} is not an argument: did you mean {near[0]}?")
            raise TypeError(f"{name} is not a field of {type(config).__name__}: it has {', '.join(known)}")
    return dataclasses.replace(config, **fields)


def _names(config: ControllerConfig) -> dict[str, None]:
    return {field.name: None for field in dataclasses.fields(config)}
