"""The model server of secure aggregation: it learns the aggregate, and no distances."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from phalanx.errors import ServerLostError
from phalanx.privacy.secure_aggregation import fixed_point, protocol
from phalanx.privacy.secure_aggregation.messages import (
    DealRequest,
    DistanceShares,
    MalformedMessageError,
    MaskedShares,
    Message,
    ModelServerDeal,
    OpenRequest,
    OpenRound,
    Participants,
    Receipt,
    SeedShare,
    SumRequest,
    SumShare,
    WeightedShare,
)
from phalanx.privacy.secure_aggregation.protocol import SecureSetup
from phalanx.privacy.secure_aggregation.server import Server, ServerView, Uploads, known
from phalanx.privacy.secure_aggregation.transport import (
    Connection,
    Keys,
    Peer,
    UnexpectedMessageError,
)


@dataclass(frozen=True)
class ModelServerView(ServerView):
    """Knowledge of the model server about a round.

    There is no field for a distance, a weight or a verdict: they never get here.
    """

    seeds: Mapping[int, bytes] = field(default_factory=lambda: MappingProxyType({}))
    """What workers sent, by their ids."""
    deal: ModelServerDeal | None = None
    """Its part of the correlated randomness."""
    answer: WeightedShare | SumShare | None = None
    """What the worker server sent last."""
    aggregate: Float[Tensor, " dim"] | None = None
    """The outcome of the round."""

    def receive(self, share: SeedShare) -> "ModelServerView":
        """Takes a worker's share in; one that is malformed, or a second one, marks its sender."""
        first = self.seeds.get(share.worker, share.seed)
        if len(share.seed) != protocol.SEED_BYTES or share.seed != first:
            return self.mark(share.worker)
        if share.round != self.round or not self.setup.has(share.worker):
            return self
        seeds = MappingProxyType({**self.seeds, share.worker: share.seed})
        return replace(self, seeds=seeds)

    def participants(self) -> Participants:
        """Whose shares have arrived."""
        return Participants(self.round, tuple(sorted(self.seeds)), tuple(sorted(self.marked)))

    def mask(
        self, common: Participants, deal: ModelServerDeal
    ) -> tuple["ModelServerView", MaskedShares]:
        """Its shares of the messages of those who are in the round, less those of the masks."""
        masks = protocol.mask_shares(deal.seed, self.setup)
        view = replace(self, workers=common.workers, deal=deal, masks=masks)
        return view, MaskedShares(self.round, view.shares() - masks[list(common.workers)])

    def measure(
        self, own: MaskedShares, other: MaskedShares
    ) -> tuple["ModelServerView", DistanceShares]:
        """Its shares of what the worker server is to learn, once the masked messages are open."""
        deal, masks = known(self.deal), known(self.masks)
        rows = list(self.workers)
        masked = own.rows + other.rows
        # With x = e + a: <x, y> = <e, e'> + <e, a'> + <a, e'> + <a, a'>. Distances add <x, y> and
        # <y, x>, so twice <e, a'> does for both; only this server adds <e, e'>.
        shares = fixed_point.inner_products(masked, masked + 2 * masks[rows])
        shares += protocol.dealt_words(deal.seed, "products", self.setup)[rows][:, rows]
        sums = fixed_point.signed_sums(deal.seed, masked)
        sums += protocol.dealt_words(deal.seed, "sums", self.setup)[rows]
        pairs = fixed_point.pair_distances(shares)
        return replace(self, masked=masked), DistanceShares(self.round, pairs, sums[1:] - sums[:1])

    def open(self, answer: WeightedShare) -> "ModelServerView":
        """The weighted sum of the messages, from the shares of both servers."""
        deal, masks = known(self.deal), known(self.masks)
        hidden = protocol.dealt_words(deal.seed, "weighted", self.setup)
        total = answer.values + answer.offsets @ masks + hidden
        aggregate = fixed_point.decode(total >> answer.shift, answer.divisor, self.setup)
        return replace(self, answer=answer, aggregate=aggregate)

    def open_sum(self, common: Participants, answer: SumShare) -> "ModelServerView":
        """The mean of the messages of those who are in the round, from the shares of both."""
        view = replace(self, workers=common.workers, answer=answer)
        total = answer.values + view.shares().sum(dim=0)
        return replace(view, aggregate=fixed_point.decode(total, len(common.workers), self.setup))

    def shares(self) -> Int64[Tensor, "present dim"]:
        """Its shares of the messages of those who are in the round."""
        rows = torch.empty(len(self.workers), self.setup.dim, dtype=torch.int64)
        for row, worker in zip(rows, self.workers, strict=True):
            row.copy_(protocol.expand(self.seeds[worker], "message", self.setup.dim))
        return rows


