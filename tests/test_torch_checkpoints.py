"""GreedyLR with what torch offers beside a plain loop: torch.distributed.checkpoint, torch.compile, loader workers."""

import logging

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from processes import spawn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from greedylr_integrations import GreedyLR

STEPS = 120
pytestmark = pytest.mark.filterwarnings("ignore:.*(torch.distributed|TypedStorage|_get_pg_default_device)")


def made(seed, shard=False, **settings):
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    if shard:
        from torch.distributed.fsdp import fully_shard

        fully_shard(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    return net, optimizer, GreedyLR(optimizer, total_steps=STEPS, **settings)


def step(net, optimizer, scheduler, x):
    """One step of a loop; the LR after it, None without a scheduler."""
    loss = (net(x) - x.sum(1, keepdim=True)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if scheduler is None:
        return None
    scheduler.step(loss)
    return scheduler.lr


def numbers(seed, *size):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def train(net, optimizer, scheduler, start, end, rank=0):
    return [step(net, optimizer, scheduler, numbers(2 * i + rank, 8, 4)) for i in range(start, end)]


def listen():
    """The messages of the package from now on; pytest's caplog is not there in a process of its own."""
    messages, handler = [], logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("greedylr_integrations").addHandler(handler)
    return messages


def save_and_go_on(folder, cut, rank=0, shard=False, **settings):
    """LRs of the rest of a run, and of one that continues from its checkpoint."""
    net, optimizer, scheduler = made(0, shard, **settings)
    train(net, optimizer, scheduler, 0, cut, rank)
    model, optim = get_state_dict(net, optimizer)
    saving = dcp.async_save({"model": model, "optim": optim, "scheduler": scheduler}, checkpoint_id=folder)
    saving.result()
    rest = train(net, optimizer, scheduler, cut, STEPS, rank)

    net, optimizer, scheduler = made(1, shard, **settings)
    model, optim = get_state_dict(net, optimizer)
    state = {"model": model, "optim": optim, "scheduler": scheduler}
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(net, optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"])
    return rest, train(net, optimizer, scheduler, cut, STEPS, rank), scheduler


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("cut", [0, 1, 20, 100])  # before, in and after the search
@pytest.mark.parametrize("settings", [{}, {"on_spike": "rollback"}, {"window_size": 5}])
def test_torch_distributed_checkpoint_continues_exactly(tmp_path, alone, cut, settings):
    rest, again, _ = save_and_go_on(tmp_path / "checkpoint", cut, **settings)
    assert again == rest
    assert len(set(rest)) > 3


def test_a_reference_of_earlier_versions_is_saved_as_todays():
    net, optimizer, scheduler = made(0)
    train(net, optimizer, scheduler, 0, 20)
    state = scheduler.state_dict()
    state["slope"]["reference"] = list(state["slope"]["reference"])
    *_, later = made(1)
    later.load_state_dict(state)
    assert isinstance(later.state_dict()["slope"]["reference"], tuple)


def _with_another_shard(rank, world, out):
    """Rank 1's shard of 3 rows on 2 ranks is as large as another one that it had; rank 0's is not."""
    messages = listen()
    net, optimizer, scheduler = made(0, shard=True)
    train(net, optimizer, scheduler, 0, 20, rank)
    state = scheduler.state_dict()
    assert state["slope"]["sharded"]
    if rank == 0:
        state["slope"]["reference"] = tuple(part[1:] for part in state["slope"]["reference"])
    scheduler.load_state_dict(state)
    train(net, optimizer, scheduler, 20, 22, rank)
    distances = [record.decision.distance for record in scheduler.history][-2:]
    assert distances[0] is None  # of both ranks, the first measurement is forgotten
    assert [message for message in messages if "measures slope and distance from here on" in message] == (
        []
        if rank
        else [
            "GreedyLR measures slope and distance from here on, not from the start of the run: the checkpoint's"
            " reference is of other weights"
        ]
    )


def test_a_reference_that_does_not_fit_one_rank_is_dropped_on_all(tmp_path):
    spawn(_with_another_shard, 2, tmp_path)


def _on_two_ranks(rank, world, out):
    messages = listen()
    for shard in (False, True):
        rest, again, _ = save_and_go_on(f"{out}/sharded-{shard}", 20, rank, shard)
        (lrs,) = {tuple(each) for each in _gathered(again)}  # the same on both
        assert (list(lrs) == rest) == (not shard)  # DCP keeps the state of one rank, which has the reference of a shard
        lost = [message for message in messages if message.startswith("GreedyLR measures slope and distance from here")]
        assert len(lost) == int(shard and rank == 0)


def _gathered(value):
    every = [None] * dist.get_world_size()
    dist.all_gather_object(every, value)
    return every


def test_torch_distributed_checkpoint_on_two_ranks(tmp_path):
    spawn(_on_two_ranks, 2, tmp_path)


def test_a_compiled_model_has_no_more_graphs_and_no_break():
    from torch._dynamo.testing import CompileCounter
    from torch._dynamo.utils import counters

    counts = []
    for greedy in (False, True):
        torch._dynamo.reset()
        counters.clear()
        net, optimizer, scheduler = made(0)
        if not greedy:
            scheduler.detach()
        counter = CompileCounter()
        compiled = torch.compile(net, backend=counter)
        train(compiled, optimizer, scheduler if greedy else None, 0, 70)
        counts.append((counter.frame_count, dict(counters["graph_break"])))
    assert counts[0] == counts[1] == (1, {})
    assert any(record.decision.slope is not None for record in scheduler.history)


class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 8 * 70

    def __getitem__(self, index):
        return numbers(index, 4)


def test_loader_workers_change_nothing():
    runs = []
    for workers in (0, 2):
        net, optimizer, scheduler = made(0)
        loader = torch.utils.data.DataLoader(Numbers(), batch_size=8, num_workers=workers)
        runs.append([step(net, optimizer, scheduler, x) for x in loader])
    assert runs[0] == runs[1]
