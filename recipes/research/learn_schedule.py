"""Learn a schedule by reinforcement learning, with the PPO of Stable-Baselines3 on runs of a task family.

    python -m recipes.research.learn_schedule --family network --output-dir runs/network
    python -m recipes.research.learn_schedule --resume --output-dir runs/network

Writes the policy to OUTPUT_DIR/FAMILY.safetensors after every round, for `PolicyConfig.load`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from greedylr_integrations import runs
from greedylr_integrations.learned import OBSERVED, Policy, PolicyRule
from recipes.common.flags import check_at_least_one, fail, run
from recipes.common.offline import RecipeError
from recipes.common.stop import StopOnSignal
from recipes.research.learn.environment import ScheduleEnv, Settings
from recipes.research.learn.tasks import FAMILIES, family

try:
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.utils import FloatSchedule, set_random_seed
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecMonitor
except ImportError as error:
    raise ImportError("learn_schedule needs more packages: pip install 'greedylr_integrations[learn]'") from error

DECISIONS = 128  # decisions of each environment between two updates of the networks
UPDATES = 5  # updates in a round; each round ends with a checkpoint
LEARNING_RATE = 5e-4  # at the start; it decays to a tenth
KEPT = ("family", "seed", "decisions", "envs", "subprocesses", "histories")


def main(argv: list[str] | None = None) -> None:
    args = _arguments(argv)
    torch.set_num_threads(1)
    set_random_seed(args.seed)
    env = make_env(args.family, args.envs, args.subprocesses)
    with StopOnSignal("stopping after this step") as stop:
        try:
            finished = learn(args, env, stop)
            env.close()  # not after an error: it would wait for answers that the step that failed has already taken
        except (EOFError, ConnectionError):
            if not stop.number:
                raise
            finished = False  # SIGTERM to the whole group has ended the environments' processes
    if not finished:
        print(f"stopped; go on from the last round with --resume --output-dir {args.output_dir}")
        raise SystemExit(128 + stop.number)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("learn_schedule", description=__doc__.split("\n")[0])
    parser.add_argument("--family", default="network", help="one of " + ", ".join(FAMILIES))
    parser.add_argument("--decisions", type=int, default=400_000, help="choices to learn from (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="a seed always gives the same policy (default: %(default)s)"
    )
    parser.add_argument("--envs", type=int, default=8, help="number of runs trained in parallel (default: %(default)s)")
    parser.add_argument("--subprocesses", action="store_true", help="give each run its own process")
    parser.add_argument("--histories", nargs="+", default=[], metavar="RUN", help="recorded runs to imitate first")
    parser.add_argument("--output-dir", help="folder of policy and checkpoint (default: runs/learn_schedule/DATE-TIME)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --output-dir with its own flags")
    parser.error = fail
    args = parser.parse_args(argv)
    if args.resume:
        if not args.output_dir:
            raise RecipeError("--resume needs the --output-dir of the run to go on with")
        given = [f"--{name}" for name in KEPT if getattr(args, name) != parser.get_default(name)]
        if given:
            raise RecipeError(f"{', '.join(given)} cannot be changed with --resume: leave it out")
        args.output_dir = Path(args.output_dir)
        try:
            vars(args).update(json.loads((args.output_dir / "arguments.json").read_text()))
        except (OSError, ValueError) as error:
            raise RecipeError(f"{args.output_dir} has no run to go on with: {error}") from error
        return args
    check_at_least_one(args, "decisions", "envs")
    family(args.family)  # raises if it is unknown
    args.output_dir = Path(args.output_dir or f"runs/learn_schedule/{time.strftime('%Y%m%d-%H%M%S')}")
    if (args.output_dir / "arguments.json").exists():
        raise RecipeError(f"{args.output_dir} has another run already: choose another --output-dir, or --resume it")
    return args


def make_env(name: str, count: int, subprocesses: bool = False) -> VecEnv:
    kind = SubprocVecEnv if subprocesses else DummyVecEnv
    return VecMonitor(kind([_Maker(name, subprocesses)] * count), info_keywords=())


@dataclasses.dataclass
class _Maker:
    """Makes one environment, in this process or in its own."""

    family: str
    own_process: bool

    def __call__(self) -> ScheduleEnv:
        if self.own_process:
            torch.set_num_threads(1)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and closes this process
        return ScheduleEnv(family(self.family))


# ---- PPO in rounds, each of which depends only on the previous checkpoint, the seed and its number ----


def learn(args: argparse.Namespace, env: VecEnv, stop: StopOnSignal) -> bool:
    """Whether all rounds were learned: False if it was stopped."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    size = DECISIONS * args.envs * UPDATES
    rounds = math.ceil(args.decisions / size)
    checkpoint = args.output_dir / "checkpoint.zip"
    if checkpoint.exists():
        model = PPO.load(checkpoint, env, device="cpu")
    else:
        model = make_model(env, args.seed)
        if args.histories:
            imitate(model, *recorded(args.histories, Settings.of(family(args.family))))
        args.output_dir.mkdir(parents=True, exist_ok=True)
        kept = {name: getattr(args, name) for name in KEPT}
        (args.output_dir / "arguments.json").write_text(json.dumps(kept, indent=1))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, refresh_per_second=2) as progress:
        task = progress.add_task("learning", total=rounds * size, completed=model.num_timesteps)
        for number in range(model.num_timesteps // size, rounds):
            start = args.seed * 1_000_003 + number
            set_random_seed(start)
            env.seed(start * args.envs)
            model.set_env(env, force_reset=True)
            model.lr_schedule = FloatSchedule(LEARNING_RATE * (1 - 0.9 * number / rounds))
            model.learn(size, _Bar(progress, task, stop), reset_num_timesteps=False)
            if model.num_timesteps < (number + 1) * size:
                return False
            fall = np.mean([episode["r"] for episode in model.ep_info_buffer or ()])
            progress.update(task, description=f"reward {fall:.3f}")
            with (args.output_dir / "progress.jsonl").open("a") as log:
                log.write(json.dumps({"decisions": model.num_timesteps, "reward": round(float(fall), 4)}) + "\n")
            export(model, args).save(args.output_dir / f"{family(args.family).name}.safetensors")
            unfinished = args.output_dir / "unfinished.zip"
            model.save(unfinished)
            os.replace(unfinished, checkpoint)
            if stop.number and number + 1 < rounds:
                return False
    print(f"policy in {args.output_dir / family(args.family).name}.safetensors")
    return True


class _Bar(BaseCallback):
    def __init__(self, progress: Any, task: Any, stop: StopOnSignal) -> None:
        super().__init__()
        self._progress, self._task, self._stop = progress, task, stop

    def _on_step(self) -> bool:
        self._progress.update(self._task, completed=self.num_timesteps)
        return not self._stop.number


def make_model(env: VecEnv, seed: int) -> PPO:
    return PPO(
        "MlpPolicy",
        env,
        learning_rate=LEARNING_RATE,
        n_steps=DECISIONS,
        batch_size=64,
        n_epochs=10,
        gamma=0.99,
        gae_lambda=0.95,
        policy_kwargs={"net_arch": {"pi": [32, 32], "vf": [64, 64]}, "log_std_init": -0.7},
        seed=seed,
        device="cpu",
    )


def export(model: PPO, args: argparse.Namespace) -> Policy:
    actor = model.policy.mlp_extractor.policy_net
    modules = (actor[0], actor[2], model.policy.action_net)
    layers = [(module.weight.detach().numpy(), module.bias.detach().numpy()) for module in modules]
    trained = {name: getattr(args, name) for name in ("family", "seed", "envs")}
    trained["decisions"] = model.num_timesteps
    settings = Settings.of(family(args.family))
    return Policy(layers, {"observed": list(OBSERVED), **dataclasses.asdict(settings), "trained": trained})


# ---- learning from earlier experiments: imitate recorded runs before PPO starts ----


def recorded(paths: Sequence[str], settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """The observations of a policy in recorded runs, and the actions that lead to their LRs."""
    observations: list[list[float]] = []
    actions: list[float] = []
    for path in paths:
        try:
            found = runs.read(path)
        except runs.RunError as error:
            raise RecipeError(f"--histories {path} cannot be read: {error}") from error
        for past in found:
            if not np.isfinite(past.lrs).any():
                raise RecipeError(f"--histories {path} has no learning rates: give a run that recorded them")
            base = past.base_lrs[0] if past.base_lrs else float(np.nanmax(past.lrs))
            rows = np.isfinite(past.losses) & np.isfinite(past.lrs)
            scales = np.clip(past.lrs[rows] / base, settings.min_scale, settings.max_scale)
            rule = PolicyRule(settings, len(scales))
            ahead = (math.ceil(len(scales) / settings.blocks) + 1) // 2  # well within the next block
            for i, loss in enumerate(past.losses[rows].tolist()):
                if observation := rule.push(loss):
                    wanted = scales[min(i + ahead, len(scales) - 1)]
                    action = math.log(wanted / rule.scales[0]) / math.log(settings.max_factor)
                    observations.append(observation)
                    actions.append(min(max(action, -1.0), 1.0))
                    rule.act(actions[-1])
    return np.array(observations, np.float32), np.array(actions, np.float32)


def imitate(model: PPO, observations: np.ndarray, actions: np.ndarray, epochs: int = 200) -> None:
    """Behaviour cloning: fit the mean action to the recorded actions, by least squares."""
    inputs, targets = torch.as_tensor(observations), torch.as_tensor(actions)
    optimizer = torch.optim.Adam(model.policy.parameters(), 3e-3)
    for _ in range(epochs):
        means = model.policy.get_distribution(inputs).distribution.mean.squeeze(1)
        loss = torch.nn.functional.mse_loss(means, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"imitated {len(targets)} recorded choices, to a mean squared error of {loss.item():.4f}")


if __name__ == "__main__":
    run("learn_schedule", main)
