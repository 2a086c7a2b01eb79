"""A small job, and rounds of it on any engine whose parameters drift as if they were trained."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from phalanx.training import Job, Local, Memory

NOTHING = Memory()


def some_data():
    numbers = torch.Generator().manual_seed(5)
    inputs = torch.randn(600, 6, generator=numbers)
    return TensorDataset(inputs, torch.randint(3, (600,), generator=numbers))


def a_model():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def flat(model):
    return torch.cat([value.detach().reshape(-1) for value in model.parameters()])


def a_job(code, **stages):
    return Job(a_model(), cross_entropy, some_data(), code, 210, 3, **stages)


def drifted(job, step):
    """The parameters in this round."""
    drift = torch.Generator().manual_seed(1)
    shifts = 0.1 * torch.randn(9, len(flat(job.model)), generator=drift)
    return flat(job.model) + shifts[:step].sum(dim=0)


def rounds(session, job, number, memory=NOTHING, first=0, aggregate=None):
    """What is collected in these rounds, and the memory after each."""
    for step in range(first, first + number):
        collected = session.round(step, drifted(job, step), memory, aggregate)
        # The engine of many processes gives its table out again.
        yield collected._replace(messages=collected.messages.clone())
        memory = collected.memory


def local_rounds(job, number, **start):
    with Local(chunk_size=1).start(job) as session:
        return list(rounds(session, job, number, **start))
