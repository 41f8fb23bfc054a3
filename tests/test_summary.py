"""What a run says when it begins and when it ends, where it is said, and what prints show."""

import logging
import random
from types import SimpleNamespace

import forked
import pytest
import tiny
import torch

from greedylr_integrations import Action, Decision, GreedyConfig, GreedyLR, PaperConfig, Reason, SlopeConfig, summary
from greedylr_integrations.learned import PolicyConfig
from greedylr_integrations.log import say


def scheduler_of(config=None, lr=0.1, **kwargs):
    return GreedyLR(torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=lr), config, **kwargs)


def train(scheduler, steps=100):
    rng = random.Random(0)
    (group,) = scheduler.optimizer.param_groups
    (weights,) = group["params"]
    for _ in range(steps):
        weights.grad = weights.detach() + 0.1 * torch.tensor([rng.gauss(0, 1) for _ in range(3)])
        scheduler.optimizer.step()
        scheduler.step(weights.detach().square().sum().item())
    return scheduler


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, "greedylr_integrations")

    def messages(act):
        caplog.clear()
        act()
        return caplog.messages

    return messages


# ---- the words ----


@pytest.mark.parametrize(
    ("scheduler", "line"),
    [
        (
            lambda: scheduler_of(total_steps=1000),
            "GreedyLR searches for the LR by the slope, from 0.02 x the base LR (base LR 0.1); decays to 0 over the"
            " last 300 of 1,000 steps",
        ),
        (
            lambda: scheduler_of(total_steps=50),
            "GreedyLR leaves the LR as it is (base LR 0.1); decays to 0 over the last 15 of 50 steps",
        ),
        (
            lambda: scheduler_of(total_steps=1000, steps_per_epoch=22),
            "GreedyLR leaves the LR as it is (base LR 0.1); decays to 0 over the last 300 of 1,000 steps",
        ),
        (
            lambda: scheduler_of(GreedyConfig(), monitor="val_loss"),
            "GreedyLR follows the loss by GreedyConfig (base LR 0.1); decides on val_loss; no final decay, since the"
            " length of the run is not known",
        ),
        (
            lambda: scheduler_of(PaperConfig(), total_steps=10, decay_ratio=0.0, shadow=True),
            "GreedyLR follows the loss by PaperConfig (base LR 0.1); shadow: leaves the LR alone",
        ),
    ],
)
def test_the_first_line(scheduler, line, said):
    assert said(scheduler().announce) == [line]


def test_the_first_line_of_a_policy_and_of_a_base_schedule(said):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.1)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    (line,) = said(GreedyLR(optimizer, base_schedule=cosine, total_steps=100).announce)
    assert line.endswith("(base LR 0.1); multiplies the LR of CosineAnnealingLR")
    config = PolicyConfig.load("network")
    (line,) = said(scheduler_of(config, total_steps=100).announce)
    assert line.startswith(f"GreedyLR follows a learned policy ({config.policy.digest}) (base LR 0.1)")


def test_the_last_line_of_a_search(said, tmp_path):
    scheduler = train(scheduler_of(SlopeConfig(), total_steps=100, history_file=tmp_path / "h.jsonl"))
    found = [record.step for record in scheduler.history if record.decision.reason.name == "FOUND"]
    lr = scheduler.suggested_lr()
    assert said(scheduler.finish) == [
        f"GreedyLR found the LR {lr:.2g}, {lr / 0.1:.3g} x the base LR of 0.1, first after {found[0]} of 100 steps."
        f" Start the next such run at {lr:.2g}. History: {tmp_path / 'h.jsonl'}"
    ]


def test_a_run_that_is_too_short_says_nothing_at_its_end(said):
    assert said(train(scheduler_of(total_steps=None), 9).finish) == []


def decided(*reasons):
    scales = [(2.0**i,) for i in range(len(reasons))]
    decisions = [Decision(Action.RAISE, reason, scale, 1.0) for reason, scale in zip(reasons, scales, strict=True)]
    return [SimpleNamespace(step=i + 1, decision=decision) for i, decision in enumerate(decisions)]


def test_a_search_that_ran_out_of_time_found_nothing():
    line = summary.closing(decided(Reason.SEARCHING, Reason.HOLDING), 0.4, 0.1, 80, None)
    assert line == (
        "GreedyLR ended its search at the LR 0.4, 4 x the base LR of 0.1, because its time was up; a higher LR may fit"
        " better. Start the next such run at 0.4."
    )


@pytest.mark.parametrize("reason", [Reason.NONFINITE, Reason.ORDERED])
def test_a_search_that_was_cut_short_did_not_run_out_of_time(reason):
    line = summary.closing(decided(Reason.SEARCHING, reason, Reason.HOLDING), 0.4, 0.1, 80, None)
    assert "time" not in line
    assert "settled on the LR 0.4" in line


@pytest.mark.parametrize("reason", [Reason.CEILING, Reason.ORDERED])
def test_a_search_that_was_held_up_did_not_run_out_of_time(reason):
    line = summary.closing(decided(Reason.SEARCHING, reason, Reason.SEARCHING, Reason.HOLDING), 0.4, 0.1, 80, None)
    assert "time" not in line


def test_a_run_without_a_search_recommends_nothing():
    line = summary.closing(decided(Reason.TOO_SHORT, Reason.TOO_SHORT), 0.1, 0.1, 80, "h.jsonl")
    assert line == "GreedyLR left the LR as it was, and did not search for another. History: h.jsonl"


# ---- where they are said ----


