"""Checkpoints of the three frameworks with damaged files: one clear error, or the run goes on within its bounds."""

import json
import random
import shutil

import pytest
import tiny
import torch

pl = pytest.importorskip("lightning.pytorch")

from lightning.pytorch.callbacks import ModelCheckpoint
from test_accelerate import Run, fresh_state  # noqa: F401
from test_lightning import FAST, Module, fit
from test_lightning import pytestmark as lightnings_warnings

from greedylr_integrations.lightning import GreedyLRCallback as ForLightning
from greedylr_integrations.transformers import GreedyLRCallback

pytestmark = lightnings_warnings


def without(key):
    return lambda state: {name: value for name, value in state.items() if name != key}


DAMAGES = {  # what becomes of our state, and what is said
    "a number": (lambda state: 3, "GreedyLR state is int, not a dictionary"),
    "a list": (lambda state: [state], "GreedyLR state is list, not a dictionary"),
    "a missing key": (
        without("controller"),
        "GreedyLR state does not load, nothing was changed: controller is missing",
    ),
    "a missing slope": (without("slope"), "slope is missing"),
    "another slope": (lambda state: {**state, "slope": 3}, "slope=3 is not allowed"),
    "another version": (lambda state: {**state, "version": 99}, "version=99 is not allowed"),
    "another number of groups": (lambda state: {**state, "base_lrs": [0.1, 0.1, 0.1]}, "one for each parameter group"),
    "another rule": (
        lambda state: {**state, "controller": {**state["controller"], "behaviour": "MyConfig"}},
        "MyConfig",
    ),
    "another metric": (lambda state: {**state, "monitor": "accuracy"}, "run followed 'accuracy'"),
    "a rule of another type": (lambda state: {**state, "controller": {**state["controller"], "rule": 3}}, "rule=3"),
    "an LR that cannot be": (
        lambda state: {**state, "controller": {**state["controller"], "base_lrs": [-1.0]}},
        "base_lrs=",
    ),
}
each_damage = pytest.mark.parametrize(("damage", "says"), DAMAGES.values(), ids=list(DAMAGES))


def refused(says, resume):
    with pytest.raises(ValueError, match=says) as error:
        resume()
    assert "\n" not in str(error.value)


def flipped(content, seed):
    """The content with one bit turned, in each of 20 places."""
    rng, changed = random.Random(seed), bytearray(content)
    for _ in range(20):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def error_or_lr(resume, lr):
    """Whatever a damaged file leads to, no LR is out of bounds."""
    try:
        resume()
    except Exception as error:
        assert str(error)  # noqa: PT017
    assert 0 <= lr() <= 10.0


# ---- Hugging Face's Trainer ----


@pytest.fixture(scope="module")
def of_the_trainer(tmp_path_factory):
    out = tmp_path_factory.mktemp("trainer")
    callback = GreedyLRCallback(**FAST, quiet=True)
    tiny.trainer(out, [callback], max_steps=6, save_strategy="steps", save_steps=3).train()
    return out / "checkpoint-3"


def resume_trainer(folder, out):
    tiny.trainer(out, [GreedyLRCallback(**FAST, quiet=True)], max_steps=6).train(resume_from_checkpoint=str(folder))


def with_entry(folder, out, change):
    copy = shutil.copytree(folder, out / folder.name)
    content = json.loads((copy / "trainer_state.json").read_text())
    entries = content["stateful_callbacks"]
    entries["GreedyLRCallback"] = change(entries["GreedyLRCallback"])
    (copy / "trainer_state.json").write_text(json.dumps(content))
    return copy


@each_damage
def test_the_state_in_a_checkpoint_of_the_trainer(damage, says, of_the_trainer, tmp_path):
    def change(entry):
        return {**entry, "attributes": {"saved": damage(entry["attributes"]["saved"])}}

    folder = with_entry(of_the_trainer, tmp_path, change)
    refused(says, lambda: resume_trainer(folder, tmp_path))


@pytest.mark.parametrize("entry", [3, [], "x", {"attributes": 3}, {"args": {}}])
def test_the_callbacks_entry_in_a_checkpoint_of_the_trainer(entry, of_the_trainer, tmp_path):
    folder = with_entry(of_the_trainer, tmp_path, lambda _: entry)
    refused("^trainer_state.json has .* for GreedyLRCallback", lambda: resume_trainer(folder, tmp_path))


def test_the_trainers_own_file_cut_short(of_the_trainer, tmp_path):
    copy = shutil.copytree(of_the_trainer, tmp_path / of_the_trainer.name)
    content = (copy / "trainer_state.json").read_text()
    (copy / "trainer_state.json").write_text(content[: len(content) // 2])
    with pytest.raises(json.JSONDecodeError):
        resume_trainer(copy, tmp_path)


# ---- Lightning ----


@pytest.fixture(scope="module")
def of_lightning(tmp_path_factory):
    out = tmp_path_factory.mktemp("lightning")
    fit(out, Module(), ForLightning(**FAST, quiet=True), ModelCheckpoint(dirpath=out, filename="x"), max_epochs=1,
        enable_checkpointing=True)  # fmt: skip
    return out / "x.ckpt"


def resume_lightning(path, out):
    module = Module()
    fit(out, module, ForLightning(**FAST, quiet=True), max_epochs=2, ckpt_path=str(path))
    return module


@each_damage
def test_the_state_in_a_checkpoint_of_lightning(damage, says, of_lightning, tmp_path):
    checkpoint = torch.load(of_lightning, weights_only=False)
    (key,) = [key for key in checkpoint["callbacks"] if key.startswith("GreedyLRCallback")]
    checkpoint["callbacks"][key] = damage(checkpoint["callbacks"][key])
    torch.save(checkpoint, tmp_path / "x.ckpt")
    refused(says, lambda: resume_lightning(tmp_path / "x.ckpt", tmp_path))


@pytest.mark.parametrize("seed", [None, 0, 1, 2, 3])
def test_a_file_of_lightning_cut_short_or_with_turned_bits(seed, of_lightning, tmp_path):
    content, used = of_lightning.read_bytes(), [[0.0]]
    (tmp_path / "x.ckpt").write_bytes(content[: len(content) // 2] if seed is None else flipped(content, seed))
    error_or_lr(lambda: used.append(max(resume_lightning(tmp_path / "x.ckpt", tmp_path).used)), lambda: max(used)[0])


# ---- Accelerate ----


@pytest.fixture
def of_accelerate(tmp_path):
    Run().train(stop=6).accelerator.save_state(str(tmp_path))
    return tmp_path / "scheduler.bin"


@each_damage
def test_the_state_in_a_folder_of_accelerate(damage, says, of_accelerate):
    torch.save(damage(torch.load(of_accelerate, weights_only=True)), of_accelerate)
    run = Run()
    refused(says, lambda: run.accelerator.load_state(str(of_accelerate.parent)))
    assert run.scheduler.last_epoch == 0


@pytest.mark.parametrize("seed", [None, 0, 1, 2, 3])
def test_a_file_of_accelerate_cut_short_or_with_turned_bits(seed, of_accelerate):
    content, run = of_accelerate.read_bytes(), Run()
    of_accelerate.write_bytes(content[: len(content) // 2] if seed is None else flipped(content, seed))
    error_or_lr(lambda: run.accelerator.load_state(str(of_accelerate.parent)), lambda: run.scheduler.lr)
