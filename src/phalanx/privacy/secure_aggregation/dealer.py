"""Correlated randomness: what makes products of shared numbers possible, dealt in advance."""

import torch
from jaxtyping import Int64
from torch import Tensor

from phalanx.errors import ReusedRandomnessError
from phalanx.privacy.secure_aggregation.entropy import SEED_BYTES, Entropy, expand, from_system
from phalanx.privacy.secure_aggregation.messages import ModelServerDeal, WorkerServerDeal
from phalanx.privacy.secure_aggregation.range_check import NUM_SUMS, noise, signed_sums
from phalanx.privacy.secure_aggregation.ring import products
from phalanx.privacy.secure_aggregation.setup import SecureSetup


def deal(
    setup: SecureSetup, round: int, entropy: Entropy = from_system
) -> tuple[ModelServerDeal, WorkerServerDeal]:
    """Fresh randomness for one round.

    Every worker i has a mask a_i, of which each server expands a share from its seed. Shares of
    `<a_i, a_j>`, of the masks' random sums, and of `sum_i u_i a_i` for random weights u_i that the
    worker server expands, add up because that server is given what is missing. Masks exist for all
    ids, so that it does not matter later who is absent.

    Cost: `n d (n + 64)` multiply-adds, and 16 n d pseudo-random bytes. To the model server go 32
    bytes, to the worker server 8 (d + n^2 + 64 n).
    """
    one, other = entropy(SEED_BYTES), entropy(SEED_BYTES)
    mask = mask_shares(one, setup) + mask_shares(other, setup)
    sums = signed_sums(one, mask) + noise(entropy, setup.num_workers)
    return ModelServerDeal(round, one), WorkerServerDeal(
        round,
        other,
        products(mask, mask) - product_shares(one, setup),
        sums - sum_shares(one, setup),
        random_weights(other, setup) @ mask - weighted_share(one, setup),
    )


def mask_shares(seed: bytes, setup: SecureSetup) -> Int64[Tensor, "workers dim"]:
    """A server's shares of the masks of all workers."""
    shares = torch.empty(setup.num_workers, setup.dim, dtype=torch.int64)
    for worker, row in enumerate(shares):
        row.copy_(expand(seed, f"mask {worker}", setup.dim))
    return shares


def product_shares(seed: bytes, setup: SecureSetup) -> Int64[Tensor, "workers workers"]:
    """The model server's shares of the masks' inner products."""
    return expand(seed, "products", setup.num_workers, setup.num_workers)


def sum_shares(seed: bytes, setup: SecureSetup) -> Int64[Tensor, "workers sums"]:
    """The model server's shares of the masks' random sums."""
    return expand(seed, "sums", setup.num_workers, NUM_SUMS)


def weighted_share(seed: bytes, setup: SecureSetup) -> Int64[Tensor, " dim"]:
    """The model server's share of the weighted sum of the masks."""
    return expand(seed, "weighted", setup.dim)


def random_weights(seed: bytes, setup: SecureSetup) -> Int64[Tensor, " workers"]:
    """The weights of that sum, which the worker server knows."""
    return expand(seed, "weights", setup.num_workers)


class RoundLedger:
    """Remembers which rounds' randomness is spent: masks that hide two messages hide neither.

    >>> from phalanx.privacy import RoundLedger
    >>> ledger = RoundLedger()
    >>> ledger.spend(4)
    >>> ledger.spend(4)
    Traceback (most recent call last):
    phalanx.errors.ReusedRandomnessError: rounds must go up, so that no mask is used twice; ...
    """

    def __init__(self, last: int = -1) -> None:
        self.last = last

    def spend(self, round: int) -> None:
        """Marks a round and all before it as spent.

        Raises:
            ReusedRandomnessError: if it is spent already.
        """
        if round <= self.last:
            raise ReusedRandomnessError(
                f"rounds must go up, so that no mask is used twice; got {round} after {self.last}"
            )
        self.last = round
