"""A training run as a Gymnasium environment: one action a block, and the fall of the log loss for a reward."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
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
        return Settings(**{x.name: getattr(family, x.name) for x in fields(Settings) if hasattr(family, x.name)})


class ScheduleEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """Each episode is a run of its own from a task family.

    Observation: `learned.OBSERVED`, after each block of losses; the first block is run at scale 1. Action: from -1 to
    1, the power of `max_factor` that multiplies the scale for the block to come, within the bounds of the settings and
    the episode's stability bound. LR = base LR x scale x final decay, as in the schedulers. Reward: the fall of the log
    of the block's mean loss, after the last block from there to the validation loss too; a run that diverges ends with
    -PENALTY. An episode ends with its last whole block.

    Where the episode has a twin, that one runs at scale 1 throughout. The reward is then the fall of the loss itself
    beyond the twin's in the same block, as a share of the twin's whole fall.
    """

    def __init__(self, family: TaskFamily, settings: Settings | None = None) -> None:
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (len(OBSERVED),), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self._family = family
        self._settings = settings or Settings.of(family)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        while True:
            episode = self._family.sample(self.np_random)
            self._run = _Run(episode, self._settings)
            self._twin = _Run(episode.twin(), self._settings).falls() if hasattr(episode, "twin") else None
            if (self._twin is None or self._twin.sum() > 0) and self._run.block():
                return self._run.seen, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        run = self._run
        run.rule.act(min(max(float(action[0]), -1.0), 1.0))
        before = run.loss
        if not run.block():
            return run.seen, -PENALTY, True, False, {"diverged": True}
        if self._twin is None:
            reward = _log(before) - _log(run.loss)
        else:
            reward = (before - run.loss - float(self._twin[run.blocks - 2])) / float(self._twin.sum())
        return run.seen, min(max(reward, -PENALTY), PENALTY), run.over, False, {}


class _Run:
    """An episode, block by block.

    Attributes:
        rule: takes its losses, and has its scale.
        seen: what there was to see after the last block.
        blocks: how many it has had.
        over: whether that was the last whole one.
        loss: mean of the last block; when it is over, the validation loss.
    """

    def __init__(self, episode: Episode, settings: Settings) -> None:
        self._episode, self.rule = episode, PolicyRule(settings, 1, episode.steps)
        self._envelope = Envelope(total_steps=episode.steps, decay_ratio=settings.decay_ratio)
        self._left = episode.steps
        self._shortest = episode.steps / settings.blocks
        self.seen = np.zeros(len(OBSERVED), np.float32)
        self.blocks = 0
        self.loss = math.nan

    @property
    def over(self) -> bool:
        return self._left < self._shortest

    def block(self) -> bool:
        """Run the next; False where the run diverges in it."""
        observation = None
        while observation is None:
            loss = step(self._episode, self.rule, self._envelope(self._episode.steps - self._left))
            self._left -= 1
            if not math.isfinite(loss):
                return False
            observation = self.rule.push(loss)
        if not observation or self.rule.means[-1] > DIVERGED * abs(self.rule.means[0]):
            return False
        loss = self._episode.validation_loss() if self.over else self.rule.means[-1]
        if not math.isfinite(loss):
            return False
        self.seen = np.array(observation, np.float32)
        self.blocks += 1
        self.loss = loss
        return True

    def falls(self) -> np.ndarray:
        """The fall of the loss in each block after the first, at the scale that it has; 0 where it diverges."""
        losses = []
        while not self.over:
            if not self.block():
                return np.zeros(1)
            losses.append(self.loss)
        return -np.diff(losses)


def step(episode: Episode, rule: PolicyRule, envelope: float) -> float:
    """Advance by one optimizer step at the rule's scale, under the episode's bound; the training loss."""
    bound = episode.bound()
    if bound is not None:
        rule.limit = bound / episode.base_lr
    return episode.advance(episode.base_lr * rule.scales[0] * envelope)


def _log(loss: float) -> float:
    return math.log(max(loss, 1e-12))
