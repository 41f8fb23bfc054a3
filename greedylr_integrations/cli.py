"""The command `greedylr`: pictures, comparisons and replays of runs, and orders to one that is going on."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    import click
except ImportError:
    print("greedylr: the command line needs more packages: pip install 'greedylr_integrations[cli]'", file=sys.stderr)
    sys.exit(2)

if TYPE_CHECKING:
    from greedylr_integrations.runs import Run

CONTROL_FILE = "control.json"
RUN_HELP = """
A RUN is a history file or a folder with one, a Hugging Face trainer_state.json, checkpoint or output folder, a
Lightning metrics.csv or its folder, a TensorBoard folder, a recipe's metrics.json, or any CSV or JSON-lines file with a
column for the loss.
"""
CAUTION = (
    "caution: these losses were recorded under the LR of that run; with another LR they would have been others, so this"
    " shows how a configuration reacts, not how the training would have gone"
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}, epilog=RUN_HELP)
@click.version_option(package_name="greedylr_integrations", prog_name="greedylr")
def cli() -> None:
    """Look at training runs whose learning rate follows the loss, and steer one that is going on.

    \b
    greedylr plot out/                                   the curves and each decision, in the terminal
    greedylr explain out/ --step 120                     why the LR moved, or did not
    greedylr replay out/ --config "factor=.9" --preset paper
    greedylr compare out1/ out2/ metrics.csv             a table
    greedylr report out1/ out2/ -o report.html           a page with zoom and hover
    greedylr control out/ cap 2                          an order to a run that has a control file
    """


def main(args: Sequence[str] | None = None) -> None:
    """Errors are one line on stderr, with exit code 2."""
    try:
        code = cli.main(args, standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        code = 2
    except click.ClickException as error:
        click.echo("greedylr: " + " ".join(error.format_message().split()), err=True)
        code = 2
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code if isinstance(code, int) else 0)


# ---- what the commands share ----


def _load(paths: Sequence[str], column: str | None) -> list[Run]:
    from greedylr_integrations import runs

    loaded: list[Run] = []
    origins: list[Path] = []
    for path in paths:
        try:
            found = runs.read(path, column)
        except runs.RunError as error:
            raise click.ClickException(str(error)) from None
        loaded += found
        origins += [Path(path)] * len(found)
    names = Counter(run.name for run in loaded)
    for run, origin in zip(loaded, origins, strict=True):
        for note in run.notes:
            click.echo(f"note: {note}", err=True)
        if names[run.name] > 1:
            folder = origin.resolve().parent.name
            run.name = f"{folder}/{origin.name}" + (f": {run.name}" if run.name != origin.name else "")
    return loaded


def _one(path: str, column: str | None) -> Run:
    """The run at `path`; of several, the first that has decisions."""
    runs = _load([path], column)
    chosen = next((run for run in runs if run.has_decisions), runs[0])
    if len(runs) > 1:
        click.echo(f"note: of {len(runs)} runs in {path}, this is {chosen.name}", err=True)
    return chosen


def _safely(function: Any, *args: Any) -> Any:
    from greedylr_integrations.runs import RunError

    try:
        return function(*args)
    except RunError as error:
        raise click.ClickException(str(error)) from None


def _print_text(runs: Sequence[Run]) -> None:
    from greedylr_integrations import plots

    click.echo(_safely(plots.text, runs, shutil.get_terminal_size((100, 40)).columns, sys.stdout.isatty()))


def _print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 160  # a pipe or file has no width
    console.print(table)


def _text(value: float | None, digits: str) -> str:
    return "-" if value is None or not math.isfinite(value) else format(value, digits)


def _lr_text(value: float | None) -> str:
    return _text(value, ".3g")


def _summary(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    import numpy as np

    from greedylr_integrations.core import Action

    headings = ["run", "final loss", "best loss", "steps", "LR range", "raises", "lowerings", "next LR"]
    rows = []
    for run in runs:
        lrs = run.lrs[np.isfinite(run.lrs) & (run.lrs > 0)]
        decided = run.has_decisions
        rows.append(
            [
                run.name,
                _text(run.final_loss(), ".5g"),
                _text(run.best_loss(), ".5g"),
                f"{int(run.steps[-1]):,}",
                f"{_lr_text(lrs.min())} to {_lr_text(lrs.max())}" if len(lrs) else "-",
                f"{run.count(Action.RAISE):,}" if decided else "-",
                f"{run.count(Action.LOWER):,}" if decided else "-",
                _lr_text(run.suggested_lr()),
            ]
        )
    return headings, rows


def _picture_path(_: Any, __: Any, value: str | None) -> Path | None:
    if value is None:
        return None
    path = Path(value)
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise click.BadParameter(f"{value!r} must end in .png, .svg or .pdf")
    return _writable(path)


def _page_path(_: Any, __: Any, value: str) -> Path:
    path = Path(value)
    if path.suffix.lower() not in (".html", ".htm"):
        raise click.BadParameter(f"{value!r} must end in .html")
    return _writable(path)


def _writable(path: Path) -> Path:
    if not path.parent.is_dir():
        raise click.BadParameter(f"there is no folder {str(path.parent)!r} to write to")
    return path


run_argument = click.argument("run")
runs_argument = click.argument("run", nargs=-1, required=True)
column_option = click.option("--column", help="Name of the loss's column, key or tag.  [default: found by its name]")
picture_option = click.option(
    "-o", "--output", callback=_picture_path, metavar="FILE", help="Write a picture: .png, .svg or .pdf."
)


# ---- commands ----


@cli.command(epilog=RUN_HELP)
@run_argument
@picture_option
@click.option("--terminal", is_flag=True, help="Plot in the terminal; the default without -o.")
@column_option
def plot(run: str, output: Path | None, terminal: bool, column: str | None) -> None:
    """Draw loss, smoothed loss and LR of a RUN, with each decision and its reason.

    \b
    greedylr plot out/history.jsonl -o run.png
    greedylr plot lightning_logs/version_3 --terminal
    greedylr plot log.csv --column train_nll -o run.svg
    """
    from greedylr_integrations import plots

    shown = _one(run, column)
    if output is not None:
        _safely(plots.picture, shown, output)
        click.echo(f"wrote {output}")
    if terminal or output is None:
        _print_text([shown])
        for code, name in enumerate(shown.reason_names):
            count = int((shown.reasons == code).sum())
            click.echo(f"{name:>14} {count:>9,}  {plots.sentence(name)}")


@cli.command(epilog=RUN_HELP)
@click.argument("losses")
@click.option("--preset", "presets", multiple=True, help="greedy, paper or transformers, as it is; may be repeated.")
@click.option("--config", "configs", multiple=True, metavar="TEXT", help="A configuration in words; may be repeated.")
@click.option("--factor", type=float, help="A raise divides the LR by it, a lowering multiplies.")
@click.option("--patience", type=int, help="Good or bad losses in a row before a move.")
@click.option("--window-size", type=int, help="Losses in the rolling mean.")
@click.option("--threshold", type=float, help="What counts as worse, in standard errors.")
@click.option("--warmup", type=int, help="Decisions that a raise goes on for.")
@click.option("--cooldown", type=int, help="Decisions that a lowering goes on for.")
@click.option("--max-scale", type=float, help="Upper bound on LR / base LR.")
@click.option("--min-scale", type=float, help="Lower bound on LR / base LR.")
@click.option("--lr", type=float, help="Base LR.  [default: the run's, or 1 where it is not recorded]")
@click.option("--horizon", type=int, help="Decisions of the run, 0 for unknown.  [default: as many as losses]")
@picture_option
@column_option
def replay(
    losses: str,
    presets: tuple[str, ...],
    configs: tuple[str, ...],
    lr: float | None,
    horizon: int | None,
    output: Path | None,
    column: str | None,
    **fields: Any,
) -> None:
    """Run recorded LOSSES through the controller and show the LR that it would have given.

    Without an option the default configuration is shown; each --preset and --config adds one. Ramp and final decay are
    left out. The presets have their sources' bounds, LRs from 1e-3 to 1, unless a --config sets min_lr and max_lr.

    \b
    greedylr replay log.csv --factor .9 --patience 5
    greedylr replay out/ --config "factor=.9 patience=5" --config "window_size=20 threshold=2"
    greedylr replay out/ --preset transformers --config "paper min_lr=1e-6 max_lr=1e-2 smooth=true" -o replay.png
    """
    from greedylr_integrations import plots
    from greedylr_integrations import replay as replays
    from greedylr_integrations.core import Action

    run = _one(losses, column)
    base_lr = _base_lr(run, lr)
    horizon = (len(run) if horizon is None else horizon) or None
    own = {name: value for name, value in fields.items() if value is not None}
    wanted = []
    if own or not (presets or configs):
        title = " ".join(f"{name}={value:g}" for name, value in own.items())
        wanted.append((title or "greedy", _safely(replays.make_config, {"behaviour": "GreedyConfig", **own})))
    wanted += [(text, _safely(replays.parse_config, text)) for text in (*presets, *configs)]
    played = [_safely(replays.replay, run, config, base_lr, horizon, title) for title, config in wanted]
    if output is None:
        _print_text(played)
    else:
        drawn = "LR that would have been given to the recorded losses of " + run.name
        _safely(plots.comparison, played, output, drawn)
        click.echo(f"wrote {output}")
    _print_table(
        ["configuration", "last LR", "lowest", "highest", "raises", "lowerings"],
        [
            [
                one.name,
                *map(_lr_text, (one.lrs[-1], one.lrs.min(), one.lrs.max())),
                f"{one.count(Action.RAISE):,}",
                f"{one.count(Action.LOWER):,}",
            ]
            for one in played
        ],
    )
    click.echo(CAUTION)


def _base_lr(run: Run, lr: float | None) -> float:
    """What the replay starts at: as told, else the run's base LR, else the first LR that is not part of a ramp."""
    import numpy as np

    if lr is not None:
        if not (math.isfinite(lr) and lr > 0):
            raise click.BadParameter(f"--lr {lr} must be finite and above 0")
        return lr
    if run.base_lrs and run.base_lrs[0] > 0:
        return run.base_lrs[0]
    based = run.lrs / run.scales
    based = based[np.isfinite(based)]
    if len(based) and based.max() > 0:
        return float(based.max())
    logged = run.lrs[np.isfinite(run.lrs)]
    return float(logged.max()) if len(logged) and logged.max() > 0 else 1.0


