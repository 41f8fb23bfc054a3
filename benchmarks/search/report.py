"""Tables of the search suite, for RESULTS.md."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from benchmarks.search import arms, picture, stages
from benchmarks.search.rivals import RIVALS, best_value
from benchmarks.search.scoring import AGREEMENT, FLOOR, Worth, geometric_mean, interval, worth_of
from benchmarks.search.store import RESULTS, Results
from benchmarks.search.workload import Workload
from recipes.common.records import Record

BEGIN, END = "<!-- search: begin -->", "<!-- search: end -->"
ARMS = ("greedy", "loss window", *arms.YOKED, "wsd", "linear", "cosine", "constant")
FROM = (0.1, 1.0, 10.0)  # where the LRs that were found are compared
PART = "3 epochs"
JUDGED_FROM = 300  # steps; shorter runs are shown, but no target applies to them
Families = dict[str, list[float]]
Row = tuple[str, str, str, bool]  # target, what was wanted, what was measured, whether it was reached


@dataclass(frozen=True)
class Place:
    """One workload at one run length, with its measure."""

    workload: Workload
    steps: int
    worth: Worth


class Evidence:
    """What the tables are made of.

    Args:
        workloads: of one half.
    """

    def __init__(self, results: Results, workloads: Sequence[Workload]) -> None:
        self.results = results
        lengths = sorted({run["steps"] for run in results.of(stage="run")})
        self.places = []
        for steps, workload in itertools.product(lengths, workloads):
            measure = worth_of(results, workload.name, steps)
            if measure is not None:
                self.places.append(Place(workload, steps, measure))

        self._cells: dict[tuple[str, int, str, float], list[Record]] = {}
        for run in results.of(stage="run"):
            self._cells.setdefault((run["workload"], run["steps"], run["arm"], run["multiple"]), []).append(run)

    @property
    def lengths(self) -> list[int]:
        return sorted({place.steps for place in self.places})

    def runs(self, place: Place, arm: str, multiple: float, decay: float | None = None) -> list[Record]:
        """The runs of one cell; of a rival, those with one value of its setting."""
        found = self._cells.get((place.workload.name, place.steps, arm, multiple), [])
        return found if decay is None else [run for run in found if run.get("decay") == decay]

    def cell(self, place: Place, arm: str, multiple: float, decay: float | None = None) -> float | None:
        """Worth of the mean loss of a cell, in which a diverged run counts as infinite. None if it was not run."""
        losses = [math.inf if run["loss"] is None else run["loss"] for run in self.runs(place, arm, multiple, decay)]
        return place.worth(mean(losses)) if losses else None

    def rival(self, place: Place, name: str, kind: str, multiple: float) -> float | None:
        """Worth of a rival's cell, at its default or "tuned": at the value that was best on another seed."""
        if not self.runs(place, name, 1.0):
            return None
        rival = RIVALS[name]
        tuned = kind == "tuned"
        value = best_value(self.results, place.workload, name, place.steps) if tuned else rival.values[0]
        return self.cell(place, name, 1.0 if rival.free else multiple, value)

    def over(self, lengths: Iterable[int], arm: str, multiples: Sequence[float]) -> Families:
        """Worth in each cell, by family."""
        return self.collect(lengths, multiples, lambda place, multiple: self.cell(place, arm, multiple))

    def collect(
        self, lengths: Iterable[int], multiples: Sequence[float], of: Callable[[Place, float], float | None]
    ) -> Families:
        """What is known of each cell, by family."""
        found: Families = {}
        for place, multiple in itertools.product(self.places, multiples):
            value = of(place, multiple) if place.steps in lengths else None
            if value is not None:
                found.setdefault(place.workload.family, []).append(value)
        return found

    def found(self, place: Place, multiple: float) -> float | None:
        """The LR that the default found, as a multiple of the tuned one; None if a run diverged or there is none."""
        values = [run["found"] * multiple for run in self.runs(place, "greedy", multiple) if "found" in run]
        return geometric_mean(values) if len(values) == len(stages.SEEDS) else None

    def agreement(self, place: Place) -> float | None:
        """Largest over smallest LR found from 0.1x, 1x and 10x."""
        values = [self.found(place, multiple) for multiple in FROM]
        known = [value for value in values if value is not None]
        return max(known) / min(known) if len(known) == len(FROM) else None


