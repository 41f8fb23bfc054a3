"""The table of recipes and the GPU's measurements, with tiny models."""

import json
import random

import pytest
import tiny
import torch

pytest.importorskip("accelerate")
pytest.importorskip("peft")
from benchmarks import finetuning, gpu_recipes, recipe_table
from benchmarks.finetuning import Task
from benchmarks.recipe_table import Part
from benchmarks.store import Results


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The words of a command that trains tiny models, a few times."""
    tiny.llama().save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    chance = random.Random(0)
    texts = [" ".join(f"w{(3 * i + chance.randrange(2)) % 20}" for i in range(40)) for _ in range(60)]
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    (tmp_path / "RESULTS.md").write_text("before\n<!-- recipes: begin -->\n<!-- recipes: end -->\nafter\n")
    common = f"--model {tmp_path}/model --dataset {tmp_path}/texts.jsonl --validation-rows 4 --max-length 16"
    pretrain = f"{common} --tokenizer {tmp_path}/model --batch-size 2 --save-steps 0"
    arms = ("greedy", "linear", "wsd")
    parts = {
        "pretrain": Part(
            "tiny decoder", "pretrain_llm", pretrain, 6, (0.1, 1.0), seeds=1, arms=arms, searched=(1e-3, 1e-2)
        ),
        "lora": Part("LoRA", "finetune_llm", f"{common} --batch-size 2 --eval-steps 2", 4, (1.0,), seeds=1, lr=2e-4),
    }
    monkeypatch.setattr(recipe_table, "PARTS", parts)
    return ["--results", str(tmp_path), "--output", str(tmp_path)]


def test_the_table_goes_on_where_it_was_killed(small, tmp_path, capsys):
    recipe_table.main(["all", *small])
    whole, file = capsys.readouterr().out, tmp_path / "recipe_table.jsonl"
    lines = file.read_text().splitlines()
    assert len(lines) == 1 + 2 * 2 + 2 * 3 + 3  # what they have in common, search, table, LoRA
    results = (tmp_path / "RESULTS.md").read_text()
    head = "| run | base LR | seeds | greedy | linear | cosine | warmup-st"
    assert results.startswith(f"before\n<!-- recipes: begin -->\n{head}")
    assert results.count("| tiny decoder |") == 2
    assert "| LoRA | 2e-04, 1x | 1 |" in results

    file.write_text("\n".join(lines[:9]) + "\n" + lines[9][:30])  # torn by a kill
    (tmp_path / "RESULTS.md").write_text((tmp_path / "RESULTS.md").read_text().replace("|", "!"))
    recipe_table.main(["all", *small])
    out = capsys.readouterr().out
    assert out.count(" table ") == len(lines) - 9 < whole.count(" table ")
    assert (tmp_path / "RESULTS.md").read_text() == results


def test_wins_and_losses_are_told_apart(tmp_path):
    results = Results(tmp_path / "recipe_table.jsonl")
    for job in recipe_table.search_jobs("pretrain"):
        loss = None if job.lr > 3e-3 else 5 - (job.lr == 1e-3) - (job.arm == "wsd") / 10
        results.add(job, {"loss": loss, "seconds": 1})
    assert recipe_table.base_lr(results, "pretrain") == 1e-3
    for job in recipe_table.table_jobs("pretrain", 1e-3):
        shift = {0.1: -1.0, 1.0: 1.0, 3.0: 0.0, 10.0: 0.0}[job.multiple] if job.arm == "greedy" else 0.0
        noise = (-1) ** job.seed / 10 if job.arm == "greedy" else 0.0
        loss = None if job.multiple == 3.0 and job.arm == "linear" else 4 + shift + noise
        results.add(job, {"loss": loss, "seconds": 2})
    rows = recipe_table.table(results).splitlines()
    assert "wins by 0.980 ± 0.049" in rows[2]
    assert "**loses** by 1.020 ± 0.049" in rows[3]
    assert "undecided" in rows[4]
    assert "| diverged |" in rows[4]


def test_without_a_gpu_it_refuses_in_one_line(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as end:
        gpu_recipes.main([])
    assert end.value.code == 2
    said = "gpu_recipes: there is no GPU here: run it on a machine with one, or try --tiny\n"
    assert capsys.readouterr().err == said


@pytest.mark.slow
def test_the_gpus_measurements_on_cpu(capsys, monkeypatch):
    results = gpu_recipes.RESULTS.parent / "RESULTS.md"
    before = results.read_text()
    gpu_recipes.main(["--tiny", "--steps", "2", "--rounds", "2"])
    out = capsys.readouterr().out
    for start in ("| tiny pretrain |", "| tiny lora |", "| tiny pretrain, 3e-04 |", "| tiny lora, 1e-02 |"):
        (line,) = [line for line in out.splitlines() if line.startswith(start)]
        assert "nan" not in line
    assert results.read_text() == before


@pytest.mark.parametrize(
    ("validation", "loss"),
    [
        ([[0, 5.0], [80, 4.0]], 4.0),  # above the first batch, which was an easy one
        ([[0, 5.0], [80, 5.1]], None),
        ([[80, 3.0]], 3.0),
        ([[80, 4.0]], None),  # nothing else is known of the start
        ([[0, 5.0], [80, float("nan")]], None),
    ],
)
def test_a_run_diverged_if_it_ends_above_its_start(validation, loss):
    run = {"train_loss": [[1, 3.5]], "validation_loss": validation, "seconds": 1.0, "next_learning_rate": None}
    assert recipe_table.result_of(run)["loss"] == loss


def test_the_fine_tuning_table_goes_on_and_counts_a_run_that_diverged(tmp_path, monkeypatch, capsys):
    def made():
        model = torch.nn.Linear(3, 1, bias=False)
        return model, lambda rows: (model(torch.tensor(rows)) - 2).square().mean()

    rows = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)).tolist()
    tasks = {
        "fits": Task("tuning", made, lambda: (rows, rows[:8]), 2, lr=1e-2, steps=60),
        "far too high": Task("tuning", made, lambda: (rows, rows[:8]), 2, lr=1e18, steps=8),
        "for later": Task("held-out", made, lambda: (rows, rows[:8]), 2),
    }
    monkeypatch.setattr(finetuning, "TASKS", tasks)
    finetuning.main(["tuning", "--results", str(tmp_path)])
    first = capsys.readouterr().out
    lines = [line.split("|")[1:-1] for line in first.splitlines() if line.startswith("| tuning")]
    assert [line[2].strip() for line in lines] == ["1e-03", "1e-02", "1e-01", "1e+17", "1e+18", "1e+19"]
    assert {line[3].strip() for line in lines} == {"2"}
    assert "diverged" in lines[-1][5]
    assert "diverged" not in " ".join(lines[0])
    assert "for later" not in first
    monkeypatch.setattr(finetuning, "train", None)  # nothing is run again
    finetuning.main(["show", "--results", str(tmp_path)])
    assert capsys.readouterr().out == first[first.index("| half") :]
    monkeypatch.setattr(finetuning, "rules_hash", lambda: "another")
    finetuning.main(["show", "--results", str(tmp_path)])
    assert "| tuning" not in capsys.readouterr().out  # nothing of greedy's is left
