"""The flags that all recipes share, and what follows from them.

A recipe writes to --output-dir: `metrics.json`, `loss_and_lr.png`, and for each schedule a folder of that name with its
checkpoints (`checkpoint*`) and, when the schedule is finished, its row of the report (`result.json`).
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from greedylr_integrations.log import environment_rank
from recipes.common import greedy
from recipes.common.config_file import meant, words_of
from recipes.common.offline import RecipeError
from recipes.common.report import Run, plot, print_table, save_metrics, write
from recipes.common.schedules import SCHEDULES
from recipes.common.stop import StopOnSignal, Stopped, resume_command
from recipes.common.usage import Formatter, Usage

# ---- the command line ----


def parser(recipe: str, description: str, **defaults) -> argparse.ArgumentParser:
    made = new_parser(argparse.ArgumentParser, recipe, description)
    made.add_argument("--config", metavar="FILE.yaml", help="file of flags; the command line takes precedence")
    made.add_argument("--model", help="model to train (default: %(default)s)")
    made.add_argument("--dataset", help="data to train on (default: %(default)s)")
    made.add_argument("--schedule", default="greedy", help="one of " + ", ".join(SCHEDULES))
    made.add_argument("--compare", nargs="+", metavar="SCHEDULE", help="schedules to compare from the same start")
    made.add_argument("--max-steps", type=int, help="optimizer steps (default: %(default)s)")
    made.add_argument("--learning-rate", type=float, help="base learning rate (default: %(default)s)")
    made.add_argument("--batch-size", type=int, help="rows per step and process (default: %(default)s)")
    made.add_argument("--seed", type=int, default=0, help="seed of model and data order (default: %(default)s)")
    made.add_argument("--output-dir", help="folder of results and checkpoints (default: runs/RECIPE/DATE-TIME)")
    made.add_argument("--resume", action="store_true", help="continue the run in --output-dir from its last checkpoint")
    made.add_argument("--plot", action=argparse.BooleanOptionalAction, default=True, help="draw loss_and_lr.png")
    greedy.add_flags(made)
    made.set_defaults(**defaults)
    add_help(made, {}, {})
    return made


def new_parser(kind: Callable[..., Any], recipe: str, description: str) -> Any:
    """A parser whose errors are one line each, in place of two screens of usage."""
    more = {"add_help": False, "allow_abbrev": False, "formatter_class": Formatter}
    made = kind(prog=recipe, description=description.split("\n")[0], **more)
    made.error = fail
    return made


def add_help(made: argparse.ArgumentParser, by_name: dict[str, list[str]], defaults: dict[str, Any]) -> None:
    """Add --help and --help-all; see `Usage` for the arguments."""
    by_name = {"settings of GreedyLR (docs/recipes.md)": greedy.NAMES, **by_name}
    made.add_argument("-h", "--help", "--help-all", action=Usage, by_name=by_name, defaults=defaults)


def parse_words(made: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    values, unknown = made.parse_known_args(argv)
    if unknown:
        raise RecipeError(f"{unknown[0]!r} is not a flag of {made.prog}{meant(made, unknown[0])}")
    return values


def parse(made: argparse.ArgumentParser, argv: list[str] | None, same: tuple[str, ...] = ()) -> argparse.Namespace:
    """The checked flags of the command line and --config, with `schedules` and `output_dir` filled in.

    `same` names the recipe's own flags that must not change when a run is resumed.

    Raises:
        RecipeError: if a flag is wrong, in one line.
    """
    return settle(made.prog, parse_words(made, with_config(made, argv)), same)


def settle(recipe: str, args: argparse.Namespace, same: tuple[str, ...] = ()) -> argparse.Namespace:
    args.schedules = args.compare or [args.schedule]
    for name in args.schedules:
        if name not in SCHEDULES:
            raise RecipeError(f"schedule {name!r} is unknown: choose from {', '.join(SCHEDULES)}")
    if not 0 < args.learning_rate < math.inf:
        raise RecipeError(f"--learning-rate {args.learning_rate} is not allowed: it must be above 0")
    if args.resume and not args.output_dir:
        raise RecipeError("--resume needs the --output-dir of the run to go on with")
    args.output_dir = Path(args.output_dir or f"runs/{recipe}/{time.strftime('%Y%m%d-%H%M%S')}")
    args.greedy = greedy.from_flags(args)
    args.settings = settings_of(recipe, args, same)
    if environment_rank() == 0:  # the others may see what it has written
        check_output_dir(args.output_dir, args.resume, args.settings)
    return args


def settings_of(recipe: str, args: argparse.Namespace, same: Iterable[str]) -> dict[str, Any]:
    """What must be the same when a run is resumed, as JSON."""
    processes = getattr(args, "workers", None) or int(os.environ.get("WORLD_SIZE", 1))
    if hasattr(args, "devices"):  # Lightning's, which starts processes of its own
        processes = args.devices * getattr(args, "num_nodes", 1)
    size = "batch_size" if hasattr(args, "batch_size") else "per_device_train_batch_size"
    parts = args.gradient_accumulation_steps if size != "batch_size" else 1  # else they are parts of the batch
    settings = {
        "recipe": recipe,
        "model": args.model,
        "dataset": args.dataset,
        "bytes_of_data": size_of(args.dataset, args.output_dir),
        "seed": args.seed,
        "rows_per_step": getattr(args, size) * parts * processes,
        **{name: getattr(args, name) for name in same},
    }
    if "greedy" in args.schedules:
        settings["greedy"] = args.greedy.to_settings()
    return json.loads(json.dumps(settings, default=str))


def size_of(dataset: str, output_dir: Path) -> int | None:
    """Bytes of a file, or of all files of a folder that are not results; None for a hub id and data of a package."""
    path, results = Path(dataset).absolute(), output_dir.absolute()
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    sizes = [file.stat().st_size for file in files if results not in file.parents]
    return sum(sizes) if path.exists() else None


def check_at_least_one(args: argparse.Namespace, *names: str) -> None:
    check_at_least(1, args, *names)


def check_at_least(least: int, args: argparse.Namespace, *names: str) -> None:
    for name in names:
        value = getattr(args, name)
        if value is not None and value < least:
            raise RecipeError(f"--{name.replace('_', '-')} {value} is not allowed: it must be at least {least}")


def fail(message: str) -> None:
    raise RecipeError(message)


def with_config(made: argparse.ArgumentParser, argv: list[str] | None) -> list[str]:
    """The words of the --config file, then those of the command line, which take precedence."""
    argv = sys.argv[1:] if argv is None else argv
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    first.error = fail
    file = first.parse_known_args(argv)[0].config
    if file is None:
        return argv
    with loading("--config", file):
        return [*words_of(made, file), *argv]


def check_output_dir(path: Path, resume: bool, settings: dict) -> None:
    """Refuse a file, a folder with the results or checkpoints of another run, and --resume without any."""
    there = next(folder for folder in (path, *path.parents) if os.path.exists(folder))
    if not os.path.isdir(there) or not os.access(there, os.W_OK):
        raise RecipeError(f"--output-dir {path}: {there} is not a writable folder: choose another")
    results = (path / "metrics.json").exists() or any(path.glob("*/result.json"))
    checkpoints = any(path.glob("*/checkpoint*")) or any(path.glob("checkpoint*"))  # a plain Trainer's too
    begun = path / "settings.json"
    if not resume:
        if results or checkpoints:
            kind = "results" if results else "checkpoints"
            raise RecipeError(
                f"{path} has the {kind} of another run: choose another --output-dir, or --resume that run"
            )
    elif not begun.exists() or not (results or checkpoints):
        raise RecipeError(f"{path} has no checkpoint of a run to resume: leave out --resume to start one")
    else:
        for name, value in changed(json.loads(begun.read_text()), settings):
            raise RecipeError(
                f"{path} was started with {name} {value[0]!r}, so it cannot be resumed with {value[1]!r}: give the same"
                " again, or choose another --output-dir for a new run"
            )


def changed(begun: dict[str, Any], now: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """The settings that differ, with both values; those that only one of them has do not count."""
    for name in (name for name in begun if name in now):
        if isinstance(begun[name], dict) and isinstance(now[name], dict):
            yield from changed(begun[name], now[name], f"{prefix}{name}.")
        elif begun[name] != now[name]:
            yield f"{prefix}{name}", (begun[name], now[name])


def agreed(value):
    """The first rank's value, on all ranks: for an output folder named after the time. Needs the process group."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


