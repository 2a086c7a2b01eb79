"""Real MDS generator matrices [I; M], and the condition of their square parts."""

import itertools
import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from phalanx.randomness import generator

Parity = Literal["gaussian", "chebyshev"]

_CANDIDATES = 8  # random generators, of which the best conditioned is taken
_SETS = 200  # sets of rows on which they are compared


def systematic_generator(
    kind: Parity, num_workers: int, num_blocks: int, seed: int
) -> Float[Tensor, "workers blocks"]:
    """[I; M] in float64, every entry of which float32 holds exactly: encoding rounds nothing.

    "gaussian": M has random orthonormal rows, or columns where it is taller than wide; the best
    conditioned of a few draws. "chebyshev": Chebyshev polynomials at Chebyshev's nodes, brought to
    this form; its conditioning grows exponentially with the number of rows that M has.
    """
    shape = (num_workers - num_blocks, num_blocks)
    if kind == "chebyshev":
        parities = [_chebyshev(num_workers, num_blocks)]
    else:
        parities = [_orthonormal(shape, seed, number) for number in range(_CANDIDATES)]
    identity = torch.eye(num_blocks, dtype=torch.float64)
    found = [torch.cat([identity, parity.float().double()]) for parity in parities]
    if len(found) == 1 or num_workers == num_blocks:
        return found[0]
    return min(found, key=lambda weights: worst_condition(weights, _SETS, seed))


def worst_condition(
    weights: Float[Tensor, "workers blocks"], num_sets: int = 1000, seed: int = 0
) -> float:
    """The largest condition number among square parts of a generator.

    Args:
        weights: the generator.
        num_sets: how many sets of rows are drawn; all are looked at, if there are no more.
        seed: which sets.
    """
    num_workers, num_blocks = weights.shape
    chosen = weights[_row_sets(num_workers, num_blocks, num_sets, seed)]
    singular: Tensor = torch.linalg.svdvals(chosen)
    return (singular[:, 0] / singular[:, -1]).max().item()


def _row_sets(num_workers: int, num_blocks: int, num_sets: int, seed: int) -> Int[Tensor, "sets k"]:
    if math.comb(num_workers, num_blocks) <= num_sets:
        return torch.tensor(list(itertools.combinations(range(num_workers), num_blocks)))
    source = generator(seed, "row sets")
    drawn = torch.rand(num_sets, num_workers, generator=source).topk(num_blocks, dim=1).indices
    return drawn.sort(dim=1).values


def _orthonormal(shape: tuple[int, int], seed: int, number: int) -> Float[Tensor, "rows columns"]:
    rows, columns = shape
    source = generator(seed, "parity", rows, columns, number)
    drawn = torch.randn(max(shape), min(shape), generator=source, dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(drawn).Q
    return basis if rows > columns else basis.T


def _chebyshev(num_workers: int, num_blocks: int) -> Float[Tensor, "rows columns"]:
    angles = (2 * torch.arange(num_workers, dtype=torch.float64) + 1) * math.pi / (2 * num_workers)
    values = torch.cos(torch.arange(num_blocks) * angles[:, None])
    values[:, 0] /= math.sqrt(2)  # then the columns are orthogonal and of one length
    kept = torch.linspace(0, num_workers - 1, num_blocks).round().long()
    others = torch.ones(num_workers, dtype=torch.bool)
    others[kept] = False
    systematic: Tensor = torch.linalg.solve(values[kept].T, values[others].T).T
    return systematic
