import importlib
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings
from multiprocessing.connection import Connection

import numpy as np
import pytest
import torch
from processes import ON_CPU, TESTS, kill_tree, run, wait

gymnasium = pytest.importorskip("gymnasium")
pytest.importorskip("stable_baselines3")
from gymnasium.utils.env_checker import check_env as check_gymnasium
from stable_baselines3.common.env_checker import check_env as check_sb3

from greedylr_integrations import GreedyConfig, GreedyLR
from greedylr_integrations.learned import OBSERVED, Policy, PolicyConfig, PolicyRule
from recipes.common.offline import RecipeError
from recipes.research import distill_policy, learn_schedule
from recipes.research.learn import compare, pictures
from recipes.research.learn.environment import PENALTY, ScheduleEnv, Settings
from recipes.research.learn.networks import NetworkEpisode, Task
from recipes.research.learn.tasks import family

ROOT = TESTS.parent
TASK = Task("digits", "adamw", width=16, depth=1, batch=16, steps=40, base_lr=3e-3, seed=0)


class Given:
    """A family with one episode: these losses, whatever the LR."""

    name = "given"

    def __init__(self, losses, bound=None, validation=1.0):
        self.base_lr, self.steps, self.losses, self.lrs = 0.5, len(losses), losses, []
        self._bound, self._validation = bound, validation

    def sample(self, rng):
        self._left = iter(self.losses)
        return self

    def advance(self, lr):
        self.lrs.append(lr)
        return next(self._left)

    def bound(self):
        return self._bound

    def validation_loss(self):
        return self._validation


# ---- the environment ----


@pytest.mark.parametrize("name", ["quadratic", "network"])
def test_the_environment_keeps_the_rules_of_gymnasium_and_sb3(name):
    env = ScheduleEnv(family(name))
    env.spec = None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*render.*")
        warnings.filterwarnings("ignore", ".*not within the observation space.*", category=DeprecationWarning)
        check_gymnasium(env, skip_render_check=True)
        check_sb3(env)


def test_the_reward_is_the_fall_of_the_log_loss():
    losses = [8.0, 8.0, 4.0, 4.0, 2.0, 2.0]
    env = ScheduleEnv(Given(losses, validation=1.0), Settings(blocks=3))
    observation, _ = env.reset(seed=0)
    assert observation.shape == (len(OBSERVED),)
    _, reward, over, truncated, _ = env.step(np.array([1.0]))
    assert (reward, over, truncated) == (pytest.approx(np.log(2)), False, False)
    _, reward, over, _, _ = env.step(np.array([-1.0]))
    assert (reward, over) == (pytest.approx(np.log(4)), True)  # from 4 to the validation loss


def test_with_a_twin_the_reward_is_the_fall_beyond_it_as_a_share_of_its_own():
    task, twin = Given([8.0, 4.0, 1.0], bound=0.7), Given([8.0, 4.0, 3.0], bound=0.3, validation=2.0)
    task.twin = lambda: twin.sample(None)
    env = ScheduleEnv(task, Settings(blocks=3, decay_ratio=0.5))
    env.reset(seed=0)
    rewards = [env.step(np.array([1.0]))[1] for _ in range(2)]
    assert rewards == pytest.approx([0, 1 / 6])  # from 4 to 1, where the twin gets from 8 to 4 to 2
    assert twin.lrs == pytest.approx([0.3, 0.3, 0.3 * 2 / 3])  # at the bound, with the final decay


def test_an_episode_whose_twin_diverges_or_gains_nothing_is_drawn_again():
    task = Given([8.0, 4.0, 1.0])
    twins = iter([Given([8.0, np.inf, 1.0]), Given([8.0, 8.0, 8.0], validation=8.0), Given([8.0, 4.0, 3.0])])
    task.twin = lambda: next(twins).sample(None)
    ScheduleEnv(task, Settings(blocks=3)).reset(seed=0)
    assert next(twins, None) is None


