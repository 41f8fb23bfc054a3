"""Interrupted and resumed, as users do it: default TrainingArguments, a new process or a new Trainer."""

import json
import signal
import time
from pathlib import Path

import pytest
import tiny
import torch
from forked import Forked
from processes import wait
from torch.optim.lr_scheduler import CosineAnnealingLR

from greedylr_integrations import history
from greedylr_integrations.transformers import GreedyLRCallback

STEPS = 21  # so that a run can be interrupted at each of 20
CASES = {
    "default": {},
    "every three steps": {"every_n_steps": 3},
    "multiply": {"base_schedule": "multiply"},
    "one step later": {"loss_lag": 1},
}


def run(out, case="default", resume=None, callback=None, **kwargs):
    callback = callback or GreedyLRCallback(window_size=2, factor=0.8, **CASES[case])
    spy = tiny.LRSpy()
    trainer = tiny.trainer(
        out,
        [callback, spy],
        # one epoch: transformers 4 does not restore the order of a later one
        data=tiny.regression_data(STEPS * 4),
        **{
            "max_steps": STEPS,
            "warmup_steps": 5,
            "gradient_accumulation_steps": 2,
            "save_strategy": "steps",
            "save_steps": 1,
            "logging_steps": 1,
            **kwargs,
        },
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer, callback, spy


@pytest.fixture(scope="module", params=list(CASES))
def whole(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    trainer, _, spy = run(out, request.param)
    assert len({lrs[0] for lrs in spy.used[6:]}) > 3
    return request.param, out, spy.used, tiny.logged(trainer), trainer.state.log_history


@pytest.mark.parametrize("step", range(1, STEPS))
def test_lrs_and_losses_continue_bit_for_bit(whole, step, tmp_path):
    case, out, used, losses, _ = whole
    trainer, callback, spy = run(tmp_path, case, resume=str(out / f"checkpoint-{step}"))
    assert spy.used == used[step:]
    assert tiny.logged(trainer) == losses
    decided = [record.step for record in callback.history]
    ramp, every = {"default": (5, 1), "every three steps": (5, 3), "multiply": (6, 1), "one step later": (6, 1)}[case]
    assert decided == [s for s in range(step + 1, STEPS + 1) if s > ramp and (s - ramp) % every == 0]


def test_the_scheduler_file_loads_with_weights_only_and_without_us(whole, tmp_path):
    _, out, *_ = whole
    torch.load(out / "checkpoint-9" / "scheduler.pt", weights_only=True)
    trainer = tiny.trainer(tmp_path, [], max_steps=STEPS, warmup_steps=5, gradient_accumulation_steps=2)
    trainer.train(resume_from_checkpoint=str(out / "checkpoint-9"))
    assert trainer.state.global_step == STEPS


def test_restoring_callbacks_by_the_trainer_works_too(whole, tmp_path):
    case, out, used, losses, _ = whole
    trainer, _, spy = run(
        tmp_path, case, resume=str(out / "checkpoint-9"), restore_callback_states_from_checkpoint=True
    )
    (restored,) = [cb for cb in trainer.callback_handler.callbacks if isinstance(cb, GreedyLRCallback)]
    assert spy.used == used[9:]
    assert tiny.logged(trainer) == losses
    assert len(restored.history) > 0


def test_a_function_that_a_checkpoint_cannot_hold(tmp_path, warnings_of):
    told = []

    def callback():
        return GreedyLRCallback(window_size=2, on_decision=told.append)

    run(tmp_path / "a", callback=callback(), save_steps=10)
    assert [record.step for record in told] == list(range(6, STEPS + 1))
    told.clear()
    resume = str(tmp_path / "a" / "checkpoint-10")
    run(tmp_path / "b", callback=callback(), resume=resume)
    assert [record.step for record in told] == list(range(11, STEPS + 1))
    assert warnings_of() == []
    run(tmp_path / "c", callback=callback(), resume=resume, restore_callback_states_from_checkpoint=True)
    assert warnings_of() == [
        "the Trainer re-created GreedyLRCallback from the checkpoint, which cannot hold on_decision: leave"
        " restore_callback_states_from_checkpoint at False; GreedyLR does not need it to resume"
    ]


def test_a_checkpoint_without_the_callback_starts_at_scale_1_and_saves_again(tmp_path, warnings_of):
    tiny.trainer(tmp_path / "a", [], max_steps=STEPS, warmup_steps=5, save_strategy="steps", save_steps=8).train()
    trainer, callback, spy = run(
        tmp_path / "b", resume=str(tmp_path / "a" / "checkpoint-8"), gradient_accumulation_steps=1, save_steps=8
    )
    assert warnings_of() == ["GreedyLR starts anew: the checkpoint was written without it"]
    assert spy.used[0] == [0.01, 0.01]
    assert callback.history[0].step == 9
    again, _, spy2 = run(
        tmp_path / "c", resume=str(tmp_path / "b" / "checkpoint-16"), gradient_accumulation_steps=1, save_steps=8
    )
    assert spy2.used == spy.used[8:]
    assert tiny.logged(again) == tiny.logged(trainer)


def test_a_longer_run_is_adopted(tmp_path):
    run(tmp_path / "a", save_steps=10)
    _, callback, spy = run(tmp_path / "b", resume=str(tmp_path / "a" / "checkpoint-10"), max_steps=40)
    assert callback.scheduler.controller.horizon == 35
    assert spy.used[-1][0] == pytest.approx(
        callback.scheduler.base_lrs[0] * callback.history[-2].decision.scales[0] / 12
    )


def test_a_branch_decays_from_a_checkpoint_while_the_trunk_goes_on(tmp_path):
    def branch(resume):
        callback = GreedyLRCallback(window_size=1000, decay_on_resume=4, history_file=tmp_path / "branch.jsonl")
        return run(tmp_path / "branch", resume=str(resume), callback=callback, max_steps=14, save_steps=2)[2]

    run(tmp_path / "trunk", callback=GreedyLRCallback(window_size=1000), save_steps=2)
    spy = branch(tmp_path / "trunk" / "checkpoint-10")
    assert [lrs[0] for lrs in spy.used] == pytest.approx([0.01, 0.0075, 0.005, 0.0025])
    # interrupted itself, it goes on with its decay and does not begin another
    assert branch(tmp_path / "branch" / "checkpoint-12").used == spy.used[2:]
    _, records, orders = history.read(tmp_path / "branch.jsonl")
    assert [record.step for record in records] == [11, 12, 13, 14]
    assert orders == [(10, "decay", 4)]
    with pytest.raises(ValueError, match="^decay_on_resume=0 is not allowed: it must be at least 1"):
        GreedyLRCallback(decay_on_resume=0)


def test_the_history_file_goes_on(tmp_path):
    def once(name, out, resume=None, **kwargs):
        callback = GreedyLRCallback(window_size=2, factor=0.8, history_file=tmp_path / name)
        return run(out, resume=resume, callback=callback, save_steps=6, **kwargs)

    once("whole", tmp_path / "a")
    once("cut", tmp_path / "b")
    once("cut", tmp_path / "b", resume=str(tmp_path / "b" / "checkpoint-12"))
    (cut, *cut_rows), (header, *rows) = (history.read(tmp_path / name) for name in ("cut", "whole"))
    assert cut_rows == rows
    assert {**cut, "run": ""} == {**header, "run": ""}
    assert len(history.read(tmp_path / "whole")[1]) == STEPS - 5


def test_other_hyperparameters(tmp_path, warnings_of):
    run(tmp_path / "a", save_steps=10)
    resume = str(tmp_path / "a" / "checkpoint-10")
    _, callback, _ = run(tmp_path / "b", resume=resume, callback=GreedyLRCallback(window_size=2, factor=0.5))
    assert callback.scheduler.controller.config.factor == 0.8
    assert "factor: 0.8 there, 0.5 here" in warnings_of()[0]
    config = GreedyLRCallback(window_size=2, factor=0.5, on_resume="config")
    run(tmp_path / "c", resume=resume, callback=config)
    assert config.scheduler.controller.config.factor == 0.5
    with pytest.raises(ValueError, match="hyperparameters differ"):
        run(tmp_path / "d", resume=resume, callback=GreedyLRCallback(window_size=2, factor=0.5, on_resume="error"))


def test_another_learning_rate(tmp_path, warnings_of):
    run(tmp_path / "a", save_steps=10)
    resume = {"resume": str(tmp_path / "a" / "checkpoint-10"), "learning_rate": 1e-3}
    _, callback, _ = run(tmp_path / "b", **resume)
    assert callback.scheduler.base_lrs == [0.01, 0.01]
    assert "base_lrs: [0.01, 0.01] there, [0.001, 0.001] here" in warnings_of()[0]
    config = GreedyLRCallback(window_size=2, factor=0.8, on_resume="config")
    _, _, spy = run(tmp_path / "c", callback=config, **resume)
    assert config.scheduler.base_lrs == [0.001, 0.001]
    assert spy.used[0][0] < 0.003
    with pytest.raises(ValueError, match="base_lrs"):
        run(tmp_path / "d", callback=GreedyLRCallback(window_size=2, factor=0.8, on_resume="error"), **resume)


def test_a_checkpoint_of_the_other_base_schedule(tmp_path):
    run(tmp_path / "a", save_steps=10)
    with pytest.raises(ValueError, match="written without a base_schedule, this run continues with one"):
        run(tmp_path / "b", "multiply", resume=str(tmp_path / "a" / "checkpoint-10"))


def test_passed_recursive_schedule_resumes(tmp_path):
    def once(out, resume=None):
        model = tiny.Regressor()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        pair = {"optimizers": (optimizer, CosineAnnealingLR(optimizer, STEPS, eta_min=1e-3))}
        callback, spy = GreedyLRCallback(window_size=2, factor=0.8), tiny.LRSpy()
        trainer = tiny.trainer(
            out, [callback, spy], model=model, trainer_kwargs=pair, max_steps=STEPS, save_strategy="steps", save_steps=7
        )
        trainer.train(resume_from_checkpoint=resume)
        return spy.used, tiny.logged(trainer)

    used, losses = once(tmp_path / "a")
    assert once(tmp_path / "b", str(tmp_path / "a" / "checkpoint-7")) == (used[7:], losses)


SCRIPT = """
import sys; sys.path.insert(0, {tests!r})
import test_transformers_resume as t, tiny, json
trainer, _, spy = t.run({out!r}, resume={resume})
json.dump([spy.used, tiny.logged(trainer)], open({out!r} + "/result.json", "w"))
"""


def test_kill_9(whole, tmp_path):
    case, _, used, losses, _ = whole
    if case != "default":
        pytest.skip("one kill is enough: the cases differ in nothing that a kill could reach")

    def start(resume):
        script = tmp_path / "script.py"
        script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), out=str(tmp_path), resume=resume))
        return Forked([script], 1, tmp_path / "errors")

    process = start(None)
    deadline = time.time() + 120
    while not (tmp_path / "checkpoint-7" / "trainer_state.json").exists():
        assert process.poll() is None or (tmp_path / "checkpoint-7").exists()
        assert time.time() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = max(int(p.name.split("-")[1]) for p in tmp_path.glob("checkpoint-*") if (p / "trainer_state.json").exists())
    last = tmp_path / f"checkpoint-{step}"
    try:
        json.loads((last / "trainer_state.json").read_text())
    except ValueError:  # killed while writing: the one before is whole
        last = tmp_path / f"checkpoint-{step - 1}"
        step -= 1
    assert wait(start(repr(str(last))), 120) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result == [used[step:], losses]
