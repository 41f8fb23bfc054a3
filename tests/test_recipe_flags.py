"""The flags that recipes share: GreedyLR's settings, --help, files of flags, what a resume refuses."""

import dataclasses
import gc
import importlib
import json
import signal
import sys
import time

import pytest
import recipe_parts
import torch

transformers = pytest.importorskip("transformers")
from greedylr_integrations import GreedyConfig, SlopeConfig, TransformersConfig, history
from recipes.common import flags as common
from recipes.common import greedy
from recipes.common.offline import RecipeError
from recipes.common.stop import StopOnSignal, Stopped

ON_THE_TRAINER = ["finetune_llm", "sft_trl", "dpo_trl", "ray_train_llm"]
OTHERS = ["pretrain_llm", "lightning_llm", "lightning_vision", "accelerate_text"]


def recipe(name):
    """A recipe, if the framework that it is on is there."""
    for package, names in {"trl": ("sft_trl", "dpo_trl"), "ray": ["ray_train_llm"], "lightning": OTHERS[1:3]}.items():
        if name in names:
            pytest.importorskip(package)
    pytest.importorskip("peft")
    return importlib.import_module(f"recipes.{name}")


def parsed(name, *words):
    args = recipe(name).parse_flags([*words])
    return args[0] if isinstance(args, tuple) else args


def parser():
    return common.parser(
        "some_recipe", "Text.", model="m", dataset="d", learning_rate=0.1, batch_size=4, max_steps=10, ask="x"
    )


def plain(*words):
    return common.parse(parser(), [*map(str, words)], same=("max_steps",))


# ---- GreedyLR's own settings ----


@pytest.mark.parametrize("name", [*ON_THE_TRAINER, *OTHERS])
def test_every_recipe_has_the_settings_of_greedylr(name, tmp_path):
    (tmp_path / "a.yaml").write_text("greedy: {max_scale: 3, doubling: 7}\ncontrol-file: control.json\n")
    words = ["--config", str(tmp_path / "a.yaml"), "--output-dir", str(tmp_path / "out")]
    args = parsed(name, *words, "--greedy.max_scale", "2.5", "--greedy.decay_ratio=0.4")
    assert args.greedy.config == SlopeConfig(max_scale=2.5, doubling=7)
    assert args.greedy.arguments(tmp_path) == {
        "config": args.greedy.config,
        "decay_ratio": 0.4,
        "control_file": "control.json",
        "history_file": str(tmp_path / "history.jsonl"),
    }


@pytest.mark.parametrize(
    ("words", "config"),
    [
        ([], SlopeConfig()),
        (["--greedy.rule", "loss"], GreedyConfig()),
        (["--greedy.window_size", "20"], GreedyConfig(window_size=20)),  # which only that one has
        (["--greedy.rule", "loss", "--greedy.min_lr", "1e-6"], GreedyConfig(min_lr=1e-6)),
        (["--greedy.rule", "transformers", "--greedy.smooth", "true"], TransformersConfig(smooth=True)),
    ],
)
def test_which_rule_it_is(words, config, tmp_path):
    assert plain(*words, "--output-dir", tmp_path).greedy.config == config


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--greedy.max_scal", "3"], "'--greedy.max_scal' is not a flag of some_recipe: did you mean --greedy.max_sca"),
        (["--greedy.max-scale", "3"], "did you mean --greedy.max_scale?"),
        (["--greedy.max_scale", "many"], "argument --greedy.max_scale: invalid float value: 'many'"),
        (["--greedy.max_scale", "-1"], "--greedy.max_scale=-1.0 is not allowed: it must be above 0"),
        (["--greedy.max_scale", "nan"], "--greedy.max_scale=nan is not allowed: it must be finite"),
        (["--greedy.every_n_steps", "1.5"], "argument --greedy.every_n_steps: invalid int value: '1.5'"),
        (["--greedy.every_n_steps", "0"], "--greedy.every_n_steps=0 is not allowed: it must be at least 1"),
        (["--greedy.on_nonfinite", "stop"], "--greedy.on_nonfinite='stop' is not allowed: it must be one of 'hold'"),
        (["--greedy.rule", "fast"], "argument --greedy.rule: invalid choice: 'fast' (choose from "),
        (["--greedy.rule", "slope", "--greedy.pace", "1"], "--greedy.pace is not a field of SlopeConfig: it has mode"),
        (["--greedy.rule", "paper", "--greedy.smooth", "yes"], "argument --greedy.smooth: 'yes' is neither true nor f"),
        (["--greedy.decay_ratio", "2"], "--greedy.decay_ratio=2.0 is not allowed: it must be between 0 and 1"),
        (["--greedy.min_lr", "20"], "is above upper bound 100 x base LR for base LRs [0.1]: change min_lr"),
        (["--greedy.doubling", "5", "--schedule", "cosine"], "--greedy.doubling is for the schedule 'greedy', and thi"),
        (["--control-file", "c.json", "--schedule", "wsd"], "--control-file is for the schedule 'greedy', and this r"),
        (["--control-file", "nowhere/c.json"], "--control-file nowhere/c.json: it must be a file, in a folder"),
        (["--history-file", "."], "--history-file .: it must be a file, in a folder that exists"),
    ],
)
def test_a_wrong_setting_is_one_sentence(words, says, tmp_path):
    with pytest.raises(RecipeError) as error:
        plain(*words, "--output-dir", tmp_path / "out")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_each_setting_has_its_text():
    fields = greedy.documented(SlopeConfig)
    assert fields["max_scale"] == "SlopeConfig: Upper bound on LR / base LR. Default None: 100."
    assert set(fields) == {field.name for field in dataclasses.fields(SlopeConfig)}


