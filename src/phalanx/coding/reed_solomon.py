"""Generalised Reed-Solomon codes modulo a prime: encoding weights, error locator and reader.

Worker i of a circle (counted from 0) stands for the point `x = i + 1` of the field. The words that
honest workers can send are those that all polynomials of degree below `2 s` cancel,
`sum_i x_i^c R_i = 0` for c < 2 s: a code of dimension `length - 2 s` and minimum distance
`2 s + 1`, so that any two words differ in so many places.
"""

import itertools
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from phalanx.coding.prime_field import PRIME


def encoding_weights(length: int, num_checks: int) -> Int64[Tensor, "length length"]:
    """By what worker i multiplies the vector of partition k: 0 unless `(k - i) mod length <= 2 s`.

    Column k is the one word of the code on its holders that the monic polynomials of degree `2 s`
    read as 1: `1 / prod_u (x_i - x_u)` over the other holders u, as in divided differences.
    """
    weights = torch.zeros(length, length, dtype=torch.int64)
    for partition in range(length):
        holders = [(partition - step) % length for step in range(num_checks + 1)]
        for worker in holders:
            below = 1
            for other in holders:
                if other != worker:
                    below = below * (worker - other) % PRIME
            weights[worker, partition] = pow(below, -1, PRIME)
    return weights


def reader(length: int, zeros: Sequence[int]) -> Int64[Tensor, " length"]:
    """Coefficients that read the sum of all partitions off the messages, 0 on `2 s` of them.

    The values of `prod_b (x - x_b)` over the workers in `zeros`, of whom there are exactly `2 s`:
    all monic polynomials of that degree read every partition as 1.
    """
    points = torch.arange(length)
    values = torch.ones(length, dtype=torch.int64)
    for zero in zeros:
        values = values * (points - zero) % PRIME
    return values


def locate(
    values: Int64[Tensor, " length"], num_checks: int, erased: Sequence[int]
) -> list[int] | None:
    """Who differs from a word of the code, given who is missing; None if too many do.

    With e missing, up to `(2 s - e) / 2` others are found for certain. If more differ, None, unless
    the word lies within that distance of another word of the code: then at least `2 s + 1 - e`
    workers differ or are found.

    Source: Berlekamp, "Algebraic Coding Theory", 1968; Massey, "Shift-Register Synthesis and BCH
    Decoding", IEEE Transactions on Information Theory, 1969; erasures as in Forney, "On Decoding
    BCH Codes", 1965.
    """
    if len(erased) > num_checks:
        return None
    length = len(values)
    points = torch.arange(1, length + 1)
    seen = values.clone()
    seen[list(erased)] = 0
    syndrome = []
    for _ in range(num_checks):
        syndrome.append(int(seen.sum()) % PRIME)
        seen = seen * points % PRIME
    for worker in erased:  # a factor (S - x) in the shift S removes a missing worker's sequence
        syndrome = [
            (following - (worker + 1) * now) % PRIME
            for now, following in itertools.pairwise(syndrome)
        ]
    locator = shortest_recurrence(syndrome)
    count = len(locator) - 1
    if 2 * count > len(syndrome):
        return None
    roots = _evaluate(locator, points)
    found = (roots == 0).nonzero().flatten().tolist()
    if len(found) != count or set(found) & set(erased):
        return None
    return [int(worker) for worker in found]


def shortest_recurrence(sequence: Iterable[int]) -> list[int]:
    """Coefficients `1, c_1, .., c_L` of the shortest recurrence that a sequence obeys.

    `sum_i c_i s_{j - i} = 0` for all j >= L. Berlekamp and Massey's algorithm modulo p. The
    last coefficients may be 0.
    """
    known: list[int] = []
    current, previous = [1], [1]
    gap, last = 1, 1
    for number, term in enumerate(sequence):
        known.append(term)
        miss = sum(c * known[number - i] for i, c in enumerate(current) if i <= number) % PRIME
        if miss == 0:
            gap += 1
            continue
        scale = miss * pow(last, -1, PRIME) % PRIME
        correction = [0] * gap + [scale * c % PRIME for c in previous]
        size = len(current) - 1
        grown = max(size, number + 1 - size) if 2 * size <= number else size
        width = max(len(current), len(correction), grown + 1)
        updated = [
            (a - b) % PRIME
            for a, b in zip(
                current + [0] * (width - len(current)),
                correction + [0] * (width - len(correction)),
                strict=True,
            )
        ]
        if 2 * size <= number:
            previous, last, gap = current, miss, 1
        else:
            gap += 1
        current = updated[: grown + 1]
    return current


def _evaluate(locator: Sequence[int], points: Tensor) -> Tensor:
    """`x^L + c_1 x^(L - 1) + .. + c_L` at the points, modulo p."""
    total = torch.zeros_like(points)
    for coefficient in locator:
        total = (total * points + coefficient) % PRIME
    return total
