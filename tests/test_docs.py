"""Every Python block of the docs and the README runs, page by page, on small models in place of the reader's."""

import re
import sys
import textwrap
from pathlib import Path

import pytest
import tiny
import torch
from processes import run

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^(?P<indent> *)```python\n(?P<code>.*?)^(?P=indent)```", re.M | re.S)


def blocks(page):
    text = page.read_text()
    for match in FENCE.finditer(text):
        line = text[: match.start()].count("\n") + 1
        yield line, textwrap.dedent(match["code"])


def reader(out):
    """What a reader of the docs has: a model, data, an optimizer, in the names that the pages use."""
    import lightning.pytorch as pl
    from datasets import Dataset
    from transformers.utils import ModelOutput

    class Model(tiny.Regressor):
        def forward(self, x, labels=None):
            return ModelOutput(super().forward(x, labels))

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = tiny.Regressor()

        def training_step(self, batch, batch_idx):
            return self.model(**batch)["loss"]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    net = Model()
    data = tiny.regression_data()
    loader = torch.utils.data.DataLoader(data, batch_size=4)
    return {
        "model": net,
        "net": net,
        "module": Module(),
        "dataset": data,
        "data": data,
        "held_out": data,
        "make_model": lambda: net,
        "llm": tiny.llama(),
        "tokenizer": tiny.tokenizer(),
        "texts": Dataset.from_list([{"text": f"w{i} w{i + 1}"} for i in range(20)]),
        "loader": loader,
        "batches": loader,
        "optimizer": torch.optim.AdamW(net.parameters(), lr=1e-3),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [p for p in PAGES if list(blocks(p))], ids=lambda p: p.stem)
def test_every_block_runs(page, tmp_path, monkeypatch):
    from accelerate.state import AcceleratorState, GradientState, PartialState

    monkeypatch.chdir(tmp_path)
    for state in (AcceleratorState, GradientState, PartialState):
        state._shared_state.clear()
    names = reader(tmp_path)
    for line, code in blocks(page):
        exec(compile("\n" * line + code, str(page), "exec"), names)


PROSE = [
    page
    for pattern in ("*.md", "docs/*.md", "recipes/**/*.md", "benchmarks/*.md")
    for page in sorted(ROOT.glob(pattern))
]


@pytest.mark.parametrize("page", PROSE, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    prose = re.sub(r"^ *```.*?^ *```|`[^`\n]+`", "", page.read_text(), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" in link:
            assert re.fullmatch(r"https://[\w-]+(\.[\w-]+)+(/[^\s<>\"]*)?", link), f"{page.name}: {link}"
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if target.parent.name == "notebooks":
            target = target.with_suffix(".ipynb")  # shown as a page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name} links to {link}"


def anchors(page):
    """The anchors of a page's headings, as MkDocs and GitHub make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).lower()) for heading in headings}


def test_the_pages_are_in_the_navigation_and_their_pictures_there():
    nav = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f" {page.name}" in nav
        for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text()):
            assert (page.parent / picture).is_file(), f"{page.name}: {picture}"


def test_the_site_builds_without_warnings_and_its_links_lead_somewhere(tmp_path):
    pytest.importorskip("mkdocs", reason="the docs extra is not installed")
    done = run([sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path], cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    pages = {page.name: page.read_text() for page in tmp_path.glob("*.html") if page.name != "404.html"}
    assert len(pages) == len(list((ROOT / "docs").glob("*.md")))
    for name, text in pages.items():
        for link, anchor in re.findall(r'(?:href|src)="([^"#]*)(?:#([^"]*))?"', text):
            if link.startswith(("http", "data:")):
                continue
            assert not link or (tmp_path / link).exists(), f"{name} links to {link}"
            target = pages.get(link or name)
            if anchor and target is not None:
                assert f'id="{anchor}"' in target, f"{name} links to {link}#{anchor}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1200


def test_the_readmes_commands_are_there():
    text = (ROOT / "README.md").read_text()
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.M)
    made = re.findall(r"^make (\w+)|`make (?:[A-Z_]+=\S+ )*(\w+)`", text, re.M)
    assert {name for pair in made for name in pair if name} == {"demo", "test"} <= {*targets}
    assert {*re.findall(r"`greedylr (\w+)", text)} == {"plot", "explain"}  # run by test_cli


def test_the_tests_behind_the_comparison_are_there():
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (ROOT / "docs/comparison.md").read_text())
    assert len(named) > 10
    for file, name in named:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), f"{file} has no {name}"
