"""What needs no second process: cuts, groups, memory, arguments, and a world of one rank."""

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from phalanx.aggregation import Bulyan, CenteredClipping, GeometricMedian, Krum, Mean, TrimmedMean
from phalanx.communication.point_to_point import Peers
from phalanx.compression import ErrorFeedback, PowerSGD, TopK, Uncompressed
from phalanx.ddp import aggregate, compress, robust_all_reduce
from phalanx.ddp.memory import ParameterMemory
from phalanx.ddp.sharded import ShardedAllReduce, cut, groups_of
from phalanx.parameters import ParameterLayout


@given(length=st.integers(0, 200), parts=st.integers(1, 12))
def test_cuts_cover_the_length_evenly(length, parts):
    slices = cut(length, parts)
    assert [i for one in slices for i in range(one.start, one.stop)] == list(range(length))
    sizes = [one.stop - one.start for one in slices]
    assert len(sizes) == parts
    assert max(sizes) - min(sizes) <= 1


@given(num_ranks=st.integers(1, 30), num_byzantine=st.integers(0, 5))
def test_groups_are_large_enough_to_vote(num_ranks, num_byzantine):
    if 2 * num_byzantine >= num_ranks:
        with pytest.raises(ValueError, match="num_byzantine_aggregators must be at least 0 and be"):
            groups_of(num_ranks, num_byzantine)
        return
    groups = groups_of(num_ranks, num_byzantine)
    assert [rank for group in groups for rank in group] == list(range(num_ranks))
    assert all(len(group) >= 2 * num_byzantine + 1 for group in groups)


def layout(**sizes):
    return ParameterLayout(tuple(sizes), tuple((size,) for size in sizes.values()), torch.float32)


def test_memory_survives_other_buckets():
    memory = ParameterMemory()
    one, two = torch.arange(6.0), torch.arange(4.0) + 10
    for turn in range(2):
        memory.replace({layout(a=2, b=4): one + turn, layout(c=4): two + turn})
        read = memory.read(layout(c=4, a=2), torch.zeros(6))
        assert read.equal(torch.cat([two, one[:2]]) + turn)
        assert memory.read(layout(a=2, b=4), torch.zeros(6)).equal(one + turn)
    other = ParameterMemory()
    other.load_state_dict(memory.state_dict())
    assert other.read(layout(b=4, new=1), torch.full((5,), -1.0)).tolist() == [3, 4, 5, 6, -1]


@pytest.fixture
def alone():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("rule", [GeometricMedian(), TrimmedMean(0), Krum(0), CenteredClipping()])
def test_a_rank_by_itself(alone, rule):
    tensor = torch.tensor([1.0, -2.0, 3.0])
    answer, state = robust_all_reduce(tensor, rule)
    assert answer.value.equal(rule(tensor[None]))
    assert len(state) == len(rule.init(3))


@pytest.mark.parametrize("exponent", [-700, -300, 300, 700])
def test_clipping_by_all_reduce_knows_numbers_of_any_size(alone, exponent):
    tensor = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64) * 2.0**exponent
    rule = CenteredClipping(radius=2.0**exponent)
    answer, _ = robust_all_reduce(tensor, rule)
    torch.testing.assert_close(answer.value * 2.0**-exponent, rule(tensor[None]) * 2.0**-exponent)
    assert (answer.value * 2.0**-exponent).norm().item() == pytest.approx(1.0)


@pytest.mark.parametrize("rule", [Mean(), CenteredClipping(radius=0.5, iterations=2)])
def test_a_model_by_itself(alone, rule):
    model = DistributedDataParallel(nn.Linear(3, 2))
    handle = aggregate(model, rule)
    for step in range(3):
        model.zero_grad()
        model(torch.ones(4, 3)).sum().backward()
        assert handle.last.step == step
    state = handle.state_dict()
    assert state["num_steps"] == handle.num_steps == 3
    assert set(state["memory"]) == ({"weight", "bias"} if rule != Mean() else set())


