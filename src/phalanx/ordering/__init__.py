"""Sample orders: which samples form which partition of which round."""

from phalanx.ordering.base import Batches, Order
from phalanx.ordering.per_client import ClientData, PerClient
from phalanx.ordering.poisson_sampling import PoissonSampling
from phalanx.ordering.random_reshuffling import RandomReshuffling
from phalanx.ordering.shuffle_once import ShuffleOnce

__all__ = [
    "Batches",
    "ClientData",
    "Order",
    "PerClient",
    "PoissonSampling",
    "RandomReshuffling",
    "ShuffleOnce",
]