def of_interval(values: Families) -> str:
    if not values:
        return ""
    whole, low, high = interval(values)
    return f"{whole:.2f} ({low:.2f} to {high:.2f})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows), ""]


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def targets(e: Evidence) -> list[str]:
    """What was asked for, and whether it was reached; on whole workloads, with 95% intervals."""
    rows: list[Row] = []
    for lengths, wanted in (([300], 0.92), ([n for n in e.lengths if n >= 1000], 1.0)):
        name = " and ".join(f"{n:,}" for n in lengths)
        for multiple in stages.MULTIPLES:
            values = e.over(lengths, "greedy", [multiple])
            if values:
                reached = interval(values)[0] >= wanted
                rows.append((f"worth from {multiple:g}x, {name} steps", f"{wanted:g}", of_interval(values), reached))
    cells = [
        (e.cell(place, "greedy", m), f"{place.workload.name} {place.steps} steps {m:g}x")
        for place, m in itertools.product(e.places, stages.MULTIPLES)
        if place.steps >= JUDGED_FROM
    ]
    known = [(value, name) for value, name in cells if value is not None]
    low = sorted(cell for cell in known if cell[0] < FLOOR)
    rows.append((f"cells under {FLOOR} from {JUDGED_FROM} steps on", "none", f"{len(low)} of {len(known)}", not low))
    for n in e.lengths:
        known_agreements = [e.agreement(place) for place in e.places if place.steps == n]
        good = [value is not None and value <= AGREEMENT for value in known_agreements]
        rows.append((f"LRs found from 0.1x, 1x, 10x within {AGREEMENT}, {n:,} steps", "80% of workloads",
                     f"{mean(good):.0%} of {len(good)}", mean(good) >= 0.8))  # fmt: skip
    rows += _against(e)
    for n, ratio in epochs(e).items():
        rows.append((f"three epochs: worth over that with new data, {n:,} steps", "0.9", f"{ratio:.2f}", ratio >= 0.9))
    said = [(name, wanted, measured, "met" if met else "**missed**") for name, wanted, measured, met in rows]
    return table(("target, at defaults", "wanted", "measured", ""), said)


def _against(e: Evidence) -> list[Row]:
    """The default's worth over that of others in the same cells."""
    others: dict[str, Callable[[Place, float], float | None]] = {}
    for arm in (*arms.YOKED, "loss window"):
        others[arm] = lambda place, multiple, arm=arm: e.cell(place, arm, multiple)  # type: ignore[misc]
    for name, kind in itertools.product(RIVALS, ("default", "tuned")):
        others[f"{name}, {kind}"] = (
            lambda place, multiple, name=name, kind=kind: e.rival(place, name, kind, multiple)  # type: ignore[misc]
        )
    rows: list[Row] = []
    for title, other in others.items():

        def ratio(place: Place, multiple: float, other: Callable[[Place, float], float | None] = other) -> float | None:
            mine, theirs = e.cell(place, "greedy", multiple), other(place, multiple)
            return None if mine is None or theirs is None else mine / theirs

        found = e.collect([n for n in e.lengths if n >= JUDGED_FROM], stages.MULTIPLES, ratio)
        if found:
            ahead = interval(found)[1] > 1
            rows.append((f"worth over that of {title}, mean over base LRs", "above 1", of_interval(found), ahead))
    return rows


def epochs(e: Evidence) -> dict[int, float]:
    """Worth in three epochs over that with new data, by run length."""
    found = {}
    for n in e.lengths:
        ratios = []
        here = {place.workload.name: place for place in e.places if place.steps == n}
        for name, place in here.items():
            if PART in name and place.workload.family in here:
                for multiple in stages.MULTIPLES:
                    pair = [e.cell(p, "greedy", multiple) for p in (place, here[place.workload.family])]
                    if None not in pair:
                        ratios.append(pair[0] / pair[1])  # type: ignore[operator]
        if ratios:
            found[n] = geometric_mean(ratios)
    return found


def by_arm(e: Evidence) -> list[str]:
    lines = []
    for n in e.lengths:
        places = sum(place.steps == n for place in e.places)
        multiples = sorted({run["multiple"] for run in e.results.of(stage="run", steps=n)})
        rows = []
        for arm in ARMS:
            values = [e.over([n], arm, [multiple]) for multiple in multiples]
            if any(values):
                means = [number(geometric_mean(list(itertools.chain(*v.values())))) if v else "" for v in values]
                rows.append((arm, *means, of_interval(e.over([n], arm, stages.MULTIPLES))))
        lines += [f"**{n:,} steps**, {places} workloads", ""]
        lines += table(("", *(f"{m:g}x" for m in multiples), "0.1x to 10x"), rows)
    return lines


