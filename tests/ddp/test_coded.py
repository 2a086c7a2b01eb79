"""Gradient codes under DDP: batches, losses, and real processes whose gradients are messages."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ddp import coded_cases
from ddp.ranks import Ranks
from phalanx.aggregation import CoordinateMedian, Mean
from phalanx.coding import (
    CyclicRepetition,
    Detox,
    DracoCyclic,
    DracoRepetition,
    FractionalRepetition,
    Uncoded,
)
from phalanx.data import DirichletPartitioner
from phalanx.ddp import CodedSampler, aggregate
from phalanx.ddp.coded import message_loss
from phalanx.errors import DecodeError
from phalanx.ordering import Batches, PerClient, RandomReshuffling, ShuffleOnce
from phalanx.randomness import generator

CODES = [
    DracoRepetition(5, 1),
    DracoRepetition(6, 1, partitions="group"),
    DracoCyclic(5, 1),
    CyclicRepetition(5, 2),
    FractionalRepetition(6, 2),
    Uncoded(4),
]


@pytest.mark.parametrize("code", CODES, ids=repr)
@pytest.mark.parametrize("order", [RandomReshuffling(), ShuffleOnce()], ids=repr)
def test_ranks_get_the_samples_of_their_partitions(code, order):
    size = 3 * code.num_partitions
    batches = Batches(5 * size + 2, size, code.num_partitions, seed=7)
    samplers = [
        CodedSampler(5 * size + 2, code, batch_size=size, order=order, seed=7, rank=rank)
        for rank in range(code.num_workers)
    ]
    for epoch in range(2):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        for place, rows in enumerate(zip(*samplers, strict=True)):
            step = 5 * epoch + place
            for owned, row in zip(code.assignment, rows, strict=True):
                parts = [
                    order.samples(batches, step, partition).tolist()
                    for partition in owned.nonzero().flatten().tolist()
                ]
                assert row == [sample for part in parts for sample in part]
        assert place == len(samplers[0]) - 1 == 4


def test_batches_that_do_not_fit_are_refused():
    code = DracoCyclic(5, 1)
    for rank in (-1, 5):
        with pytest.raises(ValueError, match="rank must be at least 0 and below the code's 5 work"):
            CodedSampler(100, code, batch_size=10, rank=rank)
    for batch_size in (12, 105):
        with pytest.raises(ValueError, match="batch_size must be a multiple of the code's 5 parti"):
            CodedSampler(100, code, batch_size=batch_size, rank=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        CodedSampler(100, code, batch_size=0, rank=0)
    with pytest.raises(ValueError, match="order must share all samples among workers, got PerCli"):
        CodedSampler(100, code, batch_size=10, order=PerClient(DirichletPartitioner()), rank=0)


@pytest.mark.parametrize("code", [code for code in CODES if code != Uncoded(4)], ids=repr)
def test_the_gradient_of_the_loss_is_the_message(code, subtests):
    points = torch.randn(code.num_partitions, 4, 3, generator=generator(3, "points"))
    targets = points.sum(dim=2).square()
    weight = torch.ones(3, requires_grad=True)

    def gradient(losses):
        return torch.autograd.grad(losses, weight)[0]

    def losses_of(partitions):
        return (points[partitions] @ weight - targets[partitions]).square()

    partials = torch.stack(
        [gradient(losses_of([one]).mean()) for one in range(code.num_partitions)]
    )
    for rank, owned in enumerate(code.assignment):
        with subtests.test(rank=rank):
            expected = code.encode(rank, partials[owned])
            for form in (torch.flatten, lambda losses: losses.mean(dim=1)):
                loss = message_loss(code, rank, form(losses_of(owned)))
                torch.testing.assert_close(gradient(loss), expected)
    for unfit in (torch.ones(5, 3), torch.ones(0)):
        with pytest.raises(ValueError, match=r"losses must have shape \(samples,\), with equally"):
            message_loss(code, 0, unfit)


@pytest.fixture
def alone():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield DistributedDataParallel(nn.Linear(3, 2))
    dist.destroy_process_group()


def test_what_does_not_fit_is_refused(alone):
    with pytest.raises(ValueError, match="code must be for 1 workers, one a rank, got 3"):
        aggregate(alone, DracoRepetition(3, 1))
    with pytest.raises(ValueError, match="num_byzantine_aggregators must be 0 with a code"):
        aggregate(alone, DracoRepetition(3, 1), num_byzantine_aggregators=1)
    with pytest.raises(ValueError, match="code must have messages that are real weighted sums"):
        aggregate(alone, DracoCyclic(3, 1, band="published"))
    for code in (Detox(9, 1), Uncoded(1, CoordinateMedian())):
        with pytest.raises(ValueError, match="rule must be a robust rule, or one of the codes Dra"):
            aggregate(alone, code)
    with pytest.raises(ValueError, match="rule must be a code for its loss, got Mean"):
        aggregate(alone, Mean()).loss(torch.ones(3))


def test_a_rank_by_itself(alone):
    handle = aggregate(alone, DracoRepetition(1, 0))
    points = torch.randn(4, 3)
    handle.loss(alone(points).square().mean(dim=1)).backward()
    ours = alone.module.weight.grad.clone()
    alone.module.zero_grad()
    alone.module(points).square().mean().backward()
    torch.testing.assert_close(ours, alone.module.weight.grad)
    assert handle.last.error == 0.0


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    with Ranks(5, tmp_path_factory.mktemp("five")) as started:
        yield started


EXACT = [
    (DracoRepetition(5, 2), [1, 4], "negated"),
    (DracoRepetition(5, 2, partitions="group"), [0, 3], "one number"),
    (DracoRepetition(5, 1, tolerance=1e-4), [2], "negated"),
    (DracoCyclic(5, 2, tolerance=1e-5), [1, 2], "negated"),
    (DracoCyclic(5, 1, tolerance=1e-5), [3], "one number"),
    (DracoCyclic(5, 2, tolerance=1e-5), [0], "not finite"),
    (CyclicRepetition(5, 2), [1, 4], "not finite"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("code", "byzantine", "how"), EXACT, ids=repr)
@pytest.mark.parametrize("ddp", [{}, {"gradient_as_bucket_view": True, "bucket_cap_mb": 25}])
def test_weights_are_those_of_the_whole_batch_whatever_byzantine_ranks_do(
    five, code, byzantine, how, ddp
):
    found = five(coded_cases.train, code, byzantine, how, ddp)
    weights, seen = found[0]
    assert all(other.equal(weights) for other, _ in found)
    torch.testing.assert_close(weights, coded_cases.train_alone(code), rtol=1e-4, atol=1e-5)
    assert len(seen) == 8
    for _, steps in found:
        for step, last in enumerate(steps):
            assert last.step == step
            assert last.suspects.nonzero().flatten().tolist() == byzantine
    if isinstance(code, DracoRepetition):
        assert five(coded_cases.train, code, [], how, ddp)[0][0].equal(weights)


@pytest.mark.slow
def test_a_run_by_the_mean_under_the_same_faults_ends_elsewhere(five):
    code = Uncoded(5)
    weights, _ = five(coded_cases.train, code, [1], "negated", {})[0]
    assert (weights - coded_cases.train_alone(code)).norm() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "how"),
    [
        (DracoRepetition(5, 2), "negated"),
        (DracoCyclic(5, 1, tolerance=1e-5), "negated"),
        (CyclicRepetition(5, 2), "not finite"),
    ],
    ids=repr,
)
def test_more_than_the_bound_is_an_error_on_every_rank(five, code, how):
    for one in five.outcomes(coded_cases.train, code, [0, 1, 2], how, {}):
        assert isinstance(one, DecodeError), one


@pytest.mark.slow
@pytest.mark.parametrize("code", [DracoRepetition(5, 2), DracoCyclic(5, 1), CyclicRepetition(5, 1)])
def test_traffic_is_that_of_an_all_reduce(five, code):
    dim = 200_003
    for sent, small in five(coded_cases.bytes_sent, code, dim):
        ring = 2 * dim * 4 * 4 / 5
        assert ring * 0.999 < sent < ring * 1.01
        assert small < 10_000


@pytest.mark.slow
@pytest.mark.parametrize("code", [DracoRepetition(5, 2), DracoCyclic(5, 1, tolerance=1e-5)])
def test_accumulation_of_messages(five, code):
    found = five(coded_cases.train, code, [2], "negated", {}, micro=2)
    torch.testing.assert_close(
        found[0][0], coded_cases.train_alone(code, micro=2), rtol=1e-4, atol=1e-5
    )
    assert found[0][1][-1].suspects.tolist() == [False, False, True, False, False]
