"""Rollback: weights, optimizer and buffers go back to what they were, in every framework and on every rank."""

import copy
import logging
import math
import pickle
from functools import partial

import pytest
import torch
from processes import spawn
from small import regression_data
from torch.utils.data import DataLoader

from greedylr_integrations import GreedyConfig, GreedyLR, SlopeConfig
from greedylr_integrations.decision import Reason
from greedylr_integrations.snapshots import Snapshot

EVERY, STEPS, BROKEN = 20, 90, 50
CONFIG = GreedyConfig(on_spike="rollback", on_nonfinite="rollback", snapshot_every=EVERY)
OPTIMIZERS = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.02, momentum=0.9),
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=0.01),
    "adagrad": lambda ps: torch.optim.Adagrad(ps, lr=0.05),
}


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = torch.nn.Linear(4, 15), torch.nn.BatchNorm1d(15), torch.nn.Linear(15, 1)

    def forward(self, x):
        return self.last(torch.tanh(self.norm(self.first(x)))).squeeze(-1)


def batch(step, rank=0):
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(100 * step + rank))
    return x, x.sum(1)


def break_(net, how):
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(30.0) if how == "spike" else p.fill_(math.nan)


def everything(net, optimizer):
    """Weights, buffers and the optimizer's state."""
    return copy.deepcopy([list(net.state_dict().values()), optimizer.state_dict()["state"]])


