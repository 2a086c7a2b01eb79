"""Exact arithmetic modulo the prime 2^31 - 1, by products of float64.

Numbers modulo p are kept as their representatives of least size, from -(p - 1) / 2 to (p - 1) / 2:
31 bits with the sign, so that they travel as int32. Products with a coefficient of such a size are
exact if it is cut into a high and a low half of 15 bits, and at most `TERMS` of them are added up:
`2^30 * 2^15 * 2^8 = 2^53`, up to which float64 holds every whole number.
"""

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from phalanx.columns import column_blocks

PRIME = 2**31 - 1
"""The field's size p, the eighth Mersenne prime."""

LARGEST = (PRIME - 1) // 2
"""Largest representative; the smallest is `-LARGEST`."""

TERMS = 256
"""Products of a representative and a half of a coefficient that add up exactly."""

BLOCK = 1 << 18
"""Numbers that are converted to float64 at a time: 2 MiB stay in the cache."""

_HALF = 1 << 15


def reduced(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Representatives of whole numbers below 2^53 in float64, in place.

    Of least size where numbers are below 2^49: a quotient is then rounded by less than 2^-34, and
    none is nearer to a half than `1 / (2 p) > 2^-32`. Otherwise beyond that by at most 2.
    """
    return values.sub_((values * (1 / PRIME)).round_(), alpha=PRIME)


def halves(coefficients: Int64[Tensor, "rows terms"]) -> Float[Tensor, "two_rows terms"]:
    """High halves, at most 2^15 in size, then low ones, at most 2^14; coefficients are reduced."""
    centred = (coefficients + LARGEST) % PRIME - LARGEST
    low = (centred + _HALF // 2) % _HALF - _HALF // 2
    return torch.cat([(centred - low) // _HALF, low]).double()


def product(
    split: Float[Tensor, "two_rows terms"], values: Float[Tensor, "terms columns"]
) -> Float[Tensor, "rows columns"]:
    """Product of coefficients, as `halves` cut them, and of representatives, at least one.

    Right modulo p, and below 2^31 in size for each `TERMS` terms: to be `reduced`.

    Cost: two float64 products, and two remainders of three passes over the result.
    """
    high, low = (split[:, :TERMS] @ values[:TERMS]).chunk(2)
    total = reduced(reduced(high).mul_(_HALF).add_(low))
    if len(values) > TERMS:
        total += product(split[:, TERMS:], values[TERMS:])
    return total


def project(
    messages: Int32[Tensor, "workers width"], number: int, generator: torch.Generator
) -> Int64[Tensor, "workers number"]:
    """Secret random projections of every message, modulo p.

    A message is cut into runs of 256 numbers, each of which is folded into one by coefficients
    drawn from the field, the same for all runs; so again with fresh coefficients, until
    one number is left. A level leaves nothing of a message that is not zero with probability at
    most `1.5 / p` (torch draws 32 bits and divides), so that all of `number` independent
    projections of up to `256^4` coordinates are zero with probability at most `2^(-28 number)`.

    Args:
        messages: representatives.
        number: of projections.
        generator: the secret; whoever predicts it can hide.

    Returns:
        From 0 to p - 1, on the CPU.

    Cost: one pass over the messages.
    """
    workers, width = messages.shape
    folds = [_coefficients(generator).to(messages.device) for _ in range(number)]
    runs = max(1, -(-width // TERMS))
    tables = [messages.new_empty(workers, runs, dtype=torch.float64) for _ in range(number)]
    block = min(runs, max(1, BLOCK // (workers * TERMS))) * TERMS
    buffer = messages.new_zeros(workers, block, dtype=torch.float64)
    for columns in column_blocks(width, block):
        size = columns.stop - columns.start
        buffer[:, size:] = 0  # what the last run lacks
        buffer[:, :size] = messages[:, columns]
        here = slice(columns.start // TERMS, -(-columns.stop // TERMS))
        for fold, table in zip(folds, tables, strict=True):
            table[:, here] = _folded(buffer, fold)[:, : here.stop - here.start]
    return torch.stack([_fold_all(table, generator) for table in tables], dim=1).long() % PRIME


def _fold_all(table: Tensor, generator: torch.Generator) -> Tensor:
    while table.shape[1] > 1:
        padded = torch.nn.functional.pad(table, (0, -table.shape[1] % TERMS))
        table = _folded(padded, _coefficients(generator).to(table.device))
    return table[:, 0].cpu()


def _folded(table: Tensor, fold: Tensor) -> Tensor:
    """Every run of a table as one number."""
    runs = table.view(-1, TERMS)
    high = reduced(runs @ fold[0])  # two products by vectors are faster than one by two columns
    return reduced(high.mul_(_HALF).add_(runs @ fold[1])).view(len(table), -1)


def _coefficients(generator: torch.Generator) -> Tensor:
    return halves(torch.randint(PRIME, (1, TERMS), generator=generator))
