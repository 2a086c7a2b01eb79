"""Secret random projections of the messages, which the decoder looks at instead."""

import math
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.columns import column_blocks
from phalanx.floats import working

NUM_PROJECTIONS = 32
"""Numbers per message; fewer tell its norm less well, more cost time."""

SHRINKS = 4.0
"""The most by which projections show a message too small, but for the chance told of at `project`:
1.5 by the factors, and 2.7 by 32 normal numbers, once in 10^8 rounds."""

_WIDTHS = 1024, 4096  # numbers per block: those of 45 workers stay in a level-2 cache
_DEPTH = 16  # blocks summed in the messages' own precision before the sum moves to float64
_FACTORS = 1 << 17  # random factors, of which every block takes another stretch


def project(
    messages: Float[Tensor, "workers width"], generator: torch.Generator
) -> Float[Tensor, "workers projections"]:
    """Random numbers, 32 per worker, whose Euclidean norm estimates that of the message.

    Each message is cut into blocks of a secret prime number of coordinates; every coordinate is
    multiplied by a secret factor of random sign and of size 2/3 to 4/3, the blocks are added up,
    and the sum is multiplied by a secret Gaussian matrix. To hide, a difference of two messages
    must have coordinates that fall on top of each other and cancel: these are a multiple of the
    prime apart, of which there are 392, and at most two divide a number below 10^9; and the
    factors, drawn after it was sent, must fit. Hence it shrinks to a fourth at most once in a
    thousand rounds, and a smooth one, or one of many coordinates, never.

    Args:
        messages: one row per worker, of any floating dtype.
        generator: the secret; whoever predicts it can hide.

    Returns:
        `(workers, 32)`, float64 on the CPU. A row with NaN or infinity gives NaN or infinity.

    Cost: one pass over the messages; `workers * 4096` numbers in float64 beside them.
    """
    workers, width = messages.shape
    prime = _primes()[int(torch.randint(len(_primes()), (), generator=generator))]
    size = min(prime, width)
    device, dtype = messages.device, working(messages.dtype)
    drawn = torch.rand(_FACTORS, generator=generator) * 2 - 1
    factors = (drawn.sign() * (2 / 3) + drawn * (2 / 3)).to(device, dtype)
    secret = torch.randn(size, NUM_PROJECTIONS, generator=generator, dtype=torch.float64)
    total = torch.zeros(workers, size, dtype=torch.float64, device=device)
    part = torch.zeros(workers, size, dtype=dtype, device=device)
    blocks = list(column_blocks(width, size)) if width else []
    starts = torch.randint(_FACTORS - size + 1, (len(blocks),), generator=generator).tolist()
    for number, (columns, start) in enumerate(zip(blocks, starts, strict=True)):
        block = messages[:, columns].to(dtype)
        length = block.shape[1]
        part[:, :length].addcmul_(block, factors[start : start + length])
        if number % _DEPTH == _DEPTH - 1 or number == len(blocks) - 1:
            total += part
            part.zero_()
    seen: Tensor = total.cpu() @ secret
    return seen / math.sqrt(NUM_PROJECTIONS)


@cache
def _primes() -> list[int]:
    """The primes from which the width of a block is drawn."""
    low, high = _WIDTHS
    return [n for n in range(low, high) if all(n % k for k in range(2, int(n**0.5) + 1))]
