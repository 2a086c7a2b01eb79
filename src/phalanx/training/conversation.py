"""Conversation of a round: what workers are told, what they send, and what is decoded of it."""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from phalanx.attacks import Rule
from phalanx.coding import Code, Decoded, Uncoded
from phalanx.computations import Broadcast
from phalanx.training.engines.base import Session, telling
from phalanx.training.exchange import Collected, ExchangeMemory, exchange
from phalanx.training.job import Job
from phalanx.training.received import Received
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
            job.weights(step),
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
    if state is None:
        dim = job.sent.dim
        state = code.init(dim, dtype=job.layout.dtype, device=broadcast.parameters.device)
    if (weights := job.weights(step)) is not None:
        code = code.weighing(weights.tolist())
    rule = _rule(job, code.excluding(len(out)), state, step)
    lent = None
    if remembered is not None:
        lent = {i: remembered.get(client, {}) for i, client in enumerate(job.clients(step))}
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
