"""Defences that an audit compares unless others are given."""

from phalanx.aggregation import (
    AdaptiveNormClipping,
    CoordinateMedian,
    GeometricMedian,
    Krum,
    Mean,
    MultiKrum,
    NormClipping,
)
from phalanx.backdoors.drill import Defence


def default_defences(radius: float = 1.0, noise: float = 0.005) -> dict[str, Defence]:
    """The defences of the literature, and none, by what they are called.

    Source: Wang et al., "Attack of the Tails: Yes, You Really Can Backdoor Federated Learning",
    NeurIPS 2020, section 4.

    Args:
        radius: of norm clipping (M).
        noise: standard deviation of the noise of weak differential privacy.
    """
    clipped = NormClipping(radius) >> Mean()
    return {
        "none": Defence(),
        "clipping": Defence(clipped),
        "adaptive clipping": Defence(AdaptiveNormClipping() >> Mean()),
        "weak DP": Defence(clipped, noise),
        "Krum": Defence(Krum(1)),
        "Multi-Krum": Defence(MultiKrum(1)),
        "RFA": Defence(GeometricMedian()),
        "median": Defence(CoordinateMedian()),
    }