@contextmanager
def loading(what: str, name: str) -> Iterator[None]:
    """Turn any error of loading a model or a dataset into one line."""
    try:
        yield
    except RecipeError:
        raise
    except Exception as error:
        cause = error
        if type(error).__name__ == "DatasetGenerationError" and error.__cause__:  # its own message says nothing
            cause = error.__cause__
        reason = (str(cause).strip().splitlines() or [""])[0]
        no_rows = "corresponds to no data" in reason or "the first 0 values" in reason  # the messages of datasets
        if no_rows or isinstance(cause, StopIteration):
            raise RecipeError(f"{what} {name!r} is empty: give one that has rows") from error
        raise RecipeError(f"{what} {name!r} cannot be loaded ({type(cause).__name__}: {reason})") from error


# ---- the run ----


def run_all(args: argparse.Namespace, train: Callable[[str], Run]) -> list[Run]:
    """Call `train(schedule)` for each schedule, except those that an earlier run has finished, whose rows are read.

    Raises:
        Stopped: before the next schedule, if a signal came after the last step of the one before.
    """
    runs: list[Run] = []
    with StopOnSignal() as stop:
        for schedule in args.schedules:
            folder = args.output_dir / schedule
            if environment_rank() == 0:
                folder.mkdir(parents=True, exist_ok=True)
                write(args.output_dir / "settings.json", json.dumps(args.settings))
            if (folder / "result.json").exists():
                runs.append(Run.from_row(json.loads((folder / "result.json").read_text())))
                continue
            if runs and stop.asked():
                raise Stopped(stop.number, args.output_dir)
            runs.append(train(schedule))
            if environment_rank() == 0:
                write(folder / "result.json", json.dumps(runs[-1].to_row()))
    return runs