@cli.command(epilog=RUN_HELP)
@runs_argument
@picture_option
@click.option("--terminal", is_flag=True, help="Plot in the terminal too.")
@column_option
def compare(run: tuple[str, ...], output: Path | None, terminal: bool, column: str | None) -> None:
    """Compare several RUNs in a table, and in a picture with -o.

    The final loss is the mean of the last tenth, the best that of the smoothed losses where there are some.

    \b
    greedylr compare out1/ out2/
    greedylr compare greedy/metrics.csv cosine/metrics.csv -o both.png
    """
    from greedylr_integrations import plots

    runs = _load(run, column)
    if terminal:
        _print_text(runs)
    if output is not None:
        _safely(plots.comparison, runs, output)
        click.echo(f"wrote {output}")
    _print_table(*_summary(runs))


@cli.command(epilog=RUN_HELP)
@runs_argument
@click.option(
    "-o", "--output", default="report.html", show_default=True, callback=_page_path, metavar="FILE", help="The page."
)
@column_option
def report(run: tuple[str, ...], output: Path, column: str | None) -> None:
    """Write one page about RUNs that needs no network: curves with zoom, reasons on hover, configuration, table.

    \b
    greedylr report out/ -o report.html
    greedylr report out1/ out2/ out3/ -o sweep.html
    """
    from greedylr_integrations import plots

    runs = _load(run, column)
    _safely(plots.page, runs, *_summary(runs), output)
    click.echo(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB)")


