"""Expected latency of coded computation with stragglers, in closed form.

The model: all of the work takes one worker `1 + X` units of time, X exponential with mean 1 / rate;
a worker that has one k-th of the work takes one k-th of such a time. Workers are independent.

Source: Lee, Lam, Pedarsani, Papailiopoulos and Ramchandran, "Speeding Up Distributed Machine
Learning Using Codes", IEEE Transactions on Information Theory 2018, on coded computation.
"""

import math

from phalanx.checks import require_finite_above


def expected_time_uncoded(num_workers: int, rate: float = 1.0) -> float:
    """Mean time without redundancy: each worker has its part, and the slowest decides.

    `(1 + H_n / rate) / n`, where H_n is the n-th harmonic number: the log(n) that lagging costs.

    >>> round(expected_time_uncoded(10), 4)
    0.3929
    """
    return expected_time_mds(num_workers, num_workers, rate)


def expected_time_mds(num_workers: int, num_blocks: int, rate: float = 1.0) -> float:
    """Mean time with a code of which any `num_blocks` results are enough.

    `(1 + (H_n - H_{n - k}) / rate) / k`.

    >>> round(expected_time_mds(10, 7), 4)
    0.2994
    """
    _check(num_workers, num_blocks, rate)
    waited = harmonic(num_workers) - harmonic(num_workers - num_blocks)
    return (1 + waited / rate) / num_blocks


def expected_time_repetition(num_workers: int, num_blocks: int, rate: float = 1.0) -> float:
    """Mean time where each block is given to `num_workers / num_blocks` workers, the first counts.

    `(1 + k H_k / (n rate)) / k`.

    >>> round(expected_time_repetition(10, 5), 4)
    0.4283

    Raises:
        ValueError: if `num_workers` is no multiple of `num_blocks`.
    """
    _check(num_workers, num_blocks, rate)
    if num_workers % num_blocks:
        raise ValueError(f"num_blocks must divide num_workers = {num_workers}, got {num_blocks}")
    replicas = num_workers // num_blocks
    return (1 + harmonic(num_blocks) / (replicas * rate)) / num_blocks


def optimal_num_blocks(num_workers: int, rate: float = 1.0) -> int:
    """The number of blocks at which the mean time with a code is least.

    Cost: one pass over all numbers of blocks.

    >>> optimal_num_blocks(10), optimal_num_blocks(100)
    (7, 69)
    """
    _check(num_workers, 1, rate)
    return min(
        range(1, num_workers + 1), key=lambda blocks: expected_time_mds(num_workers, blocks, rate)
    )


def optimal_code_rate(rate: float = 1.0) -> float:
    """Blocks per worker, k / n, of the best code for many workers.

    `1 + 1 / W(-exp(-rate - 1))`, where W is the lower branch of Lambert's function.

    >>> round(optimal_code_rate(), 3)
    0.682
    """
    return 1 + 1 / _lower_lambert(rate)


def optimal_time(rate: float = 1.0) -> float:
    """The mean time of the best code for many workers, times their number.

    >>> round(optimal_time(), 3)
    3.146
    """
    return -_lower_lambert(rate) / rate


def harmonic(number: int) -> float:
    """1 + 1 / 2 + ... + 1 / number.

    >>> round(harmonic(4), 4)
    2.0833
    """
    # Imported where it is used: scipy would make every command wait, `--help` too.
    from scipy.special import digamma

    return float(digamma(number + 1) - digamma(1))


def _lower_lambert(rate: float) -> float:
    from scipy.special import lambertw

    _check(1, 1, rate)
    return float(lambertw(-math.exp(-rate - 1), k=-1).real)


def _check(num_workers: int, num_blocks: int, rate: float) -> None:
    if not 1 <= num_blocks <= num_workers:
        raise ValueError(
            f"num_blocks must be from 1 to num_workers = {num_workers}, got {num_blocks}"
        )
    require_finite_above(0, rate=rate)
