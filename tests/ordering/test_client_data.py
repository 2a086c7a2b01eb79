"""Workers with data of their own: who holds what, what a round reads of it, and whole runs."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import phalanx
from laws import concrete
from phalanx import data
from phalanx.aggregation import CoordinateMedian, Mean
from phalanx.attacks import (
    FixedWorkers,
    LabelFlip,
    Mimic,
    Mixed,
    RandomWorkers,
    SignFlip,
    SleeperWorkers,
    StaleGradient,
)
from phalanx.coding import DracoRepetition
from phalanx.data import (
    DirichletPartitioner,
    IidPartitioner,
    NaturalIdPartitioner,
    Partitioner,
    ShardPartitioner,
)
from phalanx.ordering import Batches, ClientData, PerClient, RandomReshuffling
from phalanx.training import Local, Ray
from phalanx.transforms import WorkerMomentum


def some_data(num_samples=300, classes=5):
    numbers = torch.Generator().manual_seed(5)
    inputs = torch.randn(num_samples, 6, generator=numbers)
    return TensorDataset(inputs, torch.randint(classes, (num_samples,), generator=numbers))


class Asked(Dataset):
    """Samples that are asked for one by one, with classes that are plain numbers."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        inputs, targets = self.dataset[index]
        return inputs + 0 * torch.rand(()), int(targets)


def deal(partitioner, dataset, num_workers, schedule, seed):
    return PerClient(partitioner).bind(dataset, num_workers, schedule, seed)


def held(samples):
    return ClientData(IidPartitioner(), RandomReshuffling(), tuple(samples))


def batch(order, step, worker, size, seed):
    number = len(order.held)
    return order.samples(Batches(1000, size * number, number, seed), step, worker)


def flat(model):
    return torch.cat([value.detach().reshape(-1) for value in model.parameters()])


def trained(dataset=None, **options):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
    defaults = {"steps": 12, "num_workers": 7, "batch_size": 70, "evaluate_every": 100}
    options = {**defaults, "order": PerClient(ShardPartitioner()), **options}
    return phalanx.train(model, dataset or some_data(), **options)


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    size=st.integers(1, 9),
    seed=st.integers(0, 2**40),
)
def test_a_worker_reads_its_shard_again_and_again_without_a_gap(sizes, size, seed):
    samples = torch.randperm(sum(sizes)).split(sizes)
    holdings = held(samples)
    for worker, own in enumerate(samples):
        read = torch.cat([batch(holdings, step, worker, size, seed) for step in range(15)])
        assert len(read) == 15 * size
        for epoch in read.split(len(own)):
            visited = epoch.tolist()
            assert len(set(visited)) == len(visited)
            assert set(visited) <= set(own.tolist())


def test_every_epoch_worker_and_seed_has_its_own_order():
    own = torch.arange(30)
    holdings = held((own, own))
    orders = [
        tuple(batch(holdings, step, worker, 30, seed).tolist())
        for step in range(3)
        for worker in (0, 1)
        for seed in (0, 1)
    ]
    assert len(set(orders)) == 12


def test_the_honest_share_everything_and_the_bad_for_good_hold_all_classes():
    dataset = some_data()
    targets = dataset.tensors[1]
    holdings = deal(ShardPartitioner(), dataset, 10, FixedWorkers([0, 4]), seed=3)
    assert len(holdings.held) == 10
    honest = [holdings.held[worker] for worker in (1, 2, 3, 5, 6, 7, 8, 9)]
    assert torch.cat(honest).sort().values.equal(torch.arange(300))
    assert max(len(targets[shard].unique()) for shard in honest) <= 3
    for worker in (0, 4):
        assert len(holdings.held[worker]) == 30
        assert len(targets[holdings.held[worker]].unique()) == 5
    again = deal(ShardPartitioner(), dataset, 10, FixedWorkers([0, 4]), seed=3)
    assert all(map(torch.equal, holdings.held, again.held))
    other = deal(ShardPartitioner(), dataset, 10, FixedWorkers([0, 4]), seed=4)
    assert not all(map(torch.equal, holdings.held, other.held))


def test_the_bad_of_some_rounds_keep_their_shards():
    plain, drilled = (
        deal(ShardPartitioner(), some_data(), 10, schedule, seed=3)
        for schedule in (None, RandomWorkers(3))
    )
    assert all(map(torch.equal, plain.held, drilled.held))


