"""The engine of one process: no server, no ports; every gradient is computed once."""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.attacks import Rule
from phalanx.computations.gradient import PartitionGradients
from phalanx.errors import NotFiniteError
from phalanx.stragglers.delays import DelayModel
from phalanx.stragglers.waiting import WaitingPolicy
from phalanx.training.attack_simulation import Drill
from phalanx.training.engines.base import Collected, Engine, Inbox, Session
from phalanx.training.engines.worker import own_message
from phalanx.training.job import Job
from phalanx.training.worker_state import Memory
from phalanx.transforms.compressed import MessageCodec, States


@dataclass(frozen=True)
class Local(Engine):
    """All workers in this process, vectorised; redundant work is counted, not repeated.

    Who is late is decided on a virtual clock, which nobody waits for. So a laptop can ask what a
    thousand workers would do: `Collected.virtual_s` and `virtual_seconds` in the metrics say how
    long their rounds take. Late work is cancelled there, as on Ray: every worker begins every
    round. Delays follow from the run's seed and the round, so a run that resumes sees the same.

    In a drill, bad workers that read the honest messages read those that will be late, too.

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
        own, compression = None, memory.compression
        if (codec := self._job.codec) is not None:
            own = inbox.messages
            inbox, compression = self._compressed(codec, inbox, compression, step)
        for worker in self._excluded:
            inbox.refuse(worker, "excluded")
        held_back = drill.stage(inbox, drill.cast, own)
        virtual_s, waiting = self._wait(step, inbox, held_back, memory.waiting)
        kept = drill.remember(momenta, waiting, compression)
        return inbox.collected(compute_s, kept, virtual_s)

    def exclude(self, workers: Iterable[int]) -> None:
        """See `Session.exclude`; what they alone would compute is computed, and not used."""
        self._excluded.update(workers)

    def _compressed(
        self, codec: MessageCodec, inbox: Inbox, memory: tuple[States, ...], step: int
    ) -> tuple[Inbox, tuple[States, ...]]:
        """What the server makes of the bytes that workers send, and what they remember then."""
        read = Inbox(torch.empty_like(inbox.messages), codec)
        following = list(memory or ((),) * len(inbox.messages))
        for worker, message in enumerate(inbox.messages):
            try:
                data, following[worker] = codec.encode(message, following[worker], step, worker)
            except NotFiniteError:
                read.refuse(worker, "not finite")
            else:
                read.put(worker, data, inbox.losses[worker].item())
        return read, tuple(following)

    def _wait(
        self, step: int, inbox: Inbox, held_back: dict[int, float], waiting: tuple[float, ...]
    ) -> tuple[float, tuple[float, ...]]:
        """Plays the round on the virtual clock; its length, and what the policy remembers."""
        answers = self._answers(step, held_back)
        for worker in answers.isinf().nonzero().flatten().tolist():
            inbox.refuse(worker, "excluded" if worker in self._excluded else "dead")
        # Once everybody has answered there is nobody left to wait for.
        end = answers[answers.isfinite()].max().item() if answers.isfinite().any() else 0.0
        policy, deadline_s = self._engine.policy, self._engine.deadline_s
        if deadline_s is not None:
            end = min(end, deadline_s)
        if policy is not None:
            arrivals = inbox.arrivals(answers)
            bound = policy.for_code(self._job.code.at(step).can_decode)
            end = min(end, bound.ends_at(arrivals, waiting).item())
            waiting = policy.update(arrivals, end, waiting)
        for worker in (answers > end).nonzero().flatten().tolist():
            if inbox.arrived[worker]:
                inbox.refuse(worker, "late")
        return end, waiting

    def _answers(self, step: int, held_back: dict[int, float]) -> Float[Tensor, " workers"]:
        """When each worker is done, in virtual seconds; infinity for those who never are."""
        engine, code = self._engine, self._job.code.at(step)
        answers = engine.seconds_per_partition * code.assignment.sum(dim=1).double()
        if engine.delays is not None:
            answers += engine.delays.at(step, code.num_workers, self._job.seed)
        for worker, seconds in held_back.items():
            answers[worker] += seconds
        answers[list(self._excluded)] = torch.inf
        return answers

    def _stream(self, step: int, parameters: Tensor, losses: list[Tensor]) -> Iterator[Tensor]:
        partitions = range(self._job.code.num_partitions)
        for gradients, block_losses in self._gradients.blocks(step, partitions, parameters):
            losses.append(block_losses)
            yield gradients
