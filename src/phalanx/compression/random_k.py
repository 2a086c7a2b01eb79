"""Random-k sparsification at positions drawn from a shared seed."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from phalanx.compression.base import Compressor, Shape
from phalanx.compression.message import Part, fixed, num_values
from phalanx.compression.selection import num_kept, require_ratio
from phalanx.errors import require
from phalanx.floats import working
from phalanx.randomness import generator as seeded_by


@dataclass(frozen=True)
class RandomSelection(Compressor):
    """Keeps values at positions that follow from a seed, which is sent in their place."""

    ratio: float = 0.01
    """Share of the values that is kept, at least one of them."""
    rescale: bool = True
    """Whether to multiply the values by `dim / k`, which takes the bias away; do not, within
    `ErrorFeedback`: the variance would pile up in its memory."""
    shared: bool = True
    """Whether all workers keep the same positions, so that their values can be added on the way;
    otherwise each draws its own, and all messages go to all workers."""

    def __post_init__(self) -> None:
        require_ratio(self.ratio)

    @property
    def random(self) -> bool:
        """True: the seed is drawn."""
        return True

    @property
    def unbiased(self) -> bool:
        """If values are scaled up."""
        return self.rescale

    @property
    def reducible(self) -> bool:
        """If positions are shared."""
        return self.shared

    @property
    def needs_shared_randomness(self) -> bool:
        """If positions are shared."""
        return self.shared

    def contraction(self, dim: int) -> float | None:
        """`k / dim` in expectation, unless values are scaled up."""
        return None if self.rescale else num_kept(self.ratio, dim) / dim

    def variance_bound(self, dim: int) -> float | None:
        """`dim / k - 1`, exactly, if values are scaled up."""
        return dim / num_kept(self.ratio, dim) - 1 if self.rescale else None

    @abstractmethod
    def positions(self, dim: int, seed: int) -> Int64[Tensor, " count"]:
        """Which `num_kept(ratio, dim)` of `dim` positions a seed keeps."""

    def layout(self, shape: Shape, dtype: torch.dtype) -> tuple[Part, ...]:
        """Seed, values."""
        return fixed(torch.int64, 1), fixed(dtype, num_kept(self.ratio, num_values(shape)))

    def pack(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """Draws the seed; the values are not scaled before they are decoded."""
        assert generator is not None
        device = generator.device
        seed = torch.randint(2**63 - 1, (1,), generator=generator, device=device).to(x.device)
        flat = x.view(-1)
        return seed, flat[self.positions(flat.numel(), int(seed)).to(x.device)]

    def unpack(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """The values, scaled up if they are to be, in the places of the seed."""
        seed, values = parts
        dim = num_values(shape)
        wide = working(dtype)
        found = torch.zeros(dim, dtype=wide, device=values.device)
        factor = dim / values.numel() if self.rescale else 1.0
        limits = torch.finfo(wide)  # what is scaled out of the range is held at its border
        scaled = (values.to(wide) * factor).clamp_(limits.min, limits.max)
        return found.index_copy_(0, self.positions(dim, int(seed)).to(values.device), scaled)

    def check(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> None:
        """A seed is not negative."""
        require(int(parts[0]) >= 0, "have a seed of at least 0")


@dataclass(frozen=True)
class RandomK(RandomSelection):
    """Keeps values at positions drawn without replacement.

    Wire: eight bytes of seed and the values as they are; positions are never sent.
    Cost: O(k) draws, where k is well below dim, and a sort of the positions.
    Source: Stich, Cordonnier, Jaggi, "Sparsified SGD with Memory", NeurIPS 2018.

    >>> import torch
    >>> compressor = RandomK(ratio=0.5)
    >>> x = compressor.decode(compressor.encode(torch.ones(6), torch.Generator().manual_seed(0)))
    >>> x.sort().values
    tensor([0., 0., 0., 2., 2., 2.])
    """

    def positions(self, dim: int, seed: int) -> Int64[Tensor, " count"]:
        """Increasing; a uniformly drawn subset of its size."""
        count, source = num_kept(self.ratio, dim), seeded_by(seed, "positions")
        if count > dim // 8:
            return torch.randperm(dim, generator=source)[:count].sort().values
        # Draws until enough are distinct: which come first does not depend on their values.
        drawn = torch.randint(dim, (count + count // 4 + 16,), generator=source)
        while len(distinct := _first_distinct(drawn)) < count:
            drawn = torch.cat([drawn, torch.randint(dim, (count,), generator=source)])
        return distinct[:count].sort().values


def _first_distinct(drawn: Int64[Tensor, " draws"]) -> Int64[Tensor, " distinct"]:
    """The values in the order in which they were drawn first."""
    values, order = drawn.sort(stable=True)
    first = torch.ones(len(values), dtype=torch.bool)
    first[1:] = values[1:] != values[:-1]
    return drawn[order[first].sort().values]
