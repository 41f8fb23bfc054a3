"""Tables and pictures from the results: python -m benchmarks.report

Writes the part between its two marks in `benchmarks/RESULTS.md`, and the pictures in `benchmarks/img`. With
`--output FOLDER`, everything goes there instead.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.arms import ARMS, FIXED
from benchmarks.scoring import TIE, Cell, bootstrap, compare, geometric_mean, log_slope, share, step_equivalents
from benchmarks.store import (
    ABLATIONS,
    LENGTHS,
    LONG,
    MULTIPLES,
    RESULTS,
    YOKED,
    Results,
    environment_of,
    load_tuned,
)

HERE = Path(__file__).parent
NEAR = (0.3, 1.0, 3.0)
SHOWN = (*FIXED, "plateau", "transformers", "paper", "envelope", "greedy", "greedy, no horizon")


class Evidence:
    """The results, by what is asked of them."""

    def __init__(self, results: Results, tuned: Mapping[str, Any], knobs: Mapping[str, Any], stage: str) -> None:
        self.results, self.tuned, self.knobs, self.stage = results, tuned, knobs, stage
        self._finals: dict[tuple, dict[int, float]] = defaultdict(dict)
        self._entries: dict[tuple, dict[int, dict]] = defaultdict(dict)
        for entry in results.runs.values():
            job = entry["job"]
            key = (job["stage"], job["workload"], job["arm"], job["multiple"], json.dumps(job["knob"]), job["steps"])
            self._finals[key][job["seed"]] = math.inf if entry["loss"] is None else entry["loss"]
            self._entries[key][job["seed"]] = entry
        self.workloads = sorted({key[1] for key in self._finals if key[0] == stage})
        from benchmarks.workloads import WORKLOADS

        self.steps = {name: WORKLOADS[name].steps for name in self.workloads}
        self.references = {name: self._reference(name) for name in self.workloads}

    def _reference(self, workload: str) -> dict[float, float]:
        arm, steps = self.tuned[workload]["arm"], self.steps[workload]
        found = {}
        for length in LENGTHS:
            losses = self._finals[("reference", workload, arm, 1.0, "{}", round(length * steps))]
            finite = [loss for loss in losses.values() if math.isfinite(loss)]
            if finite:
                found[length] = mean(finite)
        return found

    def finals(
        self, workload: str, arm: str, multiple: float, knob: Mapping | None = None, stage: str = "", steps: int = 0
    ) -> dict[int, float]:
        """Seed -> final loss, infinite if it diverged; empty if it was not run."""
        key = (
            stage or self.stage,
            workload,
            arm,
            multiple,
            json.dumps(dict(knob or {})),
            steps or self.steps[workload],
        )
        return self._finals.get(key, {})

    def entries(self, workload: str, arm: str, multiple: float) -> dict[int, dict]:
        return self._entries.get((self.stage, workload, arm, multiple, "{}", self.steps[workload]), {})

    def cells(self, arm: str, knob: Mapping | None = None, opponents: Iterable[str] = ()) -> list[Cell]:
        """The arm against the best fixed schedule (or the given opponents), by workload and base LR."""
        cells = []
        for workload in self.workloads:
            for multiple in MULTIPLES:
                own = self.finals(workload, arm, multiple, knob)
                fixed = {name: self.finals(workload, name, multiple) for name in opponents or FIXED}
                fixed = {name: losses for name, losses in fixed.items() if losses and losses.keys() >= own.keys()}
                if len(own) >= 2 and fixed:
                    cells.append(compare(workload, multiple, own, fixed, self.references[workload]))
        return cells

    def ratios(
        self,
        arm: str,
        knob: Mapping | None = None,
        multiples: Iterable[float] = MULTIPLES,
        opponents: Iterable[str] = FIXED,
    ) -> dict[str, list[float]]:
        """Workload -> loss ratios to the best opponent of each cell, picked afterwards, if nothing diverged."""
        found: dict[str, list[float]] = defaultdict(list)
        for workload, multiple in itertools.product(self.workloads, multiples):
            own = self.finals(workload, arm, multiple, knob).values()
            fixed = [self.finals(workload, name, multiple).values() for name in opponents]
            best = [mean(losses) for losses in fixed if losses and all(map(math.isfinite, losses))]
            if own and all(map(math.isfinite, own)) and best:
                found[workload].append(mean(own) / min(best))
        return found

    def diverged(self, arm: str, knob: Mapping | None = None) -> tuple[int, int]:
        losses = [
            loss
            for workload in self.workloads
            for multiple in MULTIPLES
            for loss in self.finals(workload, arm, multiple, knob).values()
        ]
        return sum(map(math.isinf, losses)), len(losses)

    def worth(self, arm: str, knob: Mapping | None = None, multiple: float = 1.0) -> dict[str, float]:
        """Workload -> step-equivalents at one base LR, as a share of the horizon (1: as good as the tuned best)."""
        found = {}
        for workload in self.workloads:
            losses = self.finals(workload, arm, multiple, knob).values()
            if losses:
                found[workload] = geometric_mean([step_equivalents(x, self.references[workload]) for x in losses])
        return found


def by_workload(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    grouped: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        grouped[cell.workload].append(cell)
    return grouped


def table(head: list[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(str(value) for value in row) + " |" for row in rows]) + "\n"


def percent(x: float) -> str:
    if math.isnan(x):
        return "-"
    return "inf" if math.isinf(x) else f"{100 * x:.0f}%"


def gain(x: float) -> str:
    if math.isnan(x):
        return "-"
    return f"{100 * x:+.0f}%" if math.isfinite(x) else ("+inf" if x > 0 else "-inf")


def interval(low: float, high: float, show=percent) -> str:
    return f"{show(low)} to {show(high)}"


def counts(cells: Iterable[Cell]) -> str:
    verdicts = [cell.verdict for cell in cells]
    return " / ".join(str(verdicts.count(name)) for name in ("win", "tie", "loss", "unresolved"))


# ---- tables ----


def arms_table(e: Evidence) -> str:
    rows = []
    for name, arm in ARMS.items():
        settings: list[tuple[str, Mapping]] = [(name, {})]
        if e.knobs.get(name):
            told = ", ".join(f"{key} {value:g}" for key, value in e.knobs[name].items())
            settings.append((f"{name}, tuned ({told})", e.knobs[name]))
        for label, knob in settings:
            worth = e.worth(name, knob)
            if not worth:
                continue
            bad, runs = e.diverged(name, knob)
            grid = arm.kind != "free"
            ratios = e.ratios(name, knob) if grid else {}
            ratio = bootstrap(ratios, geometric_mean) if ratios else None
            rows.append(
                [
                    label,
                    arm.kind,
                    f"{ratio[0]:.3f} ({ratio[1]:.3f} to {ratio[2]:.3f})" if ratio else "-",
                    counts(e.cells(name, knob)) if grid else "-",
                    f"{geometric_mean(list(worth.values())):.2f}",
                    f"{bad} of {runs}",
                ]
            )
    return table(
        ["arm", "kind", "loss ratio", "win / tie / loss / unresolved", "worth at 1x", "diverged"],
        rows,
    )


def by_base_lr(e: Evidence, names: Iterable[str]) -> str:
    """Loss ratios as in the table of arms, for one base LR at a time."""
    rows = []
    for name in names:
        row = [name]
        for multiple in MULTIPLES:
            found = [x for each in e.ratios(name, multiples=[multiple]).values() for x in each]
            row.append(f"{geometric_mean(found):.3f} ({len(found)})" if found else "-")
        rows.append(row)
    return table(["loss ratio (cells in it)", *(f"{multiple:g}x" for multiple in MULTIPLES)], rows)


def on_few(e: Evidence) -> str:
    """Greedy's loss ratio on the workloads that the costly rivals were run on."""
    few = e.worth("line search").keys()
    if not few or few == set(e.workloads):
        return ""
    ratio = bootstrap({name: found for name, found in e.ratios("greedy").items() if name in few}, geometric_mean)
    return (
        f"Hypergradient descent and line search were run on {len(few)} workloads ({', '.join(sorted(few))}). On these"
        f" greedy's loss ratio is {ratio[0]:.3f} ({ratio[1]:.3f} to {ratio[2]:.3f})."
    )


