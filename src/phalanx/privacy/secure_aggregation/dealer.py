"""The dealer of secure aggregation, which gives both servers correlated randomness in advance."""

import threading
from typing import Any

from phalanx.privacy.secure_aggregation import fixed_point, protocol
from phalanx.privacy.secure_aggregation.messages import (
    DealRequest,
    Message,
    ModelServerDeal,
    OpenRequest,
    OpenRound,
    WorkerServerDeal,
)
from phalanx.privacy.secure_aggregation.protocol import Entropy, SecureSetup, system_entropy
from phalanx.privacy.secure_aggregation.server import Server
from phalanx.privacy.secure_aggregation.transport import Keys, RoundOverError


def deal(
    setup: SecureSetup, round: int, entropy: Entropy = system_entropy
) -> tuple[ModelServerDeal, WorkerServerDeal]:
    """Correlated randomness for one round, which makes products of shared numbers possible.

    Every worker i has a mask a_i, of which each server expands a share from its seed. Shares of
    `<a_i, a_j>`, of the masks' random sums, and of `sum_i u_i a_i` for random weights u_i that the
    worker server expands, add up because that server is given what is missing. Masks exist for all
    ids, so that it does not matter later who is absent.

    Cost: `n d (n + 64)` multiply-adds, and 16 n d pseudo-random bytes. To the model server go 32
    bytes, to the worker server 8 (d + n^2 + 64 n).
    """
    one, other = entropy(protocol.SEED_BYTES), entropy(protocol.SEED_BYTES)
    mask = protocol.mask_shares(one, setup) + protocol.mask_shares(other, setup)
    sums = fixed_point.signed_sums(one, mask) + fixed_point.sum_noise(entropy, setup.num_workers)
    weights = protocol.dealt_words(other, "weights", setup)
    return ModelServerDeal(round, one), WorkerServerDeal(
        round,
        other,
        fixed_point.inner_products(mask, mask) - protocol.dealt_words(one, "products", setup),
        sums - protocol.dealt_words(one, "sums", setup),
        weights @ mask - protocol.dealt_words(one, "weighted", setup),
    )


class Dealer(Server):
    """The dealer as a gRPC server: it gives each server its part of every deal, once.

    It is a third party, and trusted: it sees no share and no message, but it knows all masks, so
    that with what any server sees it knows every message, and a wrong deal spoils aggregates
    unseen. It must not collude with anybody, and should run where neither server's operator can
    look.

    Args:
        setup: the public parameters.
        keys: how the two servers make themselves known; see `fresh_keys`.
        address: where to listen; port 0 takes any.
        credentials: of `grpc.ssl_server_credentials`; not encrypted, on this machine only, if None.
        plain: do not encrypt, wherever it listens.
        entropy: the source of secrets.

    Raises:
        ValueError: if a key is missing, too short or used twice.
    """

    _name = "dealer"

    def __init__(
        self,
        setup: SecureSetup,
        keys: Keys,
        address: str = "localhost:0",
        *,
        credentials: Any = None,
        plain: bool = False,
        entropy: Entropy = system_entropy,
    ) -> None:
        self._entropy, self._deal_lock = entropy, threading.Lock()
        self._round = -1
        self._parts: dict[str, Message] = {}
        self._ledgers = {name: protocol.RoundLedger() for name in ("model server", "worker server")}
        super().__init__(setup, keys, address, credentials, plain)

    def _admits(self, name: str, kind: type[Any]) -> bool:
        return kind is DealRequest or (kind is OpenRequest and name == "model server")

    def _answer(self, name: str, request: Message) -> Message:
        with self._deal_lock:
            if isinstance(request, OpenRequest):
                spent = max(ledger.last for ledger in self._ledgers.values())
                return OpenRound(request.round, max(request.round, spent + 1))
            self._ledgers[name].spend(request.round)
            if request.round < self._round:
                raise RoundOverError(f"round {request.round} is over, {self._round} is dealt")
            if request.round > self._round:
                one, other = deal(self._setup, request.round, self._entropy)
                self._parts = {"model server": one, "worker server": other}
                self._round = request.round
            return self._parts.pop(name)
