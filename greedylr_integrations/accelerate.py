"""GreedyLR for loops written with Accelerate: `prepare` keeps it, `save_state` saves it, one decision per real step.

model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, GreedyLR(optimizer))
for batch in loader:
    with accelerator.accumulate(model):
        loss = model(batch)
        accelerator.backward(loss)
        optimizer.step()
        scheduler.step(loss)
        optimizer.zero_grad()
        accelerator.log(scheduler.metrics(), step=scheduler.last_epoch)  # for trackers, if you have any
scheduler.finish(aloud=True)  # says where to start the next run
"""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.algorithms.join import Join, Joinable, JoinHook

try:
    from accelerate.state import GradientState, PartialState
except ImportError as error:
    raise ImportError(
        "greedylr_integrations.accelerate needs accelerate: pip install 'greedylr_integrations[accelerate]'"
    ) from error

from greedylr_integrations import schedulers
from greedylr_integrations.decision import Decision
from greedylr_integrations.optimizers import unwrapped
from greedylr_integrations.slope import for_all_ranks


class GreedyLR(schedulers.GreedyLR, Joinable):
    """`greedylr_integrations.GreedyLR` with the same arguments, stepped once per micro-batch in an Accelerate loop.

    A call after a micro-batch that only accumulates adds its loss; the call after a real optimizer step decides on the
    mean of the micro-batches and of the ranks. A step that the fp16 scaler skipped does not count. `total_steps` counts
    optimizer steps, regardless of the number of processes. Without an Accelerator, it is the plain scheduler.

    If the ranks have different numbers of batches, use `accelerator.join_uneven_inputs([model, scheduler])`, without
    gradient accumulation. A rank that has run out of data keeps deciding with the others.
    """

    # `prepare` would wrap any other scheduler in one that steps num_processes times with the same loss.
    _is_accelerate_prepared = True

    _stepped = False  # whether the optimizer has stepped since the last call of `step`

    def _initial_step(self) -> None:
        # torch calls this when it constructs a scheduler; a constructor here would have to repeat the arguments
        super()._initial_step()
        Joinable.__init__(self)
        unwrapped(self.optimizer).register_step_post_hook(self._on_step)

    def _on_step(self, *args: Any) -> None:
        self._stepped = True

    def step(self, loss: float | torch.Tensor | None = None) -> Decision | None:  # type: ignore[override]
        """Call it once per micro-batch, after `optimizer.step()`; see `GreedyLR.step`."""
        if not PartialState._shared_state:  # no Accelerator: a plain loop
            return super().step(loss)
        if loss is not None:
            self.meter.update(loss)
        if not GradientState().sync_gradients:
            return None
        stepped, self._stepped = self._stepped, False
        if stepped:
            Join.notify_join_context(self)
            return super().step()
        self.skip_step()
        return None

    def step_without_data(self) -> Decision | None:
        """Take part in a step for which only other ranks have a batch: make the same decision, from their losses."""
        return super().step()

    def state_dict(self) -> dict[str, Any]:
        """See `GreedyLR.state_dict`. Accelerate calls it on every rank and keeps the first rank's."""
        self.synchronize()
        return for_all_ranks(super().state_dict())

    # ---- torch's Join ----

    def join_hook(self, **kwargs: Any) -> JoinHook:
        return _WithoutData(self)

    @property
    def join_device(self) -> torch.device:
        return torch.device(PartialState().device)

    @property
    def join_process_group(self) -> Any:
        return torch.distributed.group.WORLD


class _WithoutData(JoinHook):
    """What a rank does that has run out of batches while others train: it joins in their decision, without a loss."""

    def __init__(self, scheduler: GreedyLR) -> None:
        self._scheduler = scheduler

    def main_hook(self) -> None:
        self._scheduler.step_without_data()
