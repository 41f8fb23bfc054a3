"""That the suite compares what it says: the arms are the methods they are named after, the statistics are right."""

import json
import math
import random
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("schedulefree", reason="the bench extra is not installed")
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup, get_wsd_schedule
from transformers.optimization import GreedyLR as TransformersGreedyLR

from benchmarks import report, store, suite
from benchmarks.arms import ARMS, FIXED, Setting
from benchmarks.report import Evidence
from benchmarks.scoring import bootstrap, compare, log_slope, share, step_equivalents
from benchmarks.store import Job, Results, train
from benchmarks.workloads import OPTIMIZERS, WORKLOADS, Task

STEPS, LR = 100, 0.1


class Bowl(torch.nn.Module):
    """0.5 * sum(curvature * x ** 2)."""

    def __init__(self, curvature=(1.0, 4.0)):
        super().__init__()
        self.x = torch.nn.Parameter(torch.ones(len(curvature)))
        self.curvature = torch.tensor(curvature)

    def forward(self):
        return 0.5 * (self.curvature * self.x**2).sum()


def setting(lr=LR, steps=STEPS, **kwargs):
    bowl = Bowl()
    task = Task(bowl, lambda step, g: bowl(), bowl.forward)
    return Setting(task, OPTIMIZERS["sgd"], lr, steps, **kwargs)


def drive(method, s, losses=None):
    """The LRs of each step."""
    lrs = []
    for step in range(s.steps):
        lrs.append(method.optimizer.param_groups[0]["lr"])
        loss = s.task.loss(step, None)
        s.task.model.zero_grad()
        loss.backward()
        method.update(loss.detach(), lambda: s.task.loss(0, None))
        method.step(float(loss.detach()) if losses is None else losses[step])
    return lrs


def noisy(n=STEPS):
    rng = random.Random(1)
    return [2.0 - min(i, 60) / 50 + rng.gauss(0, 0.05) for i in range(n)]


def own_optimizer(lr=LR):
    return torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=lr)


def own_lrs(scheduler, optimizer):
    lrs = []
    for _ in range(STEPS):
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return lrs


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("cosine", lambda o: get_cosine_schedule_with_warmup(o, 2, STEPS)),
        ("linear", lambda o: get_linear_schedule_with_warmup(o, 2, STEPS)),
        ("wsd", lambda o: get_wsd_schedule(o, 2, 20, num_training_steps=STEPS, decay_type="linear")),
        ("envelope", lambda o: LambdaLR(o, lambda t: min(1, t / 2, (STEPS - t) / 30))),
    ],
)
def test_fixed_schedules_are_their_own_classes(name, make):
    optimizer = own_optimizer()
    s = setting()
    assert drive(ARMS[name].build(s), s) == pytest.approx(own_lrs(make(optimizer), optimizer), rel=1e-9)


def test_step_and_polynomial_end_as_they_should():
    s = setting()
    lrs = drive(ARMS["step"].build(s), s)
    assert [lrs[i] for i in (5, 40, 80)] == pytest.approx([0.1, 0.01, 0.001])
    s = setting()
    assert drive(ARMS["polynomial"].build(s), s)[51] == pytest.approx(0.1 * (1 - 49 / 98) ** 2)


def ramp_and_decay(step):
    return min(1, step / 2, (STEPS - step) / 30)


def test_plateau_is_torchs_on_the_mean_of_each_twentieth():
    s, losses, optimizer = setting(), [1.0] * STEPS, own_optimizer()
    own, expected = ReduceLROnPlateau(optimizer, factor=0.5, patience=2), []
    for step in range(STEPS):
        expected.append(optimizer.param_groups[0]["lr"] * ramp_and_decay(step))
        if step % 5 == 4:
            own.step(1.0)
    lrs = drive(ARMS["plateau"].build(s), s, losses)
    assert lrs == pytest.approx(expected)
    assert lrs[50] < 0.06


def test_transformers_greedy_is_its_class_on_ten_evaluations():
    s, optimizer = setting(knob={"patience": 1}), own_optimizer()
    own = TransformersGreedyLR(optimizer, patience=1, min_lr=0.01, max_lr=1.0)
    method, expected, lrs = ARMS["transformers"].build(s), [], []
    for step in range(STEPS):
        expected.append(optimizer.param_groups[0]["lr"] * ramp_and_decay(step))
        lrs.append(method.optimizer.param_groups[0]["lr"])
        with torch.no_grad():
            s.task.model.x.fill_(1 - step / 200)
        if step % 10 == 9:
            own.step(float(s.task.validate().detach()))
        method.step(0.0)
    assert lrs == pytest.approx(expected)
    assert max(lrs) > 0.1


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("schedule-free AdamW", "schedulefree"),
        ("schedule-free SGD", "schedulefree"),
        ("Prodigy", "prodigyopt"),
        ("D-Adaptation", "dadaptation"),
        ("DoG", "dog"),
    ],
)
def test_lr_free_methods_are_their_authors_packages(name, module):
    assert type(ARMS[name].build(setting()).optimizer).__module__.split(".")[0] == module


