"""What measuring the slope adds to a training step of SmolLM2-135M, with LoRA and with full fine-tuning.

    python -m benchmarks.slope_cost        # --steps 5: about two minutes on two cores

Each step and each measurement is timed by itself; the table shows medians. The reference is one
number per sampled coordinate; see `slope.SlopeMeter` for the rest of the memory.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from greedylr_integrations.slope import SlopeMeter
from recipes.common.offline import smollm2


def parameters(full: bool) -> tuple[torch.nn.Module, list[torch.nn.Parameter]]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(smollm2())
    if not full:
        from peft import LoraConfig, get_peft_model

        targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
        model = get_peft_model(model, LoraConfig(r=8, target_modules=targets, task_type="CAUSAL_LM"))
    return model, [p for p in model.parameters() if p.requires_grad]


def measure(full: bool, steps: int) -> str:
    torch.manual_seed(0)
    model, trained = parameters(full)
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    meter = SlopeMeter(optimizer)
    tokens = torch.randint(0, 40_000, (4, 96))
    training, slope = [], []
    for _ in range(steps + 1):
        start = time.perf_counter()
        model(input_ids=tokens, labels=tokens).loss.backward()
        between = time.perf_counter()
        for _ in range(3):
            begun = time.perf_counter()
            meter.measure()
            slope.append(time.perf_counter() - begun)
        after = time.perf_counter()
        optimizer.step()
        optimizer.zero_grad()
        training.append(between - start + time.perf_counter() - after)
    coordinates = sum(len(reference) for reference in meter.state_dict()["reference"])
    step, added = statistics.median(training[1:]), statistics.median(slope[3:])
    return (
        f"| {'full' if full else 'LoRA'} | {len(trained)} | {coordinates:,} | {step * 1000:.0f} | {added * 1000:.1f} |"
        f" {added / step:.2%} | {coordinates * 4 / 2**20:.1f} |"
    )


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--steps", type=int, default=5)
    steps = flags.parse_args().steps
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, 4 x 96 tokens\n")
    print("| training | tensors | coordinates | ms a step | ms a measurement | share | MiB of reference |")
    print("|---|---|---|---|---|---|---|")
    for full in (False, True):
        print(measure(full, steps), flush=True)


if __name__ == "__main__":
    main()
