"""Trains once on each loss path, writes what the callback saw and the Trainer logged: hf_worker.py OUT PATH..."""

import json
import os
import sys
import warnings
from importlib.util import find_spec

import tiny
import torch
from processes import leave
from transformers import Trainer

from greedylr_integrations.transformers import GreedyLRCallback

warnings.simplefilter("ignore")


class Huber(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = torch.nn.functional.huber_loss(outputs["logits"], labels)
        return (loss, outputs) if return_outputs else loss


def token_loss(outputs, labels, num_items_in_batch=None):
    logits = outputs["logits"][:, :-1].reshape(-1, outputs["logits"].shape[-1])
    total = torch.nn.functional.cross_entropy(logits, labels[:, 1:].reshape(-1), ignore_index=-100, reduction="sum")
    return total / num_items_in_batch


def words(g, n):
    return " ".join(tiny.WORDS[i] for i in torch.randint(0, 6, (n,), generator=g))


def sft(out, callbacks):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    g = torch.Generator().manual_seed(3)
    data = Dataset.from_list([{"text": words(g, 4 + i % 7)} for i in range(48)])
    args = tiny.arguments(
        out, SFTConfig, gradient_accumulation_steps=2, bf16=False, max_length=32, dataset_num_proc=None
    )
    return SFTTrainer(tiny.llama(), args, train_dataset=data, processing_class=tiny.tokenizer(), callbacks=callbacks)


def dpo(out, callbacks):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    g = torch.Generator().manual_seed(3)
    rows = [{"prompt": words(g, 3) + " ", "chosen": words(g, 3 + i % 4), "rejected": words(g, 3)} for i in range(48)]
    args = tiny.arguments(out, DPOConfig, gradient_accumulation_steps=2, bf16=False, max_length=32)
    return DPOTrainer(
        tiny.llama(),
        tiny.llama(),
        args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny.tokenizer(),
        callbacks=callbacks,
    )


def text(out, callbacks, **kwargs):
    return tiny.trainer(out, callbacks, model=tiny.llama(), data=tiny.text_data(), **kwargs)


PATHS = {
    "plain": lambda out, cb: tiny.trainer(out, cb),
    # 48 rows / 2 / 5 leaves a partial window at the end of an epoch
    "accumulation": lambda out, cb: tiny.trainer(out, cb, gradient_accumulation_steps=5),
    "num_items_in_batch": lambda out, cb: text(out, cb, gradient_accumulation_steps=2),
    "not averaged over devices": lambda out, cb: text(
        out, cb, gradient_accumulation_steps=2, average_tokens_across_devices=False
    ),
    "label smoothing": lambda out, cb: text(out, cb, label_smoothing_factor=0.1, gradient_accumulation_steps=2),
    "compute_loss_func": lambda out, cb: text(
        out, cb, gradient_accumulation_steps=2, trainer_kwargs={"compute_loss_func": token_loss}
    ),
    "compute_loss": lambda out, cb: tiny.trainer(out, cb, kind=Huber, gradient_accumulation_steps=2),
    "torch_compile": lambda out, cb: tiny.trainer(out, cb, torch_compile=True, torch_compile_backend="eager"),
    **({"sft": sft, "dpo": dpo} if find_spec("trl") else {}),
}


# Never run yet: no GPU was at hand.
GPU_PATHS = {
    "fsdp": lambda out, cb: text(out, cb, use_cpu=False, fsdp="full_shard", fsdp_config={"fsdp_version": 2}),
    "deepspeed": lambda out, cb: text(
        out,
        cb,
        use_cpu=False,
        deepspeed={
            "zero_optimization": {"stage": 2},
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
        },
    ),
}


def main(out, names):
    rank = os.environ.get("RANK", "0")
    for name in names:
        callback, spy = GreedyLRCallback(window_size=2, factor=0.8, pace=0), tiny.LRSpy()
        trainer = {**PATHS, **GPU_PATHS}[name](os.path.join(out, "trainer"), [callback, spy])
        trainer.train()
        result = {
            "seen": [record.decision.loss for record in callback.history],
            "logged": tiny.logged(trainer),
            "used": spy.used,
            "logged_lr": tiny.logged(trainer, "learning_rate"),
            "world": trainer.args.world_size,
        }
        with open(os.path.join(out, f"{name}-{rank}.json"), "w") as file:
            json.dump(result, file)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:] or list(PATHS))
    leave()
