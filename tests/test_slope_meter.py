"""The slope against float64 by hand; on ranks, in shards, in any precision, over a resume."""

import copy
import gc
import io
import logging
import math
import pickle
import weakref

import pytest
import torch
from processes import spawn

from greedylr_integrations import GreedyConfig, GreedyLR, SlopeConfig
from greedylr_integrations import slope as slope_module
from greedylr_integrations.slope import SlopeMeter, distance_of, is_slope_state, slope_of

STEPS = 40


def model_of(seed=0, dtype=torch.float32, hidden=16):
    torch.manual_seed(seed)
    layers = torch.nn.Linear(6, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, 2)
    return torch.nn.Sequential(*layers).to(dtype)


def batch(step, dtype=torch.float32, rows=32):
    x = torch.randn(rows, 6, generator=torch.Generator().manual_seed(step))
    return x.to(dtype), torch.stack((x.sum(1).sin(), x[:, 0]), 1).to(dtype)


def loss_of(model, step, dtype=torch.float32):
    x, y = batch(step, dtype)
    return torch.nn.functional.mse_loss(model(x), y)


class ByHand:
    """<g, w - w0> / (|g| |w - w0|) of all coordinates, in float64."""

    def __init__(self, model):
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.start = self.flat(self.parameters)

    @staticmethod
    def flat(tensors):
        return torch.cat([t.detach().double().reshape(-1) for t in tensors]).clone()

    def slope(self):
        gradient = self.flat([torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters])
        way = self.flat(self.parameters) - self.start
        return (gradient @ way / (gradient.norm() * way.norm())).item()

    def distance(self):
        """|w - w0| / |w0| of what is in a matrix and did not start at 0."""
        sized = self.flat([torch.full_like(p, p.ndim > 1) for p in self.parameters]) * (self.start != 0)
        way = self.flat(self.parameters) - self.start
        return ((way * sized).norm() / (self.start * sized).norm()).item()


def slopes(model, optimizer, meter, steps=STEPS, by_hand=None, dtype=torch.float32, first=0):
    """The meter's slope at each step, and that by hand."""
    seen = []
    for step in range(first, first + steps):
        optimizer.zero_grad()
        loss_of(model, step, dtype).backward()
        meter.measure()
        exact = None if by_hand is None else by_hand.slope()
        optimizer.step()
        meter.end_step()
        seen.append((slope_of([float(number) for number in meter.take()]), exact))
    return seen


# ---- the number itself ----


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_the_slope_is_that_by_hand(kind):
    model = model_of()
    optimizer = kind(model.parameters(), lr=0.02)
    seen = slopes(model, optimizer, SlopeMeter(optimizer), by_hand=ByHand(model))
    assert math.isnan(seen[0][0])  # the weights have not moved yet
    assert len({round(slope, 3) for slope, _ in seen[1:]}) > 10
    for slope, exact in seen[1:]:
        assert slope == pytest.approx(exact, abs=1e-5)


def test_it_is_minus_one_down_a_straight_slope_and_plus_one_beyond_the_bottom():
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([weight], lr=0.6)
    meter, seen = SlopeMeter(optimizer), []
    for _ in range(3):  # from 1 by way of 0.4 beyond the bottom
        optimizer.zero_grad()
        (weight - 0.2).square().backward()
        meter.measure()
        optimizer.step()
        meter.end_step()
        seen.append(slope_of([float(number) for number in meter.take()]))
        optimizer.param_groups[0]["lr"] = 1.0
    assert math.isnan(seen[0])
    assert seen[1:] == [1.0, -1.0] or seen[1:] == [-1.0, 1.0]
    assert seen[1] == (1.0 if 1 - 0.6 * 1.6 < 0.2 else -1.0)


def test_the_scale_of_the_gradients_does_not_matter():
    def seen(factor):
        model = model_of()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        meter, found = SlopeMeter(optimizer), []
        for step in range(20):
            optimizer.zero_grad()
            (loss_of(model, step) * factor).backward()
            meter.measure()
            for parameter in model.parameters():
                parameter.grad /= factor
            optimizer.step()
            meter.end_step()
            found.append(slope_of([float(number) for number in meter.take()]))
        return found

    assert seen(2.0**16)[1:] == pytest.approx(seen(1.0)[1:], abs=1e-6)


