"""Stale gradient attack: a message of an earlier round."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.attacks.base import Attack
from phalanx.checks import require_at_least


@dataclass(frozen=True)
class StaleGradient(Attack):
    """The true message of some rounds ago, as of a worker that missed updates.

    The engine gives the worker the parameters and the samples of that earlier round; before there
    are so many rounds, those of the first. Called by itself the attack knows no earlier round, and
    sends the worker's own message.

    Cost: the parameters of so many rounds, kept by the server and in checkpoints; in one process,
    the worker's gradients again.

    >>> import torch
    >>> StaleGradient(rounds=3).rounds_behind
    3
    """

    rounds: int = 5
    """How many rounds old the message is."""

    def __post_init__(self) -> None:
        require_at_least(1, rounds=self.rounds)

    @property
    def rounds_behind(self) -> int:
        """`rounds`."""
        return self.rounds

    def forge(
        self,
        own: Float[Tensor, " dim"],
        honest: Float[Tensor, "honest dim"] | None,
        num_byzantine: int,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " dim"]:
        """The worker's message, which an engine had it compute for an earlier round."""
        return own
