"""Local engine: all workers in one process; every partition is computed once."""

import math
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.stragglers import DelayModel, WaitingPolicy
from phalanx.training.engines.base import (
    Collector,
    Engine,
    Replies,
    Session,
    Site,
    Task,
    Waiting,
    WorkerFactory,
)


@dataclass(frozen=True)
class Local(Engine):
    """Single-process engine, vectorised; redundant work is counted, not repeated.

    Who is late is decided on a virtual clock, which nobody waits for. So a laptop can ask what a
    thousand workers would do: `Replies.virtual_s` and `virtual_seconds` in the metrics say how
    long their rounds take. Late work is cancelled there, as on Ray: every worker begins every
    round. Delays follow from the run's seed and the round, so a run that resumes sees the same.

    In a simulated attack, Byzantine workers that read the honest messages read those that will be
    late, too.

    Cost: memory for the messages, `(workers, width)`, and for `chunk_size` gradients; with a
    compressor, for the messages again as they are read, and for what each worker remembers.
    """

    chunk_size: int | None = None
    """Partitions whose gradients are computed by one call; 1 uses the same kernels as workers that
    compute theirs one by one, so that engines agree to the bit. By default as many as fit in 256
    MiB; 1 for convolutions on CPUs, which are faster so."""

    deadline_s: float | None = None
    """Seconds after which a message is late, whatever the policy says. The clock is virtual:
    computing takes no time on it, and only delays and `seconds_per_partition` count. By default
    nothing is ever late."""

    policy: WaitingPolicy | None = None
    """When a round is over; what arrives later is late. By default when all have answered."""

    delays: DelayModel | None = None
    """How long each worker takes on the virtual clock; the attack `Delay` comes on top. Infinity is
    a worker that is dead in that round. By default nobody takes any time."""

    seconds_per_partition: float = 0.0
    """Seconds on the virtual clock for each partition that a worker computes, on top of its delay:
    what redundant work costs."""

    def __post_init__(self) -> None:
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {self.chunk_size}")
        if self.deadline_s is not None and self.deadline_s < 0:
            raise ValueError(f"deadline_s must be at least 0, got {self.deadline_s}")
        if not 0 <= self.seconds_per_partition < math.inf:
            raise ValueError(
                "seconds_per_partition must be finite and at least 0, got "
                f"{self.seconds_per_partition}"
            )

    def start(self, factory: WorkerFactory) -> "LocalSession":
        """Nothing to start: the session computes when asked."""
        return LocalSession(self, factory)


class LocalSession(Session):
    """Session of workers in this process."""

    def __init__(self, engine: Local, factory: WorkerFactory) -> None:
        self._engine, self._factory, self.policy = engine, factory, engine.policy
        self._workers: dict[int, Any] = {}
        self.restart(range(factory.num_workers))

    def call(
        self,
        task: Task,
        workers: Collection[int],
        waiting: Waiting = Waiting(),  # noqa: B008 - immutable
        collector: Collector | None = None,
    ) -> Replies:
        """Has all workers do the task, then plays the call on the virtual clock."""
        began, collector = time.perf_counter(), collector or Collector()
        answers = torch.full((self._factory.num_workers,), torch.inf, dtype=torch.float64)
        for worker, reply in task.run_together([self._workers[one] for one in workers]):
            if reply.missing is not None:
                collector.refuse(worker, reply.missing)
            else:
                collector.take(worker, reply.value)
            answers[worker] = reply.delay_s
        seconds = time.perf_counter() - began
        if task.concurrent:
            return Replies({}, seconds, 0.0, waiting.memory)
        answers += self._loads(task, workers)
        missing = {worker: "dead" for worker in workers if answers[worker].isinf()}
        end, memory = self._wait(answers, waiting, collector)
        late = [one for one in workers if answers[one] > end and one not in missing]
        missing |= dict.fromkeys(late, "late")
        return Replies(missing, seconds, end, memory)

    def restart(self, workers: Collection[int]) -> None:
        """See `Session.restart`."""
        owned = {worker: self._factory.own(worker) for worker in workers}
        made = self._factory.make(owned, Site(chunk_size=self._engine.chunk_size))
        self._workers |= dict(zip(owned, made, strict=True))

    def _loads(self, task: Task, workers: Collection[int]) -> Float[Tensor, " workers"]:
        """How long each worker takes to do the task, in virtual seconds."""
        engine, number = self._engine, self._factory.num_workers
        taken = torch.zeros(number, dtype=torch.float64)
        if engine.seconds_per_partition:
            for worker in workers:
                taken[worker] = engine.seconds_per_partition * task.load(self._workers[worker])
        if engine.delays is not None:
            taken += engine.delays.at(task.step, number, self._factory.seed)
        return taken

    def _wait(
        self, answers: Float[Tensor, " workers"], waiting: Waiting, collector: Collector
    ) -> tuple[float, tuple[float, ...]]:
        """When the call is over, and what the policy remembers."""
        # Once everybody has answered there is nobody left to wait for.
        end = answers[answers.isfinite()].max().item() if answers.isfinite().any() else 0.0
        if self._engine.deadline_s is not None:
            end = min(end, self._engine.deadline_s)
        policy, memory = waiting
        if policy is not None:
            usable = torch.tensor([collector.usable(worker) for worker in self._workers])
            arrivals = torch.where(usable, answers, torch.inf)
            end = min(end, policy.ends_at(arrivals, memory).item())
            memory = policy.update(arrivals, end, memory)
        return end, memory
