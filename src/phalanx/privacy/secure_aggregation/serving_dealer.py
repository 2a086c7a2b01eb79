"""The dealer as a process."""

import threading
from typing import Any

from phalanx.privacy.secure_aggregation.dealer import RoundLedger, deal
from phalanx.privacy.secure_aggregation.entropy import Entropy, from_system
from phalanx.privacy.secure_aggregation.messages import (
    DealRequest,
    Message,
)
from phalanx.privacy.secure_aggregation.setup import SecureSetup
from phalanx.privacy.secure_aggregation.transport import Door, Keys, RoundOverError


class Dealer:
    """Deals correlated randomness to both servers, every part once.

    It sees no share and no message, but it knows all masks: it must not collude with anybody, and
    should run where neither server's operator can look.

    Args:
        setup: what everybody agreed on.
        keys: how the two servers make themselves known; see `fresh_keys`.
        address: where to listen; port 0 takes any.
        credentials: of `grpc.ssl_server_credentials`; not encrypted, on this machine only, if None.
        plain: do not encrypt, wherever it listens.
        entropy: where secrets come from.
    """

    def __init__(
        self,
        setup: SecureSetup,
        keys: Keys,
        address: str = "localhost:0",
        *,
        credentials: Any = None,
        plain: bool = False,
        entropy: Entropy = from_system,
    ) -> None:
        self._setup, self._entropy = setup, entropy
        self._lock = threading.Lock()
        self._round = -1
        self._parts: dict[str, Message] = {}
        self._ledgers = {"model server": RoundLedger(), "worker server": RoundLedger()}
        self._door = Door(
            setup,
            keys,
            address,
            self._answer,
            admits=lambda name, kind: name in self._ledgers and kind is DealRequest,
            credentials=credentials,
            plain=plain,
        )

    @property
    def address(self) -> str:
        """Where it listens."""
        return self._door.address

    def close(self) -> None:
        """Stops."""
        self._door.close()

    def _answer(self, name: str, request: Message) -> Message:
        with self._lock:
            self._ledgers[name].spend(request.round)
            if request.round < self._round:
                raise RoundOverError(f"round {request.round} is over, {self._round} is dealt")
            if request.round > self._round:
                one, other = deal(self._setup, request.round, self._entropy)
                self._parts = {"model server": one, "worker server": other}
                self._round = request.round
            return self._parts.pop(name)
