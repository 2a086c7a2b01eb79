"""Which samples a partition sees: all of them, once an epoch, the same for every replica."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset, TensorDataset

from phalanx.fetch import fetch
from phalanx.ordering import Batches, RandomReshuffling


def partition_samples(num_samples, batch_size, num_partitions, seed, step, partition):
    batches = Batches(num_samples, batch_size, num_partitions, seed)
    return RandomReshuffling().samples(batches, step, partition)


class Squares(Dataset):
    """A data set that is asked one number at a time, and answers with plain Python numbers."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return torch.tensor([float(index)]), index * index


def epoch(num_samples, batch_size, num_partitions, seed, number=0):
    rounds = num_samples // batch_size
    return torch.cat(
        [
            partition_samples(num_samples, batch_size, num_partitions, seed, step, partition)
            for step in range(number * rounds, (number + 1) * rounds)
            for partition in range(num_partitions)
        ]
    )


@given(
    num_partitions=st.integers(1, 9),
    size=st.integers(1, 5),
    rounds=st.integers(1, 4),
    rest=st.integers(0, 8),
    seed=st.integers(0, 2**40),
)
def test_an_epoch_visits_every_sample_once_but_those_of_an_incomplete_last_round(
    num_partitions, size, rounds, rest, seed
):
    batch_size = num_partitions * size
    num_samples = rounds * batch_size + rest % batch_size
    for number in (0, 1, 7):
        visited = epoch(num_samples, batch_size, num_partitions, seed, number).tolist()
        assert len(set(visited)) == len(visited) == rounds * batch_size
        assert set(visited) <= set(range(num_samples))


def test_every_epoch_and_every_seed_has_its_own_order():
    orders = [epoch(100, 20, 5, seed, number).tolist() for seed in (0, 1) for number in (0, 1, 2)]
    assert len({tuple(order) for order in orders}) == 6


def test_partitions_are_a_function_of_seed_and_step_alone():
    asked = [(step, partition) for step in range(12) for partition in range(3)]
    forward = {place: partition_samples(31, 6, 3, 4, *place).tolist() for place in asked}
    backward = {place: partition_samples(31, 6, 3, 4, *place).tolist() for place in asked[::-1]}
    torch.manual_seed(99)
    again = {place: partition_samples(31, 6, 3, 4, *place).tolist() for place in asked}
    assert forward == backward == again


@pytest.mark.parametrize("num_partitions", [1, 2, 3, 6, 12])
def test_a_round_is_the_same_batch_however_it_is_cut(num_partitions):
    whole = partition_samples(50, 12, 1, 0, 5, 0)
    parts = [partition_samples(50, 12, num_partitions, 0, 5, p) for p in range(num_partitions)]
    assert torch.cat(parts).equal(whole)


def test_any_map_style_dataset_is_stacked():
    inputs, targets = fetch(Squares(), torch.tensor([3, 0, 5]))
    assert inputs.tolist() == [[3.0], [0.0], [5.0]]
    assert targets.tolist() == [9, 0, 25]


def test_a_tensor_dataset_is_indexed_but_one_derived_from_it_is_asked():
    class Negated(TensorDataset):
        def __getitem__(self, index):
            inputs, targets = super().__getitem__(index)
            return -inputs, targets

    tensors = torch.arange(4.0).unsqueeze(1), torch.arange(4)
    assert fetch(TensorDataset(*tensors), torch.tensor([2, 1]))[0].tolist() == [[2.0], [1.0]]
    assert fetch(Negated(*tensors), torch.tensor([2, 1]))[0].tolist() == [[-2.0], [-1.0]]
