"""Scale, LR and decisions where people look already: written by each framework's own loggers, read back by theirs."""

import contextlib
import csv
import io
import json
import sqlite3
import struct
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny
import torch
import yaml

from greedylr_integrations import __version__
from greedylr_integrations.decision import Action

FAST = {"window_size": 2, "factor": 0.8}
NAMES = ("greedylr/scale", "greedylr/action")
LR = "learning_rate"  # the Trainer's own, in the place of greedylr/lr

# the trackers' own, and those of what they import
pytestmark = [pytest.mark.filterwarnings("ignore")]


def needs(*modules):
    missing = [module for module in modules if find_spec(module) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} is not installed")


def expected(history, every=1, lr=LR):
    """What a logger should hold: name -> (step, value) pairs. Scale and LR are those that the step used."""
    number = {Action.RAISE: 1, Action.LOWER: -1, Action.HOLD: 0}
    records = list(history)
    base_lr = records[0].lrs[0] / records[0].decision.scales[0]
    before = [(1.0, base_lr), *((record.decision.scales[0], record.lrs[0]) for record in records)]
    assert records[0].step == 1
    rows = [(record, *used) for record, used in zip(records, before, strict=False) if record.step % every == 0]
    return {
        "greedylr/scale": [(record.step, scale) for record, scale, _ in rows],
        lr: [(record.step, used) for record, _, used in rows],
        "greedylr/action": [(record.step, number[record.decision.action]) for record, *_ in rows],
    }


def check(read, history, prefix="", every=1, rel=1e-6, lr=LR):
    """`read(name)` gives (step, value) pairs."""
    wanted = expected(history, every, lr)
    assert len({value for _, value in wanted["greedylr/scale"]}) > 2
    assert len({value for _, value in wanted["greedylr/action"]}) > 1
    for name in wanted:
        steps, values = zip(*read(prefix + name), strict=True)
        assert list(steps) == [step for step, _ in wanted[name]]
        assert list(values) == pytest.approx([value for _, value in wanted[name]], rel=rel)


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return accumulator


def text(folder):
    """The text of GreedyLR in TensorBoard, as a dictionary."""
    (event,) = events(folder).Tensors("greedylr/text_summary")
    lines = event.tensor_proto.string_val[0].decode().splitlines()
    return dict(line.removeprefix("- ").split(": ", 1) for line in lines)


def tensorboard(folder):
    written = events(folder)
    return lambda name: [(event.step, event.value) for event in written.Scalars(name)]


def wandb_offline(folder):
    """From the file that `wandb sync` would send: a log of protobufs, in LevelDB's format."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = Path(folder).glob("wandb/offline-run-*/*.wandb")
    data, records, parts, at = path.read_bytes(), [], b"", 7  # behind the file's own head
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768  # a head does not cross blocks
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            records.append(Record.FromString(parts))
            parts = b""
    rows = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    updates = [item for record in records for item in record.config.update]
    configuration = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in updates}
    step = "train/global_step" if "train/global_step" in rows[0] else "trainer/global_step"
    return (lambda name: [(row[step], row[name]) for row in rows if name in row]), configuration


def mlflow_sqlite(uri):
    import mlflow

    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("greedylr").experiment_id])
    of_name = client.get_metric_history
    return (lambda name: [(each.step, each.value) for each in of_name(run.info.run_id, name)]), run.data.params


def trackio_sqlite(file):
    with contextlib.closing(sqlite3.connect(file)) as database:
        rows = [json.loads(metrics) for (metrics,) in database.execute("select metrics from metrics order by step")]
        ((configuration,),) = database.execute("select config from configs")
    of_name = lambda name: [(row["train/global_step"], row[name]) for row in rows if name in row]  # noqa: E731
    return of_name, json.loads(configuration)


def says(configuration, callback, schedule="GreedyLR in place of linear"):
    """Whether a tracker's configuration has what set the LR, and the settings that are not the default."""
    ours = {name: str(value) for name, value in configuration.items() if name.startswith("greedylr/")}
    wanted = {**callback.scheduler.describe(), "greedylr/schedule": schedule}
    wanted.pop("greedylr/found_lr", None)  # not known at the start
    assert wanted["greedylr/window_size"] == 2
    assert ours == {name: str(value) for name, value in wanted.items()}


def check_found(read, callback, prefix=""):
    """Whether the LR that was found is the last thing that a tracker has."""
    ((step, found),) = read(f"{prefix}greedylr/found_lr")
    assert step == callback.scheduler.last_epoch
    assert found == pytest.approx(callback.suggested_lr())