def cells_table(e: Evidence, arm: str) -> str:
    cells = {(cell.workload, cell.multiple): cell for cell in e.cells(arm)}
    rows = []
    for workload in e.workloads:
        row = [workload]
        for multiple in MULTIPLES:
            cell = cells.get((workload, multiple))
            if cell is None:
                row.append("-")
                continue
            error = f" ± {100 * cell.reach:.0f}" if cell.pairs > 1 and math.isfinite(cell.error) else ""
            told = f"{gain(cell.gain)}{error}" if cell.pairs or math.isinf(cell.gain) else "no pair"
            row.append(f"{told}, {cell.verdict} ({cell.opponent})")
        rows.append(row)
    return table(["workload", *(f"{multiple:g}x" for multiple in MULTIPLES)], rows)


def losses_table(e: Evidence, names: Iterable[str]) -> str:
    names = list(names)
    rows = []
    for workload in e.workloads:
        for multiple in MULTIPLES:
            values = {}
            for name in names:
                losses = e.finals(workload, name, multiple)
                if losses:
                    values[name] = mean(losses.values())
            if not values:
                continue
            best = min(values.values())
            rows.append(
                [workload, f"{multiple:g}x"]
                + [
                    "-"
                    if name not in values
                    else f"**{values[name]:.4f}**"
                    if values[name] == best
                    else f"{values[name]:.4f}"
                    for name in names
                ]
            )
    return table(["workload", "base LR", *names], rows)


