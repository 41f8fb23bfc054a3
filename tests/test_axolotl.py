"""The plugin of Axolotl, with Axolotl's own plugin manager: it is installed elsewhere, since it pins other versions."""

import pytest
import tiny

pytest.importorskip("axolotl.integrations.base", reason="axolotl cannot be installed next to this transformers")

from axolotl.integrations.base import PluginManager
from axolotl.utils.dict import DictDefault

from greedylr_integrations.axolotl import GreedyLRArgs
from greedylr_integrations.transformers import GreedyLRCallback


@pytest.mark.parametrize("arguments", [None, {"window_size": 2, "factor": 0.8}])
def test_axolotls_plugin_manager_gives_the_trainer_the_callback(tmp_path, arguments):
    manager = PluginManager.get_instance()
    manager.plugins.clear()
    manager.register("greedylr_integrations.axolotl.GreedyLRPlugin")
    assert manager.get_input_args() == ["greedylr_integrations.axolotl.GreedyLRArgs"]
    cfg = DictDefault(GreedyLRArgs(greedylr=arguments).model_dump())
    used = []
    for plugin in (True, False):
        spy = tiny.LRSpy()
        trainer = tiny.trainer(tmp_path, [spy], max_steps=24)
        added = manager.add_callbacks_post_trainer(cfg, trainer) if plugin else [GreedyLRCallback(**arguments or {})]
        for callback in added:
            trainer.add_callback(callback)
        trainer.train()
        used.append(spy.used)
    assert used[0] == used[1]
    assert len(set(map(tuple, used[0]))) > 2
