"""The pictures of the pages, from real trainings: python docs/pictures.py (screenshots need Chromium).

With names of parts (stages, window, commands, tensorboard), only these. `made.py` says which are stale.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

from greedylr_integrations import ControllerConfig, GreedyConfig, GreedyLR, SlopeConfig
from greedylr_integrations.runs.cli import cli

HERE = Path(__file__).parent / "img"
COLOURS = {"raise": "#009e73", "lower": "#d55e00", "hold": "#bbbbbb"}


def train(
    steps: int, lr: float, jump_at: int | None = None, config: ControllerConfig | None = None, **kwargs
) -> tuple[list, list[float]]:
    """Train on digits in batches of 16, with a tenth of the labels wrong, by default with the loss window.

    From step `jump_at` on, every label is another one.
    """
    torch.manual_seed(0)
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    scheduler, decisions, lrs = GreedyLR(optimizer, config or GreedyConfig(), total_steps=steps, **kwargs), [], []
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
    scheduler.finish()
    return decisions, lrs


def search(steps: int, base_lr: float) -> list[float]:
    """LRs of a run by the default rule: a teacher's labels on new data in each step."""
    torch.manual_seed(0)
    teacher = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))
    model = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=base_lr, momentum=0.9)
    scheduler, lrs = GreedyLR(optimizer, total_steps=steps), []
    for _ in range(steps):
        x = torch.randn(32, 20)
        lrs.append(scheduler.get_last_lr()[0])
        loss = torch.nn.functional.cross_entropy(model(x), teacher(x).argmax(1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step(loss)
    return lrs


def draw_stages(name: str, steps: int) -> None:
    figure, ax = plt.subplots(figsize=(8, 3.2))
    for base_lr, colour in ((0.003, "#0072b2"), (0.03, "#009e73"), (0.3, "#d55e00")):
        ax.plot(range(steps), search(steps, base_lr), color=colour, label=f"base LR {base_lr}")
    ax.set(xlabel="optimizer step", ylabel="learning rate", yscale="log", ylim=(2e-5, 1))
    ax.legend(loc="lower center")
    figure.tight_layout()
    figure.savefig(HERE / name, dpi=90)
    plt.close(figure)


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
    figure.savefig(HERE / name, dpi=90)
    plt.close(figure)


def screenshot(address: str, picture: Path, size: tuple[int, int], prepare: Callable[[Any], object]) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": size[0], "height": size[1]})
        tab.set_default_timeout(120_000)
        tab.goto(address)
        tab.wait_for_timeout(1500)
        prepare(tab)
        tab.wait_for_timeout(1000)
        tab.screenshot(path=picture)
        browser.close()


# ---- the parts ----


def stages() -> None:
    draw_stages("stages.png", 1000)


def window() -> None:
    draw("decisions.png", *train(600, 0.005))
    draw("jump.png", *train(1500, 0.005, jump_at=300))


def commands() -> None:
    with tempfile.TemporaryDirectory() as folder:
        history, page = Path(folder) / "digits.jsonl", Path(folder) / "report.html"
        train(800, 0.003, config=SlopeConfig(), history_file=history)
        cli(["plot", str(history), "-o", str(HERE / "plot.png")], standalone_mode=False)
        cli(["report", str(history), "-o", str(page)], standalone_mode=False)
        screenshot(page.as_uri(), HERE / "report.png", (1200, 1000), lambda tab: tab.mouse.move(420, 420))


def tensorboard() -> None:
    """What TensorBoard shows of a run of the Trainer."""
    from transformers import Trainer, TrainingArguments

    from greedylr_integrations.transformers import GreedyLRCallback

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": torch.nn.functional.cross_entropy(self.layers(x), labels)}

    torch.manual_seed(0)
    teacher = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))
    data = [{"x": x, "labels": teacher(x).argmax()} for x in torch.randn(500 * 32, 20)]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TENSORBOARD_LOGGING_DIR"] = f"{folder}/runs"
        args = TrainingArguments(
            f"{folder}/out",
            learning_rate=5e-4,
            num_train_epochs=1,
            per_device_train_batch_size=32,
            logging_steps=5,
            save_strategy="no",
            report_to=["tensorboard"],
            disable_tqdm=True,
            use_cpu=True,
        )
        Trainer(Net(), args, train_dataset=data, callbacks=[GreedyLRCallback()]).train()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = ["--logdir", f"{folder}/runs", "--port", str(port), "--load_fast", "false"]
        server = subprocess.Popen([sys.executable, "-m", "tensorboard.main", *words])
        address = f"http://127.0.0.1:{port}/"
        try:
            for _ in range(120):
                try:
                    runs = urllib.request.urlopen(f"{address}data/runs").read()
                except OSError:
                    runs = b"[]"
                if runs != b"[]":
                    break
                time.sleep(1)
            query = "?smoothing=0&tagFilter=greedylr/s%7Ctrain/loss%7Clearning_rate#timeseries"
            screenshot(address + query, HERE / "tensorboard.png", (1250, 800), _only_charts)
        finally:
            server.terminate()
            server.wait()


def _only_charts(tab: Any) -> None:
    tab.get_by_text("train/loss", exact=True).wait_for()
    tab.get_by_text("Enable step selection").click()
    tab.get_by_role("button", name="Settings").first.click()
    tab.wait_for_timeout(5000)  # the charts grow to their places


if __name__ == "__main__":
    torch.set_num_threads(1)
    HERE.mkdir(exist_ok=True)
    parts = {part.__name__: part for part in (stages, window, commands, tensorboard)}
    for name in sys.argv[1:] or parts:
        parts[name]()
