"""Secret random projections of the messages, which the decoder looks at instead."""

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.floats import working

_WIDTH = 4096  # numbers per block: 4096 float32 from each of 45 workers stay in a level-2 cache
_DEPTH = 16  # blocks summed in the messages' own precision before the sum moves to float64


def project(
    messages: Float[Tensor, "workers width"], num_projections: int, generator: torch.Generator
) -> Float[Tensor, "workers projections"]:
    """Random numbers, one tuple per worker: equal where messages are and (a.s.) only there.

    Each message is cut into blocks; the blocks are added up with secret Gaussian coefficients, then
    the sum is multiplied by a secret Gaussian matrix. A non-zero message has non-zero projections
    with probability one: the coefficients are continuous, and drawn after the message was sent.

    Args:
        messages: one row per worker, of any floating dtype.
        num_projections: how many numbers to draw per worker; they cost nothing.
        generator: the secret; whoever predicts it can hide.

    Returns:
        float64 on the CPU. A row with NaN or infinity gives NaN or infinity.

    Cost: one pass over the messages; `workers * 4096` numbers in float64 beside them.
    """
    workers, width = messages.shape
    size = min(_WIDTH, width)
    device = messages.device
    dtype = working(messages.dtype)
    blocks = width // size if size else 0
    coefficients = torch.randn(blocks + 1, generator=generator, dtype=dtype).to(device)
    secret = torch.randn(size, num_projections, generator=generator, dtype=torch.float64)
    total = torch.zeros(workers, size, dtype=torch.float64, device=device)
    for start in range(0, blocks, _DEPTH):
        stop = min(start + _DEPTH, blocks)
        part = messages[:, start * size : stop * size].to(dtype)
        total += torch.matmul(coefficients[start:stop], part.view(workers, stop - start, size))
    rest = messages[:, blocks * size :]
    total[:, : rest.shape[1]] += coefficients[-1] * rest.to(torch.float64)
    return total.cpu() @ secret
