"""Conversation of a round: what workers are told, what they send, and what is decoded of it."""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from phalanx.attacks import Rule
from phalanx.coding import Code, Decoded, Uncoded
from phalanx.computations import Broadcast
from phalanx.training.attack_simulation import roles
from phalanx.training.engines.base import Session, Waiting, telling
from phalanx.training.exchange import Collected, ExchangeMemory, exchange
from phalanx.training.job import Job
from phalanx.training.protocol_session import ProtocolSession
from phalanx.training.received import Received
from phalanx.training.worker import RoundTask
from phalanx.training.worker_state import WorkerState

_MALFORMED = ("wrong shape", "wrong type", "malformed", "not finite")


@dataclass(frozen=True)
class KnownRule:
    """Aggregation rule of the server in a round, for simulated attacks that know it."""

    code: Code
    state: tuple[Tensor, ...]
    byzantine: tuple[int, ...]

    @property
    def needs_distances_only(self) -> bool:
        """Whether its weights follow from how far the messages lie apart."""
        return self.code.needs_distances_only

    def __call__(self, messages: Tensor) -> Tensor:
        """See `Code.attacked`."""
        return self.code.attacked(messages, self.state, self.byzantine)


class Conversation(NamedTuple):
    """Messages of a round, or of its first part, and what the code makes of them.

    Attributes:
        collected: the messages.
        decoded: what the code made of them.
        state: what the decoder remembers.
        malformed: workers that sent what is no message.
        broadcast_bytes: bytes that were sent to workers, a copy for each.
        decode_s: seconds that decoding took.
    """

    collected: Collected
    decoded: Decoded
    state: tuple[Tensor, ...]
    malformed: list[int]
    broadcast_bytes: int
    decode_s: float

    @property
    def suspects(self) -> list[int]:
        """Workers that are Byzantine for certain."""
        return sorted({*self.decoded.suspects.nonzero().flatten().tolist(), *self.malformed})

    def received(self, job: Job, step: int) -> Received:
        """The same for a server step."""
        return Received(
            self.decoded.gradient,
            self.collected.messages,
            self.collected.arrived & ~self.decoded.suspects,
            job.weights(step) if job.round.aggregation is None else None,
            job.clients(step),
            job.num_clients,
            isinstance(job.round.code, Uncoded),
        )


def converse(
    session: Session,
    job: Job,
    step: int,
    broadcast: Broadcast,
    memory: ExchangeMemory | None = None,
    state: tuple[Tensor, ...] | None = None,
    out: Collection[int] = (),
    remembered: Mapping[int, WorkerState] | None = None,
    *,
    preparing: bool = False,
) -> Conversation:
    """Sends a broadcast, and decodes what comes back.

    Args:
        session: the workers.
        job: what they take part in; `Job.preparing` if this is what they compute first.
        step: the round.
        broadcast: what they are sent.
        memory: of the exchange in the round before.
        state: what the decoder remembers; None if it remembers nothing yet.
        out: workers that are excluded.
        remembered: what clients remember, by client, if they change places.
        preparing: whether this is what workers compute first; of which nothing is remembered.
    """
    code = job.round.code
    lent = None
    if remembered is not None:
        lent = {i: remembered.get(client, {}) for i, client in enumerate(job.clients(step))}
    if state is None:
        dim = job.sent.dim
        state = code.init(dim, dtype=job.layout.dtype, device=broadcast.parameters.device)
    if job.round.aggregation is not None:
        return _by_protocol(session, job, step, broadcast, memory, state, lent, preparing=preparing)
    if (weights := job.weights(step)) is not None:
        code = code.weighing(weights.tolist())
    rule = _rule(job, code.excluding(len(out)), state, step)
    collected = exchange(
        session, job, step, broadcast, memory, rule, out, lent, preparing=preparing
    )
    messages_in = time.perf_counter()
    malformed = [worker for worker, why in collected.missing.items() if why in _MALFORMED]
    # Who sends what is no message is one Byzantine worker fewer among the others, as who sends
    # NaN is.
    code = code.excluding(len(out) + len(malformed))
    with telling(collected.failures):
        decoded, state = code.update(collected.messages, collected.arrived, state)
    tensors = [broadcast.parameters, *broadcast.extra.values()]
    sent = sum(one.nbytes for one in tensors) * (code.num_workers - len(out))
    decode_s = time.perf_counter() - messages_in
    return Conversation(collected, decoded, state, malformed, sent, decode_s)


def _by_protocol(
    session: Session,
    job: Job,
    step: int,
    broadcast: Broadcast,
    memory: ExchangeMemory | None,
    state: tuple[Tensor, ...],
    lent: Mapping[int, WorkerState] | None,
    *,
    preparing: bool,
) -> Conversation:
    """The same by an aggregation protocol: there are no messages one by one."""
    protocol, code = job.round.aggregation, job.round.code
    assert protocol is not None
    memory, began, number = memory or ExchangeMemory(), time.perf_counter(), code.num_workers
    past = memory.attack.past
    first = RoundTask(step, broadcast, roles(job, step), past, lent, preparing)
    policy = session.policy.for_code(code.can_decode) if session.policy is not None else None
    waiting = Waiting(policy, memory.waiting)
    phases = ProtocolSession(session, protocol, first, number, waiting, preparing=preparing)
    with telling(phases.failures):
        found = protocol.gather(
            phases.ask, step=step, preparing=preparing, num_workers=number, width=job.sent.dim
        )
    missing = {**found.missing, **phases.missing}
    missing = {one: why for one, why in sorted(missing.items()) if not found.counted[one]}
    here = broadcast.parameters
    collected = Collected(
        here.new_empty(number, 0),
        found.counted,
        torch.full((number,), found.loss, dtype=torch.float64),
        missing,
        phases.seconds,
        ExchangeMemory(memory.attack.following(job, broadcast), phases.waiting.memory),
        phases.virtual_s,
        phases.message_bytes,
        phases.failures,
        {worker: one for worker, one in phases.states.items() if found.counted[worker]},
    )
    malformed = {worker for worker, why in phases.missing.items() if why in _MALFORMED}
    marked = sorted(malformed | set(found.marked))
    nobody = torch.zeros(number, dtype=torch.bool)
    decoded = Decoded(found.update.to(here), nobody, 0.0, saturated=found.saturated)
    sent = sum(one.nbytes for one in [here, *broadcast.extra.values()]) * number
    took = time.perf_counter() - began - phases.seconds
    return Conversation(collected, decoded, state, marked, sent + phases.request_bytes, took)


def traffic(main: Conversation, first: Conversation | None) -> Mapping[str, Any]:
    """Bytes of a round, up and down, without what a transport adds."""
    both = [main] if first is None else [first, main]
    return {
        "message_bytes": sum(one.collected.message_bytes for one in both),
        "broadcast_bytes": sum(one.broadcast_bytes for one in both),
    }


def _rule(job: Job, code: Code, state: tuple[Tensor, ...], step: int) -> Rule | None:
    """The decoder as a rule, for simulated attacks that know it; None under an exact code."""
    if job.round.attack is None or code.exact:
        return None
    return KnownRule(code, state, tuple(job.conduct(step)))
