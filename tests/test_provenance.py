"""What a run of the Trainer leaves behind says GreedyLR, where lr_scheduler_type would say linear."""

import json

import pytest
import tiny
from transformers import TrainingArguments, get_cosine_schedule_with_warmup

from greedylr_integrations._hf_provenance import amended
from greedylr_integrations.transformers import GreedyLRCallback, find_lr

FAST = {"window_size": 2, "factor": 0.8}


def run(tmp_path, callback, kind="linear", **kwargs):
    defaults = {"model": tiny.llama(), "data": tiny.text_data(), "max_steps": 24, "lr_scheduler_type": kind}
    trainer = tiny.trainer(tmp_path, [callback], **{**defaults, **kwargs})
    result = trainer.train()
    trainer.create_model_card()
    return trainer, result, (tmp_path / "README.md").read_text()


def test_the_card_of_the_trainer(tmp_path):
    callback = GreedyLRCallback(**FAST)
    _, _, card = run(tmp_path, callback, warmup_steps=3)
    facts = callback.scheduler.describe()
    assert "- lr_scheduler_type: GreedyLR in place of linear\n" in card
    assert f"- greedylr/found_lr: {facts['greedylr/found_lr']}\n" in card
    assert facts["greedylr/found_lr"] == callback.suggested_lr()
    assert f"- greedylr/base_lr: {facts['greedylr/base_lr']}\n" in card
    for line in ("rule: GreedyConfig", "window_size: 2", "factor: 0.8", "total_steps: 24", "linear_warmup_steps: 3"):
        assert f"- greedylr/{line}\n" in card
    assert "patience" not in card  # only what is not the default
    assert "lr_scheduler_warmup_steps" not in card
    assert card.count("greedylr/rule") == 1


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        ({"base_schedule": "multiply"}, "cosine", "GreedyLR x cosine"),
        ({"shadow": True}, "linear", "linear; GreedyLR only watched"),
    ],
)
def test_the_users_schedule_is_named_if_it_was_used(tmp_path, arguments, kind, says):
    callback = GreedyLRCallback(**FAST, **arguments)
    _, result, card = run(tmp_path, callback, kind)
    assert f"- lr_scheduler_type: {says}\n" in card
    assert ("greedylr/found_lr" in card) is ("greedylr/found_lr" in result.metrics) is ("shadow" not in arguments)


def test_a_schedule_that_was_passed_is_named_by_its_class(tmp_path):
    model, args = tiny.llama(), tiny.arguments(tmp_path)
    optimizer = tiny.torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = get_cosine_schedule_with_warmup(optimizer, 0, args.max_steps)
    given = {"optimizers": (optimizer, schedule)}
    _, _, card = run(tmp_path, GreedyLRCallback(**FAST), model=model, trainer_kwargs=given)
    assert "- lr_scheduler_type: GreedyLR x LambdaLR\n" in card


def test_the_result_and_the_state_have_the_lr_that_was_found(tmp_path):
    callback = GreedyLRCallback(**FAST)
    trainer, result, _ = run(tmp_path, callback, save_strategy="steps", save_steps=24)
    assert result.metrics["greedylr/found_lr"] == callback.suggested_lr()
    trainer.save_state()
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert state["log_history"][-1]["greedylr/found_lr"] == callback.suggested_lr()
    config = state["stateful_callbacks"]["GreedyLRCallback"]["args"]["config"]
    assert (config["behaviour"], config["window_size"]) == ("GreedyConfig", 2)


def test_a_second_run_of_the_trainer_gives_the_card_of_the_second(tmp_path):
    callback = GreedyLRCallback(**FAST)
    trainer, _, first = run(tmp_path, callback)
    trainer.args.max_steps = 30
    trainer.train()
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert card.count("greedylr/total_steps") == 1
    assert "greedylr/total_steps: 24\n" in first
    assert "greedylr/total_steps: 30\n" in card


def test_find_lr_leaves_no_trace(tmp_path):
    trainer = tiny.trainer(tmp_path, [], model=tiny.llama(), data=tiny.text_data(160))
    find_lr(trainer, total_steps=60)
    trainer.create_model_card()
    assert "greedylr" not in (tmp_path / "README.md").read_text()


