"""What the ranks of a group do in the tests of the engine TorchDistributed."""

import os
import signal
import time
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.utils.data import TensorDataset

from phalanx.attacks import ReverseGradient
from phalanx.coded_computation import CodedMatmul, MatmulSession
from phalanx.coding import DracoRepetition
from phalanx.errors import WorkerError
from phalanx.training import Local, Reply, Task, TorchDistributed, train
from phalanx.transforms import WorkerMomentum
from training.adders import Adders, Kept


def on_server(case, **options):
    """A case on rank 0, while the others serve; what it gives."""
    engine = TorchDistributed(**options)
    with engine.join() as is_server:
        return case(engine) if is_server else None


def weights_of(engine):
    """Weights after some rounds under attack."""
    numbers = torch.Generator().manual_seed(5)
    data = TensorDataset(
        torch.randn(90, 6, generator=numbers), torch.randint(3, (90,), generator=numbers)
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    code, transforms = DracoRepetition(3, 1), (WorkerMomentum(),)
    train(
        model, data, code, attack=ReverseGradient(), transforms=transforms, engine=engine, steps=4
    )
    return [one.detach() for one in model.parameters()]


def same_weights(engine):
    ours, theirs = weights_of(engine), weights_of(Local(chunk_size=1))
    return all(one.equal(other) for one, other in zip(ours, theirs, strict=True))


def products(engine):
    """A product from those that do not sleep, again and again; whoever slept drops its task."""
    numbers = torch.Generator().manual_seed(0)
    matrix, x = torch.randn(60, 8, generator=numbers), torch.randn(8, generator=numbers)
    coded = CodedMatmul(num_workers=3, num_blocks=2).encode(matrix)
    seconds = []
    with MatmulSession(engine, coded) as session:
        for sleeper in (0, 0, 2, 1):
            delays = torch.zeros(3)
            delays[sleeper] = 30.0
            timed = session.multiply(coded, x, delays)
            torch.testing.assert_close(timed.product.value, matrix @ x, rtol=1e-4, atol=1e-5)
            assert not timed.arrived[sleeper]
            seconds.append(timed.duration_s)
    return max(seconds)


@dataclass(frozen=True)
class Misbehave(Task):
    """Fails, dies or takes long, worker by worker."""

    queued: ClassVar[bool] = False

    deeds: tuple[str, ...]

    def run(self, worker, is_over=lambda: False):
        deed = self.deeds[worker.id]
        if deed == "raise":
            raise ZeroDivisionError("by worker")
        if deed == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        end = time.monotonic() + 20
        while deed == "sleep" and not is_over() and time.monotonic() < end:
            time.sleep(0.01)
        return Reply(deed)


def faults(engine):
    """Reasons why there is nothing from a worker, call by call."""
    told = []
    with engine.start(Adders()) as session:
        for step, deeds in enumerate(
            [("raise", "sleep", "go"), ("go", "go", "go"), ("go", "die", "go"), ("go", "go", "go")]
        ):
            found = Kept()
            missing = session.call(Misbehave(step, deeds), range(3), collector=found).missing
            told.append((missing, sorted(found.values)))
            time.sleep(0.5)  # who was late drops its task
        try:
            session.call(Misbehave(9, ("raise",) * 3), [0, 2])
        except WorkerError as error:
            told.append((error.reasons, error.__notes__[0].splitlines()[0]))
    return told