def by_workload(e: Evidence) -> list[str]:
    rows = []
    for place in e.places:
        cells = [number(e.cell(place, "greedy", multiple)) for multiple in stages.MULTIPLES]
        stable = [number(e.cell(place, "wsd", multiple)) for multiple in (0.1, 1.0, 10.0)]
        lrs = [number(e.found(place, multiple)) for multiple in FROM]
        if any(cells):
            name = f"{place.workload.name}, {place.workload.optimizer}"
            rows.append((name, f"{place.steps:,}", " ".join(cells), " ".join(stable), " ".join(lrs),
                         number(e.agreement(place))))  # fmt: skip
    head = ("workload", "steps", "worth from 0.1x .3x 1x 3x 10x", "wsd from 0.1x 1x 10x")
    return table((*head, "LR found from 0.1x 1x 10x", "apart by"), rows)


def by_rival(e: Evidence) -> list[str]:
    lengths = [n for n in e.lengths if any(e.results.of(stage="run", arm=name, steps=n) for name in RIVALS)]
    rows = []
    for (name, rival), kind in itertools.product(RIVALS.items(), ("default", "tuned")):
        multiples = (1.0,) if rival.free else stages.MULTIPLES

        def worth(place: Place, multiple: float, name: str = name, kind: str = kind) -> float | None:
            return e.rival(place, name, kind, multiple)

        values = [e.collect([n], multiples, worth) for n in lengths]
        if any(values):
            needs = "none needed" if rival.free else "0.1x to 10x"
            rows.append((f"{name}, {kind}", needs, *(of_interval(found) for found in values)))
    return table(("", "base LR", *(f"worth, {n:,} steps" for n in lengths)), rows)


def text(e: Evidence) -> str:
    """All of it."""
    settings = e.results.settings
    lines = [
        f"Rules {settings.get('rules', 'not run')}, torch {settings['versions']['torch']}, {settings['machine']};"
        f" {len(e.results.runs):,} runs.",
        "",
        "Worth: for how long, in runs, the tuned best fixed schedule would have to train to the same validation loss."
        " It is the best of linear, cosine and warmup-stable-decay with four shares of decay, each over 11 LRs, chosen"
        " on two other seeds, anew for each run length. Base LRs are multiples of the tuned LR. Three seeds; geometric"
        " means over workloads; intervals (95%) from drawing whole workloads anew. Worth lies between 0.1 and 2, and a"
        " cell with a diverged run counts as 0.1.",
        "",
        *targets(e),
        "Worth from each base LR:",
        "",
        *by_arm(e),
        "*yoked* replays the scales of the default on another workload, from another multiple of that one's tuned LR,"
        " so that it knows no more than the default does. *yoked, same multiple* is told how far the base LR is off.",
        "",
        *by_workload(e),
        "Rivals, each from its package but the last, at its default and at the best of four values of its main setting"
        " for the workload on another seed:",
        "",
        *by_rival(e),
    ]
    return "\n".join(lines)


def summary(e: Evidence) -> str:
    """The numbers of the picture, as a table."""
    steps, lines = picture.lines_of(e)
    head = ("final loss over that of the tuned schedule", *(f"{multiple:g}x" for multiple in stages.MULTIPLES))
    rows = [(picture.LINES[arm][0], *(f"{ratio:.2f}" for ratio in ratios)) for arm, ratios in lines.items()]
    workloads = sum(place.steps == steps for place in e.places)
    return "\n".join([f"{workloads} workloads, {steps:,} steps; columns are base LRs:", "", *table(head, rows)])


def write(
    results: Results, workloads: Sequence[Workload], output: Path, image: Path, short: Path | None = None
) -> None:
    """Put the tables between the markers of a Markdown file, or into a new one, and draw the picture.

    Args:
        short: another Markdown file with the markers, for the numbers of the picture.
    """
    e = Evidence(results, workloads)
    insert(output, text(e))
    if short is not None:
        insert(short, summary(e))
    picture.draw(e, image)


def insert(path: Path, lines: str) -> None:
    """Replace what is between the markers."""
    old = path.read_text() if path.exists() else f"{BEGIN}\n{END}\n"
    if BEGIN not in old or END not in old:
        raise SystemExit(f"{path} has no markers for these tables: add lines with {BEGIN} and {END}")
    before, after = old.split(BEGIN)[0], old.split(END)[1]
    path.write_text(f"{before}{BEGIN}\n{lines.rstrip()}\n{END}{after}")


def main(results: Results, workloads: Sequence[Workload], folder: Path) -> None:
    """Write the tables of one half into RESULTS.md and README.md; elsewhere if the results are."""
    output = RESULTS.parent / "RESULTS.md" if folder == RESULTS else folder / "search.md"
    root = RESULTS.parent.parent
    images, short = (root / "docs" / "img", root / "README.md") if folder == RESULTS else (folder, None)
    write(results, workloads, output, images / "loss-over-base-lr.png", short=short)
