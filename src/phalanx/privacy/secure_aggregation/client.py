"""A worker's side: its message in two shares."""

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from phalanx.privacy.secure_aggregation.entropy import (
    SEED_BYTES,
    Entropy,
    expand,
    from_system,
    normal,
)
from phalanx.privacy.secure_aggregation.fixed_point import encode, encode_unchecked
from phalanx.privacy.secure_aggregation.messages import SeedShare, VectorShare
from phalanx.privacy.secure_aggregation.setup import SecureSetup


class Shares(NamedTuple):
    """What a worker sends in a round.

    Attributes:
        for_model_server: 32 bytes.
        for_worker_server: as many words as the message has numbers.
    """

    for_model_server: SeedShare
    for_worker_server: VectorShare


@dataclass(frozen=True)
class SecureClient:
    """Splits a worker's messages into shares that tell either server nothing.

    With `noise_std` the message is also noisy before it is split, so that even distances and the
    aggregate say little about it (local differential privacy): see `gaussian_epsilon`.

    >>> import torch
    >>> from phalanx.privacy import SecureClient, SecureSetup
    >>> client = SecureClient(SecureSetup(num_workers=3, dim=2), worker=1)
    >>> client.share(torch.tensor([0.5, -1.0]), round=0).for_worker_server.values.shape
    torch.Size([2])
    """

    setup: SecureSetup = SecureSetup()  # noqa: RUF009 - frozen
    """What everybody agreed on."""

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
        self, message: Float[Tensor, "*shape"], round: int, entropy: Entropy = from_system
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
            flat = flat + self.noise_std * normal(entropy, len(flat))
        encode(flat, self.setup)
        return split(flat, self.setup, self.worker, round, entropy)


def split(
    message: Float[Tensor, " dim"], setup: SecureSetup, worker: int, round: int, entropy: Entropy
) -> Shares:
    """The shares of a message whatever it is: what a client can send that checks nothing."""
    seed = entropy(SEED_BYTES)
    values = encode_unchecked(message, setup) - expand(seed, "message", len(message))
    return Shares(SeedShare(round, worker, seed), VectorShare(round, worker, values))