def test_an_action_multiplies_the_lr_of_a_block_within_the_bounds():
    task = Given([1.0] * 10)
    env = ScheduleEnv(task, Settings(blocks=5, max_factor=4.0, max_scale=6.0))
    env.reset(seed=0)
    for action in (1.0, 7.0, -0.5, 0.0):
        *_, over, _, _ = env.step(np.array([action]))
    assert over
    assert task.lrs == pytest.approx([0.5 * scale for scale in (1, 1, 4, 4, 6, 6, 3, 3, 3, 3)])
    bounded = Given([1.0] * 10, bound=0.7)
    env = ScheduleEnv(bounded, Settings(blocks=5))
    env.reset(seed=0)
    for _ in range(4):
        env.step(np.array([1.0]))
    assert max(bounded.lrs) == pytest.approx(0.7)


def test_a_family_has_settings_of_its_own_and_the_final_decay_is_part_of_an_episode():
    task = Given([1.0] * 10)
    task.decay_ratio, task.blocks = 0.5, 10
    assert Settings.of(task) == Settings(blocks=10, decay_ratio=0.5)
    env = ScheduleEnv(task)
    env.reset(seed=0)
    for _ in range(9):
        env.step(np.array([0.0]))
    assert task.lrs == pytest.approx([0.5 * factor for factor in (1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2)])


@pytest.mark.parametrize("last", [np.nan, np.inf, 1e9])
def test_a_run_that_diverges_ends_with_the_penalty(last):
    env = ScheduleEnv(Given([1.0, 1.0, last, 1.0, 1.0, 1.0]), Settings(blocks=3))
    env.reset(seed=0)
    _, reward, over, _, info = env.step(np.array([0.0]))
    assert (reward, over, info) == (-PENALTY, True, {"diverged": True})


def test_training_and_use_see_the_same():
    class Recording(PolicyRule):
        def push(self, loss):
            observation = super().push(loss)
            if observation:
                seen.append(observation)
            return observation

    seen = []
    env = ScheduleEnv(family("quadratic"))
    observations = [env.reset(seed=3)[0]]
    policy = some_policy()
    over = False
    losses, episode = [], env._run._episode
    plain = episode.advance
    episode.advance = lambda lr: losses.append(plain(lr)) or losses[-1]
    start = list(env._run.rule.means)
    while not over:
        observation, _, over, _, _ = env.step(np.array([policy(observations[-1].tolist())]))
        observations.append(observation)
    assert len(start) == 1
    rule = Recording(policy, episode.steps)
    for loss in [*start * 3, *losses]:  # the first block is three losses long
        rule.update(loss)
    assert np.array(seen[1:]) == pytest.approx(np.array(observations[1:]), abs=1e-5)


def some_policy(blocks=40):
    rng = np.random.default_rng(0)
    shapes = [(8, len(OBSERVED)), (8, 8), (1, 8)]
    layers = [((0.1 * rng.normal(size=s)).astype(np.float32), np.zeros(s[0], np.float32)) for s in shapes]
    settings = {"max_factor": 2.0, "min_scale": 0.01, "max_scale": 10.0, "trained": {}}
    return Policy(layers, {"observed": list(OBSERVED), "blocks": blocks, **settings})


def test_an_episode_is_its_seeds_alone():
    def losses():
        episode = NetworkEpisode(TASK)
        return [episode.advance(1e-2) for _ in range(40)] + [episode.validation_loss()]

    torch.manual_seed(1)
    first = losses()
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    assert losses() == first
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first[-1] < first[0] - 0.5


# ---- the command ----


def command(*words):
    return [sys.executable, "-m", "recipes.research.learn_schedule", *words]


TINY = ("--family", "quadratic", "--envs", "2", "--seed", "5")


@pytest.fixture
def learn(monkeypatch, capsys):
    monkeypatch.setattr(learn_schedule, "DECISIONS", 32)
    monkeypatch.setattr(learn_schedule, "UPDATES", 2)

    def learn(*words):
        learn_schedule.main([str(word) for word in words])
        return capsys.readouterr().out

    return learn


