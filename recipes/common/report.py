"""The end of every recipe: a table, metrics.json, and a picture of loss and learning rate."""

from __future__ import annotations

import json
import resource
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from greedylr_integrations import history
from greedylr_integrations.atomic import write_whole
from greedylr_integrations.decision import FINDS, Action, Decision, Reason
from greedylr_integrations.history import Record
from greedylr_integrations.suggestion import suggested_lr
from recipes.common.offline import RecipeError


@dataclass
class Run:
    """One training run as the report shows it, with (step, value) pairs.

    If the run was resumed, `seconds` are those of all its processes up to their last checkpoints, and
    `peak_memory_gib` is that of the last one.
    """

    schedule: str
    train_loss: list[tuple[int, float]]
    validation_loss: list[tuple[int, float]]
    learning_rate: list[tuple[int, float]]
    seconds: float
    peak_memory_gib: float
    next_learning_rate: float | None = None
    decisions: list[Record] = field(default_factory=list)
    more: dict[str, float] = field(default_factory=dict)  # measured by this recipe only

    def to_row(self) -> dict[str, Any]:
        """The run as JSON, from which `from_row` makes it again."""
        return {**asdict(self), "decisions": [history.row_of(record) for record in self.decisions]}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Run:
        """The run that `to_row` wrote. RecipeError if an earlier version of it did."""
        return cls(**{**row, "decisions": [_record(entry) for entry in row["decisions"]]})


def _record(entry: dict[str, Any]) -> Record:
    if entry["reason"] not in Reason.__members__:
        raise RecipeError(
            f"the results of an earlier run have the reason {entry['reason']!r}, as an earlier version of the recipes"
            " wrote it: delete result.json to train that schedule again, or choose another --output-dir"
        )
    decision = Decision(
        Action(entry["action"]),
        Reason[entry["reason"]],
        tuple(entry["scales"]),
        float(entry["loss"]),
        *(entry.get(name) for name in ("smoothed", "best", "slope", "distance")),
    )
    return Record(entry["step"], tuple(entry["lrs"]), entry["envelope"], decision, entry["nonfinite"])


def decisions_in(file: str | Path) -> list[Record]:
    """The decisions of a greedy run, including those before a resume; none if all of the run was warmup."""
    return history.read(file)[1] if Path(file).exists() else []


def next_learning_rate(decisions: list[Record], base_lr: float) -> float | None:
    """The LR to start the next such run at. None if there were too few decisions between warmup and final decay."""
    return suggested_lr(history.steady_scales(decisions), base_lr)


def peak_memory_gib() -> float:
    """Peak memory of the GPU if there is one, else of this process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def last_mean(pairs: list[tuple[int, float]], share: float = 0.1) -> float:
    """Mean of the last tenth, because a single batch says little."""
    tail = [value for _, value in pairs[-max(1, round(share * len(pairs))) :]]
    return sum(tail) / len(tail) if tail else float("nan")


def print_table(runs: list[Run], base_lr: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title="loss after training",
        caption="train: mean of the last tenth of the steps; before: validation at the start",
    )
    for heading in ("schedule", "train", "before", "validation", "best", "steps", "time", "memory"):
        table.add_column(heading, justify="left" if heading == "schedule" else "right")
    for run in runs:
        validation = [value for step, value in run.validation_loss if step] or [float("nan")]
        before = [value for step, value in run.validation_loss if not step]
        table.add_row(
            run.schedule,
            f"{last_mean(run.train_loss):.4f}",
            f"{before[0]:.4f}" if before else "",
            f"{validation[-1]:.4f}",
            f"{min(validation):.4f}",
            str(run.train_loss[-1][0] if run.train_loss else 0),
            f"{run.seconds:.0f} s",
            f"{run.peak_memory_gib:.1f} GiB",
        )
    Console().print(table)
    for run in runs:
        if run.next_learning_rate is not None:
            print(found_in(run, runs, base_lr))


def found_in(run: Run, runs: list[Run], base_lr: float) -> str:
    """What a greedy run found, beside what the others came to from the same base LR."""
    found = any(record.decision.reason in FINDS for record in run.decisions)
    text = f"from {base_lr:.1e}, {run.schedule} {'found' if found else 'came to'} {run.next_learning_rate:.1e}"
    ends = [(each.schedule, each.validation_loss[-1][1]) for each in runs if each.validation_loss]
    if ends:
        own = [f"ended at {loss:.3f}" for schedule, loss in ends if schedule == run.schedule]
        text += "".join(f" and {end}" for end in own)
        text += "".join(f"; {schedule} ended at {loss:.3f}" for schedule, loss in ends if schedule != run.schedule)
    return f"{text}; next time start at {run.next_learning_rate:.1e}"


def save_metrics(runs: list[Run], path: Path, **more) -> None:
    write(path, json.dumps({**more, "runs": [run.to_row() for run in runs]}, indent=1))


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all, even if the process is killed."""
    write_whole(path, text.encode())


def write_or_print(text: str, path: Path | None) -> None:
    if path is None:
        print(text)
    else:
        write(path, text)


def plot(runs: list[Run], path: Path) -> None:
    """Draw the loss above and the learning rate below, in one colour per schedule, with marks where the LR moved."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 7), sharex=True, layout="constrained")
    for i, run in enumerate(runs):
        colour = f"C{i}"
        above.plot(*zip(*run.train_loss, strict=True), color=colour, alpha=0.25, linewidth=0.8)
        by_loss = [record for record in run.decisions if record.decision.slope is None]
        smoothed = [(record.step, record.decision.smoothed) for record in by_loss if record.decision.smoothed]
        if smoothed:
            above.plot(
                *zip(*smoothed, strict=True),
                color=colour,
                linewidth=1.2,
                label=f"{run.schedule}: smoothed training loss",
            )
        if run.validation_loss:
            above.plot(
                *zip(*run.validation_loss, strict=True),
                "o--",
                color=colour,
                markersize=5,
                label=f"{run.schedule}: validation loss",
            )
        below.plot(*zip(*run.learning_rate, strict=True), color=colour, linewidth=1.5, label=run.schedule)
        used = dict(run.learning_rate)
        for action, marker, name, shade in (
            (Action.RAISE, "^", "raised", "tab:green"),
            (Action.LOWER, "v", "lowered", "tab:red"),
        ):
            steps = [r.step for r in run.decisions if r.decision.action is action and r.step in used]
            if steps:
                below.scatter(
                    steps, [used[step] for step in steps], marker=marker, s=14, color=shade, zorder=3, label=name
                )
    above.set_ylabel("loss")
    below.set_ylabel("learning rate")
    below.set_xlabel("optimizer step")
    below.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
