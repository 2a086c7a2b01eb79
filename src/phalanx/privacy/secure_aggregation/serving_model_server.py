"""The model server as a process: it leads the rounds."""

from typing import Any, TypeVar

from jaxtyping import Float
from torch import Tensor

from phalanx.errors import ServerLostError
from phalanx.privacy.secure_aggregation.messages import (
    DealRequest,
    MaskedShares,
    Message,
    ModelServerDeal,
    Receipt,
    Roll,
    SeedShare,
    SumRequest,
    SumShare,
    WeightedShare,
)
from phalanx.privacy.secure_aggregation.model_server import ModelServerView
from phalanx.privacy.secure_aggregation.setup import SecureSetup
from phalanx.privacy.secure_aggregation.transport import Door, Keys, Line, NotNowError, Peer
from phalanx.privacy.secure_aggregation.uploads import Uploads
from phalanx.privacy.secure_aggregation.views import learnt
from phalanx.privacy.secure_aggregation.wire import MalformedMessageError

Answer = TypeVar("Answer", bound=Message)


class ModelServer:
    """Collects the workers' seeds, leads every round, and learns the aggregate.

    Args:
        setup: what everybody agreed on.
        keys: how workers make themselves known; see `fresh_keys`.
        worker_server: the other server.
        dealer: where correlated randomness comes from; None for the plain sum, where the other
            server's rule is `Mean`.
        address: where to listen; port 0 takes any.
        timeout_s: how long to wait for an answer of the other server, which itself may wait for
            vectors, or of the dealer.
        credentials: of `grpc.ssl_server_credentials`; not encrypted, on this machine only, if None.
        plain: do not encrypt, wherever it listens.
    """

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
        self._setup, self._timeout_s = setup, timeout_s
        self._worker_server = Line(setup, worker_server)
        self._dealer = None if dealer is None else Line(setup, dealer)
        self._uploads = Uploads(lambda round: ModelServerView(setup, round))
        self._door = Door(
            setup,
            keys,
            address,
            self._answer,
            admits=lambda name, kind: kind is SeedShare,
            malformed=self._uploads.mark,
            patience_s=timeout_s,
            credentials=credentials,
            plain=plain,
        )
        self.round = 0
        """The round that is open."""

    @property
    def address(self) -> str:
        """Where it listens."""
        return self._door.address

    def aggregate(self, deadline_s: float) -> Float[Tensor, " dim"]:
        """Ends the round that is open, and opens the next whatever comes of it.

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
        except (MalformedMessageError, NotNowError) as error:
            raise ServerLostError(f"the servers are not in step: {error}") from error

    def close(self) -> None:
        """Stops."""
        self._door.close()
        for line in (self._worker_server, self._dealer):
            if line is not None:
                line.close()

    def _led(self, view: ModelServerView) -> Float[Tensor, " dim"]:
        common = self._asked(self._worker_server, view.roll(), Roll)
        if not set(common.workers) <= set(view.seeds):
            raise ServerLostError(f"{self._worker_server.address} names workers who sent nothing")
        if self._dealer is None:
            total = self._asked(self._worker_server, SumRequest(view.round), SumShare)
            return learnt(view.open_sum(common, total).aggregate)
        deal = self._asked(self._dealer, DealRequest(view.round), ModelServerDeal)
        view, mine = view.mask(common, deal)
        theirs = self._asked(self._worker_server, mine, MaskedShares, len(common.workers))
        view, distances = view.measure(mine, theirs)
        weighted = self._asked(self._worker_server, distances, WeightedShare)
        return learnt(view.open(weighted).aggregate)

    def _asked(self, line: Line, message: Message, kind: type[Answer], present: int = 0) -> Answer:
        """The answer of a server, which must be of this kind and of the same round."""
        answer = line.ask(message, self._timeout_s, present)
        if not isinstance(answer, kind) or answer.round != message.round:
            raise ServerLostError(f"{line.address} answers something else than {kind.__name__}")
        return answer

    def _answer(self, name: str, share: Message) -> Message:
        if not isinstance(share, SeedShare):
            raise NotNowError(f"{type(share).__name__} is nothing for the model server")
        self._uploads.take(name, share)
        return Receipt(share.round)
