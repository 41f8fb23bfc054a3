"""The callback from command lines and configuration files: its LRs are those of one made in Python."""

import json
from collections import UserDict, UserList

import pytest

pl = pytest.importorskip("lightning.pytorch")

from test_lightning import FAST, Module, loader, pytestmark  # noqa: F401

from greedylr_integrations import GreedyConfig
from greedylr_integrations.lightning import GreedyLRCallback

FLAGS = {  # on the command line, as arguments of the callback
    "": {},
    "--trainer.callbacks.max_scale=20 --trainer.callbacks.start_scale=0.1": {"max_scale": 20, "start_scale": 0.1},
    "--trainer.callbacks.window_size=2 --trainer.callbacks.factor=0.8": FAST,
    "--trainer.callbacks.min_lr=[0.01] --trainer.callbacks.max_lr=[0.2]": {"min_lr": [0.01], "max_lr": [0.2]},
    "--trainer.callbacks.config.class_path=greedylr_integrations.GreedyConfig"
    " --trainer.callbacks.config.init_args.window_size=2": {"config": GreedyConfig(window_size=2)},
    "--trainer.callbacks.decay_ratio=0.5 --trainer.callbacks.linear_warmup_steps=3": {
        "decay_ratio": 0.5,
        "linear_warmup_steps": 3,
    },
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # jsonargparse under Lightning 2.6
@pytest.mark.parametrize("flags", FLAGS)
def test_lrs_of_a_callback_on_the_command_line_are_those_of_one_in_python(tmp_path, flags):
    cli = pytest.importorskip("jsonargparse") and pytest.importorskip("lightning.pytorch.cli")

    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return loader(256)

    off = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    settings = {"max_epochs": 1, "accelerator": "cpu", "default_root_dir": tmp_path, **dict.fromkeys(off, False)}
    words = [f"--trainer.{name}={str(value).lower()}" for name, value in settings.items()]
    words.append("--trainer.callbacks=greedylr_integrations.lightning.GreedyLRCallback")
    made = cli.LightningCLI(
        Module,
        Data,
        args=["fit", *words, *flags.split()],
        save_config_callback=None,
        seed_everything_default=False,
    )
    module = Module()
    pl.Trainer(**settings, callbacks=[GreedyLRCallback(**FLAGS[flags])]).fit(module, loader(256))
    assert made.model.used == module.used
    assert len(set(module.used)) > 3


def test_a_list_of_a_configuration_library_is_a_list():
    wanted = GreedyLRCallback(min_lr=[0.01, 0.02], config={"max_scale": 3.0}).settings
    callback = GreedyLRCallback(min_lr=UserList([0.01, 0.02]), config=UserDict(max_scale=3.0))
    assert callback.settings == wanted
    json.dumps(callback.settings.arguments())
    with pytest.raises(TypeError, match="min_lr='0.01' is not allowed"):
        GreedyLRCallback(min_lr="0.01")


def test_hydra():
    hydra = pytest.importorskip("hydra.utils")
    node = {
        "_target_": "greedylr_integrations.lightning.GreedyLRCallback",
        "min_lr": [0.01, 0.02],
        "config": {"max_scale": 3.0},
        "decay_ratio": 0.5,
    }
    from omegaconf import OmegaConf

    wanted = GreedyLRCallback(min_lr=[0.01, 0.02], config={"max_scale": 3.0}, decay_ratio=0.5)
    assert hydra.instantiate(OmegaConf.create(node)).settings == wanted.settings
