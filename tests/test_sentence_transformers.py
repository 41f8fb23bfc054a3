"""sentence-transformers' Trainer and SetFit's: one decision a step, on the loss that the Trainer logs; and the card."""

import pytest
import tiny

sentence_transformers = pytest.importorskip("sentence_transformers")

from datasets import Dataset
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import BertConfig, BertModel, BertTokenizer

from greedylr_integrations.transformers import GreedyLRCallback

# their own, and those of what they import
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def encoder(folder):
    tiny.set_seed(0)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *tiny.WORDS]))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    BertModel(BertConfig(vocab_size=64, **sizes)).save_pretrained(folder)
    return sentence_transformers.SentenceTransformer(str(folder), device="cpu")


def sentences(n, start=0):
    return [f"{tiny.WORDS[(start + i) % 40]} {tiny.WORDS[(start + 7 * i) % 40]}" for i in range(n)]


def follows(callback, spy, losses, base_lr):
    records = list(callback.history)
    assert [record.step for record in records] == list(range(1, len(spy.used) + 1))
    assert [record.decision.loss for record in records] == pytest.approx(losses, abs=1e-3)
    assert spy.used == [[base_lr] * len(spy.used[0]), *(list(record.lrs) for record in records[:-1])]
    assert len({lrs[0] for lrs in spy.used}) > 2


def test_sentence_transformers(tmp_path):
    kind = sentence_transformers.SentenceTransformerTrainingArguments
    callback, spy = GreedyLRCallback(window_size=2, factor=0.8), tiny.LRSpy()
    model = encoder(tmp_path)
    data = Dataset.from_dict({"anchor": sentences(64), "positive": sentences(64, 3)})
    trainer = sentence_transformers.SentenceTransformerTrainer(
        model=model,
        args=tiny.arguments(tmp_path / "out", kind, max_steps=24),
        train_dataset=data,
        loss=MultipleNegativesRankingLoss(model),
        callbacks=[callback, spy],
    )
    trainer.train()
    follows(callback, spy, tiny.logged(trainer), 1e-2)
    model.save(str(tmp_path / "saved"))
    trainer.create_model_card()
    for card in (tmp_path / "saved" / "README.md", tmp_path / "out" / "README.md"):
        text = card.read_text()
        assert "`lr_scheduler_type`: GreedyLR in place of linear" in text
        assert f"`greedylr/found_lr`: {callback.suggested_lr()}" in text
        assert "`lr_scheduler_type`: linear" not in text


def test_setfit(tmp_path):
    setfit = pytest.importorskip("setfit")
    callback, spy = GreedyLRCallback(window_size=2, factor=0.8), tiny.LRSpy()
    model = setfit.SetFitModel(model_body=encoder(tmp_path), model_head=None)
    args = setfit.TrainingArguments(
        output_dir=str(tmp_path / "out"),
        batch_size=2,
        max_steps=24,
        warmup_proportion=0.0,
        body_learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    )
    data = Dataset.from_dict({"text": sentences(32), "label": [i % 2 for i in range(32)]})
    trainer = setfit.Trainer(model=model, args=args, train_dataset=data, callbacks=[callback, spy])
    trainer.train_embeddings(*trainer.dataset_to_parameters(data))
    follows(callback, spy, tiny.logged(trainer.st_trainer, "embedding_loss"), 1e-2)