def test_what_does_not_fit_is_refused(alone):
    with pytest.raises(ValueError, match="num_byzantine must be below num_workers / 2, got 1 of 1"):
        robust_all_reduce(torch.ones(3), Krum(1))
    with pytest.raises(ValueError, match="num_byzantine must be"):
        aggregate(DistributedDataParallel(nn.Linear(3, 2)), Bulyan(1))
    with pytest.raises(ValueError, match=r"tensor must be floating and have shape \(dim,\), got"):
        robust_all_reduce(torch.ones(3, 2), Mean())
    with pytest.raises(ValueError, match="num_byzantine_aggregators must be at least 0 and below"):
        robust_all_reduce(torch.ones(3), Mean(), num_byzantine_aggregators=1)
    short = ShardedAllReduce(Mean(), Peers(), length=2, max_pieces=1, dtype=torch.float32)
    with pytest.raises(ValueError, match="length must be"):
        short.post(torch.ones(9))


HOOKS = {
    "compress": lambda model: compress(model, ErrorFeedback(TopK(ratio=0.5))),
    "compress, rule": lambda model: compress(model, Uncompressed(), rule=Mean()),
    "compress, low rank": lambda model: compress(model, PowerSGD(rank=1, min_compression=1.0)),
    "aggregate": lambda model: aggregate(model, Mean()),
    "aggregate, clipped": lambda model: aggregate(model, CenteredClipping()),
}
hooks = pytest.mark.parametrize("name", HOOKS)


@hooks
def test_parameters_that_do_not_fit_are_refused_by_name(alone, name):
    hook = HOOKS[name]
    unfit = nn.ModuleDict(
        {"table": nn.Embedding(5, 4, sparse=True), "wave": nn.Linear(4, 2, dtype=torch.complex64)}
    )
    with pytest.raises(ValueError, match=r"wave.weight.*complex64.*\['table.weight'\] are sparse"):
        hook(DistributedDataParallel(unfit))
    unfit["table"].weight.requires_grad_(requires_grad=False)
    del unfit["wave"]
    unfit["head"] = nn.Linear(4, 2)
    hook(DistributedDataParallel(unfit))  # a table that does not train has no gradients


class Odd(nn.Module):
    """Strided parameters, tied ones, frozen ones, one of no values, and a frozen batch norm."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.norm, self.one, self.two = nn.BatchNorm2d(4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight, self.none = self.one.weight, nn.Parameter(torch.empty(0, 3))
        self.one.bias.requires_grad_(requires_grad=False)
        self.norm.eval()

    def forward(self, x):
        x = self.norm(self.image(x)).mean(dim=(2, 3))
        return self.two(self.one(x).tanh()) + self.none.sum()


@pytest.mark.parametrize("view", [True, False])
@hooks
def test_odd_parameters_are_trained_as_by_torch(alone, name, view):
    ours, theirs = Odd(), Odd()
    model = DistributedDataParallel(ours, gradient_as_bucket_view=view)
    handle = HOOKS[name](model)
    inputs = torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    for step in range(2):
        for one in (model, theirs):
            one.zero_grad()
            one(inputs).square().sum().backward()
        assert handle.num_steps == step + 1
    exact = name in ("aggregate", "compress, rule")
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (mine.grad is None) == (other.grad is None)
        if mine.grad is not None and exact:
            torch.testing.assert_close(mine.grad, other.grad)
    assert ours.norm.running_mean.unique().tolist() == [0.0]


def test_a_state_of_another_run_is_refused(alone):
    handle = aggregate(DistributedDataParallel(nn.Linear(3, 2)), CenteredClipping())
    state = handle.state_dict()
    with pytest.raises(ValueError, match="state must be that of 1 ranks, got 3"):
        handle.load_state_dict(state | {"times_suspected": torch.zeros(3, dtype=torch.int64)})
    with pytest.raises(ValueError, match=r"state must be that of the model's parameters, got \['w"):
        handle.load_state_dict(state | {"memory": {"weight": torch.zeros(5)}})
    plain = aggregate(DistributedDataParallel(nn.Linear(3, 2)), Mean())
    with pytest.raises(ValueError, match="state must hold no memory for Mean"):
        plain.load_state_dict(state | {"memory": {"weight": torch.zeros(6)}})