def long_table(e: Evidence) -> str:
    rows = []
    for workload in e.workloads:
        for multiple in NEAR:
            losses = [e.finals(workload, arm, multiple, {}, "long", 4 * e.steps[workload]) for arm in LONG]
            if all(losses):
                rows.append([workload, f"{multiple:g}x", *(f"{mean(each.values()):.4f}" for each in losses)])
    return table(["workload, 4 T", "base LR", *LONG], rows) if rows else ""


def unknown_end(e: Evidence) -> tuple[str, dict[str, list[float]]]:
    """Table, and workload -> the branch's gains in steps over warmup-stable-decay tuned for each length.

    What a loss is worth in steps is read off the four lengths of warmup-stable-decay: loss ~ length ** -slope.
    """
    rows, gains = [], defaultdict(list)
    for workload in e.workloads:
        pairs = []
        for part in (1, 2, 3, 4):
            steps = part * e.steps[workload]
            branch = e.finals(workload, "trunk", 1.0, {}, "unknown end", steps)
            known = {
                decay: mean(losses.values())
                for decay in (0.1, 0.2, 0.4)
                if (losses := e.finals(workload, "wsd", 1.0, {"decay": decay}, "unknown end", steps))
            }
            if branch and known:
                decay = min(known, key=known.__getitem__)
                pairs.append((part, mean(branch.values()), known[decay], decay))
        slope = -log_slope([(part, theirs) for part, _, theirs, _ in pairs]) if len(pairs) == 4 else 0.0
        for part, own, theirs, decay in pairs:
            worth = (theirs / own) ** (1 / slope) - 1 if slope > 0.01 else math.nan
            if math.isfinite(worth):
                gains[workload].append(worth)
            rows.append([workload, f"{25 * part}%", f"{own:.4f}", f"{theirs:.4f} ({decay:g})", gain(worth)])
    head = ["workload", "branched off at", "greedy, end unknown", "wsd tuned for it (decay)", "steps gained"]
    return table(head, rows), gains