def test_without_logging_it_is_said_on_stderr_only_if_asked(capfd, monkeypatch):
    say("not this", aloud=False)
    say("this", aloud=True)
    monkeypatch.setenv("RANK", "1")
    say("nor on another rank", aloud=True)
    assert capfd.readouterr() == ("", "this\n")


def test_logging_that_was_set_up_decides(caplog, capfd):
    with caplog.at_level(logging.INFO, "greedylr_integrations"):
        say("logged", aloud=True)
    with caplog.at_level(logging.WARNING, "greedylr_integrations"):  # quiet, by the user
        say("nowhere", aloud=True)
    assert caplog.messages == ["logged"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("quiet", [False, True])
def test_a_trainer_says_two_lines_with_one_argument_to_be_quiet(quiet, tmp_path):
    """In a process of its own, in which nothing has set up logging, as in a user's script."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import sys; sys.path.insert(0, {str(tiny.__file__.rsplit("/", 1)[0])!r})
import tiny
from greedylr_integrations.transformers import GreedyLRCallback
data = tiny.regression_data(400)
tiny.trainer({str(tmp_path)!r}, [GreedyLRCallback(quiet={quiet})], data=data, max_steps=80).train()
""")
    done = forked.run([script], 1)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("GreedyLR ")]
    if quiet:
        assert lines == []
        return
    first, last = lines
    assert first.startswith("GreedyLR searches for the LR by the slope, from 0.03 x the base LR (base LR 0.01)")
    assert "Start the next such run at " in last


# ---- what prints show ----


def test_what_prints_show():
    scheduler = scheduler_of(GreedyConfig(), total_steps=100)
    assert repr(scheduler.history) == "<History: no decision yet>"
    train(scheduler, 20)
    now = f"LR {0.1 * scheduler.scale:.3g}, {scheduler.scale:.3g} x the base LR of 0.1"
    assert repr(scheduler) == f"<GreedyLR at step 20 of 100: {now}; GreedyConfig>"
    last = scheduler.history[-1]
    assert str(last).startswith(f"step 20: loss {last.decision.loss:.4g}, {last.decision.action.value}, LR ")
    assert repr(scheduler.history) == f"<History: 20 decisions, steps 1 to 20; {last}>"
    table = scheduler.history._repr_html_()
    assert table.count("<tr>") == 11
    assert f"<td>{last.decision.reason.value}</td>" in table


@pytest.mark.parametrize("frozen", ["LR 0", "requires_grad"])
def test_the_group_that_moves_is_shown(frozen, tmp_path):
    """A frozen first group is neither in the table nor in the picture nor in what the run says."""
    pytest.importorskip("matplotlib")
    from greedylr_integrations.runs import find

    body, head = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    body.requires_grad_(frozen != "requires_grad")
    groups = [{"params": [body], "lr": 0.0 if frozen == "LR 0" else 7e-5}, {"params": [head], "lr": 0.1}]
    scheduler = GreedyLR(torch.optim.SGD(groups), GreedyConfig(), total_steps=50, history_file=tmp_path / "h.jsonl")
    for _ in range(30):
        head.grad = head.detach().clone()
        scheduler.optimizer.step()
        scheduler.step(head.detach().square().sum().item())
    shown = f"LR {scheduler.history[-1].lrs[1]:.3g} "
    assert shown in repr(scheduler.history)
    assert repr(scheduler) == f"<GreedyLR at step 30 of 50: {shown[:-1]}, 3.56 x the base LR of 0.1; GreedyConfig>"
    lr = f"<td>{scheduler.history[-1].lrs[1]:.3g}</td>"
    assert lr in scheduler.history._repr_html_()
    figure = scheduler.history.plot()
    (line,) = [line for axes in figure.axes for line in axes.lines if line.get_label() == "learning rate"]
    assert line.get_ydata()[-1] == scheduler.history[-1].lrs[1]
    assert "learning rate (group 2 of 2)" in [axes.get_ylabel() for axes in figure.axes]
    scheduler.finish()
    scheduler.detach()
    assert "x the base LR of 0.1" in repr(scheduler)  # also when the weights are gone
    if frozen == "LR 0":  # a file does not say what else was frozen
        assert shown in str(scheduler.history[-1])
        (run,) = find.read(tmp_path / "h.jsonl")
        assert run.lrs.tolist() == [record.lrs[1] for record in scheduler.history]


def test_a_group_that_moves_and_was_added_later():
    frozen = torch.nn.Parameter(torch.ones(3))
    scheduler = GreedyLR(torch.optim.SGD([{"params": [frozen], "lr": 0.0}]), GreedyConfig())
    for step in range(4):
        if step == 2:
            scheduler.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))], "lr": 0.1})
        scheduler.optimizer.step()
        scheduler.step(1.0)
    assert scheduler.history._repr_html_().count("<td>0.1</td>") == 2
    pytest.importorskip("matplotlib")
    assert "learning rate (group 2 of 2)" in [axes.get_ylabel() for axes in scheduler.history.plot().axes]


def test_a_callback_prints_its_run(tmp_path):
    from greedylr_integrations.transformers import GreedyLRCallback

    callback = GreedyLRCallback(GreedyConfig(), quiet=True)
    assert repr(callback) == "<GreedyLRCallback of 'loss' with GreedyConfig: not begun>"
    tiny.trainer(tmp_path, [callback], max_steps=5).train()
    assert repr(callback).startswith("<GreedyLRCallback of 'loss' with GreedyConfig: <GreedyLR at step 5 of 5: LR 0, ")


def test_the_history_draws_itself():
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    figure = train(scheduler_of(total_steps=100)).history.plot("mine")
    assert len(figure.axes) >= 2
    plt.close(figure)