def test_the_sums_of_several_steps_are_one_slope():
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    each, together = SlopeMeter(optimizer), SlopeMeter(optimizer)
    taken = []
    for step in range(4):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        for meter in (each, together):
            meter.measure()
        optimizer.step()
        for meter in (each, together):
            meter.end_step()
        taken.append([float(number) for number in each.take()])
    sums = [sum(numbers) for numbers in zip(*taken, strict=True)]
    assert [float(number) for number in together.take()] == pytest.approx(sums, rel=1e-6)
    assert sums[-1] == 4


def test_a_skipped_step_leaves_nothing():
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    meter = SlopeMeter(optimizer)
    loss_of(model, 0).backward()
    meter.measure()
    meter.discard_step()
    meter.end_step()
    assert meter.take() == [0.0] * 6


# ---- what there is to measure ----


def test_the_sample_is_the_same_each_time_and_close_to_the_whole():
    def seen(sample):
        model = model_of(hidden=400)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        meter = SlopeMeter(optimizer, sample)
        found = [slope for slope, _ in slopes(model, optimizer, meter)][1:]
        assert sum(part.reference.numel() for part in meter._parts) <= 1.5 * sample
        return found

    whole, some = seen(1_000_000), seen(800)
    assert seen(800) == some
    assert some != whole
    assert some == pytest.approx(whole, abs=0.35)


