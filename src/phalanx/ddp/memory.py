"""What a rule remembers of a gradient that DDP cuts into buckets, and cuts anew when it likes."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor


class ParameterMemory:
    """One number for each number of every parameter, kept by the names of parameters.

    DDP chooses its buckets anew after the first step, so nothing can be kept by bucket.
    """

    def __init__(self) -> None:
        self._buckets: dict[tuple[str, ...], Tensor] = {}
        self._parts: dict[str, Tensor] = {}

    def read(
        self, names: tuple[str, ...], sizes: Sequence[int], fresh: Float[Tensor, " length"]
    ) -> Float[Tensor, " length"]:
        """What is kept of the parameters of a bucket, one after the other.

        Args:
            names: of the parameters.
            sizes: how many numbers each has.
            fresh: what takes the place of parameters of which nothing is kept.
        """
        if names in self._buckets:  # cut as before, so there is nothing to put together
            return self._buckets[names]
        parts = zip(names, fresh.split(list(sizes)), strict=True)
        return torch.cat([self._parts.get(name, part).to(part) for name, part in parts])

    def replace(self, buckets: Mapping[tuple[str, ...], tuple[Tensor, Sequence[int]]]) -> None:
        """Keeps copies of these buckets, by the names and sizes of their parameters."""
        kept = {names: self._buckets.get(names) for names in buckets}
        self._buckets = {
            names: flat.clone() if (old := kept[names]) is None else old.copy_(flat)
            for names, (flat, _) in buckets.items()
        }
        for names, (_, sizes) in buckets.items():
            parts = self._buckets[names].split(list(sizes))
            self._parts |= dict(zip(names, parts, strict=True))

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of what is kept, flat, by parameter."""
        return {name: part.clone() for name, part in self._parts.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replaces what is kept."""
        self._buckets = {}
        self._parts = {name: part.flatten().clone() for name, part in state.items()}
