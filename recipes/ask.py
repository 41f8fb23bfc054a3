"""Ask a model that a recipe has trained.

    python -m recipes.ask runs/demo/greedy/model "What do you do for fun?"

The folder is one that a recipe saved: a whole model, or an adapter, whose base model is loaded with it.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from greedylr_integrations.log import environment_rank
from recipes.common.flags import fail, loading, run


def answer(folder: str | Path, question: str, tokens: int = 40) -> str:
    """The most likely reply to a question.

    Args:
        folder (path): the model, with its tokenizer.
        question (str): what to say to it.
        tokens (int): length of the reply, at most. Default 40.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with loading("model", str(folder)):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
    if tokenizer.chat_template is None:
        asked = tokenizer(question, return_tensors="pt")
    else:
        turn = [{"role": "user", "content": question}]
        asked = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    made = model.generate(
        **asked,
        max_new_tokens=tokens,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
    )
    return tokenizer.decode(made[0, asked["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def show(folder: Path, question: str = "") -> None:
    """How to use a model that was trained, and what it replies. In the first process only."""
    if environment_rank() != 0 or not folder.exists():
        return
    print(f"load it: transformers.AutoModelForCausalLM.from_pretrained({str(folder)!r})")
    if question:
        print(f"> {question}\n{answer(folder, question)}")
    words = shlex.join([str(folder), question or "Hello!"])
    print(f"ask it: {sys.executable} -m recipes.ask {words}")


def main(argv: list[str] | None = None) -> None:
    made = argparse.ArgumentParser(prog="ask", description=(__doc__ or "").split("\n")[0])
    made.error = fail
    made.add_argument("folder", help="folder of the model")
    made.add_argument("question")
    made.add_argument("--tokens", type=int, default=40, help="maximum length of the reply (default: %(default)s)")
    args = made.parse_args(argv)
    if args.tokens < 1:
        fail(f"--tokens {args.tokens} is not allowed: it must be at least 1")
    if not args.question.strip():
        fail("the question is empty: ask something")
    if not Path(args.folder).is_dir():
        fail(f"there is no folder {args.folder!r}: name the one that the recipe has printed, which ends in /model")
    print(answer(args.folder, args.question, args.tokens))


if __name__ == "__main__":
    run("ask", main)