def test_weights_in_bfloat16():
    model = model_of(dtype=torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    meter = SlopeMeter(optimizer)
    seen = slopes(model, optimizer, meter, by_hand=ByHand(model), dtype=torch.bfloat16)
    for slope, exact in seen[2:]:
        assert slope == pytest.approx(exact, abs=1e-5)
    assert {part.reference.dtype for part in meter._parts} == {torch.bfloat16}


def test_parameters_that_are_frozen_or_have_no_gradient_in_a_step():
    model = model_of()
    model[0].bias.requires_grad_(False)
    unused = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([*model.parameters(), unused], lr=0.05)
    by_hand = ByHand(model)
    seen = slopes(model, optimizer, SlopeMeter(optimizer), by_hand=by_hand)
    for slope, exact in seen[1:]:
        assert slope == pytest.approx(exact, abs=1e-5)


def test_sparse_gradients_are_left_out():
    torch.manual_seed(0)
    table, head = torch.nn.Embedding(10, 4, sparse=True), torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD([*table.parameters(), *head.parameters()], lr=0.05)
    meter, by_hand = SlopeMeter(optimizer), ByHand(head)
    for step in range(10):
        optimizer.zero_grad()
        head(table(torch.tensor([step % 3, 5]))).square().sum().backward()
        meter.measure()
        exact = by_hand.slope()
        optimizer.step()
        meter.end_step()
        slope = slope_of([float(number) for number in meter.take()])
        assert step == 0 or slope == pytest.approx(exact, abs=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_gives_nan_and_no_more(value):
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    meter = SlopeMeter(optimizer)
    slopes(model, optimizer, meter, steps=3)
    loss_of(model, 3).backward()
    model[0].weight.grad[0, 0] = value
    meter.measure()
    meter.end_step()  # the optimizer has skipped it, say
    assert math.isnan(slope_of([float(number) for number in meter.take()]))
    assert all(math.isfinite(slope) for slope, _ in slopes(model, optimizer, meter, steps=3, first=4))


@pytest.mark.parametrize(
    ("sums", "slope"),
    [
        ((0.0, 0.0, 0.0, 0.0), None),
        ((3.0, 4.0, 4.0, 1.0), 0.75),
        ((-9.0, 4.0, 4.0, 1.0), -1.0),
        ((1e-300, 1e-320, 1e-320, 1.0), 1.0),
        ((1e300, 1e308, 1e308, 1.0), 1e-8),
        ((0.0, 4.0, 0.0, 1.0), math.nan),
        ((math.nan, 4.0, 4.0, 1.0), math.nan),
        ((1.0, math.inf, 4.0, 1.0), math.nan),
        ((1.0, -1.0, 4.0, 1.0), math.nan),
    ],
)
def test_which_slope_follows_from_the_sums(sums, slope):
    *sums, count = sums
    assert slope_of([*sums, 1.0, 4.0, count]) == pytest.approx(slope, nan_ok=True)


@pytest.mark.parametrize(
    ("way", "start", "count", "distance"),
    [
        (0.0, 0.0, 0.0, None),
        (0.0, 4.0, 2.0, 0.0),
        (1.0, 4.0, 1.0, 0.5),
        (1.0, 0.0, 1.0, math.nan),  # everything started at 0
        (math.inf, 4.0, 1.0, math.nan),
        (math.nan, 4.0, 1.0, math.nan),
        (1.0, math.inf, 1.0, math.nan),
    ],
)
def test_which_distance_follows_from_the_sums(way, start, count, distance):
    assert distance_of([1.0, 4.0, 4.0, way, start, count]) == pytest.approx(distance, nan_ok=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_distance_is_that_by_hand(dtype):
    """Of the matrices, without what started at 0: the biases here, and half of a matrix."""
    model = model_of(dtype=dtype)
    with torch.no_grad():
        model[0].weight[:8] = 0.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    meter, by_hand = SlopeMeter(optimizer), ByHand(model)
    for step in range(10):
        optimizer.zero_grad()
        loss_of(model, step, dtype).backward()
        meter.measure()
        expected = by_hand.distance()
        optimizer.step()
        meter.end_step()
        distance = distance_of([float(number) for number in meter.take()])
        assert distance == pytest.approx(expected, rel=1e-5)
        assert distance == 0.0 if step == 0 else distance > 0.0


def test_one_group_of_weights_without_any_gradient_counts_as_zeros():
    """As if the weights were on two devices, and nothing of one of them took part in the step."""
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    meter, by_hand = SlopeMeter(optimizer), ByHand(model)
    slopes(model, optimizer, meter, steps=3)
    (part,) = meter._parts
    first, last = (slope_module._Part(list(layer.parameters()), 1, 1) for layer in (model[0], model[2]))
    for each, reference in ((first, part.reference[: 16 * 7]), (last, part.reference[16 * 7 :])):
        each.refer_to(reference)
    meter._parts = [first, last]
    optimizer.zero_grad()
    loss_of(model, 3).backward()
    for p in model[0].parameters():
        p.grad = None
    meter.measure()
    expected = by_hand.slope()
    meter.end_step()
    assert slope_of([float(number) for number in meter.take()]) == pytest.approx(expected, abs=1e-6)


def observed(model, x, steps=4, **kwargs):
    """Slopes and distances of a model on the mean square of its outputs."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    meter, seen = SlopeMeter(optimizer, **kwargs), []
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        meter.measure()
        optimizer.step()
        meter.end_step()
        sums = [float(number) for number in meter.take()]
        seen.append((slope_of(sums), distance_of(sums)))
    return seen


@pytest.mark.parametrize("sample", [100, 1_000_000])
def test_weights_that_are_not_contiguous_are_followed(sample):
    """Their sampled rows are copies, which would never move."""
    torch.manual_seed(0)
    plain = torch.nn.Conv2d(16, 8, 3)
    other = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    x = torch.randn(2, 16, 5, 5)
    seen, expected = observed(other, x, sample=sample), observed(plain, x, sample=sample)
    assert math.isnan(seen[0][0])
    assert all(distance > 0 for _, distance in seen[1:])
    for one, two in zip(seen[1:], expected[1:], strict=True):
        assert one[1] == pytest.approx(two[1], rel=0.2)  # of other coordinates, if it is a sample
        assert one[0] < -0.9


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float16, torch.float64])
def test_torchs_default_type_does_not_matter(default):
    torch.manual_seed(0)
    model, x = torch.nn.Linear(20, 8), torch.randn(4, 20)
    expected = observed(copy.deepcopy(model), x)
    torch.set_default_dtype(default)
    try:
        seen = observed(model, x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert str(seen) == str(expected)


def test_what_has_not_moved_has_no_slope_in_float64():
    torch.manual_seed(0)
    seen = observed(torch.nn.Linear(20, 8, dtype=torch.float64), torch.randn(4, 20, dtype=torch.float64))
    assert math.isnan(seen[0][0])
    assert seen[0][1] == 0.0
    assert seen[1][0] < -0.9


def test_sums_that_waited_in_a_checkpoint_come_to_the_device_of_the_weights():
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    meter = SlopeMeter(optimizer)
    slopes(model, optimizer, meter, steps=1)
    meter.load_state_dict({**meter.state_dict(), "sums": [1.0] * 5, "count": 1})
    meter._step = torch.ones(5, dtype=torch.float64, device="meta")  # in place of a GPU
    meter.end_step()
    assert meter._total.device.type == "meta"


def test_a_model_that_starts_at_0_has_no_distance():
    model = torch.nn.Linear(6, 2)
    torch.nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    meter = SlopeMeter(optimizer)
    model(torch.ones(1, 6)).sum().backward()
    meter.measure()
    meter.end_step()
    assert math.isnan(distance_of([float(number) for number in meter.take()]))


@pytest.mark.parametrize("sample", [0, -1, 1.5, True, "many"])
def test_a_sample_that_cannot_be(sample):
    with pytest.raises((TypeError, ValueError), match="^slope_sample=.* is not allowed: it must be"):
        SlopeMeter(torch.optim.SGD(model_of().parameters()), sample)


# ---- in a run ----


def start(config=None, dtype=torch.float32, lr=0.3, **kwargs):
    model = model_of(dtype=dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return model, optimizer, GreedyLR(optimizer, config, **{"total_steps": 400, **kwargs})


def train(run, first, last, loss_first=False):
    model, optimizer, scheduler = run
    for step in range(first, last):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        optimizer.step()
        scheduler.step(loss)
    return scheduler


def seen(scheduler):
    return [record.decision.slope for record in scheduler.history]


def test_a_decision_has_the_slope_of_its_step(warnings_of):
    model, optimizer, scheduler = run = start()
    by_hand, expected = ByHand(model), []
    optimizer.register_step_pre_hook(lambda *_: expected.append(by_hand.slope()))
    train(run, 0, 20)
    assert seen(scheduler)[1:] == pytest.approx(expected[1:], abs=1e-5)
    assert warnings_of() == []


def test_without_any_gradient_the_run_follows_the_loss_and_says_so(warnings_of):
    scheduler = GreedyLR(torch.optim.SGD(model_of().parameters(), lr=0.3), total_steps=100)
    assert isinstance(scheduler.controller.config, SlopeConfig)
    scheduler.step(2.0)
    assert isinstance(scheduler.controller.config, GreedyConfig)
    assert scheduler.get_last_lr() == [0.3]
    (message,) = warnings_of()
    assert "follows the loss alone (GreedyConfig)" in message
    other = GreedyLR(torch.optim.SGD(model_of().parameters(), lr=0.3), total_steps=100)
    other.load_state_dict(scheduler.state_dict())
    assert isinstance(other.controller.config, GreedyConfig)
    for i in range(30):
        assert other.step(2 - i / 20) == scheduler.step(2 - i / 20)
    assert len(warnings_of()) == 1


def test_a_slope_that_is_missing_can_be_an_error():
    scheduler = GreedyLR(torch.optim.SGD(model_of().parameters(), lr=0.3), on_missing_slope="raise")
    with pytest.raises(RuntimeError, match="on_missing_slope='raise', and no gradients are seen"):
        scheduler.step(2.0)


def test_a_step_with_a_closure_is_measured_by_hand_or_not_at_all():
    model, optimizer, scheduler = start()

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    for _ in range(3):
        closure()
        scheduler.measure_slope()
        scheduler.step(optimizer.step(closure))
    assert [slope is None for slope in seen(scheduler)] == [False] * 3


def test_one_slope_for_the_steps_that_share_a_decision():
    every = start(every_n_steps=4)
    scheduler = train(every, 0, 20)
    assert len(seen(scheduler)) == 5
    assert all(-1 <= slope <= 1 for slope in seen(scheduler))
    model, optimizer, _ = start()
    meter = SlopeMeter(optimizer)
    for step in range(4):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        meter.measure()
        for group in optimizer.param_groups:
            group["lr"] = 0.3 * 0.03  # a run of 100 decisions is short, so it begins there
        optimizer.step()
        meter.end_step()
    assert seen(scheduler)[0] == pytest.approx(slope_of([float(number) for number in meter.take()]), abs=1e-6)


def test_no_slope_is_measured_after_the_first_pass_over_the_data(monkeypatch):
    measured = []
    measure = SlopeMeter.measure
    monkeypatch.setattr(SlopeMeter, "measure", lambda meter: measured.append(1) or measure(meter))
    scheduler = train(start(steps_per_epoch=70), 0, 100)
    assert len(measured) == 70
    assert [slope is None for slope in seen(scheduler)] == [False] * 70 + [True] * 30
    meter = scheduler._decider.signals.slopes
    assert (meter._parts, meter._total) == (None, None)  # its memory is free


@pytest.mark.parametrize("steps", [0, 1.5, True])
def test_steps_per_epoch_that_cannot_be(steps):
    with pytest.raises((TypeError, ValueError), match="^steps_per_epoch=.* is not allowed: it must be"):
        start(steps_per_epoch=steps)


def test_a_rule_that_needs_no_slope_measures_none(monkeypatch):
    monkeypatch.setattr(SlopeMeter, "measure", lambda meter: pytest.fail("measured"))
    train(start(GreedyConfig()), 0, 5)


# ---- copies and resumes ----


def test_the_optimizer_does_not_keep_the_scheduler_alive():
    model, optimizer, scheduler = start()
    reference = weakref.ref(scheduler)
    del scheduler
    gc.collect()
    assert reference() is None
    loss_of(model, 0).backward()
    optimizer.step()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda run: pickle.loads(pickle.dumps(run))], ids=["copy", "pickle"])
def test_a_copy_goes_on_as_the_original(copied):
    run = start()
    train(run, 0, 10)
    other = copied(run)
    assert [p.data_ptr() for p in other[0].parameters()] != [p.data_ptr() for p in run[0].parameters()]
    train(run, 10, 30)
    train(other, 10, 30)
    assert seen(other[2])[10:] == seen(run[2])[10:]
    assert None not in seen(other[2])
    assert other[2].state_dict().keys() == run[2].state_dict().keys()
    assert other[2].get_last_lr() == run[2].get_last_lr()


def resumed(saved, **kwargs):
    run = start(**kwargs)
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    buffer.seek(0)
    for part, state in zip(run, torch.load(buffer, weights_only=True), strict=True):
        part.load_state_dict(state)
    return run


@pytest.mark.parametrize("cut", [0, 1, 7, 20])
@pytest.mark.parametrize("kwargs", [{}, {"every_n_steps": 3}, {"loss_lag": 1}, {"slope_sample": 40}])
def test_a_resume_goes_on_exactly_with_the_reference_in_the_state(cut, kwargs, warnings_of):
    whole, first = start(**kwargs), start(**kwargs)
    train(whole, 0, 40)
    train(first, 0, cut)
    second = resumed([part.state_dict() for part in first], **kwargs)
    train(second, cut, 40)
    ours = seen(second[2])
    assert ours == seen(whole[2])[len(seen(whole[2])) - len(ours) :]
    assert second[2].get_last_lr() == whole[2].get_last_lr()
    assert warnings_of() == []


def test_a_reference_of_other_weights_begins_anew_with_a_warning(warnings_of):
    run = start()
    train(run, 0, 10)
    state = run[2].state_dict()
    assert is_slope_state(state["slope"])
    state["slope"]["reference"] = [torch.zeros(3)]
    other = start()
    other[2].load_state_dict(state)
    train(other, 10, 13)
    (message,) = warnings_of()
    assert message.startswith("GreedyLR measures slope and distance from here on")
    forgotten, first, second = seen(other[2])  # the ranks agree on it only after the first step
    assert forgotten is None
    assert math.isnan(first)
    assert -1 <= second <= 1


def test_the_reference_in_the_state_is_not_changed_by_the_run_that_goes_on():
    run = start()
    train(run, 0, 5)
    state = copy.deepcopy(run[2].state_dict())
    other = start()
    other[2].load_state_dict(state)
    train(other, 0, 5)
    assert torch.equal(state["slope"]["reference"][0], run[2].state_dict()["slope"]["reference"][0])


# ---- several ranks ----


def _sharded(rank, world, out):
    from torch.distributed.fsdp import fully_shard

    logging.disable(logging.WARNING)
    model = model_of(hidden=15)  # does not divide by 2
    whole = model_of(hidden=15)
    for layer in (model[0], model[2]):
        fully_shard(layer)
    fully_shard(model)
    found = {}
    for sample in (1_000_000, 40):
        optimizer, exact = torch.optim.SGD(model.parameters(), lr=0.02), torch.optim.SGD(whole.parameters(), lr=0.02)
        meter, reference, by_hand = SlopeMeter(optimizer, sample), SlopeMeter(exact, sample), ByHand(whole)
        seen = []
        for step in range(12):
            for net, opt in ((model, optimizer), (whole, exact)):
                opt.zero_grad()
                loss_of(net, step).backward()
            meter.measure()
            reference.measure()
            expected = by_hand.slope(), by_hand.distance()
            optimizer.step()
            exact.step()
            meter.end_step()
            reference.end_step()
            sums = torch.tensor([float(number) for number in meter.take()], dtype=torch.float64)
            torch.distributed.all_reduce(sums)
            own = [float(number) for number in reference.take()]  # each rank has all of it, not a part
            seen.append([expected, *((slope_of(of), distance_of(of)) for of in (sums.tolist(), own))])
        found[sample] = seen
    torch.save(found, f"{out}/{rank}")


WORLDS = pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])


@WORLDS
def test_shards_give_the_slope_of_the_whole_weights(world, tmp_path):
    spawn(_sharded, world, tmp_path)
    first, *others = (torch.load(tmp_path / str(rank)) for rank in range(world))
    assert all(str(other) == str(first) for other in others)
    for exact, of_shards, _ in first[1_000_000][1:]:
        assert of_shards == pytest.approx(exact, abs=1e-5)
    for _, of_shards, sampled in first[40][1:]:  # the same coordinates, wherever they are
        assert of_shards == pytest.approx(sampled, abs=1e-5)


def _data_parallel(rank, world, out):
    model = torch.nn.parallel.DistributedDataParallel(model_of())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    scheduler = GreedyLR(optimizer, total_steps=200, slope_sample=60)
    lrs = []
    for step in range(40):
        optimizer.zero_grad()
        loss = loss_of(model, world * step + rank)
        loss.backward()
        optimizer.step()
        scheduler.step(loss)
        lrs.append(scheduler.get_last_lr())
    torch.save((lrs, seen(scheduler)), f"{out}/{rank}")


@WORLDS
def test_data_parallel_ranks_have_the_same_lrs_and_slopes(world, tmp_path):
    spawn(_data_parallel, world, tmp_path)
    first, *others = (torch.load(tmp_path / str(rank)) for rank in range(world))
    assert all(str(other) == str(first) for other in others)
    assert len({lr[0] for lr in first[0]}) > 5
    assert all(-1 <= slope <= 1 for slope in first[1][1:])


# ---- on a GPU ----


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", [{}, {"foreach": False}, {"fused": True}], ids=["foreach", "loop", "fused"])
@pytest.mark.parametrize("hidden", [16, 4096], ids=["all", "a sample"])
def test_on_a_gpu_the_slope_adds_no_synchronization(kind, hidden):
    model = model_of(hidden=hidden).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, **kind)
    scheduler = GreedyLR(optimizer, total_steps=100, slope_sample=1000)
    for step in range(30):
        x, y = (part.cuda() for part in batch(step))
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        # the first step starts the reference and the optimizer's state
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        try:
            optimizer.step()
            scheduler.step(loss)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        optimizer.zero_grad()
    slopes = [record.decision.slope for record in scheduler.history]
    assert len(slopes) == 29  # one step late
    assert all(-1 <= slope <= 1 for slope in slopes[1:])
