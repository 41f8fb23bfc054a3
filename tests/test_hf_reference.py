"""The slope's reference in checkpoints of Hugging Face's Trainer."""

import json

import pytest
import tiny
import torch

from greedylr_integrations import SlopeConfig, _hf_reference
from greedylr_integrations.transformers import GreedyLRCallback

FILE = "greedylr_reference_0.pt"
STEPS = 80  # the default rule does not search in runs of less than 60


def train(out, resume=None, **kwargs):
    callback, spy = GreedyLRCallback(SlopeConfig(max_scale=2.0)), tiny.LRSpy()
    trainer = tiny.trainer(
        out,
        [callback, spy],
        data=tiny.regression_data(2 * STEPS),
        max_steps=STEPS,
        save_strategy="steps",
        save_steps=20,
        learning_rate=1e-3,
        **kwargs,
    )
    trainer.train(resume_from_checkpoint=resume and str(resume))
    return callback, spy


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    callback, spy = train(out)
    return out, callback, spy


def test_it_is_in_the_checkpoints_of_the_search_and_no_tensor_in_their_json(whole):
    out, *_ = whole
    part = torch.load(out / "checkpoint-20" / FILE, weights_only=True)
    assert sum(reference.numel() for reference in part["reference"]) == 49  # all weights of the model
    assert not (out / "checkpoint-40" / FILE).exists()  # the search is over, and the reference is not needed any more
    for step in (20, 40):
        state = json.loads((out / f"checkpoint-{step}" / "trainer_state.json").read_text())
        assert state["stateful_callbacks"]["GreedyLRCallback"]["attributes"]["saved"]["slope"]["reference"] is None


@pytest.mark.parametrize("step", [20, 40])
@pytest.mark.parametrize("settings", [{}, {"restore_callback_states_from_checkpoint": True}])
def test_a_resumed_run_goes_on_bit_for_bit(whole, step, settings, tmp_path, warnings_of):
    out, _, spy = whole
    assert len({lrs[0] for lrs in spy.used}) > 5
    _, again = train(tmp_path, out / f"checkpoint-{step}", **settings)
    assert again.used == spy.used[step:]
    assert warnings_of() == []


def test_the_slopes_after_a_resume_are_the_same(whole, tmp_path):
    out, callback, _ = whole
    resumed, _ = train(tmp_path, out / "checkpoint-20")
    slopes = [record.decision.slope for record in callback.history]
    assert any(slope for slope in slopes[20:])
    assert [record.decision.slope for record in resumed.history] == slopes[20:]


@pytest.mark.parametrize("damaged", [False, True])
def test_a_checkpoint_without_it_starts_a_new_reference_and_says_so(whole, damaged, tmp_path, warnings_of):
    out, *_ = whole
    path = out / "checkpoint-20" / FILE
    kept = path.read_bytes()
    try:
        path.write_bytes(kept[:100]) if damaged else path.unlink()
        train(tmp_path, out / "checkpoint-20")
    finally:
        path.write_bytes(kept)
    *damage, lost = warnings_of()
    assert lost.startswith("GreedyLR measures slope and distance from here on, not from the start of the run")
    assert [message.startswith("GreedyLR cannot read the reference") for message in damage] == [True] * damaged


def state(reference, sharded=False):
    return {"slope": {"reference": reference, "sharded": sharded, "rank": 0, "sums": [], "count": 0}}


def test_a_shard_of_another_number_of_ranks_is_not_taken(tmp_path, monkeypatch):
    _hf_reference.save(str(tmp_path), state([torch.ones(3)], sharded=True))
    without = state(None, sharded=True)
    assert _hf_reference.load(without, str(tmp_path))["slope"]["reference"] is not None
    monkeypatch.setattr(_hf_reference, "world_size", lambda: 2)
    assert _hf_reference.load(without, str(tmp_path)) == without


def test_nothing_is_written_where_there_is_no_checkpoint(tmp_path):
    _hf_reference.save(str(tmp_path / "nowhere"), state([torch.ones(3)]))
    _hf_reference.save(str(tmp_path), state(None))
    assert list(tmp_path.iterdir()) == []


def test_ranks_with_the_same_weights_read_the_first_ones_file(tmp_path, monkeypatch):
    _hf_reference.save(str(tmp_path), state([torch.ones(3)]))
    monkeypatch.setattr(_hf_reference, "rank", lambda: 1)
    _hf_reference.save(str(tmp_path), state([torch.zeros(3)]))
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    (reference,) = _hf_reference.load(state(None), str(tmp_path))["slope"]["reference"]
    assert reference.tolist() == [1.0] * 3