def targets_table(e: Evidence) -> str:
    cells = e.cells("greedy")
    grouped = by_workload(cells)

    def row(text: str, target: str, measured: str, spread: str, met: bool | None) -> list[str]:
        return [text, target, measured, spread, {True: "met", False: "**missed**", None: "not decided"}[met]]

    rows = []
    found, low, high = bootstrap(grouped, lambda values: share(values, "win", "tie"))
    resolved = sum(cell.resolved for cell in cells)
    rows.append(
        row(
            f"not inferior, of {resolved} resolved cells of {len(cells)}",
            "90%, lower bound 80%",
            percent(found),
            interval(low, high),
            found >= 0.9 and low >= 0.8,
        )
    )
    better = {name: [float(_clearly_better(each))] for name, each in grouped.items()}
    found, low, high = bootstrap(better, mean)
    rows.append(
        row("workloads clearly better over the LR grid", "40%", percent(found), interval(low, high), found >= 0.4)
    )
    at_1 = [cell for cell in cells if cell.multiple == 1.0]
    worst = min(at_1, key=lambda cell: cell.gain)
    clear = [cell for cell in at_1 if cell.gain + cell.reach < -0.1]
    rows.append(
        row(
            "clear losses of more than 10% of steps at 1x",
            "none",
            ", ".join(f"{cell.workload} {gain(cell.gain)}" for cell in clear) or "none",
            f"worst: {worst.workload} {gain(worst.gain)}",
            not clear,
        )
    )
    for control in ("open loop", *YOKED):
        against = by_workload(e.cells("greedy", opponents=[control]))
        if not against:
            continue
        finite = {
            name: [math.log1p(cell.gain) for cell in each if cell.pairs and math.isfinite(cell.gain)]
            for name, each in against.items()
        }
        rows.append(row(f"steps gained on {control}, over the LR grid", "above 0", *ahead(finite)))
    lost = {name: [1 - worth] for name, worth in e.worth("greedy", multiple=0.1).items()}
    if lost:
        found, low, high = bootstrap(lost, mean)
        text = "steps lost from 10x too low, in the mean"
        rows.append(row(text, "at most 25%", percent(found), interval(low, high), found <= 0.25))
    bad = [
        f"{workload} {sum(map(math.isinf, own.values()))}"
        for workload in e.workloads
        if (own := e.finals(workload, "greedy", 10.0))
        and any(
            math.isinf(loss) and math.isfinite(e.finals(workload, "constant", 10.0).get(seed, math.inf))
            for seed, loss in own.items()
        )
    ]
    if any(e.finals(workload, "greedy", 10.0) for workload in e.workloads):
        text = "diverged from 10x too high where constant did not"
        rows.append(row(text, "none", ", ".join(bad) or "none", "", not bad))
    _, gains = unknown_end(e)
    if gains:
        found, low, high = bootstrap(gains, mean)
        within = [value >= -TIE for each in gains.values() for value in each]
        rows.append(
            row(
                "unknown end: steps gained on warmup-stable-decay tuned for each length",
                "not under -5%",
                f"{gain(found)}; so in {sum(within)} of {len(within)}",
                interval(low, high, gain),
                found >= -TIE,
            )
        )
    ours = e.worth("greedy")
    for name, arm in ARMS.items():
        if arm.kind != "free" and not name.startswith(("hypergradient", "line search")):
            continue
        tuned = e.worth(name, e.knobs[name]) if e.knobs.get(name) else {}
        theirs = tuned or e.worth(name)
        both = {workload: [math.log(ours[workload] / theirs[workload])] for workload in theirs if workload in ours}
        if both:
            measured, spread, met = ahead(both)
            behind = [workload for workload, (value,) in both.items() if value < -TIE]
            spread += f"; behind in {', '.join(behind)}" if behind else ""
            label = f"{name}, {'tuned' if tuned else 'at its default'}"
            rows.append(row(f"steps gained on {label}, at 1x", "above 0", measured, spread, met))
    return table(
        ["target (default configuration, held-out half)", "wanted", "measured", "95% interval, losses", ""], rows
    )


