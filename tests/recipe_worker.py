"""A recipe's command line, with each LR that this rank's optimizer stepped with written to a file.

python recipe_worker.py FOLDER RECIPE FLAGS...
"""

import importlib
import json
import os
import sys
from pathlib import Path

from torch.optim.optimizer import register_optimizer_step_pre_hook

folder, name, *flags = sys.argv[1:]
lrs = []
register_optimizer_step_pre_hook(lambda optimizer, args, kwargs: lrs.append(optimizer.param_groups[0]["lr"]))
importlib.import_module(f"recipes.{name}").main(flags)
(Path(folder) / f"lrs-{os.environ['RANK']}.json").write_text(json.dumps(lrs))