def test_schedule_free_is_judged_in_its_eval_mode():
    s = setting()
    method = ARMS["schedule-free SGD"].build(s)
    drive(method, s)
    trained = s.task.model.x.detach().clone()
    method.finish()
    assert not torch.equal(trained, s.task.model.x)


def test_dog_is_judged_by_its_average():
    s = setting()
    method = ARMS["DoG"].build(s)
    drive(method, s)
    method.finish()
    assert torch.equal(s.task.model.x, method.averager.av_model.x)


@pytest.mark.parametrize("name", [name for name in ARMS if name.startswith("hypergradient")])
def test_hypergradient_descent_finds_the_lr_of_a_quadratic(name):
    """From far too low it rises; from above 2 / L, where gradient descent diverges, it falls."""

    def run(lr, beta):
        """Final loss, highest loss, final LR before the envelope."""
        s = setting(lr=lr, steps=400, knob={"beta": beta})
        s.make_optimizer = lambda parameters, rate: torch.optim.SGD(parameters, lr=rate)
        method, losses = ARMS[name].build(s), []
        s.task.loss = lambda step, g: losses.append(s.task.model()) or losses[-1]
        drive(method, s)
        return float(s.task.validate().detach()), max(float(loss.detach()) for loss in losses), method.lrs[0]

    final, _, lr = run(1e-4, 0.05)
    assert lr > 1e-2
    assert final < run(1e-4, 0.0)[0] / 100
    final, highest, lr = run(0.55, 0.05)
    assert lr < 0.5
    assert final < 1e-3
    assert highest < 100 < 1e10 < run(0.55, 0.0)[1]


def test_line_search_takes_armijo_steps():
    """On a quadratic a step of more than 2 (1 - c) / curvature is never accepted, and the loss only falls."""
    s = setting(lr=10.0, steps=60)
    method = ARMS["line search"].build(s)
    before = math.inf
    for step in range(50):
        loss = s.task.loss(step, None)
        assert float(loss.detach()) <= before
        before = float(loss.detach())
        s.task.model.zero_grad()
        loss.backward()
        method.update(loss.detach(), lambda: s.task.loss(0, None))
        assert method.size <= 2 * (1 - 0.1)  # the flattest direction's bound
    assert before < 1e-6
    assert method.evaluations > 50


def test_a_range_test_starts_over_with_the_lr_that_it_found():
    s = setting(lr=1.0, steps=200)
    method = ARMS["range test"].build(s)
    drive(method, s)
    assert len(method.seen) == 20
    assert [lr for _, lr in method.seen] == pytest.approx([0.01 * 1000 ** (t / 20) for t in range(20)])
    assert 0.01 < method.scheduler.base_lrs[0] < 0.5  # above 2 / L it would diverge


def test_a_yoked_run_replays_the_scales():
    s = setting(scales=[1.0, 2.0, 4.0])
    lrs = drive(ARMS["yoked to another seed"].build(s), s)
    assert lrs[50] == pytest.approx(0.2)
    assert lrs[25] == pytest.approx(0.1 * math.sqrt(2))
    assert lrs[90] == pytest.approx(0.1 * 4**0.9 * 10 / 30)


def test_ours_with_and_without_a_horizon_decay_alike():
    for name in ("greedy", "greedy, no horizon"):
        s = setting(knob={"window_size": 10**4})  # no decision is made
        lrs = drive(ARMS[name].build(s), s, noisy())
        assert lrs == pytest.approx([LR * ramp_and_decay(step) for step in range(STEPS)])


# ---- the runner ----


def test_a_run_is_repeatable_and_its_arms_see_the_same_batches():
    jobs = [Job("x", "digits-mlp", arm, 0.03, 1, 40) for arm in ("cosine", "cosine", "greedy")]
    a, b, c = (train(job) for job in jobs)
    assert a["loss"] == b["loss"] != c["loss"]
    assert a["start"] == c["start"]


def test_a_diverged_run_has_no_loss():
    assert train(Job("x", "digits-mlp", "constant", 1e9, 0, 30))["loss"] is None


