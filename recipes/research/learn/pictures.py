"""Draw the schedules and losses of the learned policy together with those of the tuned baselines.

python -m recipes.research.learn.pictures --results runs/learn_compare.jsonl --output-dir docs/img
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from greedylr_integrations.learned import Policy
from recipes.common.flags import fail, loading, run
from recipes.common.offline import RecipeError
from recipes.research.learn.compare import BASE_LRS, SCHEDULES, SEEDS, TASKS, USUAL, jobs, read


def draw(done: dict[tuple, dict], path: Path, base_lr: str) -> None:
    """One column per task: LR above, validation loss below. Every seed of the learned policy, means of the others."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = (4 * len(TASKS), 6.5)
    figure, axes = plt.subplots(2, len(TASKS), figsize=size, sharex="col", squeeze=False, layout="constrained")
    for (above, below), (name, task) in zip(axes.T, TASKS.items(), strict=True):
        for i, schedule in enumerate(SCHEDULES):
            lr = BASE_LRS[base_lr](done, name, schedule)
            rows = [done[name, schedule, lr, seed] for seed in SEEDS]
            base, steps = USUAL[task.optimizer] * lr, [step for step, _ in rows[0]["validation"]]
            losses = np.array([[loss for _, loss in row["validation"]] for row in rows])
            lrs = base * np.array([row["scales"] for row in rows])
            if schedule == "learned":
                above.plot(lrs.T, color=f"C{i}", linewidth=1.2)
                below.plot(steps, losses.T, color=f"C{i}", linewidth=0.6)
            else:
                above.plot(lrs.mean(0), color=f"C{i}", linewidth=1)
            below.plot(steps, losses.mean(0), color=f"C{i}", linewidth=1.5, label=schedule)
        above.set(title=name, yscale="log", ylim=(0.01 * above.get_ylim()[1], None))
        below.set(xlabel="optimizer step", yscale="log")
        end = [loss for line in below.get_lines() for loss in line.get_ydata()[-1:]]
        below.set_ylim(0.95 * min(end), 2.2 * min(end))
        for each in (above, below):
            each.grid(alpha=0.3)
    axes[0, 0].set_ylabel("learning rate")
    axes[1, 0].set_ylabel("validation loss")
    axes[1, 0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("learn.pictures", description=__doc__.split("\n")[0])
    parser.add_argument("--policy", default="network", help="a policy file or a shipped policy (default: %(default)s)")
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("runs/learn_compare.jsonl"),
        help="results of recipes.research.learn.compare",
    )
    parser.add_argument("--output-dir", type=Path, default=Path("docs/img"))
    parser.error = fail
    args = parser.parse_args(argv)
    with loading("--policy", args.policy):
        policy = Policy.load(args.policy)
    done = read(args.results, policy)
    try:
        missing = [job for job in jobs(done) if job not in done]
    except KeyError as error:
        missing = [error]
    if missing:
        raise RecipeError(f"--results {args.results} is not complete: run recipes.research.learn.compare first")
    pictures = {
        "learned-schedules.png": "tuned for each schedule",
        "learned-schedules-low.png": "a tenth of what is best for cosine",
    }
    for name, base_lr in pictures.items():
        draw(done, args.output_dir / name, base_lr)
        print(f"written to {args.output_dir / name}")


if __name__ == "__main__":
    run("learn.pictures", main)
