"""A worker's connection to both servers."""

import time

from jaxtyping import Float
from torch import Tensor

from phalanx.errors import ServerLostError
from phalanx.privacy.secure_aggregation.client import SecureClient
from phalanx.privacy.secure_aggregation.messages import SeedShare, VectorShare
from phalanx.privacy.secure_aggregation.transport import Line, NotNowError, Peer, RoundOverError


class Uploader:
    """Sends a worker's shares to both servers, and tries again while they are not there yet.

    Args:
        client: who makes the shares.
        model_server: gets the seeds.
        worker_server: gets the vectors.
    """

    def __init__(self, client: SecureClient, model_server: Peer, worker_server: Peer) -> None:
        self._client = client
        self._model_server = Line(client.setup, model_server)
        self._worker_server = Line(client.setup, worker_server)

    def send(self, message: Float[Tensor, "*shape"], round: int, timeout_s: float = 60.0) -> None:
        """Sends the shares of one message.

        Raises:
            ValueError: if the message cannot be shared.
            RoundOverError: if the round is over.
            ServerLostError: if a server does not take its share in time.
        """
        shares = self._client.share(message, round)
        until_s = time.monotonic() + timeout_s
        # The larger part first: the model server closes a round by what it has itself.
        _deliver(self._worker_server, shares.for_worker_server, until_s)
        _deliver(self._model_server, shares.for_model_server, until_s)

    def close(self) -> None:
        """Ends both connections."""
        self._model_server.close()
        self._worker_server.close()


def _deliver(line: Line, share: SeedShare | VectorShare, until_s: float) -> None:
    """Sends a share, again and again while the server is away or the round not open."""
    while True:
        left_s = until_s - time.monotonic()
        try:
            line.ask(share, timeout_s=max(left_s, 0.01))
        except RoundOverError:
            raise
        except (NotNowError, ServerLostError):
            if left_s <= 0:
                raise
        else:
            return
        time.sleep(min(0.2, max(left_s, 0.0)))
