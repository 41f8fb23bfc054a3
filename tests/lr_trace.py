"""Runs the recipe that RECIPE names, with this script's flags; each rank appends its LRs to TRACE/lr-RANK.jsonl.

Steps are slowed down, so that there is time to kill in.
"""

import json
import os
import runpy
import sys
import time
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

sys.path.insert(0, str(Path(__file__).parents[1]))
torch.set_num_threads(1)


def note(optimizer, args, kwargs):
    time.sleep(0.03)
    rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK", "0")
    with open(Path(os.environ["TRACE"]) / f"lr-{rank}.jsonl", "a") as file:
        file.write(json.dumps([group["lr"] for group in optimizer.param_groups]) + "\n")


register_optimizer_step_pre_hook(note)
runpy.run_module(f"recipes.{os.environ['RECIPE']}", run_name="__main__")
