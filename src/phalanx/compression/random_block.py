"""Random-block sparsification: one block of neighbouring values."""

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from phalanx.compression.random_k import RandomSelection
from phalanx.compression.selection import num_kept
from phalanx.randomness import generator


@dataclass(frozen=True)
class RandomBlock(RandomSelection):
    """Keeps a block of neighbouring values that starts anywhere, and goes on at the first value.

    Every value is kept with probability `k / dim`: without going around, those at the ends would
    be kept less often.
    Wire: eight bytes of seed and the values as they are.
    Cost: one copy of the block.
    Source: Barati Eghlidi, Jaggi, "Sparse Communication for Training Deep Networks", 2020.

    >>> import torch
    >>> compressor = RandomBlock(ratio=0.5, rescale=False)
    >>> x = compressor.decode(compressor.encode(torch.ones(6), torch.Generator().manual_seed(0)))
    >>> int(x.sum())
    3
    """

    def positions(self, dim: int, seed: int) -> Int64[Tensor, " count"]:
        """Neighbours, in the order of the block."""
        start = int(torch.randint(dim, (1,), generator=generator(seed, "positions")))
        return (start + torch.arange(num_kept(self.ratio, dim))) % dim
