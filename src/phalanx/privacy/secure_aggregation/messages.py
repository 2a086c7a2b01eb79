"""Everything that anybody sends to anybody, as types.

Shares of one server alone are uniform noise. The server that a message is for is part of its name
or its docstring; what a server knows after a round is its view.
"""

from typing import NamedTuple

from jaxtyping import Int64
from torch import Tensor


class SeedShare(NamedTuple):
    """Worker to model server: its share of the worker's message, as the seed of it."""

    round: int
    worker: int
    seed: bytes


class VectorShare(NamedTuple):
    """Worker to worker server: the message less what the seed expands to."""

    round: int
    worker: int
    values: Int64[Tensor, " dim"]


class ModelServerDeal(NamedTuple):
    """Dealer to model server: its shares of all correlated randomness, as the seed of them."""

    round: int
    seed: bytes


class WorkerServerDeal(NamedTuple):
    """Dealer to worker server: a seed, and its shares of what depends on both seeds.

    Attributes:
        products: inner products of the masks.
        sums: the masks' random sums, see `range_check`.
        weighted: the sum of the masks with the random weights that this server's seed stands for.
    """

    round: int
    seed: bytes
    products: Int64[Tensor, "workers workers"]
    sums: Int64[Tensor, "workers sums"]
    weighted: Int64[Tensor, " dim"]


class DealRequest(NamedTuple):
    """Server to dealer: its part of the correlated randomness is wanted."""

    round: int


class Receipt(NamedTuple):
    """Server to worker: its share is here."""

    round: int


class Roll(NamedTuple):
    """Server to server: whose shares are here, and who sent something malformed.

    The answer of the worker server names those who are in the round.
    """

    round: int
    workers: tuple[int, ...]
    marked: tuple[int, ...]


class MaskedShares(NamedTuple):
    """Server to server: its shares of the messages less the masks, worker by worker."""

    round: int
    rows: Int64[Tensor, "present dim"]


class DistanceShares(NamedTuple):
    """Model server to worker server, who opens them: shares of what only that server learns.

    Attributes:
        pairs: squared distances of all pairs of messages.
        differences: random sums of the other messages less those of the first.
    """

    round: int
    pairs: Int64[Tensor, " pairs"]
    differences: Int64[Tensor, "others sums"]


class WeightedShare(NamedTuple):
    """Worker server to model server, who opens it: a share of the weighted sum of the messages.

    Attributes:
        offsets: weights less the random weights of the deal, which hide them.
        values: the share.
        shift: bits that the weights have after the point.
        divisor: what the sum is divided by.
    """

    round: int
    offsets: Int64[Tensor, " workers"]
    values: Int64[Tensor, " dim"]
    shift: int
    divisor: int


class SumRequest(NamedTuple):
    """Model server to worker server: the plain sum is wanted, without distances or weights."""

    round: int


class SumShare(NamedTuple):
    """Worker server to model server, who opens it: the sum of its shares of the messages."""

    round: int
    values: Int64[Tensor, " dim"]


Message = (
    SeedShare
    | VectorShare
    | ModelServerDeal
    | WorkerServerDeal
    | DealRequest
    | Receipt
    | Roll
    | MaskedShares
    | DistanceShares
    | WeightedShare
    | SumRequest
    | SumShare
)
