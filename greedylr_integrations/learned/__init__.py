"""Learned policies, in place of a rule written by hand: `GreedyLRCallback(PolicyConfig.load("network"))`.

A policy is a small network, trained by reinforcement learning (see docs/learned.md). It looks at the mean losses of the
blocks that the run is divided into, and after each block multiplies the scale by a factor that it chooses.

Source of the idea: Amazon Science, "Learning to learn learning-rate schedules".
"""

from greedylr_integrations.learned.observation import OBSERVED
from greedylr_integrations.learned.policy import Policy, PolicyError
from greedylr_integrations.learned.rule import PolicyConfig, PolicyController, PolicyRule

__all__ = ["OBSERVED", "Policy", "PolicyConfig", "PolicyController", "PolicyError", "PolicyRule"]
