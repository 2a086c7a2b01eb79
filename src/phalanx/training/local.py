"""The engine of one process: no server, no ports; every gradient is computed once."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.attacks import Rule
from phalanx.training.drills import Drill
from phalanx.training.engine import Collected, Engine, Inbox, Session
from phalanx.training.gradients import PartitionGradients
from phalanx.training.job import Job
from phalanx.training.memory import Memory
from phalanx.training.worker import own_message


@dataclass(frozen=True)
class Local(Engine):
    """All workers in this process, vectorised; redundant work is counted, not repeated.

    Cost: memory for the messages, `(workers, width)`, and for `chunk_size` gradients.
    """

    chunk_size: int | None = None
    """Partitions whose gradients are computed by one call; 1 uses the same kernels as workers that
    compute theirs one by one, so that engines agree to the bit. By default as many as fit in 256
    MiB; 1 for convolutions on CPUs, which are faster so."""

    deadline_s: float | None = None
    """Seconds after which a message is late. The clock is virtual: computing takes no time on it,
    and only the delays of a drill count. By default nothing is ever late."""

    def __post_init__(self) -> None:
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {self.chunk_size}")
        if self.deadline_s is not None and self.deadline_s < 0:
            raise ValueError(f"deadline_s must be at least 0, got {self.deadline_s}")

    def start(self, job: Job) -> "LocalSession":
        """Nothing to start: the session computes when asked."""
        return LocalSession(self, job)


class LocalSession(Session):
    """Runs a job's rounds in this process."""

    def __init__(self, engine: Local, job: Job) -> None:
        self._engine, self._job = engine, job
        self._gradients = PartitionGradients(job, engine.chunk_size)
        self._excluded: set[int] = set()

    def round(
        self,
        step: int,
        parameters: Float[Tensor, " dim"],
        memory: Memory = Memory(),  # noqa: B008 - frozen
        aggregate: Rule | None = None,
    ) -> Collected:
        """Computes every partition once, encodes all messages, then stages the drill."""
        began = time.perf_counter()
        losses: list[Tensor] = []
        code = self._job.code.at(step)
        messages = code.encode_all(self._stream(step, parameters, losses))
        compute_s = time.perf_counter() - began
        inbox = Inbox(messages)
        claimed = torch.cat(losses).double().cpu()
        for worker, owned in enumerate(code.assignment):
            inbox.put(worker, messages[worker], claimed[owned].mean().item())
        drill = Drill(self._job, step, parameters, memory, aggregate)
        for worker, role in drill.cast.items():
            if drill.deviates(worker):
                computed = own_message(self._gradients, worker, *drill.task(worker), role.attack)
                inbox.put(worker, *computed)
        momenta = None
        if self._job.worker_momentum is not None:
            momenta = self._job.worker_momentum.update(inbox.messages, memory.momenta)
            # Forged on a copy: what is remembered stays true.
            inbox.messages = momenta.clone() if drill.cast else momenta
        for worker in self._excluded:
            inbox.refuse(worker, "excluded")
        drill.stage(inbox, drill.cast, self._engine.deadline_s)
        return inbox.collected(compute_s, drill.remember(momenta))

    def exclude(self, workers: Iterable[int]) -> None:
        """See `Session.exclude`; what they alone would compute is computed, and not used."""
        self._excluded.update(workers)

    def _stream(self, step: int, parameters: Tensor, losses: list[Tensor]) -> Iterator[Tensor]:
        partitions = range(self._job.code.num_partitions)
        for gradients, block_losses in self._gradients.blocks(step, partitions, parameters):
            losses.append(block_losses)
            yield gradients
