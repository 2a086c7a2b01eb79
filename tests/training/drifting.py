"""A small job, and rounds of it on any engine whose parameters drift as if they were trained."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from phalanx.computations import Broadcast
from phalanx.training import Collected, Job, Local, Round, TrainingWorkers, exchange
from phalanx.training.exchange import read_states


class Seen(NamedTuple):
    """A round as it reached the server, and what all workers remember after it."""

    collected: Collected
    states: dict

    def __getattr__(self, name):
        return getattr(self.collected, name)

    def state(self, stage):
        """What each worker remembers of a stage."""
        return {worker: state.get(stage, ()) for worker, state in self.states.items()}

    @property
    def momenta(self):
        """The momenta of all workers, where momentum is the first transform."""
        return torch.stack([state["transforms.0"][0] for state in self.states.values()])


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
    return Job(a_model(), cross_entropy, some_data(), Round(code, **stages), 210, 3)


def staged(job, **stages):
    """The job with other stages."""
    return replace(job, round=replace(job.round, **stages))


def honest(job):
    """The job without a simulated attack."""
    return staged(job, attack=None, byzantine=None)


def drifted(job, step):
    """The parameters in this round."""
    drift = torch.Generator().manual_seed(1)
    shifts = 0.1 * torch.randn(9, len(flat(job.model)), generator=drift)
    return flat(job.model) + shifts[:step].sum(dim=0)


def one_round(session, job, step=0, memory=None, rule=None, parameters=None):
    """What is collected in a round."""
    parameters = flat(job.model) if parameters is None else parameters
    return exchange(session, job, step, Broadcast(parameters), memory, rule)


def rounds(session, job, number, last=None, first=0, rule=None):
    """What is seen in these rounds, after `last`."""
    memory = None if last is None else last.memory
    for step in range(first, first + number):
        found = one_round(session, job, step, memory, rule, drifted(job, step))
        yield Seen(found, read_states(session, job, step + 1))
        memory = found.memory


def workers(job, last=None):
    """The workers of a job, as they are after a round that was seen."""
    return TrainingWorkers(job, {} if last is None else dict(last.states))


def local_rounds(job, number, last=None, **start):
    with Local(chunk_size=1).start(workers(job, last)) as session:
        return list(rounds(session, job, number, last, **start))
