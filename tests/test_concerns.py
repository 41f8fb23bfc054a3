"""What is said at the start of a run that is likely to go wrong."""

import pytest
import tiny
import torch

from greedylr_integrations import GreedyConfig, GreedyLR, PaperConfig, SlopeConfig
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
        (torch.optim.AdamW, 1e-6, SlopeConfig(max_lr=5e-9), "can only be 5e-09"),
        (torch.optim.RMSprop, 20.0, GreedyConfig(), "between 0.2 and 2e+02"),
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
        (torch.optim.AdamW, None, [0.0]),  # frozen
        (torch.optim.AdamW, PaperConfig(), [1e-10]),  # its bounds are LRs
        (SignSGD, None, [1e-6]),  # takes LRs as Lion does
        (torch.optim.Adadelta, None, [1e6]),  # nothing is known of its LRs
        (torch.optim.SGD, GreedyConfig(), [0.1]),
    ],
)
def test_a_base_lr_that_may_be_right(optimizer, config, lrs, warnings_of):
    start(optimizer, config, groups=[group(lr) for lr in lrs], total_steps=1000)
    assert warnings_of() == []


@pytest.mark.parametrize(
    ("config", "length", "said"),
    [
        (SlopeConfig(), {"total_steps": 40}, "the base LR is held: a search needs 60 decisions, and the run has 40"),
        (
            SlopeConfig(),
            {"total_steps": 1000, "steps_per_epoch": 30},
            "the base LR is held: a search needs 60 decisions in one pass over the data, and this one has 30; a smaller"
            " batch gives more",
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
        " the base LR is held",
        " the LR of this run can only be 1e+05, and usual LRs for AdamW are between 1e-07 and 0.1",
    ]


def test_what_is_over_or_left_alone_is_no_concern(warnings_of):
    scheduler = start(torch.optim.AdamW, lr=1e-3, total_steps=1000, steps_per_epoch=100)
    resumed = start(torch.optim.AdamW, lr=1e-3, total_steps=1000, steps_per_epoch=50, state=scheduler.state_dict())
    assert resumed.last_epoch == 2
    start(torch.optim.AdamW, lr=1e5, total_steps=40, shadow=True)
    assert [message for message in warnings_of() if message.startswith("GreedyLR: ")] == []