@pytest.mark.slow
def test_results_continue_where_they_stopped(tmp_path):
    path = tmp_path / "runs.jsonl"
    jobs = [(Job("x", "digits-mlp", "cosine", 0.03, seed, 10), None) for seed in range(3)]
    Results(path).run(jobs[:2], workers=1)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], lines[-1][:20]]))  # killed while it wrote the second
    results = Results(path)
    assert len(results.runs) == 1
    results.run(jobs, workers=1)
    assert len(Results(path).runs) == 3
    assert len(path.read_text().splitlines()) == 1 + 1 + 1 + 2  # what they have in common, whole, torn, run now
    assert "versions" in json.loads(path.read_text().splitlines()[0])
    assert len(Results(path).losses(stage="x", arm="cosine")) == 3


@pytest.mark.slow
def test_two_defaults_are_not_mixed_in_one_file(tmp_path, monkeypatch):
    path = tmp_path / "runs.jsonl"
    ours, fixed = (Job("x", "digits-mlp", arm, 0.03, 0, 10) for arm in ("greedy", "cosine"))
    Results(path).run([(ours, None)], workers=1)
    monkeypatch.setattr(store, "config_hash", lambda: "another")
    Results(path).run([(fixed, None)], workers=1)
    before = path.read_text()
    with pytest.raises(SystemExit, match="is of configuration .*, the default is another: give other --results"):
        Results(path).run([(replace(ours, seed=1), None)], workers=1)
    assert path.read_text() == before


def test_the_halves_share_no_data_and_use_every_optimizer():
    tune, held_out = ([w for w in WORKLOADS.values() if w.half == half] for half in ("tune", "held out"))
    assert len(tune) >= 6
    assert len(held_out) >= 6
    assert not {w.name.split("-")[0] for w in tune} & {w.name.split("-")[0] for w in held_out}
    assert {w.optimizer for w in WORKLOADS.values()} == set(OPTIMIZERS)


def test_every_arm_has_its_default_first_and_four_knobs_at_most():
    for arm in ARMS.values():
        assert arm.knobs[0] == {}
        assert len(arm.knobs) in (1, 4)
    assert len(FIXED) == 6


# ---- the statistics ----

REFERENCE = {length: 2 + length**-0.5 for length in (0.25, 0.5, 1.0, 2.0)}


def test_step_equivalents():
    for length in REFERENCE:
        assert step_equivalents(REFERENCE[length], REFERENCE) == pytest.approx(length)
    assert 1.0 < step_equivalents(2 + 1.4**-0.5, REFERENCE) < 2.0
    assert step_equivalents(math.inf, REFERENCE) == 0.25
    assert step_equivalents(0.0, REFERENCE) == 2.0
    # a bump of noise is pooled, so that more steps are never worth less
    bumpy = {0.5: 3.0, 1.0: 3.2, 2.0: 2.0}
    assert step_equivalents(3.1, bumpy) == 0.5
    assert 1.0 < step_equivalents(2.5, bumpy) < 2.0


def cells(gain, noise, rng, count=200, seeds=5):
    """Simulated cells in which the arm is worth so much more than each of three equal fixed schedules."""
    made = []
    for i in range(count):
        shared = [rng.gauss(0, 0.01) for _ in range(seeds)]

        def losses(worth, shared=shared):
            return {seed: 2 + worth**-0.5 + shared[seed] + rng.gauss(0, noise) for seed in range(seeds)}

        fixed = {name: losses(1.0) for name in "abc"}
        made.append(compare(f"w{i % 10}", 1.0, losses(1 + gain), fixed, REFERENCE))
    return made


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("noise", [0.0005, 0.01, 0.02, 0.04])
def test_equal_arms_are_not_called_a_win(noise, seeds):
    made = cells(0.0, noise, random.Random(0), seeds=seeds)
    verdicts = [cell.verdict for cell in made]
    assert verdicts.count("win") <= 0.025 * len(made)
    assert verdicts.count("loss") <= 0.025 * len(made)
    if noise <= 0.01:
        assert share(made, "win") < 0.06
        assert share(made, "loss") < 0.06
    if noise < 0.001:
        assert share(made, "tie") > 0.95


def test_a_better_arm_is_called_a_win_and_a_worse_one_a_loss():
    assert share(cells(0.3, 0.003, random.Random(0)), "win") > 0.95
    assert share(cells(-0.3, 0.003, random.Random(0)), "loss") > 0.95


def test_noise_leaves_cells_unresolved():
    assert sum(cell.resolved for cell in cells(0.0, 0.1, random.Random(0))) < 60


GOOD, GONE = dict.fromkeys(range(4), 2.9), dict.fromkeys(range(4), math.inf)


