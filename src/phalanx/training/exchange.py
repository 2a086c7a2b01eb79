"""Message exchange of a round: from the broadcast to what reached the server."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from jaxtyping import Bool, Float, Num
from torch import Tensor

from phalanx.attacks import Rule
from phalanx.computations import Broadcast
from phalanx.training.attack_simulation import AttackMemory, roles, stage_attacks
from phalanx.training.engines.base import NO_FAILURES, Collector, Failure, Session, Waiting
from phalanx.training.inbox import Inbox
from phalanx.training.job import Job
from phalanx.training.worker import ReadState, RoundTask
from phalanx.training.worker_state import WorkerState, copied


@dataclass(frozen=True)
class ExchangeMemory:
    """State of the exchange between rounds; checkpointed with the run."""

    attack: AttackMemory = field(default_factory=AttackMemory)
    """Of the simulated attack."""

    waiting: tuple[float, ...] = ()
    """Of the waiting policy (see `WaitingPolicy.update`)."""


class Collected(NamedTuple):
    """Messages of one round, as they reached the server.

    Attributes:
        messages: `(workers, width)`; rows that did not arrive hold anything.
        arrived: `(workers,)` bool, whose message arrived in time and in shape.
        losses: `(workers,)`, mean loss that each worker claims over its partitions; NaN if unknown.
        missing: why there is no message: "silent", "late", "dead", "busy" (still at an earlier
            round), "starting", "excluded", "wrong shape", "wrong type", "malformed" (bytes that are
            no message of the compressor), "not finite" (nothing to compress) or "failed: ...", by
            worker.
        compute_s: seconds until the messages stood ready.
        memory: for the next round.
        virtual_s: seconds that the round took on the engine's virtual clock; None if it has none.
        message_bytes: bytes of the messages that arrived, without what a transport adds.
        failures: what workers raised, by id.
        states: what clients remember that may be elsewhere in the next round, by worker.
    """

    messages: Num[Tensor, "workers width"]
    arrived: Bool[Tensor, " workers"]
    losses: Float[Tensor, " workers"]
    missing: dict[int, str]
    compute_s: float
    memory: ExchangeMemory
    virtual_s: float | None
    message_bytes: int
    failures: Mapping[int, Failure] = NO_FAILURES
    states: Mapping[int, WorkerState] = MappingProxyType({})


def exchange(
    session: Session,
    job: Job,
    step: int,
    broadcast: Broadcast,
    memory: ExchangeMemory | None = None,
    rule: Rule | None = None,
    excluded: Collection[int] = (),
    lent: Mapping[int, WorkerState] | None = None,
    *,
    preparing: bool = False,
) -> Collected:
    """Has every worker compute and send its message for one round, on any engine.

    Args:
        session: the workers.
        job: what they take part in.
        step: the round, counted from 0.
        broadcast: what they are sent.
        memory: of the round before; None in the first.
        rule: the server's decoder as it stands in this round, for attacks that know it; None if it
            is not known.
        excluded: workers that are asked no more.
        lent: what the clients of the round remember, by worker, if they are not always the same.
        preparing: whether this is what workers compute first, see `Round.preparation`; `job` then
            is `Job.preparing`.
    """
    memory, code = memory or ExchangeMemory(), job.round.code.at(step)
    byzantine_roles = roles(job, step)
    inbox = Inbox(job.empty_table(broadcast.parameters.device), job.chain.decode)
    policy = session.policy.for_code(code.can_decode) if session.policy is not None else None
    replies = session.call(
        RoundTask(step, broadcast, byzantine_roles, memory.attack.past, lent, preparing),
        [worker for worker in range(code.num_workers) if worker not in excluded],
        Waiting(policy, memory.waiting),
        inbox,
    )
    plans = stage_attacks(job, byzantine_roles, inbox, memory.attack.plans, rule)
    for worker, reason in replies.missing.items():
        if reason != "late" or worker not in inbox.missing:  # who sent nothing is not late as well
            inbox.refuse(worker, reason)
    for worker in excluded:
        inbox.refuse(worker, "excluded")
    following = AttackMemory(memory.attack.past, plans).following(job, broadcast)
    return Collected(
        inbox.messages,
        inbox.arrived,
        inbox.losses,
        dict(sorted(inbox.missing.items())),
        replies.seconds,
        ExchangeMemory(following, replies.waiting),
        replies.virtual_s,
        inbox.message_bytes,
        replies.failures,
        {worker: state for worker, state in inbox.states.items() if inbox.arrived[worker]},
    )


def read_states(session: Session, job: Job, step: int) -> Mapping[int, WorkerState]:
    """What workers remembered before a round, by id; of those that do not answer, nothing."""
    if not job.remembers:
        return {}
    found = Collector()
    session.call(ReadState(step), range(job.round.code.num_workers), collector=found)
    return {worker: copied(state) for worker, state in sorted(found.values.items())}
