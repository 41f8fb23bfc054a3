"""GreedyLR as a plugin of Axolotl: `plugins: [greedylr_integrations.axolotl.GreedyLRPlugin]` in its YAML.

`greedylr: {max_scale: 20}` next to it has arguments of the callback, and may be left out.
"""

from __future__ import annotations

from typing import Any

try:
    from axolotl.integrations.base import BasePlugin
    from pydantic import BaseModel
except ImportError as error:
    raise ImportError(
        f"greedylr_integrations.axolotl is a plugin of Axolotl, which cannot be imported: {error}"
    ) from error

from greedylr_integrations.transformers import GreedyLRCallback


class GreedyLRArgs(BaseModel):
    """What the plugin adds to Axolotl's configuration."""

    greedylr: dict[str, Any] | None = None


class GreedyLRPlugin(BasePlugin):
    """Gives Axolotl's Trainer a GreedyLRCallback."""

    def get_input_args(self) -> str:
        return f"{__name__}.{GreedyLRArgs.__name__}"

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[GreedyLRCallback]:
        # Axolotl makes some schedules itself, which the callback would take for one to multiply
        return [GreedyLRCallback(**{"base_schedule": "replace", **(cfg.greedylr or {})})]
