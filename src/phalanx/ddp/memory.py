"""State of a rule per parameter, whatever the buckets into which DDP cuts the gradient."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.parameters import ParameterLayout


class ParameterMemory:
    """One number for each number of every parameter, kept by the names of parameters.

    DDP chooses its buckets anew after the first step, so nothing can be kept by bucket.
    """

    def __init__(self) -> None:
        self._buckets: dict[ParameterLayout, Tensor] = {}
        self._parts: dict[str, Tensor] = {}

    def read(
        self, layout: ParameterLayout, fresh: Float[Tensor, " length"]
    ) -> Float[Tensor, " length"]:
        """What is kept of the parameters of a bucket, one after the other.

        Args:
            layout: of the bucket; every parameter is flat.
            fresh: what takes the place of parameters of which nothing is kept.
        """
        if layout in self._buckets:  # cut as before, so there is nothing to put together
            return self._buckets[layout]
        parts = layout.unflatten(fresh).items()
        return torch.cat([self._parts.get(name, part).to(part) for name, part in parts])

    def replace(self, buckets: Mapping[ParameterLayout, Tensor]) -> None:
        """Keeps copies of these buckets."""
        self._buckets = {
            layout: flat.clone() if (old := self._buckets.get(layout)) is None else old.copy_(flat)
            for layout, flat in buckets.items()
        }
        for layout, flat in self._buckets.items():
            self._parts |= layout.unflatten(flat)

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of what is kept, flat, by parameter."""
        return {name: part.clone() for name, part in self._parts.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replaces what is kept."""
        self._buckets = {}
        self._parts = {name: part.flatten().clone() for name, part in state.items()}