def train(how, optimizer="sgd", steps=STEPS, config=CONFIG, module=True, **kwargs):
    """The scheduler, its decisions, and everything after each step."""
    net = Net()
    opt = OPTIMIZERS[optimizer](net.parameters())
    scheduler = GreedyLR(opt, config, total_steps=steps, module=net if module else None, **kwargs)
    decisions, states = [], []
    for step in range(steps):
        if step == BROKEN and how is not None:
            break_(net, how)
        x, y = batch(step)
        loss = torch.nn.functional.mse_loss(net(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        decisions.append(scheduler.step(loss))
        states.append(everything(net, opt))
    return scheduler, decisions, states, float(loss.detach())


def same(a, b):
    if torch.is_tensor(a):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return all(map(same, a, b)) if isinstance(a, list) else a == b


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("how", ["spike", "nan"])
def test_everything_goes_back(how, optimizer, caplog):
    _scheduler, decisions, states, loss = train(how, optimizer)
    (at,) = [i for i, decision in enumerate(decisions) if decision.reason is Reason.ROLLED_BACK]
    assert BROKEN < at <= BROKEN + 2  # copies were taken after steps 1, 21 and 41, which is old enough
    assert same(states[at], states[40])
    assert f"went back to the weights of step 41 at step {at + 1}" in caplog.text
    *_, clean = train(None, optimizer)
    assert loss < 2 * clean


def test_a_copy_that_is_too_new_is_not_taken():
    _, decisions, states, _ = train("spike", config=GreedyConfig(on_spike="rollback", snapshot_every=24))
    (at,) = [i for i, decision in enumerate(decisions) if decision.reason is Reason.ROLLED_BACK]
    assert at == 52
    assert same(states[at], states[24])


def test_before_any_second_copy_it_goes_back_to_the_start():
    # where the losses were higher, and are no spikes again
    _, decisions, states, _ = train("spike", config=GreedyConfig(on_spike="rollback", snapshot_every=1000))
    (at,) = [i for i, decision in enumerate(decisions) if decision.reason is Reason.ROLLED_BACK]
    assert same(states[at], states[0])


def test_the_lr_is_that_of_the_schedule_and_not_of_the_copy():
    scheduler, decisions, *_ = train("spike", config=SlopeConfig(on_spike="rollback", snapshot_every=EVERY))
    assert any(decision.reason is Reason.ROLLED_BACK for decision in decisions)
    assert scheduler.optimizer.param_groups[0]["lr"] == pytest.approx(0.0)  # the final decay is over


def test_without_the_module_buffers_stay():
    _, decisions, states, _ = train("spike", module=False)
    (at,) = [i for i, decision in enumerate(decisions) if decision.reason is Reason.ROLLED_BACK]
    weights = [i for i, key in enumerate(Net().state_dict()) if "running" not in key and "tracked" not in key]
    assert all(torch.equal(states[at][0][i], states[40][0][i]) for i in weights)
    assert not same(states[at][0], states[40][0])


def test_a_shadow_lowers_in_its_records_only(monkeypatch):
    scheduler, decisions, _, loss = train("spike", shadow=True)
    assert scheduler._rollback is None
    assert [decision.reason for decision in decisions].count(Reason.SPIKE) >= 3
    assert Reason.ROLLED_BACK not in {decision.reason for decision in decisions}
    monkeypatch.setattr(GreedyLR, "step", lambda self, loss: None)
    *_, alone = train("spike", shadow=True)
    assert loss == alone


def test_nothing_is_copied_without_the_argument():
    assert train(None, steps=3, config=GreedyConfig(on_spike="reduce"))[0]._rollback is None


def test_a_resume_begins_with_new_copies():
    scheduler, *_ = train(None, steps=60)
    net = Net()
    resumed = GreedyLR(OPTIMIZERS["sgd"](net.parameters()), CONFIG, total_steps=60)
    resumed.load_state_dict(scheduler.state_dict())
    assert not resumed._rollback._kept


def test_copies_stay_behind_in_a_pickle_and_after_the_run(caplog):
    caplog.set_level(logging.INFO, logger="greedylr_integrations")
    scheduler, *_ = train(None, steps=60)
    assert len(scheduler._rollback._kept) == 2
    assert "keeps two copies of weights and optimizer on the host" in caplog.text
    assert not pickle.loads(pickle.dumps(scheduler))._rollback._kept
    scheduler.detach()
    assert scheduler._rollback is None
    assert scheduler._module is None


def test_nan_from_the_start_is_an_error():
    scheduler = GreedyLR(OPTIMIZERS["sgd"](Net().parameters()), CONFIG, total_steps=60)
    lowered = [scheduler.step(math.nan).scales[0] for _ in range(2)]
    assert lowered[0] == lowered[1] < 1.0  # as with "reduce"
    with pytest.raises(
        FloatingPointError, match="^step 3: the loss was NaN or infinite 3 times in a row: the run is dead"
    ):
        scheduler.step(math.nan)


def test_frozen_weights_are_not_copied():
    net = Net()
    net.first.requires_grad_(False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert Snapshot(optimizer, None).size == 4 * trained


class Odd(torch.optim.SGD):
    """An optimizer that has state in its groups, and in a list."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
            for p in group["params"]:
                self.state[p].setdefault("last", []).append(float(p.detach().flatten()[0]))


def step_of(net, opt, step, scheduler):
    opt.zero_grad()
    x, y = batch(step)
    loss = torch.nn.functional.mse_loss(net(x), y)
    loss.backward()
    opt.step()
    return scheduler.step(loss)


def test_state_in_groups_and_in_lists_goes_back_each_time():
    net = Net()
    optimizer = Odd(net.parameters(), lr=0.02)
    scheduler = GreedyLR(optimizer, CONFIG, total_steps=500)
    for step in range(EVERY + 1):
        step_of(net, optimizer, step, scheduler)
    copy, then = Snapshot(optimizer, net), everything(net, optimizer)
    for step in range(2):
        for more in range(3):
            step_of(net, optimizer, EVERY + 1 + 3 * step + more, scheduler)
        copy.restore(optimizer)
        assert same(everything(net, optimizer), then)
        assert optimizer.param_groups[0]["k"] == EVERY + 1


def test_a_state_that_was_cleared_since_goes_back_too():
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    scheduler = GreedyLR(optimizer, CONFIG, total_steps=500)
    step_of(net, optimizer, 0, scheduler)
    copy, then = Snapshot(optimizer, net), everything(net, optimizer)
    optimizer.state.clear()
    copy.restore(optimizer)
    assert same(everything(net, optimizer), then)
    step_of(net, optimizer, 1, scheduler)


def test_a_buffer_that_the_module_replaces_goes_back():
    class Mean(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(()))

    module = Mean()
    copy = Snapshot(torch.optim.SGD(Net().parameters()), module)
    module.mean = torch.full((), math.nan)
    copy.restore(torch.optim.SGD(Net().parameters()))
    assert module.mean == 0.0


@pytest.mark.parametrize("how", ["added", "unfrozen"])
def test_weights_that_are_trained_later_go_back_too(how):
    net = Net()
    later = net.last if how == "unfrozen" else torch.nn.Linear(1, 1)
    if how == "unfrozen":
        later.requires_grad_(False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    scheduler = GreedyLR(optimizer, CONFIG, total_steps=500, module=net)
    decisions = []
    for step in range(BROKEN + 2):
        if step == EVERY + 5:
            later.requires_grad_(True)
            if how == "added":
                optimizer.add_param_group({"params": later.parameters(), "lr": 0.02})
        if step == BROKEN:
            break_(net, "nan")
            break_(later, "nan")
        decisions.append(step_of(net, optimizer, step, scheduler))
    assert decisions[-1].reason is Reason.ROLLED_BACK
    assert all(torch.isfinite(p).all() for p in [*net.parameters(), *later.parameters()])


@pytest.mark.parametrize(("every", "snapshots"), [(50, 10), (20, 5), (10, 2), (1, 1)])
def test_weights_that_are_broken_already_are_never_kept(every, snapshots, caplog):
    net, at = Net(), 400 + every // 3
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    fields = {"on_spike": "rollback", "on_nonfinite": "rollback"}
    config = GreedyConfig(**fields, every_n_steps=every, snapshot_every=snapshots)
    scheduler = GreedyLR(optimizer, config, total_steps=1000, module=net)
    for step in range(at + 3 * every):
        if step == at:
            break_(net, "nan")
        step_of(net, optimizer, step, scheduler)
    assert [record.decision.reason for record in scheduler.history].count(Reason.ROLLED_BACK) == 1
    assert all(torch.isfinite(p).all() for p in net.parameters())


def test_a_nan_soon_after_a_warmup_does_not_lose_the_warmup(caplog):
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    scheduler = GreedyLR(optimizer, CONFIG, total_steps=500, linear_warmup_steps=100, module=net)
    for step in range(107):
        if step == 105:
            break_(net, "nan")
        step_of(net, optimizer, step, scheduler)
    assert "went back to the weights of step 61 at step 107, since the loss was NaN or infinite" in caplog.text


def test_a_spike_between_decisions_goes_back_to_before_it():
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001)
    config = GreedyConfig(on_spike="rollback", every_n_steps=10, snapshot_every=2)
    scheduler = GreedyLR(optimizer, config, total_steps=2000, module=net)
    scheduler.pin(1.0)
    for step in range(703):
        step_of(net, optimizer, step, scheduler)
    before = max(float(p.detach().abs().max()) for p in net.parameters())
    break_(net, "spike")
    for step in range(703, 760):
        decision = step_of(net, optimizer, step, scheduler)
        if decision is not None and decision.reason is Reason.ROLLED_BACK:
            break
    assert decision.reason is Reason.ROLLED_BACK
    assert max(float(p.detach().abs().max()) for p in net.parameters()) < 2 * before


def test_weights_that_are_nan_from_the_first_step_are_an_error(caplog):
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    scheduler = GreedyLR(optimizer, CONFIG, total_steps=100, module=net)
    for p in net.parameters():
        p.grad = torch.full_like(p, math.nan)
    optimizer.step()
    scheduler.step(3.0)
    assert "GreedyLR keeps no copy of the weights of step 1: some are NaN or infinite" in caplog.text
    with pytest.raises(FloatingPointError, match="^step 4: .*no earlier weights to go back to"):
        [step_of(net, optimizer, step, scheduler) for step in range(1, 9)]


def test_there_are_never_three_copies():
    net, made = Net(), []

    class Counted(Snapshot):
        def __init__(self, *args):
            made.append(sum(1 for _ in scheduler._rollback._kept))
            super().__init__(*args)

    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    scheduler = GreedyLR(optimizer, CONFIG, total_steps=500, module=net)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("greedylr_integrations.rollback.Snapshot", Counted)
        for step in range(5 * EVERY):
            step_of(net, optimizer, step, scheduler)
    assert made == [0, 1, 1, 1, 1]


@pytest.mark.parametrize("module", ["model", [Net()], Net().parameters()])
def test_a_module_is_a_module(module):
    optimizer = torch.optim.SGD(Net().parameters(), lr=0.02)
    with pytest.raises(TypeError, match=r"^module=\w+ is not allowed: it must be a torch.nn.Module"):
        GreedyLR(optimizer, CONFIG, total_steps=100, module=module)


def test_deepspeed_is_refused():
    engine = type("DeepSpeedZeroOptimizer", (torch.optim.SGD,), {"__module__": "deepspeed.runtime.zero.stage3"})
    with pytest.raises(ValueError, match="a rollback is not possible with DeepSpeed"):
        GreedyLR(engine(Net().parameters(), lr=0.1), CONFIG)


# ---- the frameworks ----


def test_in_the_trainer(tmp_path, caplog):
    import tiny
    from transformers import TrainerCallback

    from greedylr_integrations.transformers import GreedyLRCallback

    class Break(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == BROKEN:
                break_(model, "spike")

    callback = GreedyLRCallback(CONFIG, quiet=True)
    trainer = tiny.trainer(tmp_path, [callback, Break()], max_steps=STEPS)
    trainer.train()
    assert [r.decision.reason for r in callback.history].count(Reason.ROLLED_BACK) == 1
    assert "went back to the weights of step 41" in caplog.text
    assert callback.history[-1].decision.loss < 2


@pytest.mark.filterwarnings("ignore:.*LeafSpec", "ignore:.*does not have many workers", "ignore:.*`isinstance.treespec")
def test_in_lightning(tmp_path, caplog):
    import lightning.pytorch as pl

    from greedylr_integrations.lightning import GreedyLRCallback

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def training_step(self, rows, step):
            if self.global_step == BROKEN:
                break_(self.net, "spike")
            x = rows["x"]
            return torch.nn.functional.mse_loss(self.net(x), rows["labels"])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)

    callback = GreedyLRCallback(CONFIG, quiet=True)
    fit = {"max_steps": STEPS, "callbacks": [callback], "enable_progress_bar": False, "enable_model_summary": False}
    off = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu", "default_root_dir": tmp_path}
    pl.Trainer(**fit, **off).fit(Module(), DataLoader(regression_data(4 * STEPS), batch_size=4))
    assert [r.decision.reason for r in callback.history].count(Reason.ROLLED_BACK) == 1
    assert "went back to the weights of step 41" in caplog.text


def accelerate(how, after_step=lambda accelerator, scheduler, net, done: None, **fields):
    """The scheduler of a loop that breaks once, and `after_step` after each step of it."""
    from accelerate import Accelerator

    from greedylr_integrations.accelerate import GreedyLR as Scheduler

    accelerator, net = Accelerator(cpu=True), Net()
    optimizer = OPTIMIZERS["adamw"](net.parameters())
    made = Scheduler(optimizer, total_steps=STEPS, module=net, restore=accelerator.load_state, **fields)
    model, optimizer, scheduler = accelerator.prepare(net, optimizer, made)
    for step in range(STEPS):
        if step == BROKEN:
            break_(net, how)
        x, y = batch(step)
        loss = torch.nn.functional.mse_loss(model(x), y)
        accelerator.backward(loss)
        optimizer.step()
        scheduler.step(loss)
        optimizer.zero_grad()
        after_step(accelerator, scheduler, net, step + 1)
    return scheduler


def test_in_accelerate(caplog):
    scheduler = accelerate("spike", config=CONFIG)
    assert [r.decision.reason for r in scheduler.history].count(Reason.ROLLED_BACK) == 1
    assert "went back to the weights of step 41" in caplog.text


# ---- several ranks ----


def ranks(rank, world, out, sharded):
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 15), torch.nn.Tanh(), torch.nn.Linear(15, 1))
    if sharded:
        from torch.distributed.fsdp import fully_shard

        fully_shard(net[0])
        fully_shard(net)
        model = net
    else:
        model = torch.nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = GreedyLR(optimizer, CONFIG, total_steps=STEPS)

    def whole():
        weights = [p.full_tensor() if sharded else p for p in net.parameters()]
        moments = [optimizer.state[p]["exp_avg"] for p in model.parameters()]
        return [t.detach().clone() for t in [*weights, *(m.full_tensor() if sharded else m for m in moments)]]

    reasons, states = [], []
    for step in range(STEPS):
        x, y = batch(step, rank)
        if BROKEN <= step < BROKEN + 3 and rank == 1:  # bad batches, on one rank only
            y = y + 1000
        loss = torch.nn.functional.mse_loss(model(x).squeeze(-1), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        reasons.append(scheduler.step(loss).reason.name)
        states.append(whole())
    torch.save((reasons, states), f"{out}/{rank}")


@pytest.mark.parametrize("sharded", [False, True])
def test_all_ranks_go_back_together(sharded, tmp_path):
    spawn(partial(ranks, sharded=sharded), 2, tmp_path)
    (reasons, states), (others, other_states) = (torch.load(tmp_path / str(rank)) for rank in range(2))
    assert reasons == others
    assert reasons.count("ROLLED_BACK") == 1
    at = reasons.index("ROLLED_BACK")
    assert at == BROKEN + 2
    assert all(map(torch.equal, states[at], states[40]))
    assert all(
        torch.equal(a, b)
        for mine, theirs in zip(states, other_states, strict=True)
        for a, b in zip(mine, theirs, strict=True)
    )
