"""Secure aggregation of all parties in one process, as a rule like any other."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.aggregation import Aggregate, Aggregator, Mean, MultiKrum, require_distances_only
from phalanx.privacy.secure_aggregation.client import split
from phalanx.privacy.secure_aggregation.dealer import deal
from phalanx.privacy.secure_aggregation.messages import Message
from phalanx.privacy.secure_aggregation.model_server import ModelServerView
from phalanx.privacy.secure_aggregation.protocol import (
    Entropy,
    SecureSetup,
    seeded_entropy,
    system_entropy,
)
from phalanx.privacy.secure_aggregation.server import known
from phalanx.privacy.secure_aggregation.worker_server import State, WorkerServerView


class Transcript(NamedTuple):
    """Transcript of a round: what both servers saw, and what went between them.

    Attributes:
        model_server: all that it knows, the aggregate included.
        worker_server: all that it knows, distances and the verdict included.
        state: what the rule remembers.
        between: the messages of the dealer and the servers, in their order.
    """

    model_server: ModelServerView
    worker_server: WorkerServerView
    state: State
    between: tuple[Message, ...]

    def aggregate(self) -> Aggregate:
        """The answer of the rule in the clear: the model server's value, the other's verdict.

        No server of a real deployment has both.
        """
        value: Tensor = known(self.model_server.aggregate)
        return known(self.worker_server.verdict)._replace(value=value)


@dataclass(frozen=True)
class SecureAggregation(Aggregator):
    """Secure aggregation: a rule computed by two servers neither of which sees a message.

    Trusted: a third party, the dealer, which hands both servers correlated randomness for every
    rule but `Mean`; and all three to follow the protocol, no two of them together.

    Every message is split into two shares. One server learns the aggregate and nothing else, the
    other the pairwise distances and the weights that follow. Here all parties live in one process,
    so nothing is hidden: for training as it would go, for comparisons and for tests. Real servers
    are in the same room: `WorkerServer`, `Dealer`, `ModelServer`.

    Messages that are not finite, or too long to be shared (see `SecureSetup.max_norm`), are
    suspects and lower by one the number of Byzantine workers still tolerated.

    Guarantee: that of the rule, on messages rounded to multiples of 2^-`fraction_bits`. Where the
    rule's weights are equal (Krum, Multi-Krum, MDA, MoNNA, mixing before Krum) the aggregate is
    exactly that of the rounded messages; weights that differ add at most one more unit, unbiased.
    Scores and suspects: those of the rule, whose suspicion is no proof, see `Aggregate`.
    Cost: of all parties together, 48 n d pseudo-random bytes, which take most of the time, and
    3 n^2 d + 128 n d multiply-adds.
    Source: He, Karimireddy, Jaggi, "Secure Byzantine-Robust Machine Learning", arXiv 2006.04747,
    2020. The range check is not from there.

    >>> import torch
    >>> from phalanx.aggregation import MultiKrum
    >>> from phalanx.privacy import SecureAggregation
    >>> gradients = torch.tensor([[1.0, 5.0], [2.0, 4.0], [2.0, 5.0], [3.0, 6.0], [90.0, -90.0]])
    >>> SecureAggregation(MultiKrum(num_byzantine=1))(gradients)
    tensor([2., 5.])
    """

    rule: Aggregator = MultiKrum(num_byzantine=1)  # noqa: RUF009 - frozen
    """The rule; it must weigh messages by their distances alone."""

    fraction_bits: int = 16
    """Bits after the point: the more of them, the finer the numbers and the shorter the messages
    that are allowed."""

    seed: int = 0
    """Seed of all shares and masks."""

    def __post_init__(self) -> None:
        require_distances_only(self.rule)
        SecureSetup(fraction_bits=self.fraction_bits)

    @property
    def num_byzantine(self) -> int | None:
        """Byzantine workers tolerated (f), as the rule says; None if it does not."""
        return getattr(self.rule, "num_byzantine", None)

    def init(
        self, dim: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> State:
        """The number of the round, and what the rule remembers."""
        return torch.tensor(0), *self.rule.init(dim, dtype=dtype, device=device)

    def num_tolerated(self, num_workers: int) -> int:
        """As many as the rule tolerates.

        Raises:
            ValueError: if the rule cannot work with so few workers.
        """
        return self.rule.num_tolerated(num_workers)

    def with_num_byzantine(self, num_byzantine: int) -> "SecureAggregation":
        """The same with another `num_byzantine` in the rule."""
        rule = self.rule.with_num_byzantine(num_byzantine)
        return SecureAggregation(rule, self.fraction_bits, self.seed)

    def judge(
        self, rows: Float[Tensor, "workers dim"], weights: Float[Tensor, " workers"] | None = None
    ) -> Aggregate:
        """The aggregate of stacked messages, and the verdict on every worker."""
        fresh = self.init(rows.shape[1], dtype=rows.dtype, device=rows.device)
        return self._step(rows, fresh, weights)[0]

    def _step(self, rows: Tensor, state: State, weights: Tensor | None) -> tuple[Aggregate, State]:
        """One round on stacked messages: the answer, and the next state.

        Raises:
            ValueError: if there are sample weights: the protocol has no place for them.
        """
        if weights is not None:
            raise ValueError("weights must be None: secure aggregation counts every worker alike")
        transcript = self.run(rows, state)
        answer = transcript.aggregate()
        answer = answer._replace(value=answer.value.to(rows))
        return answer, (state[0] + 1, *transcript.state)

    def run(self, rows: Float[Tensor, "workers dim"], state: State) -> Transcript:
        """One round with everything that the servers see."""
        setup = SecureSetup(len(rows), rows.shape[1], self.fraction_bits)
        self.num_tolerated(len(rows))
        entropy = seeded_entropy(self.seed, "secure aggregation", int(state[0]))
        views = received(setup, int(state[0]), rows, entropy)
        return run_round(*views, self.rule, state[1:], entropy)


def received(
    setup: SecureSetup, round: int, rows: Float[Tensor, "workers dim"], entropy: Entropy
) -> tuple[ModelServerView, WorkerServerView]:
    """What the servers hold once every worker has sent a message, whatever it is.

    Messages that are not finite cannot be written as whole numbers; their senders are marked.
    """
    one, other = ModelServerView(setup, round), WorkerServerView(setup, round)
    for worker, row in enumerate(rows):
        if not torch.isfinite(row).all():
            one, other = one.mark(worker), other.mark(worker)
            continue
        shares = split(row.cpu(), setup, worker, round, entropy)
        one = one.receive(shares.for_model_server)
        other = other.receive(shares.for_worker_server)
    return one, other


def run_round(
    model_server: ModelServerView,
    worker_server: WorkerServerView,
    rule: Aggregator,
    state: State,
    entropy: Entropy = system_entropy,
) -> Transcript:
    """The transcript of a round, given views that hold the uploads already.

    Args:
        model_server: what it received.
        worker_server: what it received.
        rule: one that needs distances only; `Mean` is a plain sum, without dealer or distances.
        state: what the rule remembers.
        entropy: the source of secrets.

    Raises:
        TooManyByzantineError: if more workers are marked or out of range than the rule tolerates.
        DecodeError: if too few workers are in the round for the rule.
    """
    arrived = model_server.participants()
    worker_server, common = worker_server.intersect(arrived)
    if isinstance(rule, Mean):
        worker_server, total = worker_server.add_up()
        model_server = model_server.open_sum(common, total)
        return Transcript(model_server, worker_server, state, (arrived, common, total))
    one, other = deal(model_server.setup, model_server.round, entropy)
    model_server, mine = model_server.mask(common, one)
    worker_server, theirs = worker_server.mask(mine, other)
    model_server, distances = model_server.measure(mine, theirs)
    worker_server, weighted, state = worker_server.weigh(distances, rule, state, entropy)
    between = (one, other, arrived, common, mine, theirs, distances, weighted)
    return Transcript(model_server.open(weighted), worker_server, state, between)
