"""What a release contains, that it is built alike each time, and that what is imported is declared."""

import ast
import os
import re
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from processes import run

import greedylr_integrations

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BUILD = "import sys; from hatchling.build import {0} as build; print(build(sys.argv[1]))"
FOLDERS = ("greedylr_integrations", "recipes", "benchmarks", "tests", "docs")


def built(what, source, out, address=""):
    out.mkdir(exist_ok=True)
    env = {**os.environ, "REPOSITORY_URL": address, "SOURCE_DATE_EPOCH": "1750000000"}
    done = run([sys.executable, "-c", BUILD.format(f"build_{what}"), out], cwd=source, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return out / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """The sdist, its unpacked folder, and the wheel that is built from it."""
    pytest.importorskip("hatchling", reason="the dev extra is not installed")
    out = tmp_path_factory.mktemp("release")
    sdist = built("sdist", ROOT, out / "dist")
    with tarfile.open(sdist) as archive:
        archive.extractall(out, filter="data")
    source = out / sdist.name.removesuffix(".tar.gz")
    return sdist, source, built("wheel", source, out / "dist")


def test_a_release_has_the_same_bytes_each_time(release, tmp_path):
    sdist, _, wheel = release
    assert built("sdist", ROOT, tmp_path / "dist").read_bytes() == sdist.read_bytes()
    assert built("wheel", ROOT, tmp_path / "dist").read_bytes() == wheel.read_bytes()


def test_the_wheel_has_the_package_and_nothing_else(release):
    names = zipfile.ZipFile(release[2]).namelist()
    package = {name for name in names if not name.split("/")[0].endswith(".dist-info")}
    there = {path for path in (ROOT / "greedylr_integrations").rglob("*") if path.is_file()}
    expected = {str(path.relative_to(ROOT)) for path in there if "__pycache__" not in path.parts}
    assert package == expected
    assert {"greedylr_integrations/py.typed", "greedylr_integrations/learned/network.safetensors"} <= package


def test_the_sdist_has_all_that_its_tests_need(release):
    _, source, _ = release
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            ignored = {"__pycache__", "quick"} & {*path.parts}
            if path.is_file() and not ignored:
                assert (source / path.relative_to(ROOT)).read_bytes() == path.read_bytes()
    for name in ("CHANGELOG.md", "Makefile", "constraints.txt", "mkdocs.yml", ".ci/run", ".github/SECURITY.md"):
        assert (source / name).is_file(), name


@pytest.mark.slow
def test_the_tests_of_the_sdist_run(release):
    _, source, _ = release
    env = {**os.environ, "PYTHONPATH": str(source)}
    done = run([sys.executable, "-m", "pytest", "-q", "--collect-only"], cwd=source, env=env, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:]
    done = run([sys.executable, "-m", "pytest", "-q", "tests/test_envelope.py"], cwd=source, env=env, timeout=200)
    assert done.returncode == 0, done.stdout[-3000:]


def metadata(wheel):
    (name,) = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("METADATA")]
    return zipfile.ZipFile(wheel).read(name).decode()


def test_the_version_stands_in_one_place(release):
    assert f"\nVersion: {greedylr_integrations.__version__}\n" in metadata(release[2])
    code = "import sys, greedylr_integrations as g; print(g.__version__, 'torch' in sys.modules)"
    done = run([sys.executable, "-c", code], cwd=ROOT)
    assert done.stdout.split() == [greedylr_integrations.__version__, "False"]


def test_a_release_has_the_readme_with_absolute_links(release, tmp_path):
    _, source, wheel = release
    assert "Project-URL" not in metadata(wheel)
    address = "https://example.org/owner/name"
    text = metadata(built("wheel", source, tmp_path / "dist", address + "/"))
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(links) == len(re.findall(r"\]\(([^)\s]+)\)", (ROOT / "README.md").read_text()))
    assert all(link.startswith("https://") for link in links)
    assert f"{address}/raw/HEAD/docs/img/loss-over-base-lr.png" in links
    assert f"{address}/blob/HEAD/docs/trainer.md" in links
    assert "Description-Content-Type: text/markdown" in text
    assert f"Project-URL: Source, {address}\n" in text
    assert f"Project-URL: Issues, {address}/issues\n" in text


# ---- dependencies ----


ALLOWED = {  # extras whose packages a folder may import
    "greedylr_integrations": ("transformers", "lightning", "accelerate", "cli", "learn", "trackers"),
    "recipes": ("recipes", "ray"),
    "benchmarks": ("bench",),
    "tests": ("test", "bench"),
    "docs": ("docs", "test"),
}


WITH_AXOLOTL = {"pydantic"}  # only its plugin needs it


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(extra):
    """Names of the packages of an extra, and of the extras in it."""
    names = set()
    for requirement in PROJECT["optional-dependencies"][extra]:
        name, inner = re.match(r"([\w.-]+)(?:\[([\w,]+)\])?", requirement).groups()
        if name == PROJECT["name"]:
            names = names.union(*map(declared, inner.split(",")))
        else:
            names.add(normal(name))
    return names


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


def test_what_is_imported_is_declared():
    packages = packages_distributions()
    local = {path.stem for place in ("tests", "tests/fuzz", "docs") for path in (ROOT / place).glob("*.py")}
    foreign = packages.keys() - {
        *FOLDERS,
        *local,
        "recordings",
    }  # tests/recordings; only what is installed has an owner
    for folder, extras in ALLOWED.items():
        allowed = {"hatchling", *WITH_AXOLOTL}.union(*map(declared, extras))
        for path in (ROOT / folder).rglob("*.py"):
            for name in foreign & {*imported(path)}:
                owners = {normal(owner) for owner in packages[name]}
                assert owners & allowed, f"{path.relative_to(ROOT)} imports {name}: declare {owners} in pyproject.toml"