def ahead(logs: Mapping[str, Sequence[float]]) -> tuple[str, str, bool | None]:
    """From logarithms of gains: their geometric mean, its interval, and whether it is above 0 (None if undecided)."""
    found, low, high = bootstrap(logs, lambda values: math.exp(mean(values)) - 1 if values else math.nan)
    return gain(found), interval(low, high, gain), low > 0 or (None if found > 0 else False)


def _clearly_better(cells: list[Cell]) -> bool:
    """More resolved wins than losses, and a mean gain that is clearly larger than its error."""
    finite = [cell for cell in cells if math.isfinite(cell.gain) and math.isfinite(cell.error)]
    if not finite:
        return False
    gained = mean(cell.gain for cell in finite)
    error = math.sqrt(sum(cell.error**2 for cell in finite)) / len(finite)
    wins, losses = (sum(cell.verdict == verdict for cell in cells) for verdict in ("win", "loss"))
    return gained > max(TIE, 2 * error) and wins > losses


def ablations_table(e: Evidence) -> str:
    rows = []
    for label, knob in ABLATIONS.items():
        rows.append(_ablation_row(e, label, "greedy", knob))
    rows.append(_ablation_row(e, "no horizon", "greedy, no horizon", {}))
    head = ["the default, but", "loss ratio to the default", "loss ratio to cosine and wsd", "worst cell"]
    return table([*head, "win / tie / loss / unresolved", "diverged"], rows)


def complete(e: Evidence, workload: str) -> bool:
    """Whether every ablation of a workload has been run."""
    settings = [("greedy", knob) for knob in ABLATIONS.values()] + [("greedy, no horizon", {})]
    return all(e.finals(workload, arm, multiple, knob) for arm, knob in settings for multiple in MULTIPLES)


def _ablation_row(e: Evidence, label: str, arm: str, knob: Mapping) -> list[str]:
    ratios = e.ratios(arm, knob, opponents=("cosine", "wsd"))
    paired: dict[str, list[float]] = defaultdict(list)
    for workload, multiple in itertools.product(e.workloads, MULTIPLES):
        default = e.finals(workload, "greedy", multiple)
        for seed, loss in e.finals(workload, arm, multiple, knob).items():
            if math.isfinite(loss) and math.isfinite(default[seed]):
                paired[workload].append(loss / default[seed])
    if not ratios:
        return [label, "-", "-", "-", "-", "-"]
    intervals = [bootstrap(each, geometric_mean) for each in (paired, ratios)]
    against = [f"{x:.3f} ({low:.3f} to {high:.3f})" for x, low, high in intervals]
    bad, runs = e.diverged(arm, knob)
    cells = e.cells(arm, knob, opponents=("cosine", "wsd"))
    worst = max(x for each in ratios.values() for x in each)
    return [label, *against, f"{worst:.2f}", counts(cells), f"{bad} of {runs}"]


