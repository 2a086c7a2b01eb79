"""Worker state between rounds: that of its computation and transforms."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

WorkerState = Mapping[str, tuple[Tensor, ...]]
"""What one worker remembers, by stage: "compute", "transforms.0", ...; a stage that remembers
nothing is not in it. Checkpoints, restarts and engines carry it without knowing what is in it."""


class DatedState(NamedTuple):
    """State of a worker before a round.

    Attributes:
        step: the round.
        state: what is remembered.
    """

    step: int
    state: WorkerState


def copied(state: WorkerState) -> dict[str, tuple[Tensor, ...]]:
    """The state in memory of its own."""
    return {name: tuple(one.clone() for one in parts) for name, parts in state.items()}
