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
from phalanx.ddp import aggregate, robust_all_reduce
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
