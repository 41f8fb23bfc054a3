"""A training run as a Gymnasium environment: one action a block, and the fall of the log loss for a reward."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from greedylr_integrations.envelope import Envelope
from greedylr_integrations.learned import OBSERVED, PolicyRule
from recipes.learn.tasks import Episode, TaskFamily

PENALTY = 2.0  # for a run that diverges; the most that one block can gain or lose
DIVERGED = 1e4  # times the loss of the first block


@dataclass(frozen=True)
class Settings:
    """How a policy that is to be learned will be used; see `greedylr_integrations.learned.Policy`."""

    blocks: int = 40
    max_factor: float = 2.0
    min_scale: float = 0.01
    max_scale: float = 10.0
    decay_ratio: float = 0.0

    @staticmethod
    def of(family: TaskFamily) -> Settings:
        return Settings(decay_ratio=getattr(family, "decay_ratio", 0.0))


class ScheduleEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """Each episode is a run of its own from a task family.

    Observation: `learned.OBSERVED`, after each block of losses; the first block is run at scale 1. Action: from -1 to
    1, the power of `max_factor` that multiplies the scale for the block to come, within the bounds of the settings and
    the episode's stability bound. LR = base LR x scale x final decay, as in the schedulers. Reward: the fall of the log
    of the block's mean loss, after the last block from there to the validation loss too; a run that diverges ends with
    -PENALTY. An episode ends with its last whole block.
    """

    def __init__(self, family: TaskFamily, settings: Settings | None = None) -> None:
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (len(OBSERVED),), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self._family = family
        self._settings = settings or Settings.of(family)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        while True:
            self._episode = self._family.sample(self.np_random)
            self._rule = PolicyRule(self._settings, 1, self._episode.steps)
            self._left = self._episode.steps
            self._envelope = Envelope(total_steps=self._left, decay_ratio=self._settings.decay_ratio)
            self._seen = np.zeros(len(OBSERVED), np.float32)
            if not self._run_block():
                return self._seen, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._rule.act(min(max(float(action[0]), -1.0), 1.0))
        before = self._rule.means[-1]
        if self._run_block():
            return self._seen, -PENALTY, True, False, {"diverged": True}
        after = self._rule.means[-1]
        over = self._left < self._episode.steps / self._settings.blocks
        if over:
            after = self._episode.validation_loss()
            if not math.isfinite(after):
                return self._seen, -PENALTY, True, False, {"diverged": True}
        return self._seen, min(max(_log(before) - _log(after), -PENALTY), PENALTY), over, False, {}

    def _run_block(self) -> bool:
        """Whether the run diverged in it."""
        observation = None
        while observation is None:
            loss = step(self._episode, self._rule, self._envelope(self._episode.steps - self._left))
            self._left -= 1
            if not math.isfinite(loss):
                return True
            observation = self._rule.push(loss)
        if not observation or self._rule.means[-1] > DIVERGED * abs(self._rule.means[0]):
            return True
        self._seen = np.array(observation, np.float32)
        return False


def step(episode: Episode, rule: PolicyRule, envelope: float) -> float:
    """Advance by one optimizer step at the rule's scale, under the episode's bound; the training loss."""
    bound = episode.bound()
    if bound is not None:
        rule.limit = bound / episode.base_lr
    return episode.advance(episode.base_lr * rule.scales[0] * envelope)


def _log(loss: float) -> float:
    return math.log(max(loss, 1e-12))