def test_the_settings_reach_a_run(tmp_path):
    """A cap, no decay, another rule, and the files: on Lightning, in seconds."""
    pytest.importorskip("lightning")
    pytest.importorskip("sklearn")
    control = tmp_path / "control.json"
    control.write_text(json.dumps({"order": "pin", "value": 0.25, "id": 1}))
    words = ["--dataset", "digits", "--max-steps", "20", "--no-plot", "--output-dir", str(tmp_path / "out")]
    words += ["--greedy.rule", "loss", "--greedy.min_scale", "0.5", "--greedy.decay_ratio", "0"]
    words += ["--control-file", str(control), "--history-file", str(tmp_path / "mine.jsonl")]
    with pytest.warns():  # Lightning's own
        recipe("lightning_vision").main(words)
    (run,) = json.loads((tmp_path / "out" / "metrics.json").read_text())["runs"]
    assert {lr for step, lr in run["learning_rate"] if step > 2} == {0.005}  # pinned as low as the bound allows
    header, records, _ = history.read(tmp_path / "mine.jsonl")
    assert header["config"]["behaviour"] == "GreedyConfig"
    assert len(records) == len(run["decisions"]) > 15
    assert not (tmp_path / "out" / "greedy" / "history.jsonl").exists()


# ---- the help ----


@pytest.mark.parametrize("name", [*ON_THE_TRAINER, *OTHERS])
def test_the_help_is_short(name, capsys):
    made = recipe(name)
    with pytest.raises(SystemExit) as end:
        made.main(["--help"])
    short = capsys.readouterr().out
    assert end.value.code == 0
    assert short.startswith(f"usage: python -m recipes.{name} [flags]\n")
    assert len(short.splitlines()) < 130
    assert "  --schedule " in short
    assert "greedy.max_scale" in short
    assert "  --greedy.max_scale" not in short
    with pytest.raises(SystemExit):
        made.main(["--help-all"])
    whole = capsys.readouterr().out
    assert "  --greedy.max_scale FLOAT" in whole
    if name in ON_THE_TRAINER:
        assert "lr-scheduler-type" not in short
        assert "learning-rate=" in short
        assert short.index("  --schedule ") < short.index("weight-decay")
        assert "  --weight-decay " in whole.replace("_", "-")
        assert "  --weight-decay " not in short
        assert len(whole.splitlines()) > 4 * len(short.splitlines())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["--lr_scheduler_type", "cosine"],
            "--lr-scheduler-type cosine has no effect in a recipe: choose by --schedul",
        ),
        (["--lr-scheduler-type=linear"], "--lr-scheduler-type linear has no effect in a recipe: choose by --schedule"),
        (["--lr-scheduler-kwargs", "{}"], "--lr-scheduler-kwargs {} has no effect in a recipe: choose by --schedule"),
        (["--resume_from_checkpoint", "x"], "--resume-from-checkpoint x has no effect in a recipe: use --resume with"),
        (["--max-step", "3"], "'--max-step' is not a flag of finetune_llm: did you mean --max-steps?"),
    ],
)
def test_what_is_not_honoured_is_refused(words, says, tmp_path):
    with pytest.raises(RecipeError) as error:
        parsed("finetune_llm", *words, "--output-dir", str(tmp_path / "out"))
    assert says in str(error.value)