def test_divergence_is_counted_and_in_no_mean():
    cell = compare("w", 1.0, {**GOOD, 3: math.inf}, {"a": GOOD}, REFERENCE)
    assert (cell.diverged, cell.gain, cell.pairs, cell.verdict) == ((1, 0), 0.0, 3, "unresolved")
    assert compare("w", 1.0, GONE, {"a": GOOD}, REFERENCE).verdict == "loss"
    assert compare("w", 1.0, GOOD, {"a": GONE}, REFERENCE).verdict == "win"
    assert compare("w", 1.0, {**GOOD, 3: math.inf}, {"a": GONE}, REFERENCE).verdict == "unresolved"
    assert compare("w", 1.0, GONE, {"a": GONE}, REFERENCE).verdict == "unresolved"


@pytest.mark.parametrize("losses", [(4.5, 9.0), (2.1, 2.0)])
def test_losses_beyond_the_reference_are_no_tie(losses):
    """Worse than its shortest run, or better than its longest."""
    a, b = (dict.fromkeys(range(5), loss) for loss in losses)
    cell = compare("w", 1.0, a, {"b": b}, REFERENCE)
    assert (cell.pairs, cell.verdict) == (0, "unresolved")


def test_a_seed_is_scored_against_what_was_best_on_the_others():
    lucky = {0: 2.0, 1: 3.1, 2: 3.1, 3: 3.1}  # best in the mean because of one seed, in which it is not picked
    steady = {0: 2.9, 1: 2.9, 2: 2.9, 3: 2.9}
    cell = compare("w", 1.0, steady, {"lucky": lucky, "steady": steady}, REFERENCE)
    worth = [step_equivalents(loss, REFERENCE) for loss in (2.9, 3.1)]
    assert cell.opponent == "lucky"
    assert cell.gain == pytest.approx(3 / 4 * (worth[0] / worth[1] - 1))


# ---- the report ----


def evidence(greedy, linear):
    """One workload at 1x, from losses by seed; None diverged."""
    results = Results(Path("nowhere"))
    for arm, losses in (("greedy", greedy), ("linear", linear)):
        for seed, loss in enumerate(losses):
            job = Job("held-out", "digits-mlp", arm, 0.1, seed, WORKLOADS["digits-mlp"].steps, 1.0)
            results.runs[job.key] = {"job": asdict(job), "loss": loss, "start": 9.0}
    for length, loss in REFERENCE.items():
        job = Job("reference", "digits-mlp", "linear", 0.1, 0, round(length * WORKLOADS["digits-mlp"].steps), 1.0)
        results.runs[job.key] = {"job": asdict(job), "loss": loss, "start": 9.0}
    return Evidence(results, {"digits-mlp": {"arm": "linear", "lr": 0.1}}, {}, "held-out")


def test_loss_ratios_leave_out_cells_with_a_divergence_and_count_it():
    e = evidence([2.4, 2.6], [5.0, 5.0])
    assert e.ratios("greedy") == {"digits-mlp": [pytest.approx(0.5)]}
    e = evidence([2.4, None], [5.0, 5.0])
    assert (e.ratios("greedy"), e.diverged("greedy")) == ({}, (1, 2))
    assert evidence([2.4, 2.6], [5.0, None]).ratios("greedy") == {}


def test_a_mean_is_ahead_where_its_interval_is():
    assert report.ahead({"a": [0.1], "b": [0.2]})[2] is True
    assert report.ahead({"a": [-0.1], "b": [0.2]})[2] is None
    assert report.ahead({"a": [-0.2], "b": [0.1]})[2] is False
    assert report.ahead({"a": [math.log(2)], "b": [math.log(8)]})[0] == "+300%"


def test_bootstrap_resamples_workloads():
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    found, low, high = bootstrap({"a": [1.0] * 50, "b": [3.0] * 50}, mean)
    assert (found, low, high) == (2.0, 1.0, 3.0)  # two workloads know little, however many cells they have
    found, low, high = bootstrap({str(i): [random.Random(i).gauss(0, 1)] for i in range(200)}, mean)
    assert low < found < high
    assert high - low == pytest.approx(4 / math.sqrt(200), rel=0.3)


def test_log_slope():
    assert log_slope([(x, 3 * x**-0.7) for x in (1, 2, 3, 4)]) == pytest.approx(-0.7)


# ---- the whole ----


@pytest.mark.slow
def test_quick(tmp_path):
    suite.main(["quick", "--results", str(tmp_path)])
    text = (tmp_path / "report.md").read_text()
    assert "### Targets" in text
    assert "### Every arm" in text
    assert {path.name for path in (tmp_path / "img").glob("*.png")} == {
        "loss_over_base_lr.png",
        "schedules.png",
        "loss_histories.png",
    }
    before = (tmp_path / "held-out.jsonl").read_text()
    report.main(["--results", str(tmp_path), "--output", str(tmp_path / "again")])
    assert (tmp_path / "again" / "report.md").read_text() == text
    suite.main(["quick", "--results", str(tmp_path)])
    assert (tmp_path / "held-out.jsonl").read_text() == before
