"""What every order promises."""

import pickle

import pytest
import torch
from torch.utils.data import TensorDataset

from laws import concrete
from phalanx import ordering
from phalanx.data import IidPartitioner
from phalanx.ordering import Batches, ClientData, Order, PerClient, PoissonSampling, ShuffleOnce

KINDS = [kind for kind in concrete(ordering, Order) if kind is not ClientData]  # a bound PerClient
every = pytest.mark.parametrize("kind", KINDS)
visiting = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not PoissonSampling])
SIZES = [(24, 24, 4), (50, 12, 3), (31, 6, 2), (7, 7, 1)]


def bound(kind, num_samples, num_partitions, seed=0):
    data = TensorDataset(torch.zeros(num_samples, 1), torch.arange(num_samples) % 2)
    order = kind(IidPartitioner()) if kind is PerClient else kind()
    return order.bind(data, num_partitions, None, seed)


@visiting
def test_rounds_are_cut_into_disjoint_partitions_and_no_epoch_visits_twice(kind, subtests):
    for num_samples, batch_size, num_partitions in SIZES:
        with subtests.test(num_samples=num_samples, batch_size=batch_size):
            order = bound(kind, num_samples, num_partitions)
            batches = Batches(num_samples, batch_size, num_partitions, seed=0)
            rounds = num_samples // batch_size
            for epoch in range(3):
                visited = [
                    order.samples(batches, step, partition)
                    for step in range(epoch * rounds, (epoch + 1) * rounds)
                    for partition in range(num_partitions)
                ]
                assert all(one.shape == (batches.size,) for one in visited)
                assert all(one.dtype == torch.int64 for one in visited)
                together = torch.cat(visited)
                assert ((together >= 0) & (together < num_samples)).all()
                if order.shared:
                    assert together.unique().numel() == together.numel()
            if not order.shared:  # every worker by itself, and no other's samples
                owned = [
                    {
                        sample
                        for step in range(3 * rounds)
                        for sample in order.samples(batches, step, partition).tolist()
                    }
                    for partition in range(num_partitions)
                ]
                assert sum(map(len, owned)) == len(set().union(*owned))


@every
def test_samples_follow_from_seed_step_and_partition_alone(kind):
    asked = [(step, partition) for step in range(9) for partition in range(3)]

    def samples(places, seed=0):
        order = bound(kind, 50, 3, seed)
        order = pickle.loads(pickle.dumps(order))
        batches = Batches(50, 12, 3, seed)
        return {place: order.samples(batches, *place).tolist() for place in places}

    torch.manual_seed(1)
    forward = samples(asked)
    torch.manual_seed(2)
    assert samples(asked[::-1]) == forward
    assert samples(asked, seed=1) != forward


@every
def test_a_permutation_holds_every_sample_once(kind, subtests):
    for number in (0, 1, 2, 37):
        with subtests.test(number=number):
            for epoch in (0, 3):
                found = kind().permutation(number, epoch, 0, "order")
                assert found.sort().values.equal(torch.arange(number))
                assert found.equal(kind().permutation(number, epoch, 0, "order"))


@visiting
def test_only_shuffle_once_repeats_an_epoch(kind):
    first, second = (kind().permutation(37, epoch, 0, "order") for epoch in (0, 1))
    assert first.equal(second) == (kind is ShuffleOnce)


@every
def test_it_is_a_value(kind):
    assert pickle.loads(pickle.dumps(kind())) == kind()
    assert hash(kind()) == hash(kind())