# ---- files of flags ----


def test_flags_in_a_file(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("max_steps: 7\nlearning-rate: 2e-4\nplot: false\ncompare: [greedy, wsd]\nresume: false\nseed:\n")
    args = plain("--config", file, "--learning-rate", "0.5")
    assert (args.max_steps, args.learning_rate, args.plot, args.resume, args.seed) == (7, 0.5, False, False, 0)
    assert args.schedules == ["greedy", "wsd"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "seed: 1\nmax-stepz: 7",
            "a.yaml, line 2, column 1: 'max-stepz' is not a flag of some_recipe: did you mean --m",
        ),
        ("zzz: 7", "a.yaml, line 1, column 1: 'zzz' is not a flag of some_recipe (some_recipe --help lists them)"),
        ("config: b.yaml", "a.yaml, line 1, column 1: 'config' is not a flag"),
        ("help: true", "a.yaml, line 1, column 1: 'help' is not a flag"),
        ("seed: 1\nmax_steps: many", "a.yaml, line 2, column 12: argument --max-steps: invalid int value: 'many'"),
        ("max_steps: {a: 1}", "line 1, column 12: argument --max-steps: invalid int value"),
        ("plot: maybe", "a.yaml, line 1, column 7: plot must be true or false"),
        ("seed: 1\nseed: 2", "a.yaml, line 2, column 1: 'seed' is there twice"),
        ("batch-size: 1\nbatch_size: 2", "a.yaml, line 2, column 1: 'batch_size' is there twice"),
        ("seed: 1\na: [", "a.yaml, line 2, column 5: "),
        ("seed: 1\n  max-steps: 3", "a.yaml, line 2, column 12: mapping values are not allowed here"),
        ("seed: 1\n\tmax-steps: 3", "a.yaml, line 2, column 1: found character '\\t' that cannot start any token"),
        ("seed: !!python/object:os.system 1", "a.yaml, line 1, column 7: could not determine a constructor"),
        (
            "greedy:\n  max_scal: 3",
            "line 2, column 3: 'greedy.max_scal' is not a flag of some_recipe: did you mean --gr",
        ),
        ("greedy:\n  max_scale: x", "line 2, column 14: argument --greedy.max_scale: invalid float value: 'x'"),
        ("greedy: {max_scale: -1}", "--greedy.max_scale=-1.0 is not allowed: it must be above 0"),
        ("greedy: 3", "line 1, column 1: 'greedy' is not a flag of some_recipe"),
        ("just words", "is not a list of `flag: value`"),
        ("", "is not a list of `flag: value`"),
        ("a: \x01", "is not YAML (unacceptable character"),
        (None, "cannot be loaded (FileNotFoundError"),
    ],
)
def test_a_wrong_file_is_one_sentence_with_its_place(tmp_path, text, says):
    if text is not None:
        (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(RecipeError) as error:
        plain("--config", tmp_path / "a.yaml", "--output-dir", tmp_path / "out")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


# ---- resuming ----


def begun(tmp_path, name, *words):
    """A folder as a run of that recipe leaves it at its first checkpoint."""
    out = tmp_path / "out"
    args = parsed(name, *words, "--output-dir", str(out))
    (out / "greedy" / "checkpoint-1").mkdir(parents=True)
    (out / "settings.json").write_text(json.dumps(args.settings))
    return ["--output-dir", str(out), "--resume"]


SAME = {  # what a run may not be resumed with, by recipe
    "finetune_llm": {
        "--rows=7": "rows 1500, so it cannot be resumed with 7",
        "--validation-rows=3": "validation_rows 32, so it cannot be resumed with 3",
        "--max-length=9": "max_length 128, so it cannot be resumed with 9",
        "--batch-size=3": "rows_per_step 4, so it cannot be resumed with 3",
        "--gradient-accumulation-steps=2": "rows_per_step 4, so it cannot be resumed with 8",
        "--model=x": "model 'smollm2-135m', so it cannot be resumed with 'x'",
        "--dataset=x": "dataset 'chitchat', so it cannot be resumed with 'x'",
        "--split=x": "split 'train', so it cannot be resumed with 'x'",
        "--seed=3": "seed 0, so it cannot be resumed with 3",
        "--packing": "packing False, so it cannot be resumed with True",
        "--weight-decay=0.1": "weight_decay 0.0, so it cannot be resumed with 0.1",
        "--lora-r=2": "lora_r 8, so it cannot be resumed with 2",
        "--greedy.max_scale=3": "greedy.max_scale None, so it cannot be resumed with 3.0",
        "--greedy.rule=loss": "greedy.behaviour 'SlopeConfig', so it cannot be resumed with 'GreedyConfig'",
        "--history-file=x.jsonl": "greedy.history_file None, so it cannot be resumed with 'x.jsonl'",
    },
    "sft_trl": {
        "--assistant-only-loss=false": "assistant_only_loss True, so it cannot be resumed with False",
        "--max-length=9": "max_length 128, so it cannot be resumed with 9",
    },
    "dpo_trl": {"--beta=0.7": "beta 0.1, so it cannot be resumed with 0.7"},
    "pretrain_llm": {
        "--max-length=9": "max_length 256, so it cannot be resumed with 9",
        "--batch-size=2": "rows_per_step 8, so it cannot be resumed with 2",
        "--greedy.decay_ratio=0.1": "greedy.decay_ratio None, so it cannot be resumed with 0.1",
    },
    "lightning_llm": {
        "--rows=7": "rows 1500, so it cannot be resumed with 7",
        "--batch-size=2": "rows_per_step 4, so it cannot be resumed with 2",
    },
    "lightning_vision": {"--max-steps=7": "max_steps 1500, so it cannot be resumed with 7"},
    "accelerate_text": {
        "--max-length=9": "max_length 64, so it cannot be resumed with 9",
        "--validation-rows=7": "validation_rows 500, so it cannot be resumed with 7",
    },
}


@pytest.mark.parametrize("name", SAME)
def test_a_run_is_not_resumed_with_something_else(name, tmp_path):
    again = begun(tmp_path, name)
    parsed(name, *again)
    for word, says in SAME[name].items():
        with pytest.raises(RecipeError) as error:
            parsed(name, *again, word)
        assert f"was started with {says}: give the same again, or choose another --output-dir" in str(error.value)


def test_other_data_under_the_same_name_is_refused(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.jsonl").write_text('{"text": "a"}\n')
    for place in (data, data / "a.jsonl"):
        folder = tmp_path / place.name
        again = begun(folder, "pretrain_llm", "--dataset", str(place))
        parsed("pretrain_llm", *again, "--dataset", str(place))
        size = (data / "a.jsonl").stat().st_size
        with (data / "a.jsonl").open("a") as file:
            file.write('{"text": "b"}\n')
        says = f"was started with bytes_of_data {size}, so it cannot be resumed with {size + 14}: give the same again"
        with pytest.raises(RecipeError, match=says):
            parsed("pretrain_llm", *again, "--dataset", str(place))
        with pytest.raises(RecipeError, match="was started with dataset "):
            parsed("pretrain_llm", *again)


def test_what_may_change_may_change(tmp_path):
    again = begun(tmp_path, "finetune_llm", "--batch-size", "4")
    half = ["--batch-size", "2", "--gradient-accumulation-steps", "2"]
    more = ["--save-steps", "7", "--ask", "Hi", "--no-plot", "--compare", "greedy", "cosine", "--control-file", "c"]
    parsed("finetune_llm", *again, *half, *more)


def test_lightning_may_go_on_with_other_devices(tmp_path):
    again = begun(tmp_path, "lightning_llm", "--batch-size", "4")
    parsed("lightning_llm", *again, "--batch-size", "2", "--devices", "2")


def test_a_run_of_an_earlier_version_can_be_resumed(tmp_path):
    again = begun(tmp_path, "finetune_llm")
    file = tmp_path / "out" / "settings.json"
    settings = json.loads(file.read_text())
    del settings["rows_per_step"], settings["greedy"]
    file.write_text(json.dumps({**settings, "of_old": 3}))
    parsed("finetune_llm", *again)


# ---- the whole of a run ----


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    out = recipe_parts.make(tmp_path_factory.mktemp("parts"))
    texts = [{"text": " ".join(f"w{(3 * i + j) % 20}" for j in range(40))} for i in range(100)]
    (out / "texts.jsonl").write_text("\n".join(map(json.dumps, texts)))
    return out


def small_run(name, parts, out):
    if name == "lightning_vision":
        return ["--dataset", "digits", "--max-steps", "8", "--no-plot", "--output-dir", str(out)]
    more = {"--model": parts / "model", "--max-steps": 8, "--max-length": 32, "--validation-rows": 4}
    if name == "pretrain_llm":
        more |= {"--dataset": parts / "texts.jsonl", "--batch-size": 4}
    else:
        more |= {"--dataset": parts / "chats.jsonl", "--lora-r": 4}
    return [*(str(word) for pair in more.items() for word in pair), "--no-plot", "--output-dir", str(out)]


LOADS = {"lightning_vision": "torch.load("}


@pytest.mark.filterwarnings("ignore")  # Lightning's are many
@pytest.mark.parametrize("name", ["finetune_llm", "pretrain_llm", "lightning_llm", "lightning_vision"])
def test_a_run_in_two_parts_is_one(name, parts, tmp_path, monkeypatch, capsys):
    """Stopped and resumed: the same losses and LRs as without, one validation before the first step, and all time."""
    made, later, real = recipe(name), [0.0], time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: real() + later[0])
    made.main(small_run(name, parts, tmp_path / "whole"))
    printed = capsys.readouterr().out

    def asked(self):
        later[0], self.number = 5000.0, signal.SIGTERM
        return True

    with monkeypatch.context() as patch:
        patch.setattr(StopOnSignal, "asked", asked)
        with pytest.raises(Stopped):
            made.main(small_run(name, parts, tmp_path / "parts"))
    gc.collect()  # until then, the run that was stopped keeps its history open
    made.main([*small_run(name, parts, tmp_path / "parts"), "--resume"])
    (resumed,), (whole,) = recipe_parts.runs_of(tmp_path / "parts"), recipe_parts.runs_of(tmp_path / "whole")
    recipe_parts.assert_same(resumed, {**whole, "more": resumed["more"]})  # more: the speed
    assert [step for step, _ in whole["validation_loss"]] == [0, 2, 4, 6, 8]
    assert whole["seconds"] < 5000 < resumed["seconds"]
    (row,) = [line.split("│") for line in printed.splitlines() if line.startswith("│ greedy")]
    before, after = (f"{whole['validation_loss'][i][1]:.4f}" for i in (0, -1))
    assert (row[3].strip(), row[4].strip()) == (before, after)
    model = f"{tmp_path}/whole/greedy/model"
    load = LOADS.get(name, "transformers.AutoModelForCausalLM.from_pretrained(")
    (line,) = [line for line in printed.splitlines() if line.startswith("load it: ")]
    assert line.startswith(f"load it: {load}{model!r}")
    loaded = eval(line.removeprefix("load it: "), {"torch": torch, "transformers": transformers})
    assert sum(parameter.numel() for parameter in loaded.parameters()) > 100
    if name != "lightning_vision":
        assert f"ask it: {sys.executable} -m recipes.ask {model} 'Hello!'" in printed
