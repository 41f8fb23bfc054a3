"""The examples of timm and fastai in docs/other-trainers.md, as they are there, if these are installed."""

import re
from pathlib import Path

import pytest
import tiny
import torch

TEXT = Path(__file__).parents[1].joinpath("docs", "other-trainers.md").read_text()

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def example(heading):
    """The first block of code below a heading."""
    return re.search(rf"^## {heading}\n.*?^```py\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)[1]


def follows(scheduler, steps, base_lr):
    assert [record.step for record in scheduler.history] == list(range(1, steps + 1))
    assert scheduler.base_lrs[0] == base_lr
    assert len({record.lrs[0] for record in scheduler.history}) > steps // 4  # searched, and decayed
    assert scheduler.history[-1].lrs[0] == 0
    assert any(record.decision.slope is not None for record in scheduler.history)


def test_timm():
    pytest.importorskip("timm")
    tiny.set_seed(0)
    images = torch.randn(160, 3, 32, 32)
    data = torch.utils.data.TensorDataset(images, (images[:, 0].mean((1, 2)) > 0).long())
    names = {"loader": torch.utils.data.DataLoader(data, batch_size=2), "epochs": 1}
    exec(example("timm"), names)
    follows(names["lr_scheduler"], 80, 1e-3)


def test_fastai():
    pytest.importorskip("fastai")
    from fastai.data.core import DataLoaders

    tiny.set_seed(0)
    x = torch.randn(320, 4)
    data = torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))
    loader = torch.utils.data.DataLoader(data, batch_size=4)
    names = {"dls": DataLoaders(loader, loader), "net": tiny.Regressor().net}
    exec(example("fastai"), names)
    follows(names["callback"].scheduler, 80, 1e-2)
