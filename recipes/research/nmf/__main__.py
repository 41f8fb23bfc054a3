"""Schedules of stochastic NMF: each is tuned on a matrix, then compared on 20 other seeds.

    python -m recipes.research.nmf                     the shipped policy against the tuned schedules
    python -m recipes.research.nmf --policy runs/nmf/nmf.safetensors --report RESULTS.md --pictures img
    python -m recipes.research.nmf --validation        on the matrices that were used to choose the shipped policy

Each run is a line of the results file, and a run that is already there is not repeated: the command can be stopped at
any time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from greedylr_integrations.learned import Policy
from greedylr_integrations.log import logger
from recipes.common import flags
from recipes.common.offline import RecipeError
from recipes.common.report import write_or_print
from recipes.research.nmf.report import draw, tables
from recipes.research.nmf.store import KNOWN, MATRICES, VALIDATION, Results, compare


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("nmf", description=__doc__.split("\n")[0])
    parser.add_argument("--policy", default="nmf", help="a policy file or a shipped policy (default: %(default)s)")
    parser.add_argument("--matrices", nargs="+", default=list(MATRICES), metavar="MATRIX", help="; ".join(MATRICES))
    parser.add_argument(
        "--validation", dest="matrices", action="store_const", const=list(VALIDATION), help="on other matrices"
    )
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of a run (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=20, help="seeds of each comparison (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=Path("runs/nmf.jsonl"), help="default: %(default)s")
    parser.add_argument("--report", type=Path, help="where to write the tables (default: to the screen)")
    parser.add_argument("--pictures", type=Path, help="folder for the pictures of schedules and losses")
    parser.error = flags.fail
    args = parser.parse_args(argv)
    flags.check_at_least_one(args, "steps", "seeds")
    for name in args.matrices:
        if name not in KNOWN:
            raise RecipeError(f"--matrices {name!r} is unknown: choose from {', '.join(KNOWN)}")
    with flags.loading("--policy", args.policy):
        policy = Policy.load(args.policy)
    runs = compare(Results(args.results, policy), args.matrices, args.steps, range(args.seeds))
    write_or_print(tables(runs, args.steps, policy), args.report)
    if args.pictures:
        draw(runs, args.pictures)


if __name__ == "__main__":
    logger.setLevel("ERROR")  # trials that start far from the best LR are intended
    flags.run("nmf", main)
