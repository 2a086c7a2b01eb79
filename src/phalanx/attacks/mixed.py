"""Several attacks at once."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.attacks.a_little_is_enough import ALittleIsEnough
from phalanx.attacks.base import Attack
from phalanx.attacks.constant import Constant
from phalanx.attacks.reverse_gradient import ReverseGradient


@dataclass(frozen=True)
class Mixed(Attack):
    """The bad workers of a round carry out different attacks, in turn.

    The bad worker of rank `r` (the r-th smallest id among the bad ones of the round) carries out
    `attacks[r % len(attacks)]`; where that is itself mixed, its worker of rank
    `r // len(attacks)`. An engine asks `member(rank)` and then only that member; asked itself, the
    mixture answers for the worker of rank 0, save that it is `omniscient` as soon as one member is.
    Members may be silent, or send messages of another length: `messages` then gives None in their
    place or the odd length; calling the mixture leaves the silent out, and refuses odd lengths.

    Cost: that of its members.

    >>> import torch
    >>> from phalanx.attacks import Constant, Silence, SignFlip
    >>> mixed = Mixed(attacks=[SignFlip(), Silence(), Constant(value=7.0)])
    >>> mixed.messages(torch.ones(4, 2), num_byzantine=3)
    [tensor([-1., -1.]), None, tensor([7., 7.])]
    >>> mixed(torch.ones(4, 2), num_byzantine=3)
    tensor([[-1., -1.],
            [ 7.,  7.]])
    """

    attacks: list[Attack] = field(
        default_factory=lambda: [ReverseGradient(), Constant(), ALittleIsEnough()]
    )
    """The attacks, dealt out to the bad workers in turn."""

    def __post_init__(self) -> None:
        if not self.attacks:
            raise ValueError("attacks must name at least 1 attack, got []")

    @property
    def omniscient(self) -> bool:
        """Whether any member reads the honest messages."""
        return any(attack.omniscient for attack in self.attacks)

    @property
    def sends(self) -> bool:
        """Whether the bad worker of rank 0 sends."""
        return self.member(0).sends

    @property
    def delay_s(self) -> float:
        """Seconds by which the bad worker of rank 0 is late."""
        return self.member(0).delay_s

    def member(self, rank: int) -> Attack:
        """The attack that falls to the bad worker of this rank."""
        turn, place = divmod(rank, len(self.attacks))
        return self.attacks[place].member(turn)

    def forge(
        self,
        own: Float[Tensor, " dim"],
        honest: Float[Tensor, "honest dim"] | None,
        num_byzantine: int,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The message of the bad worker of rank 0."""
        return self.member(0).forge(own, honest, num_byzantine, generator)