@cli.command(epilog=RUN_HELP)
@run_argument
@click.option("--step", type=int, required=True, help="Optimizer step.")
@column_option
def explain(run: str, step: int, column: str | None) -> None:
    """Say in words why the LR of a RUN changed, or did not, at a step.

    \b
    greedylr explain out/history.jsonl --step 120
    """
    from greedylr_integrations import replay as replays

    for line in _safely(replays.explain, _one(run, column), step):
        click.echo(line)


@cli.command(context_settings={"ignore_unknown_options": True})
@run_argument
@click.argument("order", type=click.Choice(["hold", "release", "cap", "pin", "decay"]))
@click.argument("value", required=False)
def control(run: str, order: str, value: str | None) -> None:
    """Give an order to a RUN that is going on; RUN is its folder or its control file.

    The run must have been started with control_file=. hold keeps the LR's scale, cap X keeps it at X times the base LR
    or below, pin X sets it to X times the base LR, release ends these, decay N begins the final decay over N steps.

    \b
    greedylr control out/ hold
    greedylr control out/ cap 2.0
    greedylr control out/control.json decay 500
    """
    number = _order_value(order, value)
    path = Path(run)
    if path.is_dir():
        path = path / CONTROL_FILE
    elif not path.exists() and (path.suffix != ".json" or not path.parent.is_dir()):
        raise click.ClickException(f"{run}: this is neither a run's folder nor the path of a control file (.json)")
    entry = {"order": order, "value": number, "id": str(time.time_ns())}
    try:
        _write_whole(path, json.dumps(entry) + "\n")
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror or error}") from None
    click.echo(f"wrote {order if number is None else f'{order} {number:g}'} to {path}")


def _order_value(order: str, value: str | None) -> float | int | None:
    from greedylr_integrations.control import make_order

    number: Any = value
    with contextlib.suppress(TypeError, ValueError):  # what is no number is told by its name below
        number = int(value) if order == "decay" else float(value)  # type: ignore[arg-type]
    try:
        return make_order(order, number).value
    except (TypeError, ValueError) as error:
        raise click.ClickException(f"{order}: {error}") from None


def _write_whole(path: Path, content: str) -> None:
    """So that the run never reads half an order."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
        os.chmod(temporary, 0o644)  # the run may be another user's
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


if __name__ == "__main__":
    main()