def finish(runs: list[Run], args: argparse.Namespace, load: str | None = None, **more) -> None:
    """Write table, metrics.json and picture, in the first process only.

    `load` is the code that loads the model, with {model!r} for its place; `more` goes to metrics.json.
    """
    if environment_rank() != 0:
        return
    more = {**args.settings, "base_lr": args.learning_rate, **more}
    save_metrics(runs, args.output_dir / "metrics.json", **more)
    if args.plot:
        plot(runs, args.output_dir / "loss_and_lr.png")
    print_table(runs, args.learning_rate)
    print(f"written to {args.output_dir}")
    if load is not None:
        print("load it:", load.format(model=str(args.output_dir / runs[0].schedule / "model")))


def run(recipe: str, main: Callable[[], None]) -> None:
    """Call `main`, and exit as a command should.

    On wrong input or a full disk, it prints one line and exits with code 2. On Ctrl-C and SIGTERM, it prints the
    command that continues the run and exits with code 128 + signal.
    """
    try:
        main()
    except Stopped as stopped:
        if environment_rank() == 0:
            print(f"saved; go on with: {resume_command(recipe, sys.argv[1:], stopped.output_dir)}", flush=True)
        sys.exit(128 + stopped.number)
    except KeyboardInterrupt:
        print(f"{recipe}: stopped; nothing new to save", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if isinstance(error, RecipeError):
            message = str(error)
        elif is_disk_full(error):
            message = f"the disk is full ({str(error).strip().splitlines()[0]}): make room, then go on with --resume"
        else:
            raise
        print(f"{recipe}: {message}", file=sys.stderr)
        sys.exit(2)


FULL = ("No space left on device", "File too large", "PytorchStreamWriter", "inline_container")


def is_disk_full(error: BaseException | None) -> bool:
    """Whether a write failed for lack of space, by the messages of Python, safetensors and torch.save."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        if any(says in str(error) for says in FULL):
            return True
        error = error.__cause__ or error.__context__
    return False
