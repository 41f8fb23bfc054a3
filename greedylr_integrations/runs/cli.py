"""The command `greedylr`: pictures, comparisons and replays of runs, and commands to a running job."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

try:
    import click
    import numpy as np
except ImportError:
    print("greedylr: the command line needs more packages: pip install 'greedylr_integrations[cli]'", file=sys.stderr)
    sys.exit(2)

from greedylr_integrations.atomic import write_whole
from greedylr_integrations.runs import doctor as diagnosis
from greedylr_integrations.runs import explain as explaining
from greedylr_integrations.runs import figures, find
from greedylr_integrations.runs import replay as replaying
from greedylr_integrations.runs.control_files import check_place, value_of
from greedylr_integrations.runs.page import page
from greedylr_integrations.runs.run import Run, RunError, printable, sentence
from greedylr_integrations.runs.summary import HEADINGS, REPLAY_HEADINGS, base_lr_of, replay_summary, summary
from greedylr_integrations.runs.terminal import text as plot_text
from greedylr_integrations.steering import COMMANDS

CONTROL_FILE = "control.json"
RUN_HELP = """
A RUN is a history file or a folder with one, a Hugging Face trainer_state.json, checkpoint or output folder, a
Lightning metrics.csv or its folder, a TensorBoard folder, a recipe's metrics.json, or any CSV or JSON-lines file with a
column for the loss.
"""
CAUTION = (
    "caution: these losses were recorded with the LR of that run; with another LR they would have been different, so"
    " this shows how a configuration reacts, not how the training would have gone"
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}, epilog=RUN_HELP)
@click.version_option(package_name="greedylr_integrations", prog_name="greedylr")
def cli() -> None:
    """Look at training runs whose learning rate is found during training, and steer one that is going on.

    \b
    greedylr plot out/                                   the curves and each decision, in the terminal
    greedylr explain out/ --step 120                     why the LR moved, or did not
    greedylr doctor out/                                 what is likely to be wrong, and what to do
    greedylr replay out/ --config "factor=.9" --preset paper
    greedylr compare out1/ out2/ metrics.csv             a table
    greedylr report out1/ out2/ -o report.html           a page with zoom and hover
    greedylr control out/ cap 2                          a command to a run that has a control file
    """


def main(args: Sequence[str] | None = None) -> None:
    """Run the command; what goes wrong is one line on stderr, with exit code 2, or 1 if it is the machine's fault."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a notebook's has no encoding to set
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        with np.errstate(all="ignore"):
            code = cli.main(args, standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        code = 2
    except click.ClickException as error:
        code = _fail(error.format_message(), 2)
    except RunError as error:
        code = _fail(error, 2)
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except BrokenPipeError:  # the reader, such as head, has seen enough
        _close_stdout()
        code = 0
    except OSError as error:  # such as a full disk
        _close_stdout()
        code = _fail(error.strerror or error, 1)
    except MemoryError:
        code = _fail("there is not enough memory for this", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: object, code: int) -> int:
    click.echo("greedylr: " + printable(" ".join(str(message).split()), 1000), err=True)
    return code


def _close_stdout() -> None:
    """So that Python does not fail to flush it once more at the end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# ---- what the commands share ----


def _say(text: str, err: bool = False) -> None:
    """A line of the output; escape codes in text from files do not get to the terminal."""
    click.echo(printable(text, 10_000), err=err)


def _load(paths: Sequence[str], column: str | None, finite: bool = True) -> list[Run]:
    loaded: list[Run] = []
    origins: list[Path] = []
    for path in paths:
        found = find.read(path, column, finite)
        loaded += found
        origins += [Path(path)] * len(found)
    names = Counter(run.name for run in loaded)
    for run, origin in zip(loaded, origins, strict=True):
        for note in run.notes:
            _say(f"note: {note}", err=True)
        if names[run.name] > 1:
            folder = origin.resolve().parent.name
            run.name = f"{folder}/{origin.name}" + (f": {run.name}" if run.name != origin.name else "")
    return loaded


def _one(path: str, column: str | None, finite: bool = True) -> Run:
    """The run at `path`; of several, the first that has decisions."""
    runs = _load([path], column, finite)
    chosen = next((run for run in runs if run.has_decisions), runs[0])
    if len(runs) > 1:
        _say(f"note: of {len(runs)} runs in {path}, this is {chosen.name}", err=True)
    return chosen


def _print_text(runs: Sequence[Run]) -> None:
    colour = sys.stdout.isatty()
    click.echo(plot_text(runs, shutil.get_terminal_size((100, 40)).columns, colour))


def _print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(printable, row))
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = 160  # a pipe or file has no width
    console.print(table)


def _path_with(*endings: str) -> Callable[..., Path | None]:
    """A callback for a file to write, whose name must end in one of these."""

    def check(_: Any, __: Any, value: str | None) -> Path | None:
        if value is None:
            return None
        path = Path(value)
        if path.suffix.lower() not in endings:
            *others, last = endings
            shown = ", ".join(others) + f" or {last}"
            raise click.BadParameter(f"{value!r} must end in {shown}")
        if not path.parent.is_dir():
            raise click.BadParameter(f"there is no folder {str(path.parent)!r} to write to")
        return path

    return check


run_argument = click.argument("run")
runs_argument = click.argument("run", nargs=-1, required=True)
column_option = click.option("--column", help="Name of the loss's column, key or tag.  [default: found by its name]")
picture_option = click.option(
    "-o",
    "--output",
    callback=_path_with(".png", ".svg", ".pdf"),
    metavar="FILE",
    help="Write a picture: .png, .svg or .pdf.",
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
    shown = _one(run, column)
    if output is not None:
        figures.picture(shown, output)
        _say(f"wrote {output}")
    if terminal or output is None:
        _print_text([shown])
        for name, count in zip(shown.reason_names, shown.reason_counts(), strict=True):
            _say(f"{name:>14} {count:>9,}  {sentence(name)}")


@cli.command(epilog=RUN_HELP)
@click.argument("losses")
@click.option(
    "--preset", "presets", multiple=True, help="A rule with its defaults: loss, slope, paper, transformers; repeatable."
)
@click.option("--config", "configs", multiple=True, metavar="TEXT", help="A configuration in words; may be repeated.")
@click.option("--factor", type=float, help="An increase divides the LR by it, a decrease multiplies by it.")
@click.option("--patience", type=int, help="Good or bad losses in a row before a move.")
@click.option("--window-size", type=int, help="Losses in the rolling mean.")
@click.option("--threshold", type=float, help="How far above the best is worse, in standard errors.")
@click.option("--warmup", type=int, help="Decisions for which the LR keeps rising after an increase.")
@click.option("--cooldown", type=int, help="Decisions for which the LR keeps falling after a decrease.")
@click.option("--max-scale", type=float, help="Upper bound on LR / base LR.")
@click.option("--min-scale", type=float, help="Lower bound on LR / base LR.")
@click.option("--lr", type=float, help="Base LR.  [default: the run's, or 1 if it is not recorded]")
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
    """Run recorded LOSSES through the controller and show the LRs that would have come of it.

    Without options, it replays the default configuration; each --preset and --config adds one. Warmup and final decay
    are left out. paper and transformers have their sources' bounds, LRs from 1e-3 to 1, unless a --config sets min_lr
    and max_lr.

    \b
    greedylr replay log.csv --factor .9 --patience 5
    greedylr replay out/ --config "factor=.9 patience=5" --config "window_size=20 threshold=2"
    greedylr replay out/ --preset transformers --config "paper min_lr=1e-6 max_lr=1e-2 smooth=true" -o replay.png
    """
    if lr is not None and not (math.isfinite(lr) and lr > 0):
        raise click.BadParameter(f"--lr {lr} must be finite and above 0")
    run = _one(losses, column)
    base_lr = base_lr_of(run) if lr is None else lr
    horizon = (len(run) if horizon is None else horizon) or None
    played = [
        replaying.replay(run, config, base_lr, horizon, title)
        for title, config in _configurations((*presets, *configs), fields)
    ]
    if output is None:
        _print_text(played)
    else:
        figures.comparison(played, output, "LR that would have been given to the recorded losses of " + run.name)
        _say(f"wrote {output}")
    _print_table(REPLAY_HEADINGS, replay_summary(played))
    click.echo(CAUTION)


def _configurations(texts: Sequence[str], fields: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """A title and a configuration for each replay."""
    own = {name: value for name, value in fields.items() if value is not None}
    wanted = []
    if own or not texts:
        title = " ".join(f"{name}={value:g}" for name, value in own.items())
        wanted.append((title or "greedy", replaying.make_config({"behaviour": "GreedyConfig", **own})))
    return wanted + [(text, replaying.parse_config(text)) for text in texts]


@cli.command(epilog=RUN_HELP)
@runs_argument
@picture_option
@click.option("--terminal", is_flag=True, help="Plot in the terminal too.")
@column_option
def compare(run: tuple[str, ...], output: Path | None, terminal: bool, column: str | None) -> None:
    """Compare several RUNs in a table, and in a picture with -o.

    The final loss is the mean of the last tenth of the losses; the best is taken from the smoothed losses if recorded.

    \b
    greedylr compare out1/ out2/
    greedylr compare greedy/metrics.csv cosine/metrics.csv -o both.png
    """
    runs = _load(run, column)
    if terminal:
        _print_text(runs)
    if output is not None:
        figures.comparison(runs, output)
        _say(f"wrote {output}")
    _print_table(HEADINGS, summary(runs))


@cli.command(epilog=RUN_HELP)
@runs_argument
@click.option(
    "-o",
    "--output",
    default="report.html",
    show_default=True,
    callback=_path_with(".html", ".htm"),
    metavar="FILE",
    help="The page.",
)
@column_option
def report(run: tuple[str, ...], output: Path, column: str | None) -> None:
    """Write one page about RUNs that needs no network: curves with zoom, reasons on hover, configuration, table.

    \b
    greedylr report out/ -o report.html
    greedylr report out1/ out2/ out3/ -o sweep.html
    """
    runs = _load(run, column)
    page(runs, HEADINGS, summary(runs), output)
    _say(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB)")


@cli.command(epilog=RUN_HELP)
@run_argument
@click.option("--step", type=int, required=True, help="Optimizer step.")
@column_option
def explain(run: str, step: int, column: str | None) -> None:
    """Say in words why the LR of a RUN changed, or did not, at a step.

    \b
    greedylr explain out/history.jsonl --step 120
    """
    for line in explaining.explain(_one(run, column), step):
        _say(line)


@cli.command(epilog=RUN_HELP)
@click.argument("run", required=False)
@column_option
def doctor(run: str | None, column: str | None) -> None:
    """Say what is likely to be wrong with a RUN, and what to do; without a RUN, which packages are installed.

    \b
    greedylr doctor out/
    greedylr doctor
    """
    if run is None:
        for line in diagnosis.environment():
            _say(line)
        return
    shown = _one(run, column, finite=False)
    if not shown.has_decisions:
        _say("note: this record has no decisions, so only its losses are checked", err=True)
    found = diagnosis.findings(shown, is_loss=column is None)
    for number, finding in enumerate(found, start=1):
        _say(f"{number}. {finding}")
    if not found:
        _say(f"No problems found in the {len(shown):,} rows of {shown.name}.")


@cli.command(context_settings={"ignore_unknown_options": True})
@run_argument
@click.argument("command", type=click.Choice(COMMANDS))
@click.argument("value", required=False)
def control(run: str, command: str, value: str | None) -> None:
    """Give a command to a RUN in progress; RUN is its folder or its control file.

    The run must have been started with control_file=. hold keeps the scale, cap X keeps the LR at or below X times the
    base LR, pin X sets it to X times the base LR, release ends these, decay N begins the final decay over N steps.

    \b
    greedylr control out/ hold
    greedylr control out/ cap 2.0
    greedylr control out/control.json decay 500
    """
    path = Path(run)
    if path.is_dir():
        path = path / CONTROL_FILE
    try:
        number = value_of(command, value)
        check_place(path)
        content = json.dumps({"order": command, "value": number, "id": str(time.time_ns())}) + "\n"
        write_whole(path, content.encode())  # the run never reads half a command
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror or error}") from None
    _say(f"wrote {command if number is None else f'{command} {number:g}'} to {path}")


if __name__ == "__main__":
    main()
