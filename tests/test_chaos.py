"""Random faults in runs on two processes: none hangs, the ranks stay equal, and what died resumes exactly.

    GREEDYLR_CHAOS=100 pytest -m slow tests/test_chaos.py

has 100 faults in each framework; without it, there are 8.
`kill_worker.py` has the faults.
"""

import math
import os
import random
from statistics import fmean

import pytest
from processes import wait
from test_kill import FRAMEWORKS, STEPS, finish, launch, skip_before_transformers_5, trace

from greedylr_integrations import history
from greedylr_integrations.decision import Reason

pytestmark = pytest.mark.slow
RULE = "slope"
DEADLY = ("kill", "term", "exception", "disk")
FAULTS = (*DEADLY, "slow", "frozen", "clock", "nan")
COUNT = int(os.environ.get("GREEDYLR_CHAOS", len(FAULTS)))


@pytest.fixture(scope="module", params=FRAMEWORKS)
def whole(request, tmp_path_factory):
    """A run in which nothing happens."""
    if request.param == "transformers":
        skip_before_transformers_5()
    if request.param == "lightning":
        pytest.importorskip("torchdata", reason="a stateful dataloader is needed to resume within an epoch")
    out = tmp_path_factory.mktemp(request.param)
    finish(launch(request.param, RULE, out), out)
    return request.param, trace(out, RULE), history.read(out / "history.jsonl")


@pytest.mark.parametrize("number", range(COUNT))
def test_a_random_fault(whole, tmp_path, number):
    framework, expected, uninterrupted = whole
    chance = random.Random(f"{framework} {number}")
    kind = FAULTS[number % len(FAULTS)]
    rank, step = chance.randrange(2), chance.randrange(2, STEPS[RULE] - 4)
    code = wait(launch(framework, RULE, tmp_path, fault=f"{kind} {rank} {step}"), 180, (tmp_path / "errors").read_text)
    assert (code != 0) == (kind in DEADLY), (tmp_path / "errors").read_text()[-4000:]
    if code:
        finish(launch(framework, RULE, tmp_path, "resume"), tmp_path)
    first, second = trace(tmp_path, RULE)
    assert [(row["lr"], repr(row["seen"])) for row in first] == [(row["lr"], repr(row["seen"])) for row in second]
    if kind == "nan":
        _, records, _ = history.read(tmp_path / "history.jsonl")
        assert [record.decision.reason for record in records].count(Reason.ROLLED_BACK) == 1
        assert len(records) == STEPS[RULE]
        losses = [record.decision.loss for record in records if math.isfinite(record.decision.loss)]
        assert fmean(losses[-16:]) < fmean(losses[:16])
    else:
        assert [first, second] == expected  # LRs, losses seen and own losses, bit for bit
        assert history.read(tmp_path / "history.jsonl") == uninterrupted
