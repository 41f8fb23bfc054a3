"""A training run as a Gymnasium environment: one action per block, rewarded by the fall of the log loss."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import gymnasium
import numpy as np

from greedylr_integrations.envelope import Envelope
from greedylr_integrations.learned import OBSERVED, PolicyRule
from recipes.research.learn.tasks import Episode, TaskFamily

PENALTY = 2.0  # of a run that diverges, and the most that one block can gain or lose
DIVERGED = 1e4  # ratio to the loss of the first block, above which a run has diverged


@dataclass(frozen=True)
class Settings:
    """How a policy that is being learned will be used; see `greedylr_integrations.learned.Policy`."""

    blocks: int = 40
    max_factor: float = 2.0
    min_scale: float = 0.01
    max_scale: float = 10.0
    decay_ratio: float = 0.0

    @staticmethod
    def of(family: TaskFamily) -> Settings:
        return Settings(**{x.name: getattr(family, x.name) for x in fields(Settings) if hasattr(family, x.name)})


class ScheduleEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """Each episode is a training run from a task family.

    Observation: `learned.OBSERVED`, after each block of losses. The first block runs at scale 1.

    Action: a number from -1 to 1, the power of `max_factor` that the scale is multiplied by for the next block, within
    the bounds of the settings and the stability bound of the episode. LR = base LR x scale x final decay, as in the
    schedulers.

    Reward: the fall of the log of the block's mean loss; for the last block, the validation loss takes the place of the
    mean loss. A run that diverges ends with a reward of -PENALTY. An episode ends with its last complete block.

    If the episode has a twin, the twin runs at scale 1 throughout. The reward is then the fall of the loss itself,
    minus that of the twin in the same block, as a share of the twin's total fall.
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
        rule (PolicyRule): takes in the losses and holds the scale.
        seen (array): observation after the last block.
        blocks (int): number of blocks so far.
        over (bool): whether the last block was the last complete one of the run.
        loss (float): mean loss of the last block; at the end of the run, the validation loss.
    """

    def __init__(self, episode: Episode, settings: Settings) -> None:
        self._episode, self.rule = episode, PolicyRule(settings, episode.steps)
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
        """Run the next block. False if the run diverges in it."""
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
        """Fall of the loss in each block after the first, at the current scale; a single 0 if the run diverges."""
        losses = []
        while not self.over:
            if not self.block():
                return np.zeros(1)
            losses.append(self.loss)
        return -np.diff(losses)


def step(episode: Episode, rule: PolicyRule, envelope: float) -> float:
    """Take one optimizer step at the scale of the rule, under the bound of the episode. Returns the training loss."""
    bound = episode.bound()
    if bound is not None:
        rule.limit = bound / episode.base_lr
    return episode.advance(episode.base_lr * rule.scales[0] * envelope)


def _log(loss: float) -> float:
    return math.log(max(loss, 1e-12))
