"""A type checker reports what a user misspells; `make lint` checks the file without the mistakes."""

import sys
from pathlib import Path

import pytest
from processes import run

ROOT = Path(__file__).parent.parent
USER = ROOT / "tests" / "typed_user.py"
MISTAKES = [
    ("    SlopeConfig,\n", "    SlopeConfg,\n", "SlopeConfg"),
    ("start_scale=0.1", "start_scal=0.1", 'Unexpected keyword argument "start_scal" for "SlopeConfig"'),
    ("window_size=50", "windw_size=50", 'Unexpected keyword argument "windw_size" for "GreedyConfig"'),
    ("window_size=20", "windw_size=20", 'Unexpected keyword argument "windw_size" for "GreedyLRCallback"'),
    ("max_scale=3.0", "max_scal=3.0", 'Unexpected keyword argument "max_scal" for "GreedyLR"'),
    ("prog_bar=True", "progbar=True", 'Unexpected keyword argument "progbar" for "GreedyLRCallback"'),
    ("accelerate.GreedyLR(optimizer, total_steps", "accelerate.GreedyLR(optimizer, totl_steps", "totl_steps"),
    ("max_scale=3.0", "max_scale='3'", 'Argument "max_scale" to "GreedyLR" has incompatible type'),
    ("suggested_lr()", "sugested_lr()", 'has no attribute "sugested_lr"'),
    ("record.decision.reason", "record.decision.reasn", 'has no attribute "reasn"'),
]


@pytest.mark.slow  # minutes, if mypy has not seen torch yet
def test_each_mistake_is_reported(tmp_path):
    for package in ("mypy", "lightning", "transformers", "accelerate"):
        pytest.importorskip(package)
    source = USER.read_text()
    files = []
    for i, (right, wrong, _) in enumerate(MISTAKES):
        assert right in source
        files.append(tmp_path / f"mistake_{i}.py")
        files[-1].write_text(source.replace(right, wrong, 1))
    done = run([sys.executable, "-m", "mypy", USER, *files], cwd=ROOT, timeout=500)
    assert done.returncode == 1, done.stderr
    reported = done.stdout.splitlines()
    assert not [line for line in reported if USER.name in line]
    for file, (_, wrong, says) in zip(files, MISTAKES, strict=True):
        assert [line for line in reported if file.name in line and says in line], wrong
