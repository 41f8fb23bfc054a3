"""No picture of the pages is stale, and the notebooks run and print and show what is stored in them."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))
import made
import notebooks

NOTEBOOKS = sorted(notebooks.FOLDER.glob("*.ipynb"))
NUMBER = re.compile(r"\d[\d.,e+-]*")


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the hashes are of code as Python 3.11 unparses it")
@pytest.mark.parametrize("one", made.MADE, ids=lambda one: Path(one.files[0]).stem)
def test_what_is_made_is_not_stale(one):
    known, now = made.recorded(), made.hash_of(one)
    for file in one.files:
        assert (ROOT / file).is_file()
        assert known.get(file) == now, f"{file} is stale, since its inputs changed: run python docs/made.py"


def test_every_picture_is_made_by_something():
    there = {
        str(path.relative_to(ROOT)) for folder in ("docs", "benchmarks") for path in (ROOT / folder).rglob("*.png")
    }
    there |= {str(path.relative_to(ROOT)) for path in NOTEBOOKS}
    assert {file for one in made.MADE for file in one.files} == {file for file in there if "/results/" not in file}
    assert made.recorded().keys() == {file for one in made.MADE for file in one.files}


def test_code_counts_and_comments_do_not(tmp_path, monkeypatch):
    source, manifest = tmp_path / "draw.py", tmp_path / "made.json"
    monkeypatch.setattr(made, "ROOT", tmp_path)
    monkeypatch.setattr(made, "MANIFEST", manifest)
    one = made.Made(("a.png",), "draw.py", ("draw.py:draw", "data.json"))
    monkeypatch.setattr(made, "MADE", (one,))
    source.write_text('def draw():\n    """Draw."""\n    x = 1  # one\n    """A field."""\n    return x\n')
    (tmp_path / "data.json").write_text("1")
    assert made.stale() == [one]
    made.record(one)
    assert made.stale() == []
    source.write_text(
        'def other():\n    return 0\n\n\ndef draw():\n    """Draw it."""\n    x = 1\n    """A."""\n    return x\n'
    )
    assert made.stale() == []
    source.write_text(source.read_text().replace("x = 1", "x = 2"))
    assert made.stale() == [one]
    made.record(one)
    (tmp_path / "data.json").write_text("2")
    assert made.stale() == [one]


# ---- notebooks ----


def shown(cell):
    """What a cell puts out: kinds, and texts without their numbers; the Trainer's table of losses is left out."""
    found = []
    for output in cell.get("outputs", []):
        if output["output_type"] == "stream":
            found.append(NUMBER.sub("#", output["text"]))
        else:
            found.append(sorted(output["data"]))
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.slow if path.stem == "trainer" else (), id=path.stem) for path in NOTEBOOKS],
)
def test_a_notebook_runs_and_shows_what_is_stored(path):
    nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed")
    stored, now = nbformat.read(path, as_version=4), notebooks.executed(path)
    nbformat.validate(stored)
    outputs = [output for cell in now.cells for output in cell.get("outputs", [])]
    assert [shown(cell) for cell in now.cells] == [shown(cell) for cell in stored.cells]
    htmls = ["".join(output["data"].get("text/html", "")) for output in outputs if "data" in output]
    assert any("<td>holding the LR at which the search ended</td>" in text for text in htmls)  # the history's table
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1  # its plot, once
    assert numbers_of_losses(now) == pytest.approx(numbers_of_losses(stored), rel=0.1)  # what the text says of them
    greedy, fixed = numbers_of_losses(now)
    assert greedy < fixed


def numbers_of_losses(notebook):
    """The last two losses that a notebook compares."""
    text = "".join(output["text"] for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output)
    return [float(text) for text in re.findall(r"(?:greedy|cosine|linear) +(?:test loss )?(\d\.\d+)", text)][-2:]
