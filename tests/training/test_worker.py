"""A worker by itself: what crosses to its process, and what it sends."""

import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset, TensorDataset

from phalanx.attacks import FixedWorkers, GaussianNoise, Mixed, Silence
from phalanx.coding import DracoRepetition
from phalanx.communication.serialization import SharedTensor
from phalanx.computations import Broadcast
from phalanx.training import Job, Local, Round, Site, TrainingWorkers, exchange
from phalanx.training.attack_simulation import roles
from phalanx.training.worker import RoundTask

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(4, 6), (5,), (), (0, 3)], ids=str)
def test_parcels_give_back_what_was_packed(dtype, shape):
    tensor = (torch.rand(shape) * 8).to(dtype)
    unpacked = pickle.loads(pickle.dumps(SharedTensor.pack(tensor))).unpack()
    assert unpacked.dtype == dtype
    assert unpacked.shape == tensor.shape
    assert unpacked.equal(tensor)


def test_parcels_of_views_hold_the_view_alone():
    table = torch.arange(12.0).reshape(3, 4)
    assert SharedTensor.pack(table.T[1:]).unpack().equal(table.T[1:])
    assert SharedTensor.pack(table[1]).content.nbytes == 16


def test_parcels_open_where_the_memory_is_lent_read_only():
    parcel = SharedTensor.pack(torch.arange(3.0))
    content = parcel.content.copy()
    content.flags.writeable = False
    assert parcel._replace(content=content).unpack().tolist() == [0.0, 1.0, 2.0]


def a_job():
    numbers = torch.Generator().manual_seed(2)
    inputs = torch.randn(64, 4, generator=numbers)
    targets = torch.randint(3, (64,), generator=numbers)
    return Job(
        nn.Linear(4, 3),
        cross_entropy,
        TensorDataset(inputs, targets),
        Round(
            DracoRepetition(5, 1),
            attack=Mixed(attacks=[GaussianNoise(), Silence()]),
            byzantine=FixedWorkers([1, 4]),
        ),
        20,
        seed=7,
    )


def alone(job, worker):
    """A worker as it is in a process of its own."""
    packed = pickle.loads(pickle.dumps(TrainingWorkers(job, {}).packed()))
    assert packed.job.round.attack is None
    assert packed.job.round.byzantine is None
    (process,) = packed.make({worker: {}}, Site("cpu", 1))
    return process


class Pairs(Dataset):
    """A data set that is no `TensorDataset`."""

    def __init__(self, pairs):
        self.pairs = list(pairs)

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        return self.pairs[index]


@pytest.mark.parametrize("in_memory", [True, False])
def test_workers_send_what_one_process_computes_for_them(in_memory):
    job = a_job()
    if not in_memory:
        job = replace(job, dataset=Pairs(job.dataset))
    parameters = torch.randn(15, generator=torch.Generator().manual_seed(1))
    with Local(chunk_size=1).start(TrainingWorkers(job, {})) as session:
        here = exchange(session, job, 2, Broadcast(parameters))
    task = RoundTask(2, Broadcast(parameters), roles(job, 2))
    for worker in range(5):
        reply = task.run(alone(job, worker))
        if worker == 4:
            assert reply.missing == "silent"
            assert here.missing == {4: "silent"}
        else:
            assert reply.value.message.equal(here.messages[worker])
            assert reply.value.loss == here.losses[worker]


def test_a_model_that_writes_to_its_parameters_does_not_reach_the_parcel():
    class Clamped(nn.Linear):
        def forward(self, inputs):
            self.weight.data.fill_(3.0)
            return super().forward(inputs)

    job = replace(a_job(), model=Clamped(4, 3), round=Round(DracoRepetition(5, 1)))
    parcel = SharedTensor.pack(torch.zeros(15))
    RoundTask(0, Broadcast(parcel.unpack()), {}).run(
        TrainingWorkers(job, {}).make({0: {}}, Site("cpu", 1))[0]
    )
    assert not parcel.unpack().any()


def test_a_task_that_nobody_waits_for_is_dropped_between_partitions():
    job = a_job()
    parameters = torch.cat([value.detach().reshape(-1) for value in job.model.parameters()])
    task, worker = RoundTask(0, Broadcast(parameters), {}), alone(job, 0)
    whole = task.run(worker)
    for partitions in range(int(job.round.code.assignment[0].sum()) + 1):
        answers = iter([False] * partitions + [True])
        assert task.run(worker, lambda: next(answers)).missing == "late"  # noqa: B023
        assert not list(answers)
    again = task.run(worker, lambda: False)
    assert again.value.message.equal(whole.value.message)
