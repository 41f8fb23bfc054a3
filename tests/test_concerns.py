"""What is said at the start of a run that is likely to go wrong."""

import pytest
import tiny
import torch

from greedylr_integrations import GreedyConfig, GreedyLR, PaperConfig, SlopeConfig, TransformersConfig
from greedylr_integrations.transformers import GreedyLRCallback


def start(optimizer, *args, **kwargs):
    """The first step of a run, with AdamW or another optimizer of one weight."""
    groups = kwargs.pop("groups", None) or [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": kwargs.pop("lr")}]
    made = optimizer(groups)
    state = kwargs.pop("state", None)
    scheduler = GreedyLR(made, *args, **kwargs)
    if state is not None:
        scheduler.load_state_dict(state)
    for each in made.param_groups:
        each["params"][0].grad = torch.ones(1)
    made.step()
    scheduler.step(1.0)
    return scheduler


def group(lr):
    return {"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr}


class SignSGD(torch.optim.SGD):
    pass


class Novel(torch.optim.SGD):
    pass


@pytest.mark.parametrize(
    ("optimizer", "lr", "config", "said"),
    [
        (
            torch.optim.AdamW,
            5e5,
            None,
            "GreedyLR: the LR of this run can only be between 1e+04 and 5e+07, and usual LRs for AdamW are between"
            " 1e-07 and 0.1: check the base LR (5e+05) and its bounds",
        ),
        (torch.optim.AdamW, 10.0, None, "between 0.2 and 1e+03"),
        (torch.optim.AdamW, 1e-10, None, "between 2e-12 and 1e-08"),
        (torch.optim.AdamW, 1e-3, GreedyConfig(max_lr=1e-9, min_lr=0), "between 0 and 1e-09"),
        (torch.optim.SGD, 1e-7, GreedyConfig(), "usual LRs for SGD are between 0.0001 and 10"),
        (torch.optim.RMSprop, 20.0, GreedyConfig(), "the LR of this run starts at 20, and usual LRs for RMSprop are"),
        (torch.optim.AdamW, 2.0, GreedyConfig(), "starts at 2,"),
        (torch.optim.AdamW, 2.0, PaperConfig(), "starts at 2,"),
        (torch.optim.Adagrad, 1e6, None, "usual LRs for Adagrad are between 1e-05 and 10"),
        (torch.optim.Adadelta, 1e6, None, "usual LRs for Adadelta are between 0.0001 and 100"),
        (torch.optim.Rprop, 1e6, None, "usual LRs for Rprop are between 1e-07 and 1:"),
    ],
)
def test_a_base_lr_that_its_optimizer_does_not_take(optimizer, lr, config, said, warnings_of):
    start(optimizer, config, lr=lr, total_steps=1000)
    (message,) = warnings_of()
    assert said in message


@pytest.mark.parametrize(
    ("optimizer", "config", "lrs"),
    [
        (torch.optim.AdamW, None, [3e-5]),
        (torch.optim.AdamW, None, [1.0]),  # the search starts at a fiftieth
        (torch.optim.AdamW, None, [1e-8]),  # and may go up to 100 times
        (torch.optim.AdamW, None, [10.0, 1e-3]),  # one group is enough
        (torch.optim.AdamW, None, [0.0, 1e-3]),  # one is frozen
        (torch.optim.SGD, None, [1e-6]),  # may just reach what is usual
        (torch.optim.AdamW, PaperConfig(min_lr=1e-6), [1e-3]),
        (torch.optim.AdamW, SlopeConfig(min_lr=1e-6), [1e-5]),
        (torch.optim.AdamW, SlopeConfig(max_lr=1e-4), [1e-3]),
        (torch.optim.AdamW, SlopeConfig(min_lr=1e-4), [1e-5, 1e-3]),  # a bound of the first alone
        (SignSGD, None, [1e-6]),  # takes LRs as Lion does
        (Novel, None, [1e6]),  # nothing is known of its LRs
        (torch.optim.SGD, GreedyConfig(), [0.1]),
    ],
)
def test_a_base_lr_that_may_be_right(optimizer, config, lrs, warnings_of):
    start(optimizer, config, groups=[group(lr) for lr in lrs], total_steps=1000)
    assert warnings_of() == []


@pytest.mark.parametrize(
    ("config", "lr", "said"),
    [
        (SlopeConfig(), 0.0, "the base LR is 0, so nothing is trained"),
        (SlopeConfig(min_lr=1e-3), 1e-4, "the LR can only rise, because its lower bound (min_lr=0.001) is above"),
        (GreedyConfig(min_scale=2.0), 1e-4, "the LR can only rise, because its lower bound (min_scale=2.0) is above"),
        (PaperConfig(), 3e-5, "the LR can only rise, because its lower bound (min_lr=0.001) is above the base LR"),
        (TransformersConfig(), 3e-5, "the LR can only rise, because its lower bound (min_lr=0.001)"),
        (SlopeConfig(min_lr=1e-3, max_lr=1e-3), 1e-3, "the LR cannot move, because its bounds are equal (min_lr=0.001"),
        (GreedyConfig(min_scale=1.0, max_scale=1.0), 1e-3, "the LR cannot move, because its bounds are equal"),
        (
            SlopeConfig(max_scale=0.01),
            1e-3,
            "there is nothing to search, because the search starts at 0.02 x the base LR, and the upper bound"
            " (max_scale=0.01) is no higher",
        ),
        (SlopeConfig(max_lr=5e-9), 1e-6, "there is nothing to search"),
        (SlopeConfig(start_scale=200.0), 1e-6, "there is nothing to search, because the search starts at 200 x"),
    ],
)  # fmt: skip
def test_bounds_that_leave_nothing_to_find(config, lr, said, warnings_of):
    start(torch.optim.AdamW, config, lr=lr, total_steps=1000)
    (message,) = warnings_of()
    assert message.startswith(f"GreedyLR: {said}")


@pytest.mark.parametrize(
    "optimizer", ["Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"]
)
@pytest.mark.parametrize("config", [None, GreedyConfig()])
def test_torch_s_own_default_lrs_are_usual(optimizer, config, warnings_of):
    start(lambda groups: getattr(torch.optim, optimizer)(groups[0]["params"]), config, lr=1.0, total_steps=1000)
    assert warnings_of() == []


@pytest.mark.parametrize("steps", [1000, 40])
def test_the_lr_of_another_schedule_is_not_judged_by_the_optimizer_s(steps, warnings_of):
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([weight], lr=1e5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1e-8)
    scheduler = GreedyLR(optimizer, total_steps=steps, base_schedule=schedule)
    weight.grad = torch.ones(1)
    optimizer.step()
    scheduler.step(1.0)
    said = ["GreedyLR: the LR is left as it is: a search needs 60 decisions, and the run has 40"]
    assert warnings_of() == (said if steps == 40 else [])


@pytest.mark.parametrize(
    ("package", "make"),
    [
        ("dadaptation", lambda module, weights: module.DAdaptLion(weights, lr=100.0)),
        ("dadaptation", lambda module, weights: module.DAdaptAdam(weights, lr=100.0)),
        ("prodigyopt", lambda module, weights: module.Prodigy(weights, lr=100.0)),
        ("mechanic_pytorch", lambda module, weights: module.mechanize(torch.optim.AdamW)(weights, lr=100.0)),
    ],
)
def test_an_optimizer_that_finds_its_own_lr(package, make, warnings_of):
    module = pytest.importorskip(package, reason="the bench extra is not installed")
    start(lambda groups: make(module, groups[0]["params"]), lr=1.0, total_steps=1000)
    (message,) = warnings_of()
    assert " finds its own LR, and a schedule on top of it works against that: train with it without" in message


def test_a_group_without_an_lr_is_refused():
    adafactor = pytest.importorskip("transformers.optimization").Adafactor
    groups = [{**group(1e-3), "relative_step": False}, {"params": [torch.nn.Parameter(torch.ones(1))]}]
    with pytest.raises(ValueError, match=r"^Adafactor computes its own LR \(lr=None\)"):
        GreedyLR(adafactor(groups, warmup_init=False))


@pytest.mark.parametrize(
    ("config", "length", "said"),
    [
        (
            SlopeConfig(),
            {"total_steps": 40},
            "the LR is left as it is: a search needs 60 decisions, and the run has 40",
        ),
        (
            SlopeConfig(),
            {"total_steps": 1000, "steps_per_epoch": 30},
            "the LR is left as it is: a search needs 60 decisions in one pass over the data, and this one has 30; a"
            " smaller batch gives more",
        ),
        (
            SlopeConfig(every_n_steps=10),
            {"total_steps": 400},
            "the LR is left as it is: a search needs 60 decisions, and the run has 40; a smaller every_n_steps gives"
            " more",
        ),
        (
            SlopeConfig(),
            {"total_steps": 400, "linear_warmup_steps": 1000},
            "linear_warmup_steps=1000 leaves no step for anything else: lower it, since the run has 400",
        ),
        (GreedyConfig(window_size=50), {"total_steps": 50}, "the LR will not move: window_size=50, and the run has 50"),
    ],
)
def test_a_run_that_is_too_short(config, length, said, warnings_of):
    scheduler = start(torch.optim.AdamW, config, lr=1e-3, decay_ratio=0.0, **length)
    scheduler.step(1.0)
    (message,) = warnings_of()
    assert message.startswith(f"GreedyLR: {said}")


@pytest.mark.parametrize("length", [{}, {"total_steps": 60}, {"total_steps": 1000, "steps_per_epoch": 60}])
def test_a_run_that_is_long_enough(length, warnings_of):
    start(torch.optim.AdamW, lr=1e-3, **length)
    assert warnings_of() == []


def test_the_trainer_says_it_too(tmp_path, warnings_of):
    tiny.trainer(tmp_path, [GreedyLRCallback(quiet=True)], max_steps=4, learning_rate=1e5).train()
    assert [message.split(":")[1] for message in warnings_of()] == [
        " the LR is left as it is",
        " the LR of this run can only be 1e+05, and usual LRs for AdamW are between 1e-07 and 0.1",
    ]


def test_what_is_over_or_left_alone_is_no_concern(warnings_of):
    scheduler = start(torch.optim.AdamW, lr=1e-3, total_steps=1000, steps_per_epoch=100)
    resumed = start(torch.optim.AdamW, lr=1e-3, total_steps=1000, steps_per_epoch=50, state=scheduler.state_dict())
    assert resumed.last_epoch == 2
    start(torch.optim.AdamW, lr=1e5, total_steps=40, shadow=True)
    assert [message for message in warnings_of() if message.startswith("GreedyLR: ")] == []


def test_a_resume_from_a_checkpoint_without_greedylr_is_a_start(tmp_path, warnings_of):
    tiny.trainer(tmp_path, [], max_steps=2, save_strategy="steps", save_steps=2).train()
    trainer = tiny.trainer(tmp_path, [GreedyLRCallback(quiet=True)], max_steps=4, learning_rate=1e5)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert any("and usual LRs for AdamW are" in message for message in warnings_of())


def test_a_window_that_never_fills_in_a_loop_of_ones_own_is_said_at_the_end(warnings_of):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    scheduler = GreedyLR(optimizer, GreedyConfig(), total_steps=500, monitor="val_loss", horizon=0)
    for step in range(500):
        scheduler.advance()
        if step % 50 == 49:
            scheduler.observe(1.0)
    scheduler.finish()
    (message,) = warnings_of()
    assert message.startswith("GreedyLR's window never filled in the 10 decisions of this run: the LR did not follow")
