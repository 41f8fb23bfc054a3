"""What ranks need that are forked, imported once; without what is not installed."""

import contextlib
import importlib

for name in (
    "torch.distributed.fsdp",
    "transformers.trainer",
    "lightning.pytorch",
    "torchdata.stateful_dataloader",
    "datasets",
    "peft",
    "trl",
    "greedylr_integrations.accelerate",
    "greedylr_integrations.transformers",
    "greedylr_integrations.lightning",
):
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
