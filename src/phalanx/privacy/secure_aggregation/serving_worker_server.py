"""The worker server as a process."""

import logging
import threading
import time
from typing import Any

from phalanx.aggregation import Aggregate, Aggregator, Mean, require_distances_only
from phalanx.errors import ServerLostError
from phalanx.privacy.secure_aggregation.dealer import RoundLedger
from phalanx.privacy.secure_aggregation.entropy import Entropy, from_system
from phalanx.privacy.secure_aggregation.messages import (
    DealRequest,
    DistanceShares,
    MaskedShares,
    Message,
    Receipt,
    Roll,
    SumRequest,
    VectorShare,
    WorkerServerDeal,
)
from phalanx.privacy.secure_aggregation.setup import SecureSetup
from phalanx.privacy.secure_aggregation.transport import (
    Door,
    Keys,
    Line,
    NotNowError,
    Peer,
)
from phalanx.privacy.secure_aggregation.uploads import Uploads
from phalanx.privacy.secure_aggregation.worker_server import WorkerServerView

_LOG = logging.getLogger(__name__)
_STEPS = (Roll, MaskedShares, DistanceShares, SumRequest)


class WorkerServer:
    """Collects the workers' vectors and does its part of every round when the other server asks.

    It answers only: the model server leads. If that one falls silent in the middle of a round, the
    round is forgotten, and `check` says so.

    Args:
        setup: what everybody agreed on.
        rule: what runs on the distances.
        keys: how workers and the model server make themselves known; see `fresh_keys`.
        dealer: where correlated randomness comes from; None for `Mean`, which needs none.
        address: where to listen; port 0 takes any.
        timeout_s: how long to wait for vectors whose seeds the other server has, for the dealer,
            and for the next step of a round.
        credentials: of `grpc.ssl_server_credentials`; not encrypted, on this machine only, if None.
        plain: do not encrypt, wherever it listens.
        entropy: where secrets come from.

    Raises:
        ValueError: if the rule needs more than distances.
    """

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
        entropy: Entropy = from_system,
    ) -> None:
        require_distances_only(rule)
        if dealer is None and not isinstance(rule, Mean):
            raise ValueError(f"dealer must be given unless the rule is Mean, got rule {rule}")
        self._setup, self._rule, self._entropy = setup, rule, entropy
        self._timeout_s = timeout_s
        self._state = rule.init(0)
        self._dealer = None if dealer is None else Line(setup, dealer)
        self._ledger, self._step_lock = RoundLedger(), threading.Lock()
        self._view: WorkerServerView | None = None
        self._heard_s = time.monotonic()
        self._uploads = Uploads(lambda round: WorkerServerView(setup, round))
        self._door = Door(
            setup,
            keys,
            address,
            self._answer,
            admits=lambda name, kind: kind in (_STEPS if name == "model server" else [VectorShare]),
            present=lambda: 0 if self._view is None else len(self._view.workers),
            malformed=self._uploads.mark,
            patience_s=timeout_s,
            credentials=credentials,
            plain=plain,
        )
        self.verdict: Aggregate | None = None
        """Weights, scores and suspects of the last round."""

    @property
    def address(self) -> str:
        """Where it listens."""
        return self._door.address

    def check(self) -> None:
        """Notices a model server that fell silent in the middle of a round.

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
        """Stops."""
        self._door.close()
        if self._dealer is not None:
            self._dealer.close()

    def _answer(self, name: str, message: Message) -> Message:
        if isinstance(message, VectorShare):
            self._uploads.take(name, message)
            return Receipt(message.round)
        with self._step_lock:
            self._heard_s = time.monotonic()
            answer = self._called(message) if isinstance(message, Roll) else self._step(message)
            self._heard_s = time.monotonic()
            return answer

    def _called(self, roll: Roll) -> Roll:
        """Closes the uploads of a round, once those that the other server has are here, too."""
        self._ledger.spend(roll.round)
        self._uploads.wait_for(
            lambda view: set(roll.workers) <= set(view.vectors) | view.marked | set(roll.marked),
            roll.round,
            self._timeout_s,
        )
        view: WorkerServerView = self._uploads.finish(roll.round)
        self._view, common = view.call(roll)
        return common

    def _step(self, message: Message) -> Message:
        view = self._view
        if view is None or message.round != view.round:
            raise NotNowError(f"round {message.round} is not going on")
        try:
            return self._stepped(view, message)
        except Exception:
            self._view = None
            raise

    def _stepped(self, view: WorkerServerView, message: Message) -> Message:
        if isinstance(message, MaskedShares) and view.masked is None:
            self._view, masked = view.mask(message, self._deal(view.round))
            return masked
        if isinstance(message, DistanceShares) and view.masked is not None:
            done, weighted, self._state = view.weigh(
                message, self._rule, self._state, self._entropy
            )
            self._view, self.verdict = None, done.verdict
            return weighted
        if isinstance(message, SumRequest) and isinstance(self._rule, Mean):
            done, total = view.add_up()
            self._view, self.verdict = None, done.verdict
            return total
        raise NotNowError(f"{type(message).__name__} is not the next step of round {view.round}")

    def _deal(self, round: int) -> WorkerServerDeal:
        if self._dealer is None:
            raise NotNowError("there is no dealer")
        part = self._dealer.ask(DealRequest(round), self._timeout_s)
        if not isinstance(part, WorkerServerDeal) or part.round != round:
            raise ServerLostError(f"{self._dealer.address} deals something else")
        return part
