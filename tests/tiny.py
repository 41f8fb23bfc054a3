"""Small models, data and Trainers for the tests of the Hugging Face adapter."""

import torch
from small import Regressor, regression_data
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

WORDS = [f"w{i}" for i in range(40)]


def llama(**sizes):
    set_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=2,
            **{"hidden_size": 16, "intermediate_size": 32, **sizes},
        )
    )


def tokenizer():
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "user", "assistant", *WORDS])}
    backend = Tokenizer(WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    tok = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )
    tok.chat_template = (
        "{% for message in messages %}{{ message['role'] + ' ' + message['content'] + eos_token + ' ' }}{% endfor %}"
    )
    return tok


def text_data(n=48):
    """Token sequences of one length, of which a different share counts for the loss in each."""
    g = torch.Generator().manual_seed(1)
    rows = []
    for i in range(n):
        ids = torch.randint(8, 14, (12,), generator=g)
        labels = ids.clone()
        labels[: i % 5] = -100
        rows.append({"input_ids": ids, "labels": labels})
    return rows


class LRSpy(TrainerCallback):
    """The LRs with which the optimizer really stepped."""

    def __init__(self):
        self.used = []

    def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
        self.used = []
        raw = getattr(optimizer, "optimizer", optimizer)
        self.handle = raw.register_step_pre_hook(
            lambda o, a, k: self.used.append([float(g["lr"]) for g in o.param_groups])
        )

    def on_train_end(self, *args, **kwargs):
        self.handle.remove()


def arguments(output_dir, kind=TrainingArguments, **kwargs):
    defaults = {
        "per_device_train_batch_size": 2,
        "max_steps": 12,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 0,
    }
    return kind(output_dir=str(output_dir), **{**defaults, **kwargs})


def trainer(
    output_dir, callbacks, *, kind=Trainer, model=None, data=None, eval_data=None, trainer_kwargs=None, **kwargs
):
    args = arguments(output_dir, **kwargs)  # before the model: it sets the accelerator state up
    return kind(
        model=Regressor() if model is None else model,
        args=args,
        train_dataset=regression_data() if data is None else data,
        eval_dataset=eval_data,
        callbacks=callbacks,
        **(trainer_kwargs or {}),
    )


def logged(trainer, name="loss"):
    return [entry[name] for entry in trainer.state.log_history if name in entry]