def test_a_seed_gives_a_policy_and_a_resume_the_same(learn, tmp_path, monkeypatch):
    for name in ("one", "two"):
        learn(*TINY, "--decisions", 512, "--output-dir", tmp_path / name)
    first, second = ((tmp_path / name / "quadratic.safetensors").read_bytes() for name in ("one", "two"))
    assert first == second
    learn("--family", "quadratic", "--envs", 2, "--seed", 6, "--decisions", 512, "--output-dir", tmp_path / "other")
    assert (tmp_path / "other" / "quadratic.safetensors").read_bytes() != first
    assert PolicyConfig.load(tmp_path / "one" / "quadratic.safetensors").policy.trained == {
        **{"family": "quadratic", "seed": 5, "envs": 2},
        "decisions": 512,
    }

    class Stop(Exception):
        pass

    rounds = iter([None, None, Stop()])
    plain = learn_schedule.PPO.learn

    def until_stopped(self, *args, **kwargs):
        if stop := next(rounds):
            raise stop
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(learn_schedule.PPO, "learn", until_stopped)
    with pytest.raises(Stop):
        learn(*TINY, "--decisions", 512, "--output-dir", tmp_path / "cut")
    monkeypatch.setattr(learn_schedule.PPO, "learn", plain)
    assert (tmp_path / "cut" / "quadratic.safetensors").read_bytes() != first
    learn("--resume", "--output-dir", tmp_path / "cut")
    assert (tmp_path / "cut" / "quadratic.safetensors").read_bytes() == first
    assert len((tmp_path / "cut" / "progress.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_the_last_round_and_says_how_to_go_on(tmp_path, number):
    out = tmp_path / "run"
    words = command(*TINY, "--subprocesses", "--decisions", "1000000", "--output-dir", out)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored behind `&`, and children inherit that
    with (tmp_path / "out").open("w+") as told, (tmp_path / "err").open("w+") as errors:
        process = subprocess.Popen(
            [str(word) for word in words],
            cwd=ROOT,
            env={**os.environ, **ON_CPU},
            stdout=told,
            stderr=errors,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + 120
            while not (out / "checkpoint.zip").exists():
                assert process.poll() is None, (tmp_path / "err").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.2)
            os.killpg(process.pid, number)  # as a terminal and a batch system do: to the workers too
            assert wait(process, 60) == 128 + number
        finally:
            kill_tree(process.pid)
    assert f"go on from the last round with --resume --output-dir {out}" in (tmp_path / "out").read_text()
    assert "Traceback" not in (tmp_path / "err").read_text()
    assert Policy.load(out / "quadratic.safetensors").trained["decisions"] > 0


@pytest.mark.parametrize("answers", [50, 51])  # one of them leaves an answer of the same step to be read
def test_ctrl_c_between_the_answers_of_a_step(learn, tmp_path, monkeypatch, answers):
    left = itertools.count(answers, -1)
    plain = Connection.recv

    def receive(self):
        answer = plain(self)
        if next(left) == 0:
            signal.raise_signal(signal.SIGINT)
        return answer

    monkeypatch.setattr(Connection, "recv", receive)
    with pytest.raises(SystemExit) as stopped:
        learn(*TINY, "--subprocesses", "--decisions", 100_000, "--output-dir", tmp_path / "run")
    assert stopped.value.code == 130
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--family", "linguistics"], "--family 'linguistics' is unknown: choose from network, nmf, quadratic"),
        (["--envs", "0"], "--envs 0 is not allowed: it must be at least 1"),
        (["--decisions", "many"], "argument --decisions: invalid int value: 'many'"),
        (["--resume"], "--resume needs the --output-dir of the run to go on with"),
        (["--resume", "--output-dir", "nowhere"], "nowhere has no run to go on with"),
        (["--resume", "--output-dir", "run", "--seed", "3"], "--seed cannot be changed with --resume: leave it out"),
        (["--output-dir", "run"], "run has another run already: choose another --output-dir, or --resume it"),
        (["--family", "quadratic", "--histories", "nothing.jsonl"], "--histories nothing.jsonl cannot be read: "),
        (["--family", "quadratic", "--histories", "no_lr.csv"], "--histories no_lr.csv has no learning rates"),
    ],
)
def test_wrong_arguments(tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "arguments.json").write_text("{}")
    (tmp_path / "no_lr.csv").write_text("step,loss\n1,2.0\n2,1.0\n")
    with pytest.raises(RecipeError, match=told.replace("(", r"\(")):
        learn_schedule.main(words)
    assert not list(tmp_path.glob("**/*.safetensors"))


