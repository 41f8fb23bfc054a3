"""What the ranks of `forked` need, imported once."""

import accelerate  # noqa: F401
import lightning.pytorch  # noqa: F401
import torchdata.stateful_dataloader  # noqa: F401
import transformers.trainer  # noqa: F401

import greedylr_integrations.accelerate
import greedylr_integrations.lightning
import greedylr_integrations.transformers  # noqa: F401
