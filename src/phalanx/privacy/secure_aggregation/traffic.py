"""How many bytes a round moves."""

from typing import NamedTuple

from phalanx.privacy.secure_aggregation.messages import (
    DistanceShares,
    MaskedShares,
    ModelServerDeal,
    Roll,
    SeedShare,
    VectorShare,
    WeightedShare,
    WorkerServerDeal,
)
from phalanx.privacy.secure_aggregation.setup import SecureSetup
from phalanx.privacy.secure_aggregation.wire import num_bytes


class Traffic(NamedTuple):
    """Bytes of one round in which everybody takes part.

    Attributes:
        upload: from one worker to both servers.
        between_servers: in both directions together.
        from_dealer: to both servers; none of it depends on messages, so it may go in advance.
    """

    upload: int
    between_servers: int
    from_dealer: int


def traffic(setup: SecureSetup) -> Traffic:
    """What a round moves, framing of the network not counted.

    >>> from phalanx.privacy import SecureSetup, traffic
    >>> traffic(SecureSetup(num_workers=10, dim=100_000))
    Traffic(upload=800096, between_servers=16805232, from_dealer=806032)
    """
    present = setup.num_workers
    twice = 2 * (num_bytes(Roll, setup) + num_bytes(MaskedShares, setup, present))
    return Traffic(
        num_bytes(SeedShare, setup) + num_bytes(VectorShare, setup),
        twice + num_bytes(DistanceShares, setup, present) + num_bytes(WeightedShare, setup),
        num_bytes(ModelServerDeal, setup) + num_bytes(WorkerServerDeal, setup),
    )
