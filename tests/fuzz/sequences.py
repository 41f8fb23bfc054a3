"""Random sequences of losses and slopes through random controllers: sequences.py COUNT [SEED].

The LR stays within its bounds, a decision says what moved, a resume changes nothing. Plain random numbers, so that a
million sequences take minutes. The first failure ends the run with its seed.
"""

import logging
import math
import random
import sys
import time

from test_fuzz_controller import BASES, check, same, through_json

from greedylr_integrations import (
    GreedyConfig,
    GreedyController,
    PaperConfig,
    SlopeConfig,
    SpikeError,
    TransformersConfig,
)

EXTREMES = (math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324, 0.0, -0.0, -3.0, 1e150, -1e200)


def config(draw):
    kind = draw.choice((GreedyConfig, SlopeConfig, PaperConfig, TransformersConfig))
    fields = {"min_lr": draw.choice((0.0, 1e-12, 1e-5)), "max_lr": draw.choice((0.5, 1e6))}
    fields["mode"] = draw.choice((None, "min", "max"))
    fields["on_nonfinite"] = draw.choice(("hold", "reduce", "rollback", "raise"))
    fields["on_spike"] = draw.choice((None, None, "hold", "reduce", "rollback", "raise"))
    if kind is not SlopeConfig:
        fields |= {"factor": draw.uniform(0.05, 0.999), "patience": draw.randint(0, 2)}
        fields |= {"window_size": draw.randint(1, 15)}
    if kind is GreedyConfig:
        fields |= {"pace": draw.choice((0, 1, 2)), "threshold_mode": draw.choice(("se", "rel", "abs"))}
        fields |= {"warmup": draw.randint(0, 3), "cooldown": draw.randint(0, 3)}
        fields |= {"reset_start": draw.choice((None, draw.randint(1, 20)))}
    elif kind is not SlopeConfig:
        fields |= {"smooth": draw.random() < 0.5, "reset_start": draw.randint(1, 20)}
    return kind(**fields)


def loss(draw, level):
    kind = draw.random()
    if kind < 0.9:
        return level * (1 + 0.1 * draw.gauss(0, 1))
    if kind < 0.96:
        return level * 10.0 ** draw.randint(-8, 8) * draw.choice((1, -1))
    return draw.choice(EXTREMES)


def slope(draw, mean):
    kind = draw.random()
    if kind < 0.9:
        return max(-1.0, min(1.0, draw.gauss(mean, 0.2)))
    return draw.choice((None, math.nan, -1.0, 1.0, 0.0))


def distance(draw, way):
    return way if draw.random() < 0.9 else draw.choice((None, math.nan, 0.0, 1e308, 0.03, 0.16))


def sequence(seed):
    draw = random.Random(seed)
    made, horizon = config(draw), draw.choice((None, draw.randint(1, 60), draw.randint(60, 400)))
    first_pass = draw.choice((None, None, draw.randint(1, 100)))
    controller = GreedyController(made, BASES, horizon, first_pass)
    length = draw.randint(1, 40) if draw.random() < 0.9 else draw.randint(40, 300)
    cut, other = draw.randrange(length), None
    fall, turn = draw.uniform(0.9, 1.02), draw.uniform(-0.02, 0.02)
    level, mean, way = draw.uniform(0.1, 10), draw.uniform(-0.5, 0.2), draw.uniform(0.0, 0.02)
    for i in range(length):
        if i == cut:
            other = GreedyController(made, BASES, horizon, first_pass)
            other.load_state_dict(through_json(controller.state_dict()))
        level, mean, way = level * fall, mean + turn, way * draw.uniform(1.0, 1.2)
        observation, before = (loss(draw, level), slope(draw, mean), distance(draw, way)), controller.scales
        try:
            decision = controller.observe(*observation)
        except FloatingPointError:
            assert made.on_nonfinite in ("reduce", "raise")
            return
        except SpikeError:
            assert made.rolls_back or made.on_spike == "raise"
            return
        check(decision, before, made)
        if other is not None:
            assert same(other.observe(*observation), decision)


if __name__ == "__main__":
    count, first = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    logging.getLogger("greedylr_integrations").setLevel(logging.ERROR)
    start = time.time()
    for seed in range(first, first + count):
        try:
            sequence(seed)
        except BaseException:
            print(f"the sequence of seed {seed} failed", file=sys.stderr)
            raise
    print(f"{count:,} sequences from seed {first}: no finding, {time.time() - start:.0f} s")
