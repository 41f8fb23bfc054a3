"""What the adapters use beyond a framework's public API is still there: else, a message that names it."""

import inspect
import textwrap

import pytest


def must(found, what, where):
    assert found, (
        f"{what} is gone or has changed in this version: {where} relies on it; look there, and at the versions that it"
        " names"
    )


# ---- transformers ----


HF = "greedylr_integrations/_hf_trainer.py"


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    tiny = pytest.importorskip("tiny")
    return tiny.trainer(tmp_path_factory.mktemp("private"), [])


def source_of(function):
    return textwrap.dedent(inspect.getsource(function))


def test_the_trainer_has_what_is_read(trainer):
    must(isinstance(trainer.callback_handler.callbacks, list), "Trainer.callback_handler.callbacks", HF)
    must(trainer._created_lr_scheduler in (True, False), "Trainer._created_lr_scheduler", HF)
    must(callable(trainer.training_step), "Trainer.training_step", HF)
    must("trial" in inspect.signature(trainer._get_output_dir).parameters, "Trainer._get_output_dir(trial=)", HF)
    must(trainer._get_output_dir(trial=None) == trainer.args.output_dir, "Trainer._get_output_dir", HF)
    must(trainer.state.is_hyper_param_search is False, "TrainerState.is_hyper_param_search", HF)
    must("_trial" in source_of(type(trainer)._hp_search_setup), "Trainer._trial", HF)


def test_the_training_loop_is_where_it_is_looked_for(trainer):
    loop = type(trainer)._inner_training_loop
    must("resume_from_checkpoint" in inspect.signature(loop).parameters, "Trainer._inner_training_loop(resume...)", HF)
    must("callback_handler.on_train_begin" in source_of(loop), "on_train_begin in Trainer._inner_training_loop", HF)
    step = source_of(type(trainer)._run_epoch) if hasattr(trainer, "_run_epoch") else source_of(loop)
    must("self.training_step(" in step, "the call of Trainer.training_step", HF)


def test_the_trainer_logs_last_lr(trainer):
    trainer.create_optimizer_and_scheduler(4)
    trainer.lr_scheduler._last_lr = [0.123]
    must(trainer._get_learning_rate() == 0.123, "_last_lr as what Trainer._get_learning_rate gives", HF)


def test_progress_bars():
    from transformers import ProgressCallback

    must(hasattr(ProgressCallback(), "training_bar"), "ProgressCallback.training_bar", HF)


def test_reward_trainers_have_their_names():
    trl = pytest.importorskip("trl")
    from greedylr_integrations._hf_setup import REWARDED

    must(
        {"GRPOTrainer", "RLOOTrainer"} <= REWARDED & set(dir(trl)),
        "the name of a trainer in REWARDED",
        "greedylr_integrations/_hf_setup.py",
    )


def test_an_optimizers_defaults_survive_a_load():
    import torch

    def make(lr):
        return torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=lr)

    optimizer = make(0.1)
    optimizer.load_state_dict(make(0.2).state_dict())
    where = "greedylr_integrations/_hf_setup.py"
    must((optimizer.defaults["lr"], optimizer.param_groups[0]["lr"]) == (0.1, 0.2), "Optimizer.defaults", where)


# ---- Lightning ----


LIGHTNING = "greedylr_integrations/_lightning_trainer.py"


@pytest.mark.filterwarnings("ignore")
def test_lightnings_trainer_has_what_is_read(tmp_path):
    pl = pytest.importorskip("lightning.pytorch")
    import torch

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            accumulates = trainer.fit_loop._should_accumulate
            must(accumulates() in (True, False), "Trainer.fit_loop._should_accumulate", LIGHTNING)
            must(trainer.val_check_batch == 3, "Trainer.val_check_batch", LIGHTNING)
            seen.append(accumulates())

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch, batch_idx):
            return self.layer(batch).sum()

        validation_step = training_step

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    seen = []
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(
        **quiet,
        accelerator="cpu",
        enable_checkpointing=False,
        default_root_dir=tmp_path,
        max_epochs=1,
        accumulate_grad_batches=2,
        callbacks=[Look()],
    )
    data = torch.utils.data.DataLoader(torch.ones(3, 1))
    trainer.fit(Module(), data, data)
    must(seen == [True, False, False], "what Trainer.fit_loop._should_accumulate says", LIGHTNING)
    must(hasattr(trainer, "_logger_connector"), "Trainer._logger_connector", LIGHTNING)
    loop = type(trainer.fit_loop)(trainer, min_epochs=0, max_epochs=-1)
    must(loop.max_epochs == -1, "the constructor of Trainer.fit_loop", LIGHTNING)
    scheduler = pl.callbacks.GradientAccumulationScheduler({0: 1, 1: 4})
    must(scheduler.get_accumulate_grad_batches(1) == 4, "GradientAccumulationScheduler", LIGHTNING)
    must(hasattr(pl.callbacks, "StochasticWeightAveraging"), "StochasticWeightAveraging", LIGHTNING)


# ---- Accelerate ----


def test_accelerate_leaves_alone_what_is_marked_as_prepared():
    from accelerate import Accelerator
    from accelerate.state import GradientState, PartialState

    where = "greedylr_integrations/accelerate.py"
    must("_is_accelerate_prepared" in source_of(Accelerator.prepare_scheduler), "_is_accelerate_prepared", where)
    must(isinstance(PartialState._shared_state, dict), "PartialState._shared_state", where)
    must(GradientState().sync_gradients in (True, False), "GradientState.sync_gradients", where)


# ---- torch ----


def test_what_of_torch_is_not_public():
    import torch
    from torch.distributed.fsdp import _flat_param

    to, of = torch.zeros(2), torch.ones(2)
    torch._foreach_copy_([to], [of])
    must(to.tolist() == [1.0, 1.0], "torch._foreach_copy_", "greedylr_integrations/slope.py")
    must(
        "_fsdp_flattened" in inspect.getsource(_flat_param),
        "_fsdp_flattened of FSDP's parameters",
        "greedylr_integrations/distributed.py",
    )
