"""torchrun runs this: the recipe's main, and what each rank then has, in rank*.json beside its results."""

import json
import os
import sys
from pathlib import Path

from recipes import pretrain_llm

OUT = Path(sys.argv[sys.argv.index("--output-dir") + 1])
make_model, train = pretrain_llm.make_model, pretrain_llm.train
kinds = set()


def watched_model(*args):
    model = make_model(*args)
    kinds.update(type(parameter).__name__ for parameter in model.parameters())
    return model


def watched_train(*args):
    run = train(*args)
    seen = {"kinds": sorted(kinds), "learning_rate": run.learning_rate, "train_loss": run.train_loss}
    Path(f"{OUT}/rank{os.environ['RANK']}.json").write_text(json.dumps(seen))
    return run


pretrain_llm.make_model, pretrain_llm.train = watched_model, watched_train
pretrain_llm.main(sys.argv[1:])