# ---- Hugging Face's Trainer ----


def train(out, every=1, **kwargs):
    from greedylr_integrations.transformers import GreedyLRCallback

    callback = GreedyLRCallback(**FAST)
    trainer = tiny.trainer(out, [callback], logging_steps=every, **{"max_steps": 30, **kwargs})
    trainer.train()
    return trainer, callback


@pytest.mark.parametrize("every", [1, 3])
def test_log_history(tmp_path, every):
    trainer, callback = train(tmp_path, every)
    entries = [entry for entry in trainer.state.log_history if "learning_rate" in entry]
    check(lambda name: [(entry["step"], entry[name]) for entry in entries], callback.history, every=every)
    assert not any("greedylr/lr" in entry for entry in trainer.state.log_history)  # one LR is enough
    assert "greedylr/scale" not in trainer.state.log_history[-1]  # the summary of the run is no training log
    # and nothing of it is left on the trainer
    assert [type(cb).__name__ for cb in trainer.callback_handler.callbacks].count("_AddMetrics") == 0


def test_an_evaluation_is_not_a_training_log(tmp_path):
    trainer, _ = train(tmp_path, eval_data=tiny.regression_data(4), eval_strategy="steps", eval_steps=3, max_steps=12)
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(evaluations) == 4
    assert not any(name in entry for entry in evaluations for name in NAMES)


@needs("tensorboard")
def test_the_trainer_and_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
    _, callback = train(tmp_path, report_to=["tensorboard"])
    read = tensorboard(tmp_path / "tb")
    check(read, callback.history, prefix="train/")
    check_found(read, callback, "train/")
    says(text(tmp_path / "tb"), callback)


@needs("wandb")
def test_the_trainer_and_wandb_offline(tmp_path, monkeypatch):
    import wandb

    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true", "DISABLE_GIT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    _, callback = train(tmp_path, report_to=["wandb"])
    wandb.finish()
    wandb.teardown()  # its service has written all when it has ended
    read, configuration = wandb_offline(tmp_path)
    check(read, callback.history, prefix="train/")
    check_found(read, callback, "train/")
    says(configuration, callback)


@needs("mlflow", "sqlalchemy", "alembic")
def test_the_trainer_and_mlflow_with_sqlite(tmp_path, monkeypatch):
    import mlflow

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "greedylr")
    _, callback = train(tmp_path, report_to=["mlflow"])
    mlflow.end_run()
    read, configuration = mlflow_sqlite(uri)
    check(read, callback.history)
    check_found(read, callback)
    says(configuration, callback)


@needs("trackio")
def test_the_trainer_and_trackio(tmp_path, monkeypatch):
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path)
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path)
    _, callback = train(tmp_path, report_to=["trackio"], project="greedylr")
    read, configuration = trackio_sqlite(tmp_path / "greedylr.db")
    check(read, callback.history, prefix="train/")
    check_found(read, callback, "train/")
    says(configuration, callback)


@needs("tensorboard")
def test_slope_and_distance_are_logged_while_they_are_measured(tmp_path, monkeypatch):
    from greedylr_integrations.transformers import GreedyLRCallback

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
    callback = GreedyLRCallback()
    data = {"data": tiny.regression_data(140), "max_steps": 80}
    tiny.trainer(tmp_path, [callback], logging_steps=1, report_to=["tensorboard"], **data).train()
    read = tensorboard(tmp_path / "tb")
    for name in ("slope", "distance"):
        steps, values = zip(*read(f"train/greedylr/{name}"), strict=True)
        seen = [(record.step, getattr(record.decision, name)) for record in callback.history]
        measured = {step: value for step, value in seen if value is not None and value == value}
        assert dict(zip(steps, values, strict=True)) == pytest.approx(measured, rel=1e-5)
        assert 0 < len(measured) < 80


def test_the_trainers_progress_bar(tmp_path, monkeypatch):
    from transformers import trainer_callback

    from greedylr_integrations.transformers import GreedyLRCallback

    terminal = io.StringIO()
    real = trainer_callback.tqdm
    monkeypatch.setattr(
        trainer_callback, "tqdm", lambda *args, **kwargs: real(*args, **{**kwargs, "file": terminal, "mininterval": 0})
    )
    for prog_bar in (False, True):
        callback = GreedyLRCallback(**FAST, prog_bar=prog_bar)
        tiny.trainer(tmp_path, [callback], disable_tqdm=False).train()
        assert ("scale=" in terminal.getvalue()) is prog_bar
    for record in list(callback.history)[:-1]:
        assert f"scale={record.decision.scales[0]:.3g}" in terminal.getvalue()


