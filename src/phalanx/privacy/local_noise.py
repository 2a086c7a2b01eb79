"""Local differential privacy of Gaussian noise on a message."""

import math


def gaussian_epsilon(noise_std: float, clip_norm: float, delta: float) -> float | None:
    """Epsilon of one message with Gaussian noise, where the classical theorem applies.

    A message of norm at most `clip_norm` with noise of this standard deviation on every number is
    (epsilon, delta)-locally differentially private: replacing one message by another moves it by
    at most twice the norm, and `epsilon = 2 clip_norm sqrt(2 ln(1.25 / delta)) / noise_std`. The
    theorem holds for epsilon below 1 alone, so nothing is said beyond: None. Several messages of
    one worker add up, which this does not account for.

    Raises:
        ValueError: if `noise_std` or `clip_norm` is not above 0, or `delta` not between 0 and 1.

    Source: Dwork, Roth, "The Algorithmic Foundations of Differential Privacy", Foundations and
    Trends in Theoretical Computer Science 9, 2014, appendix A.

    >>> from phalanx.privacy import gaussian_epsilon
    >>> round(gaussian_epsilon(noise_std=20.0, clip_norm=1.0, delta=1e-5), 3)
    0.484
    >>> gaussian_epsilon(noise_std=1.0, clip_norm=1.0, delta=1e-5) is None
    True
    """
    for name, value in (("noise_std", noise_std), ("clip_norm", clip_norm)):
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")
    if not 0 < delta < 1:
        raise ValueError(f"delta must be between 0 and 1, got {delta}")
    epsilon = 2 * clip_norm * math.sqrt(2 * math.log(1.25 / delta)) / noise_std
    return epsilon if epsilon < 1 else None
