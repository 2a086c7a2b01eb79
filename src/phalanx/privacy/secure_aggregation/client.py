"""The client of secure aggregation: a worker's message in two shares, and their upload."""

import time
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from phalanx.errors import ServerLostError
from phalanx.privacy.noise import standard_normal
from phalanx.privacy.secure_aggregation.fixed_point import encode, require_encodable
from phalanx.privacy.secure_aggregation.messages import Receipt, SeedShare, VectorShare
from phalanx.privacy.secure_aggregation.protocol import (
    SEED_BYTES,
    Entropy,
    SecureSetup,
    expand,
    system_entropy,
)
from phalanx.privacy.secure_aggregation.transport import (
    Connection,
    Peer,
    RoundOverError,
    UnexpectedMessageError,
)


class Shares(NamedTuple):
    """The two shares of a worker's message in a round.

    Attributes:
        for_model_server: 32 bytes.
        for_worker_server: as many words as the message has numbers.
    """

    for_model_server: SeedShare
    for_worker_server: VectorShare


@dataclass(frozen=True)
class SecureClient:
    """A worker's secret sharing of its messages; a share alone tells either server nothing.

    With `noise_std` the message is also noisy before it is split, so that even distances and the
    aggregate say little about it (local differential privacy): replacing
    one message by another is a release of sensitivity `2 clip_norm` for an `Accountant`.

    >>> import torch
    >>> from phalanx.privacy import SecureClient, SecureSetup
    >>> client = SecureClient(SecureSetup(num_workers=3, dim=2), worker=1)
    >>> client.share(torch.tensor([0.5, -1.0]), round=0).for_worker_server.values.shape
    torch.Size([2])
    """

    setup: SecureSetup = SecureSetup()  # noqa: RUF009 - frozen
    """The public parameters."""

    worker: int = 0
    """This worker's id."""

    clip_norm: float | None = None
    """Longer messages are shortened to this norm; None: they are refused if they are too long."""

    noise_std: float = 0.0
    """Standard deviation of the Gaussian noise on every number of the clipped message."""

    def __post_init__(self) -> None:
        if not self.setup.has(self.worker):
            raise ValueError(
                f"worker must be from 0 to {self.setup.num_workers - 1}, got {self.worker}"
            )
        if self.clip_norm is not None and not 0 < self.clip_norm < self.setup.max_norm:
            raise ValueError(
                f"clip_norm must be above 0 and below {self.setup.max_norm:g}, got {self.clip_norm}"
            )
        if not self.noise_std >= 0:
            raise ValueError(f"noise_std must be at least 0, got {self.noise_std}")
        if self.noise_std and self.clip_norm is None:
            raise ValueError("noise_std needs a clip_norm: noise hides nothing of unknown size")

    def share(
        self, message: Float[Tensor, "*shape"], round: int, entropy: Entropy = system_entropy
    ) -> Shares:
        """The shares of a message, flattened.

        Raises:
            ValueError: if it has another length than agreed, is not finite, or is too long.

        Cost: 8 d pseudo-random bytes; 16 d if there is noise.
        """
        flat = message.detach().flatten().double().cpu()
        if self.clip_norm is not None:
            flat = flat * (self.clip_norm / flat.norm().clamp(min=self.clip_norm))
        if self.noise_std:
            flat = flat + self.noise_std * standard_normal(entropy(SEED_BYTES), "normal", len(flat))
        require_encodable(flat, self.setup)
        return split(flat, self.setup, self.worker, round, entropy)


def split(
    message: Float[Tensor, " dim"], setup: SecureSetup, worker: int, round: int, entropy: Entropy
) -> Shares:
    """The shares of a message without any check, as a Byzantine client may send them."""
    seed = entropy(SEED_BYTES)
    values = encode(message, setup) - expand(seed, "message", len(message))
    return Shares(SeedShare(round, worker, seed), VectorShare(round, worker, values))


class Uploader:
    """A worker's connections to both servers, which tries again while they are not there yet.

    Args:
        client: the secret sharing of this worker.
        model_server: gets the seeds.
        worker_server: gets the vectors.
    """

    def __init__(self, client: SecureClient, model_server: Peer, worker_server: Peer) -> None:
        self._client = client
        self._model_server = Connection(client.setup, model_server)
        self._worker_server = Connection(client.setup, worker_server)

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


def _deliver(server: Connection, share: SeedShare | VectorShare, until_s: float) -> None:
    """Sends a share, again and again while the server is away or the round not open."""
    while True:
        left_s = until_s - time.monotonic()
        try:
            server.ask(share, Receipt, timeout_s=max(left_s, 0.01))
        except RoundOverError:
            raise
        except (UnexpectedMessageError, ServerLostError):
            if left_s <= 0:
                raise
        else:
            return
        time.sleep(min(0.2, max(left_s, 0.0)))