def test_classes_are_read_from_data_that_are_no_tensors():
    state = torch.random.get_rng_state()
    ours, theirs = (
        deal(DirichletPartitioner(), dataset, 5, None, seed=0)
        for dataset in (some_data(), Asked(some_data()))
    )
    assert all(map(torch.equal, ours.held, theirs.held))
    assert torch.random.get_rng_state().equal(state)


def test_a_round_computes_on_the_samples_that_each_worker_holds():
    attack = Mixed([StaleGradient(1), SignFlip()])
    job_of = {"attack": attack, "byzantine": FixedWorkers([1, 2]), "steps": 1, "num_workers": 5}
    seen = []

    class Spied(Asked):
        def __getitem__(self, index):
            seen.append(index)
            return super().__getitem__(index)

    trained(Spied(some_data()), **job_of, order=PerClient(ShardPartitioner()), batch_size=50)
    holdings = deal(ShardPartitioner(), some_data(), 5, FixedWorkers([1, 2]), seed=0)
    read = [batch(holdings, 0, worker, 10, 0).tolist() for worker in range(5)]
    assert seen[-50:] == [index for own in read for index in own]


def test_workers_that_differ_learn_together_and_the_run_says_how_they_differ(blobs):
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4))
    options = {"num_workers": 8, "batch_size": 80, "steps": 60, "test": blobs[1]}
    run = phalanx.train(model, blobs[0], order=PerClient(ShardPartitioner()), **options)
    assert run.result["test_accuracy"] > 0.9
    assert "ShardPartitioner()" in run.result["order"]
    assert any("Heterogeneous" in method for method in run.result["methods"])
    assert trained(order=RandomReshuffling(), steps=1).result["order"] == "RandomReshuffling()"


def test_a_batch_may_be_longer_than_a_shard_and_than_the_data():
    assert len(trained(some_data(40), batch_size=700, steps=3).rounds) == 3


def test_runs_resume_with_the_same_batches(tmp_path):
    drill = {"rule": CoordinateMedian(2), "attack": Mixed([LabelFlip(), Mimic()])}
    drill |= {"byzantine": SleeperWorkers(num_byzantine=2, from_step=3)}
    whole = trained(**drill)
    trained(**drill, steps=5, out=tmp_path / "run")
    resumed = trained(**drill, out=tmp_path / "run", resume=True)
    assert flat(resumed.model).equal(flat(whole.model))
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    assert "ShardPartitioner()" in saved["order"]


class Nothing(Partitioner):
    """Leaves the last workers without a sample."""

    def split(self, targets, num_workers, generator=None):
        return [torch.arange(5), *(torch.arange(0) for _ in range(num_workers - 1))]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"code": DracoRepetition(9, 1)},
            "order PerClient needs a rule instead of a code: .*DracoRepet",
        ),
        (
            {"order": PerClient(Nothing()), "num_workers": 3, "batch_size": 60},
            r"none for workers \[1, 2\] by",
        ),
        ({"dataset": some_data(4)}, "got none for workers"),
        (
            {
                "dataset": TensorDataset(torch.ones(70, 6), torch.ones(70)),
                "loss": lambda outputs, targets: outputs.mean(),
            },
            "a class for every sample",
        ),
        (
            {"attack": SignFlip(), "byzantine": FixedWorkers(list(range(7)))},
            "order must give samples to an honest worker, got none of 7",
        ),
        ({"batch_size": 71}, "batch_size must be a multiple of the 7 partitions"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_what_does_not_fit_is_refused_and_leaves_nothing_behind(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        trained(**{"batch_size": 63, "out": tmp_path / "run", **options})
    assert not (tmp_path / "run").exists()


def test_every_split_trains(subtests):
    for kind in concrete(data, Partitioner):
        with subtests.test(kind.__name__):
            # By default natural ids are classes, of which there are fewer than workers here.
            natural = {"ids": [number % 50 for number in range(300)]}
            split = kind(**natural if kind is NaturalIdPartitioner else {})
            assert len(trained(order=PerClient(split), steps=2).rounds) == 2


@pytest.mark.slow
def test_processes_end_with_the_weights_of_one_process(cluster):
    drill = {"rule": Mean(), "attack": Mixed([LabelFlip(), StaleGradient(2), Mimic()]), "steps": 6}
    drill |= {"byzantine": FixedWorkers([0, 2, 5]), "transforms": [WorkerMomentum()]}
    here, there = (trained(**drill, engine=engine) for engine in (Local(chunk_size=1), Ray()))
    assert flat(here.model).equal(flat(there.model))
