"""The worker server of secure aggregation: it learns distances, and never the aggregate."""

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from phalanx.aggregation import Aggregate, Aggregator, Mean, require_distances_only, weigh_distances
from phalanx.errors import DecodeError, ServerLostError, TooManyByzantineError
from phalanx.privacy.secure_aggregation import fixed_point, protocol
from phalanx.privacy.secure_aggregation.messages import (
    DealRequest,
    DistanceShares,
    MaskedShares,
    Message,
    OpenRequest,
    OpenRound,
    Participants,
    Receipt,
    SumRequest,
    SumShare,
    VectorShare,
    WeightedShare,
    WorkerServerDeal,
)
from phalanx.privacy.secure_aggregation.protocol import Entropy, SecureSetup, system_entropy
from phalanx.privacy.secure_aggregation.server import Server, ServerView, Uploads, known
from phalanx.privacy.secure_aggregation.transport import (
    Connection,
    Keys,
    Peer,
    UnexpectedMessageError,
)

State = tuple[Tensor, ...]

_LOG = logging.getLogger(__name__)
_STEPS = (OpenRequest, Participants, MaskedShares, DistanceShares, SumRequest)


@dataclass(frozen=True)
class WorkerServerView(ServerView):
    """Knowledge of the worker server about a round.

    There is no field for the aggregate: it never gets here.
    """

    vectors: Mapping[int, Int64[Tensor, " dim"]] = field(
        default_factory=lambda: MappingProxyType({})
    )
    """What workers sent, by their ids: uniform noise."""
    deal: WorkerServerDeal | None = None
    """Its part of the correlated randomness."""
    squared_distances: Float[Tensor, "present present"] | None = None
    """Squared distances of those who are in the round, opened."""
    sums: Int64[Tensor, "present sums"] | None = None
    """Random sums of their messages in noise, less those of the first, opened."""
    verdict: Aggregate | None = None
    """The rule's weights, scores and suspects of all workers; no value. Suspects are who failed the
    range check, and without proof whom the rule left out."""

    def receive(self, share: VectorShare) -> "WorkerServerView":
        """Takes a worker's share in; one that is malformed, or a second one, marks its sender."""
        first = self.vectors.get(share.worker, share.values)
        if share.values.shape != (self.setup.dim,) or not torch.equal(share.values, first):
            return self.mark(share.worker)
        if share.round != self.round or not self.setup.has(share.worker):
            return self
        vectors = MappingProxyType({**self.vectors, share.worker: share.values})
        return replace(self, vectors=vectors)

    def intersect(self, other: Participants) -> tuple["WorkerServerView", Participants]:
        """Who is in the round: whose shares reached both servers, both well-formed.

        Raises:
            DecodeError: if that is nobody.
        """
        marked = self.marked | set(other.marked)
        workers = tuple(sorted(set(other.workers) & set(self.vectors) - marked))
        if not workers:
            absent = list(range(self.setup.num_workers))
            raise DecodeError("no worker's shares reached both servers", workers=absent, bound=0)
        view = replace(self, workers=workers, marked=marked)
        return view, Participants(self.round, workers, tuple(sorted(marked)))

    def mask(
        self, other: MaskedShares, deal: WorkerServerDeal
    ) -> tuple["WorkerServerView", MaskedShares]:
        """Its shares of the messages less the masks, opened by those of the other server."""
        masks = protocol.mask_shares(deal.seed, self.setup)
        own = self.shares() - masks[list(self.workers)]
        view = replace(self, deal=deal, masks=masks, masked=own + other.rows)
        return view, MaskedShares(self.round, own)

    def weigh(
        self, shares: DistanceShares, rule: Aggregator, state: State, entropy: Entropy
    ) -> tuple["WorkerServerView", WeightedShare, State]:
        """Its share of the weighted sum, for the weights that the rule gives opened distances.

        Raises:
            TooManyByzantineError: if more workers are marked or out of range than the rule
                tolerates.
            DecodeError: if too few workers are in the round for the rule.
        """
        view = self._opened(shares)
        verdict, state = view._judged(rule, state, fixed_point.in_range(known(view.sums)))
        view = replace(view, verdict=verdict)
        return view, view._weighted(entropy), state

    def add_up(self) -> tuple["WorkerServerView", SumShare]:
        """Its share of the plain sum.

        Raises:
            TooManyByzantineError: if anybody is marked; the plain sum tolerates nobody.
        """
        view = replace(self, squared_distances=torch.zeros(2 * (len(self.workers),)).double())
        verdict, _ = view._judged(Mean(), (), torch.ones(len(self.workers), dtype=torch.bool))
        view = replace(self, verdict=verdict)
        return view, SumShare(self.round, self.shares().sum(dim=0))

    def shares(self) -> Int64[Tensor, "present dim"]:
        """Its shares of the messages of those who are in the round."""
        return torch.stack([self.vectors[worker] for worker in self.workers])

    def _opened(self, shares: DistanceShares) -> "WorkerServerView":
        deal, masks, masked = known(self.deal), known(self.masks), known(self.masked)
        rows = list(self.workers)
        own = 2 * fixed_point.inner_products(masked, masks[rows]) + deal.products[rows][:, rows]
        pairs = fixed_point.pair_distances(own) + shares.pairs
        squared = fixed_point.symmetric(fixed_point.decode_squares(pairs, self.setup), len(rows))
        sums = torch.zeros_like(deal.sums[rows])
        sums[1:] = deal.sums[rows[1:]] - deal.sums[rows[:1]] + shares.differences
        return replace(self, squared_distances=squared, sums=sums)

    def _judged(
        self, rule: Aggregator, state: State, fine: Bool[Tensor, " present"]
    ) -> tuple[Aggregate, State]:
        """The rule's verdict on those whose messages are in range."""
        bad = self.marked | {who for who, kept in zip(self.workers, fine, strict=True) if not kept}
        present = torch.zeros(self.setup.num_workers, dtype=torch.bool)
        present[list(self.workers)] = fine
        bound = self._bound(rule, sorted(bad))
        squared = known(self.squared_distances)[fine][:, fine]
        verdict, state = weigh_distances(rule, squared, bound - len(bad), state, present)
        suspects = verdict.suspects & present  # who is merely absent is no suspect
        suspects[sorted(bad)] = True
        return verdict._replace(suspects=suspects), state

    def _bound(self, rule: Aggregator, bad: list[int]) -> int:
        """How many unusable messages the rule tolerates among those who sent anything."""
        heard = set(self.workers) | set(bad)
        absent = [who for who in range(self.setup.num_workers) if who not in heard]
        try:
            bound = rule.num_tolerated(len(heard))
        except ValueError as error:
            raise DecodeError(
                f"too few shares for {rule}: {error}; missing: {absent}", workers=absent, bound=0
            ) from error
        if len(bad) > bound:
            raise TooManyByzantineError(
                f"shares of workers {bad} are malformed or out of range; {rule} tolerates at most "
                f"{bound}",
                workers=bad,
                bound=bound,
            )
        return bound

    def _weighted(self, entropy: Entropy) -> WeightedShare:
        """Its share of the weighted sum, for the verdict's weights."""
        deal, masks, masked = known(self.deal), known(self.masks), known(self.masked)
        weights, shift, divisor = fixed_point.integer_weights(known(known(self.verdict).weights))
        offsets = weights - protocol.dealt_words(deal.seed, "weights", self.setup)
        # With x = e + a: sum p x = sum p e + sum (p - u) a + sum u a, with absent workers' p = 0.
        values = weights[list(self.workers)] @ masked + offsets @ masks + deal.weighted
        if shift:
            # Whoever knows a sum with weights of many digits to the last one may find the parts.
            # Noise below one unit makes it the same sum, rounded at random and without bias.
            dither = protocol.expand(entropy(protocol.SEED_BYTES), "dither", self.setup.dim)
            values += dither & ((1 << shift) - 1)
        return WeightedShare(self.round, offsets, values, shift, divisor)