@pytest.mark.parametrize("name", ["distill_policy", "learn.compare", "learn.pictures", "nmf.__main__"])
def test_commands_on_a_policy_say_that_it_is_not_there(name):
    main = importlib.import_module(f"recipes.research.{name}").main
    with pytest.raises(RecipeError, match="^--policy 'nothing' cannot be loaded .*nothing does not exist"):
        main(["--policy", "nothing"])
    with pytest.raises(RecipeError, match="unrecognized arguments: --nope"):
        main(["--nope"])


def test_an_error_is_one_line_and_exit_code_2():
    done = run(command("--family", "linguistics"), cwd=ROOT)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr


# ---- imitation ----


def test_recorded_runs_are_imitated(learn, tmp_path):
    """Histories whose LR rises by 1.5 a block and then falls are a policy that does so, before any PPO."""
    path = tmp_path / "run.jsonl"
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    factors = [1.5] * 5 + [0.7] * 34
    scheduler = GreedyLR(optimizer, total_steps=200, decay_ratio=0, history_file=path)
    scale, rng = 1.0, np.random.default_rng(0)
    for i in range(200):
        if i % 5 == 4 and i // 5 < len(factors):
            scale = max(scale * factors[i // 5], 0.02)
            scheduler.pin(scale)
        scheduler.step(2 / (1 + i / 30) + 0.05 * rng.normal())
    scheduler.finish()
    observations, actions = learn_schedule.recorded([str(path)], Settings())
    assert len(actions) == 40
    assert actions[:5] == pytest.approx(np.log2(1.5), abs=1e-3)
    assert actions[6:10] == pytest.approx(np.log2(0.7), abs=1e-3)
    env = learn_schedule.make_env("quadratic", 2)
    model = learn_schedule.make_model(env, 0)
    learn_schedule.imitate(model, observations, actions)
    chosen = model.predict(observations, deterministic=True)[0][:, 0]
    assert np.corrcoef(chosen, actions)[0, 1] > 0.95
    env.close()
    told = learn(*TINY, "--decisions", 128, "--histories", path, "--output-dir", tmp_path / "out")
    assert "imitated 40 recorded choices" in told


# ---- distillation ----


def test_greedylr_is_fitted_to_what_a_policy_does(tmp_path, monkeypatch, capsys):
    some_policy().save(tmp_path / "p.safetensors")
    words = ["--policy", tmp_path / "p.safetensors", "--family", "quadratic", "--runs", 6, "--trials", 40]
    words += ["--picture", tmp_path / "p.png", "--report", tmp_path / "report.md"]
    distill_policy.main([str(word) for word in words])
    rows = {
        line.split("|")[1].strip(): line.split("|")[2:]
        for line in (tmp_path / "report.md").read_text().splitlines()
        if line.startswith("|")
    }
    assert float(rows["GreedyLR, fitted"][0]) < float(rows["GreedyLR, default"][0])
    assert (tmp_path / "p.png").stat().st_size > 5000
    with pytest.raises(RecipeError, match="^--runs 0 is not allowed: it must be at least 1"):
        distill_policy.main(["--runs", "0"])


class Once:
    """A family with the same episode for everyone."""

    def sample(self, rng):
        return family("nmf").sample(np.random.default_rng(1))


def test_a_policy_that_is_measured_sees_what_it_was_trained_on():
    """Under a bound too, which is part of what it sees."""

    class Recording(Policy):
        def __call__(self, observation):
            seen.append(observation)
            return super().__call__(observation)

    seen = []
    shipped = Policy.load("nmf")
    distill_policy.outcome(Once(), Recording(shipped.layers, shipped.settings), 1, seed=0)
    env = ScheduleEnv(Once(), Settings.of(family("nmf")))
    trained, over = [env.reset(seed=0)[0]], False
    while not over:
        observation, _, over, _, _ = env.step(np.array([shipped(trained[-1].tolist())]))
        trained.append(observation)
    assert np.array(seen) == pytest.approx(np.array(trained), abs=1e-5)


def test_a_fit_finds_greedylr_itself():
    """LRs that GreedyLR made, of settings that the search does not begin with, are fitted closely."""
    made = distill_policy.run_policy(family("quadratic"), some_policy(), 4, seed=0)
    true = distill_policy.Settings(window=0.05, rate=20.0, threshold=2.0, pace=0.0, decay_ratio=0.0)
    for past in made:
        past.scales = distill_policy.greedy_scales(past, true)
    assert distill_policy.agreement(made, true) == {"distance": 0, "correlation": pytest.approx(1), "same direction": 1}
    fitted = distill_policy.fit(made, trials=600, seed=0)
    told = distill_policy.agreement(made, fitted)
    assert told["distance"] < 0.3 * distill_policy.agreement(made, distill_policy.Settings())["distance"]
    assert told["correlation"] > 0.95


# ---- the comparison ----


def test_the_baselines_are_what_they_are_called():
    policy = some_policy()
    for name, expected in (("constant", [1, 1, 1]), ("linear", [1, 0.5, 0.01]), ("cosine", [1, 0.5, 0.0002467])):
        scale = compare.schedule(name, 100, policy)
        assert [scale(step, 1.0) for step in (0, 50, 99)] == pytest.approx(expected, rel=1e-3)
    losses = [2 / (1 + i / 30) for i in range(100)]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = GreedyLR(optimizer, GreedyConfig(), total_steps=100)
    scale = compare.schedule("greedy", 100, policy)
    for step, loss in enumerate(losses):
        assert scale(step, losses[step - 1]) == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step(loss)


def test_the_comparison_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "TASKS", {"digits adamw": TASK})
    monkeypatch.setattr(compare, "LRS", (1.0, 3.0))
    trained = []
    plain = compare.train
    monkeypatch.setattr(compare, "train", lambda task, scale: trained.append(task) or plain(task, scale))
    path, policy = tmp_path / "results.jsonl", some_policy()
    done = compare.run_all(path, policy)
    count = len(trained)
    assert count == len(path.read_text().splitlines()) == len(done)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:7]) + lines[7][:50])  # as a kill leaves it
    again = compare.run_all(path, policy)
    assert len(trained) == 2 * count - 7
    assert {key: row["final"] for key, row in again.items()} == {key: row["final"] for key, row in done.items()}
    text = compare.report(done, policy)
    assert len([line for line in text.splitlines() if line.startswith("| digits adamw |")]) == 15
    assert policy.digest in text
    assert compare.best_lr(done, "digits adamw", "cosine") in (1.0, 3.0)
    monkeypatch.setattr(pictures, "TASKS", compare.TASKS)
    policy.save(tmp_path / "p.safetensors")
    words = ["--policy", tmp_path / "p.safetensors", "--results", path, "--output-dir", tmp_path]
    pictures.main([str(word) for word in words])
    for name in ("learned-schedules.png", "learned-schedules-low.png"):
        assert (tmp_path / name).stat().st_size > 20_000
    path.write_text("".join(lines[:7]))
    with pytest.raises(RecipeError, match="is not complete: run recipes.research.learn.compare first"):
        pictures.main([str(word) for word in words])
