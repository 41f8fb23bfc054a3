"""Ctrl-C and SIGTERM: save, stop, and say how to continue."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from pathlib import Path


class Stopped(Exception):
    """The run was asked to stop and has saved. The recipe exits with the command that resumes it."""

    def __init__(self, number: int, output_dir: Path) -> None:
        super().__init__(number, output_dir)
        self.number, self.output_dir = number, output_dir


class StopOnSignal:
    """Within this context, Ctrl-C and SIGTERM only set `number`, so that the loop can save and stop.

    A second signal kills. Nested contexts share what they have received: a signal in the last evaluation of a schedule
    stops the run before the next schedule. Python receives signals in its main thread only. In other threads, such as
    Ray's workers, this does nothing.

        with StopOnSignal() as stop:
            for step in ...:
                ...
                if stop.asked():
                    save()
                    raise Stopped(stop.number, output_dir)

    Args:
        told (str): what to say when the first signal comes.

    Attributes:
        number (int): the signal that was received, or 0.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)
    innermost: StopOnSignal | None = None

    def __init__(self, told: str = "saving after this step, then stopping") -> None:
        self.number, self._told = 0, told

    def __enter__(self) -> StopOnSignal:
        signals = self.SIGNALS if threading.current_thread() is threading.main_thread() else ()
        self._before = {number: signal.signal(number, self._note) for number in signals}
        self._outer, StopOnSignal.innermost = StopOnSignal.innermost, self
        if self._outer is not None:
            self.number = self._outer.number
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        StopOnSignal.innermost = self._outer
        if self._outer is not None:
            self._outer.number = self._outer.number or self.number

    def _note(self, number: int, frame) -> None:
        if self.number:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.number = number
        os.write(2, f"\n{self._told}; press Ctrl-C again to stop now\n".encode())

    def asked(self) -> bool:
        """Whether any rank has received a signal. All ranks must ask at the same steps, since they reduce a number."""
        import torch
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            device = "cuda" if dist.get_backend() == "nccl" else "cpu"
            numbers = torch.tensor(self.number, device=device)
            dist.all_reduce(numbers, dist.ReduceOp.MAX)
            agreed = int(numbers)
            self.number = agreed or self.number  # a signal during the reduce counts the next time
            return bool(agreed)
        return bool(self.number)


def resume_command(recipe: str, argv: list[str], output_dir: Path) -> str:
    """The command of this run with --resume; if its launcher has its own settings, what to add to the command."""
    environ = os.environ
    flags = {word.split("=")[0].replace("_", "-") for word in argv}
    more = [] if "--output-dir" in flags else ["--output-dir", str(output_dir)]
    more += [] if "--resume" in flags else ["--resume"]
    nodes = max(int(environ.get(name, 1)) for name in ("GROUP_WORLD_SIZE", "SLURM_NNODES"))
    if nodes > 1 or any(name in environ for name in ("ACCELERATE_MIXED_PRECISION", "RAY_ADDRESS")):
        return f"the same command with {shlex.join(more)}" if more else "the same command"
    processes = environ.get("LOCAL_WORLD_SIZE")  # torchrun's
    launcher = ["torch.distributed.run", "--nproc-per-node", processes, "-m"] if processes else []
    return shlex.join([sys.executable, "-m", *launcher, f"recipes.{recipe}", *argv, *more])