class WorkerServer(Server):
    """The worker server over gRPC: it collects the workers' vectors and runs the rule.

    It answers only: the model server leads. If that one falls silent in the middle of a round, the
    round is forgotten, and `check` says so.

    Args:
        setup: the public parameters.
        rule: the rule that runs on the distances.
        keys: how workers and the model server make themselves known; see `fresh_keys`.
        dealer: the source of correlated randomness; None for `Mean`, which needs none.
        address: where to listen; port 0 takes any.
        timeout_s: how long to wait for vectors whose seeds the other server has, for the dealer,
            and for the next step of a round.
        credentials: of `grpc.ssl_server_credentials`; not encrypted, on this machine only, if None.
        plain: do not encrypt, wherever it listens.
        entropy: the source of secrets.

    Raises:
        ValueError: if the rule needs more than distances, or a key is missing, too short or used
            twice.
    """

    _name = "worker server"

    def __init__(
        self,
        setup: SecureSetup,
        rule: Aggregator,
        keys: Keys,
        dealer: Peer | None,
        address: str = "localhost:0",
        *,
        timeout_s: float = 30.0,
        credentials: Any = None,
        plain: bool = False,
        entropy: Entropy = system_entropy,
    ) -> None:
        require_distances_only(rule)
        if dealer is None and not isinstance(rule, Mean):
            raise ValueError(f"dealer must be given unless the rule is Mean, got rule {rule}")
        self._rule, self._entropy, self._timeout_s = rule, entropy, timeout_s
        self._state = rule.init(0)
        self._dealer = None if dealer is None else Connection(setup, dealer)
        self._ledger, self._step_lock = protocol.RoundLedger(), threading.Lock()
        self._view: WorkerServerView | None = None
        self._led = False  # whether a model server has spoken
        self._heard_s = time.monotonic()
        self._uploads = Uploads(lambda round: WorkerServerView(setup, round))
        self.verdict: Aggregate | None = None
        """Weights, scores and suspects of the last round."""
        super().__init__(
            setup,
            keys,
            address,
            credentials,
            plain,
            timeout_s,
            self._uploads,
            {"dealer": dealer},
        )

    def check(self) -> None:
        """A check for a model server that fell silent in the middle of a round.

        Raises:
            ServerLostError: then, once; the round is forgotten.
        """
        with self._step_lock:
            silent_s = time.monotonic() - self._heard_s
            if self._view is not None and silent_s > self._timeout_s:
                round, self._view = self._view.round, None
                raise ServerLostError(
                    f"the model server said nothing for {silent_s:.0f} s in round {round}"
                )

    def serve(self) -> None:
        """Serves for ever; logs what `check` notices."""
        while True:
            time.sleep(min(1.0, self._timeout_s))
            try:
                self.check()
            except ServerLostError as error:
                _LOG.warning("%s", error)

    def close(self) -> None:
        """Stops listening, and ends its connection."""
        super().close()
        if self._dealer is not None:
            self._dealer.close()

    def _admits(self, name: str, kind: type[Any]) -> bool:
        return kind in (_STEPS if name == "model server" else [VectorShare])

    def _num_present(self) -> int:
        view = self._view
        return 0 if view is None else len(view.workers)

    def _answer(self, name: str, message: Message) -> Message:
        if isinstance(message, VectorShare):
            self._uploads.take(name, message)
            return Receipt(message.round)
        with self._step_lock:
            self._heard_s = time.monotonic()
            led, self._led = self._led, True
            if isinstance(message, OpenRequest):
                answer: Message = self._open(message, led)
            elif isinstance(message, Participants):
                answer = self._start(message)
            else:
                answer = self._step(message)
            self._heard_s = time.monotonic()
            return answer

    def _open(self, request: OpenRequest, led: bool) -> OpenRound:
        """Opens a round for a model server that starts; what another one led is over."""
        self._view = None
        opened = self._uploads.skip(request.round, used=led)
        self._ledger.last = max(self._ledger.last, opened - 1)
        return OpenRound(request.round, opened)

    def _start(self, other: Participants) -> Participants:
        """Closes the uploads of a round, once those that the other server has are here, too."""
        self._ledger.spend(other.round)
        self._uploads.wait_for(
            lambda view: set(other.workers) <= set(view.vectors) | view.marked | set(other.marked),
            other.round,
            self._timeout_s,
        )
        view: WorkerServerView = self._uploads.finish(other.round)
        self._view, common = view.intersect(other)
        return common

    def _step(self, message: Message) -> Message:
        view = self._view
        if view is None or message.round != view.round:
            raise UnexpectedMessageError(f"round {message.round} is not going on")
        self._view = None  # whatever goes wrong ends the round
        return self._stepped(view, message)

    def _stepped(self, view: WorkerServerView, message: Message) -> Message:
        if isinstance(message, MaskedShares) and view.masked is None:
            self._view, masked = view.mask(message, self._deal(view.round))
            return masked
        if isinstance(message, DistanceShares) and view.masked is not None:
            done, weighted, self._state = view.weigh(
                message, self._rule, self._state, self._entropy
            )
            self.verdict = done.verdict
            return weighted
        if isinstance(message, SumRequest) and isinstance(self._rule, Mean):
            done, total = view.add_up()
            self.verdict = done.verdict
            return total
        raise UnexpectedMessageError(
            f"{type(message).__name__} is not the next step of round {view.round}"
        )

    def _deal(self, round: int) -> WorkerServerDeal:
        if self._dealer is None:
            raise UnexpectedMessageError("there is no dealer")
        return self._dealer.ask(DealRequest(round), WorkerServerDeal, self._timeout_s)