def test_a_card_without_hyperparameters_gets_a_section():
    facts = {"greedylr/schedule": "GreedyLR in place of linear", "greedylr/rule": "SlopeConfig"}
    section = "### Learning rate\n\n- greedylr/schedule: GreedyLR in place of linear\n- greedylr/rule: SlopeConfig\n"
    card = amended("# A model\n\n### Framework versions\n\n- TRL: 1\n", facts)
    assert card == f"# A model\n\n{section}\n### Framework versions\n\n- TRL: 1\n"
    assert amended(card, facts) == card
    assert amended("# A model\n", facts) == f"# A model\n\n{section}"


def test_the_card_of_trl(tmp_path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    args = tiny.arguments(tmp_path, SFTConfig, max_steps=3, save_strategy="steps", save_steps=3)
    data = Dataset.from_dict({"text": ["w1 w2 w3 w4", "w5 w6 w7 w8"] * 4})
    trainer = SFTTrainer(
        tiny.llama(), args, train_dataset=data, processing_class=tiny.tokenizer(), callbacks=[GreedyLRCallback()]
    )
    trainer.train()  # TRL writes a card with each checkpoint
    card = (tmp_path / "README.md").read_text()
    assert "### Learning rate\n\n- greedylr/schedule: GreedyLR in place of linear\n" in card


@pytest.mark.parametrize("broken", ["tracker", "card"])
def test_what_cannot_be_written_is_a_warning(tmp_path, caplog, monkeypatch, broken):
    class TensorBoardCallback(tiny.TrainerCallback):
        tb_writer = None

    if broken == "card":
        monkeypatch.setattr("greedylr_integrations._hf_provenance.amended", lambda *args: 1 / 0)
    others = [TensorBoardCallback()] if broken == "tracker" else []
    trainer = tiny.trainer(tmp_path, [*others, GreedyLRCallback(**FAST)], model=tiny.llama(), data=tiny.text_data())
    trainer.train()
    trainer.create_model_card()
    where = "TensorBoard" if broken == "tracker" else "the model card"
    assert f"GreedyLR could not write its settings to {where}: " in caplog.text
    assert (tmp_path / "README.md").exists()


def test_a_search_for_hyperparameters_has_a_history_and_a_fresh_state_for_each_trial(tmp_path, caplog):
    optuna = pytest.importorskip("optuna")
    from transformers import Trainer

    from greedylr_integrations import history

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    callback = GreedyLRCallback(**FAST, history_file=tmp_path / "history.jsonl")
    kwargs = {"max_steps": 24, "eval_strategy": "no", "save_strategy": "steps", "save_steps": 24}
    args = tiny.arguments(tmp_path, TrainingArguments, **kwargs)
    data = tiny.regression_data()
    trainer = Trainer(
        model_init=lambda: tiny.Regressor(), args=args, train_dataset=data, eval_dataset=data[:4], callbacks=[callback]
    )
    trainer.hyperparameter_search(
        lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", [0.01, 0.04])},
        n_trials=3,
        backend="optuna",
        sampler=optuna.samplers.RandomSampler(seed=0),
    )
    histories = []
    for trial in range(3):
        header, records, _ = history.read(tmp_path / f"run-{trial}" / "history.jsonl")
        saved = tmp_path / f"run-{trial}" / "checkpoint-24" / "trainer_state.json"
        entry = json.loads(saved.read_text())["stateful_callbacks"]["GreedyLRCallback"]["attributes"]["saved"]
        assert [record.step for record in records] == list(range(1, 25))
        assert records[-1].decision.scales[0] == entry["scales"][0]
        histories.append((header["base_lrs"], records))
    by_lr = {}
    for base_lrs, records in histories:  # the same LR gives the same run, whatever came before
        assert by_lr.setdefault(base_lrs[0], records) == records
    assert len(by_lr) == 2 < len(histories)
    assert not (tmp_path / "history.jsonl").exists()
    assert "renamed" not in caplog.text