# ---- Lightning ----


def fit(callbacks, **kwargs):
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self, width=3):
            super().__init__()
            self.save_hyperparameters()
            self.model = tiny.Regressor()

        def training_step(self, batch, batch_idx):
            return self.model(**batch)["loss"]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05)

    off = {"enable_model_summary": False, "enable_checkpointing": False}
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", callbacks=callbacks, **off, **kwargs)
    trainer.fit(Module(), torch.utils.data.DataLoader(tiny.regression_data(), batch_size=4))
    return trainer


@needs("tensorboard", "lightning")
def test_lightning_and_tensorboard_csv_and_the_bar(tmp_path):
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    from greedylr_integrations.lightning import GreedyLRCallback

    loggers = [TensorBoardLogger(tmp_path / "tb"), CSVLogger(tmp_path / "csv")]
    callback = GreedyLRCallback(**FAST, prog_bar=True)
    trainer = fit([callback], logger=loggers, log_every_n_steps=1, enable_progress_bar=False)

    def from_one(read):
        # Lightning counts steps from 0
        return lambda name: [(step + 1, value) for step, value in read(name)]

    read = tensorboard(loggers[0].log_dir)
    check(from_one(read), callback.history, lr="greedylr/lr")
    check_found(read, callback)
    rows = list(csv.DictReader(Path(loggers[1].log_dir, "metrics.csv").read_text().splitlines()))
    written = from_one(lambda name: [(int(row["step"]), float(row[name])) for row in rows if row[name]])
    check(written, callback.history, lr="greedylr/lr")
    says(text(loggers[0].log_dir), callback, "GreedyLR")
    hparams = yaml.safe_load(Path(loggers[1].log_dir, "hparams.yaml").read_text())
    assert hparams.pop("width") == 3  # the module's own
    says(hparams, callback, "GreedyLR")
    assert [name for name in trainer.progress_bar_metrics if name.startswith("greedylr")] == [
        "greedylr/scale",
        "greedylr/lr",
    ]


@needs("lightning")
@pytest.mark.parametrize("bar", ["TQDMProgressBar", pytest.param("RichProgressBar", marks=needs("rich"))])
def test_lightnings_progress_bars(bar, capsys):
    import lightning.pytorch as pl

    from greedylr_integrations.lightning import GreedyLRCallback

    bar = getattr(pl.callbacks, bar)(refresh_rate=1)
    fit([GreedyLRCallback(prog_bar=True), bar], logger=False)
    assert "greedylr/scale" in capsys.readouterr().out


@needs("lightning")
def test_a_logger_of_lightning_that_fails_is_a_warning(tmp_path, caplog):
    from lightning.pytorch.loggers import CSVLogger

    from greedylr_integrations.lightning import GreedyLRCallback

    class Broken(CSVLogger):
        def log_hyperparams(self, params=None):
            if "greedylr/rule" in params:
                raise OSError("no space left")

    fit([GreedyLRCallback(**FAST)], logger=Broken(tmp_path), enable_progress_bar=False)
    assert "GreedyLR could not write to Broken: no space left" in caplog.text


# ---- Accelerate ----


@needs("tensorboard")
def test_accelerate_and_its_trackers_by_one_line(tmp_path):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    from greedylr_integrations.accelerate import GreedyLR

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=tmp_path)
    model = tiny.Regressor()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    loader = torch.utils.data.DataLoader(tiny.regression_data(), batch_size=4)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, GreedyLR(optimizer, **FAST))
    accelerator.init_trackers("run", config={"width": 3, **scheduler.describe()})
    for batch in loader:
        loss = model(**batch)["loss"]
        accelerator.backward(loss)
        optimizer.step()
        scheduler.step(loss)
        optimizer.zero_grad()
        accelerator.log(scheduler.metrics(), step=scheduler.last_epoch)
    accelerator.end_training()
    check(tensorboard(tmp_path / "run"), scheduler.history, lr="greedylr/lr")
    (written,) = (tmp_path / "run").glob("*/hparams.yml")
    assert yaml.safe_load(written.read_text()) == {
        "width": 3,
        "greedylr/schedule": "GreedyLR",
        "greedylr/rule": "GreedyConfig",
        "greedylr/window_size": 2,
        "greedylr/factor": 0.8,
        "greedylr/base_lr": 0.02,
        "greedylr/version": __version__,
    }
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
