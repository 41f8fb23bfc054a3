"""The pictures of `how-it-works.md`, from real trainings: python docs/pictures.py (about 10 seconds)."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

from greedylr_integrations import GreedyLR

HERE = Path(__file__).parent / "img"
COLOURS = {"raise": "#009e73", "lower": "#d55e00", "hold": "#bbbbbb"}


def train(steps: int, lr: float, jump_at: int | None = None) -> tuple[list, list[float]]:
    """Digits in batches of 16 with a tenth of the labels wrong; from `jump_at` on, every label is another one."""
    torch.manual_seed(0)
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    scheduler, decisions, lrs = GreedyLR(optimizer, total_steps=steps), [], []
    for step in range(steps):
        rows = torch.randint(len(x), (16,))
        labels = torch.where(torch.rand(16) < 0.1, torch.randint(10, (16,)), y[rows])
        if jump_at is not None and step >= jump_at:
            labels = (labels + 3) % 10
        loss = torch.nn.functional.cross_entropy(model(x[rows]), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        decisions.append(scheduler.step(loss))
        lrs.append(scheduler.get_last_lr()[0])
    return decisions, lrs


def draw(name: str, decisions: list, lrs: list[float]) -> None:
    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 4.5), sharex=True, height_ratios=(3, 2))
    steps = range(len(decisions))
    above.plot(steps, [d.loss for d in decisions], color="#cccccc", lw=0.8, label="loss")
    above.plot(steps, [d.smoothed for d in decisions], color="#0072b2", label="mean of the window")
    below.plot(steps, lrs, color="#444444", lw=1)
    for action, colour in COLOURS.items():
        at = [i for i, d in enumerate(decisions) if d.action.value == action]
        below.scatter(at, [lrs[i] for i in at], s=7, color=colour, label=action, zorder=3)
    above.set(ylabel="training loss")
    below.set(ylabel="learning rate", yscale="log", xlabel="optimizer step", ylim=(min(lrs[:-5]) / 2, max(lrs) * 1.5))
    above.legend(loc="upper right")
    below.legend(loc="lower left", ncols=3)
    figure.tight_layout()
    HERE.mkdir(exist_ok=True)
    figure.savefig(HERE / name, dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    draw("decisions.png", *train(600, 0.005))
    draw("jump.png", *train(900, 0.02, jump_at=350))