class ModelServer(Server):
    """The model server over gRPC: it collects the workers' seeds and leads every round.

    It starts last, and asks dealer and worker server which round is the next: so one that takes the
    place of another goes on where that one stopped. A round of which the worker server has shares
    already is over then, since new shares of a message would contradict them.

    Args:
        setup: the public parameters.
        keys: how workers make themselves known; see `fresh_keys`.
        worker_server: the other server.
        dealer: the source of correlated randomness; None for the plain sum, where the other
            server's rule is `Mean`.
        address: where to listen; port 0 takes any.
        timeout_s: how long to wait for an answer of the other server, which itself may wait for
            vectors, or of the dealer.
        credentials: of `grpc.ssl_server_credentials`; not encrypted, on this machine only, if None.
        plain: do not encrypt, wherever it listens.

    Raises:
        ValueError: if a key is missing, too short or used twice.
        ServerLostError: if the other server or the dealer does not answer in time.
    """

    _name = "model server"

    def __init__(
        self,
        setup: SecureSetup,
        keys: Keys,
        worker_server: Peer,
        dealer: Peer | None,
        address: str = "localhost:0",
        *,
        timeout_s: float = 60.0,
        credentials: Any = None,
        plain: bool = False,
    ) -> None:
        self._timeout_s = timeout_s
        self._worker_server = Connection(setup, worker_server)
        self._dealer = None if dealer is None else Connection(setup, dealer)
        self._uploads = Uploads(lambda round: ModelServerView(setup, round))
        self.round = 0
        """The round that is open."""
        peers = {"worker server": worker_server, "dealer": dealer}
        super().__init__(setup, keys, address, credentials, plain, timeout_s, self._uploads, peers)
        try:
            for connection in filter(None, (self._dealer, self._worker_server)):
                answer = connection.ask(OpenRequest(self.round), OpenRound, timeout_s)
                self.round = self._uploads.skip(answer.next, used=False)
        except BaseException:
            self.close()
            raise

    def aggregate(self, deadline_s: float) -> Float[Tensor, " dim"]:
        """The aggregate of the round that is open; whatever comes of it, the next is opened.

        Args:
            deadline_s: how long to wait for the workers; less if all are there earlier.

        Returns:
            The aggregate of those whose shares reached both servers, float64.

        Raises:
            ServerLostError: if the other server or the dealer dies, or does not answer in time.
            DecodeError: if too few workers are in the round, or too many of them sent nonsense.
        """
        everybody = set(range(self._setup.num_workers))
        self._uploads.wait_for(
            lambda view: everybody <= set(view.seeds) | view.marked, self.round, deadline_s
        )
        view: ModelServerView = self._uploads.finish(self.round)
        self.round += 1
        try:
            return self._led(view)
        except (MalformedMessageError, UnexpectedMessageError) as error:
            raise ServerLostError(f"the servers are not in step: {error}") from error

    def close(self) -> None:
        """Stops listening, and ends its connections."""
        super().close()
        for connection in (self._worker_server, self._dealer):
            if connection is not None:
                connection.close()

    def _led(self, view: ModelServerView) -> Float[Tensor, " dim"]:
        other, timeout_s = self._worker_server, self._timeout_s
        common = other.ask(view.participants(), Participants, timeout_s)
        if not set(common.workers) <= set(view.seeds):
            raise ServerLostError(f"{other.address} names workers who sent nothing")
        if self._dealer is None:
            total = other.ask(SumRequest(view.round), SumShare, timeout_s)
            return known(view.open_sum(common, total).aggregate)
        deal = self._dealer.ask(DealRequest(view.round), ModelServerDeal, timeout_s)
        view, mine = view.mask(common, deal)
        theirs = other.ask(mine, MaskedShares, timeout_s, len(common.workers))
        view, distances = view.measure(mine, theirs)
        weighted = other.ask(distances, WeightedShare, timeout_s)
        return known(view.open(weighted).aggregate)

    def _admits(self, name: str, kind: type[Any]) -> bool:
        return kind is SeedShare

    def _answer(self, name: str, share: Message) -> Message:
        if not isinstance(share, SeedShare):
            raise UnexpectedMessageError(f"{type(share).__name__} is nothing for the model server")
        self._uploads.take(name, share)
        return Receipt(share.round)
