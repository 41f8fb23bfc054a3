"""The flags that mean the same in every recipe, and what follows from them."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from recipes.common.offline import RecipeError
from recipes.common.report import Run, plot, print_table, save_metrics

SCHEDULES = ("greedy", "linear", "cosine", "constant")


def parser(recipe: str, description: str, **defaults) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(recipe, description=description.split("\n")[0])
    made.add_argument("--dataset", help="which data to train on (default: %(default)s)")
    made.add_argument("--schedule", default="greedy", help="one of " + ", ".join(SCHEDULES))
    made.add_argument("--compare", nargs="+", metavar="SCHEDULE", help="schedules to run from the same start")
    made.add_argument("--max-steps", type=int, help="optimizer steps (default: %(default)s)")
    made.add_argument("--learning-rate", type=float, help="base learning rate (default: %(default)s)")
    made.add_argument("--batch-size", type=int, help="rows a step (default: %(default)s)")
    made.add_argument("--seed", type=int, default=0, help="of model and data order (default: %(default)s)")
    made.add_argument("--output-dir", help="for metrics.json and loss_and_lr.png (default: runs/RECIPE/DATE-TIME)")
    made.add_argument("--plot", action=argparse.BooleanOptionalAction, default=True, help="draw loss_and_lr.png")
    made.set_defaults(**defaults)
    return made


def parse(made: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    args = made.parse_args(argv)
    args.output_dir = Path(args.output_dir or new_output_dir(made.prog))
    args.schedules = args.compare or [args.schedule]
    check_schedules(args.schedules)
    check_output_dir(args.output_dir)
    return args


def new_output_dir(recipe: str) -> str:
    return f"runs/{recipe}/{time.strftime('%Y%m%d-%H%M%S')}"


def check_schedules(names: list[str]) -> None:
    for name in names:
        if name not in SCHEDULES:
            raise RecipeError(f"schedule {name!r} is unknown: choose from {', '.join(SCHEDULES)}")


def check_output_dir(path: Path) -> None:
    if (path / "metrics.json").exists():
        raise RecipeError(f"{path} has the results of another run: choose another --output-dir")


def finish(runs: list[Run], output_dir: Path, draw: bool, **more) -> None:
    """Table, metrics.json and picture."""
    output_dir.mkdir(parents=True, exist_ok=True)
    save_metrics(runs, output_dir / "metrics.json", **more)
    if draw:
        plot(runs, output_dir / "loss_and_lr.png")
    print_table(runs)
    print(f"written to {output_dir}")


def run(recipe: str, main: Callable[[], None]) -> None:
    """Call `main`; what is wrong with the input becomes one line and exit code 2."""
    try:
        main()
    except RecipeError as error:
        print(f"{recipe}: {error}", file=sys.stderr)
        sys.exit(2)