def large_table(results: Results) -> str:
    """One seed or two a cell: an illustration, not evidence."""
    found: dict[tuple, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for entry in results.runs.values():
        job = entry["job"]
        found[job["workload"], job["lr"]][job["arm"]].append(entry["loss"])
    arms = sorted({arm for each in found.values() for arm in each})
    rows = [
        [workload, f"{lr:g}", *(f"{mean(each[arm]):.4f}" if each.get(arm) else "-" for arm in arms)]
        for (workload, lr), each in sorted(found.items())
    ]
    return table(["model", "base LR", *arms], rows)


# ---- pictures ----

COLOURS = {
    "greedy": "#d55e00",
    "cosine": "#0072b2",
    "wsd": "#009e73",
    "linear": "#56b4e9",
    "constant": "#999999",
    "transformers": "#cc79a7",
    "paper": "#7f3c8d",
    "hypergradient": "#e69f00",
    "hypergradient, groups": "#b39800",
    "hypergradient, tensors": "#604000",
}


def draw(e: Evidence, folder: Path) -> list[str]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    grid = {"figsize": (11, 2.4 * math.ceil(len(e.workloads) / 3)), "squeeze": False}
    shape = (math.ceil(len(e.workloads) / 3), min(3, len(e.workloads)))
    drawn = []

    def save(figure: Any, name: str) -> None:
        figure.tight_layout()
        figure.savefig(folder / name, dpi=90)
        plt.close(figure)
        drawn.append(name)

    figure, axes = plt.subplots(*shape, **grid)
    for ax, workload in zip(axes.flat, e.workloads, strict=False):
        for name in ("greedy", "cosine", "wsd", "linear", "transformers", "paper"):
            points = [
                (multiple, mean(losses.values()))
                for multiple in MULTIPLES
                if (losses := e.finals(workload, name, multiple)) and all(map(math.isfinite, losses.values()))
            ]
            if points:
                ax.plot(
                    *zip(*points, strict=True), ".-", color=COLOURS[name], label=name, lw=2 if name == "greedy" else 1
                )
        ax.set(xscale="log", yscale="log", title=workload)
        ax.set_xticks(MULTIPLES, [f"{m:g}x" for m in MULTIPLES])
        ax.minorticks_off()
    axes.flat[0].legend(fontsize=7)
    figure.supxlabel("base LR over the tuned one")
    figure.supylabel("final validation loss")
    save(figure, "loss_over_base_lr.png")

    figure, axes = plt.subplots(*shape, **grid)
    for ax, workload in zip(axes.flat, e.workloads, strict=False):
        for multiple, shade in zip(MULTIPLES, (0.35, 0.5, 1.0, 0.7, 0.5), strict=True):
            entry = e.entries(workload, "greedy", multiple).get(0)
            if entry and entry.get("scales"):
                scales = entry["scales"]
                x = [i / (len(scales) - 1) for i in range(len(scales))]
                ax.plot(x, [multiple * scale for scale in scales], color="#d55e00", alpha=shade)
        ax.axhline(1, color="#999999", lw=0.8)
        ax.set(yscale="log", title=workload)
    figure.supxlabel("share of the run")
    figure.supylabel("LR over the tuned one, before warmup and decay")
    save(figure, "schedules.png")

    figure, axes = plt.subplots(*shape, **grid)
    for ax, workload in zip(axes.flat, e.workloads, strict=False):
        for name in (
            "constant",
            "cosine",
            "greedy",
            "hypergradient",
            "hypergradient, groups",
            "hypergradient, tensors",
        ):
            entry = e.entries(workload, name, 0.3).get(0)
            if entry and entry.get("losses"):
                losses = [x if x is not None else math.nan for x in entry["losses"]]
                x = [i / len(losses) for i in range(len(losses))]
                ax.plot(x, losses, color=COLOURS[name], label=name, lw=2 if name == "greedy" else 1)
        ax.set(title=workload, yscale="log")
    axes.flat[0].legend(fontsize=7)
    figure.supxlabel("share of the run, base LR 0.3x the tuned one")
    figure.supylabel("training loss")
    save(figure, "loss_histories.png")
    return drawn


# ---- the report ----


def replace_part(path: Path, part: str, name: str = "suite") -> None:
    """Put `part` between the marks of a file; SystemExit if there are none."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    text = path.read_text()
    if begin not in text or end not in text:
        raise SystemExit(f"{path} has no lines {begin} and {end} to put the report between")
    path.write_text(re.sub(f"{begin}.*?{end}", lambda _: f"{begin}\n{part}\n{end}", text, flags=re.S))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--output", type=Path, default=None, help="default: RESULTS.md and img in benchmarks")
    args = parser.parse_args(argv)
    stored = json.loads((args.results / "tuned.json").read_text())
    tuned, knobs = load_tuned(args.results), stored.get("knobs", {})
    held_out = Results(args.results / "held-out.jsonl")
    e = Evidence(held_out, tuned, knobs, "held-out")
    if not e.workloads:
        raise SystemExit(f"{args.results} has no results: run `python -m benchmarks.suite` first")
    pictures = draw(e, (args.output or HERE) / "img")
    head = environment_of(args.results / "held-out.jsonl")
    files = [args.results / f"{stage}.jsonl" for stage in ("search", "tune", "ablate", "held-out", "large")]
    text = [
        f"Configuration {head['config']}, {', '.join(f'{k} {v}' for k, v in head['versions'].items())}; "
        f"{head['machine']}; {sum(len(Results(file).runs) for file in files)} runs."
    ]
    text += ["### Targets", targets_table(e)]
    text += ["### Every arm", LEGEND, arms_table(e), on_few(e), "### Loss ratio by base LR", by_base_lr(e, SHOWN)]
    text += ["### GreedyLR's default against the best fixed schedule of each cell", CELLS, cells_table(e, "greedy")]
    text += ["### Final validation losses", losses_table(e, SHOWN)]
    if long := long_table(e):
        text += ["### Four times the horizon", long]
    if (unknown := unknown_end(e))[1]:
        text += ["### An end that was not known", unknown[0]]
    if (args.results / "ablate.jsonl").exists():
        a = Evidence(Results(args.results / "ablate.jsonl"), tuned, {}, "ablate")
        a.workloads = [name for name in a.workloads if complete(a, name)]
    if (args.results / "ablate.jsonl").exists() and a.workloads:
        names = ", ".join(a.workloads)
        text += [f"### Ablations, on {len(a.workloads)} workloads of the tuning half ({names})"]
        text += [ablations_table(a)]
    if (args.results / "large.jsonl").exists():
        text += ["### Larger models, as illustration", LARGE, large_table(Results(args.results / "large.jsonl"))]
    rows = [[name, f"{each['lr']:g}", each["arm"], f"{each.get('loss', math.nan):.4f}"] for name, each in tuned.items()]
    text += ["### Tuned base LRs", table(["workload", "base LR", "strongest schedule", "loss"], rows)]
    text += ["### Pictures", *(f"![{name}](img/{name})" for name in pictures)]
    whole = "\n\n".join(part.strip() for part in text if part)
    if args.output:
        (args.output / "report.md").write_text("# Report\n\n" + whole + "\n")
        print(f"{args.output / 'report.md'}: tables; {args.output / 'img'}: pictures")
        return
    replace_part(HERE / "RESULTS.md", whole)


LEGEND = """Loss ratio: final validation loss over that of the best of the six fixed schedules in the same cell (picked
afterwards, in its own favour), geometric mean over workloads and base LRs of 0.1x to 10x, with an interval from whole
workloads resampled. Cells in which a run of the arm diverged are not in it; they are counted separately. Win, tie,
loss: against the fixed schedule that was best on the other seeds, pair by pair, a tie being within 5% of the steps. It
is decided if Student's 95% interval excludes that, or if the standard error is within a third of it. Worth at 1x: how
long the tuned best schedule would have to run for the same loss, as a share of the run. LR-free methods are at 1x only.

Controls: *open loop* climbs from the start and decays at the end, whatever the loss; *yoked* repeats the scales that
greedy took on another seed or workload; *envelope* is warmup and final decay alone; *range test* spends the first steps
on a sweep of the LR, then is warmup-stable-decay. Rivals were tuned with 8 trials on seven workloads of the tuning
half, one seed, at 0.3x and 1x. The default of greedy was chosen in about 40 trials over the whole LR grid (LOG.md), so
greedy had the larger budget."""
LARGE = """`python -m benchmarks.large`: final validation loss, one seed each, so this is not evidence. "classify" is
MiniLM on film reviews, "lora" is LoRA on SmolLM2-135M over three epochs of a few chats."""
CELLS = """Gain in steps (how many more the opponent would need), ± half of its 95% interval, by base LR. "No pair": in
each pair, a run diverged, or both were worse than a tenth of the steps, or better than twice as many."""


if __name__ == "__main__":
    main()
