"""Mixture of attacks, a different one per Byzantine worker."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.attacks.a_little_is_enough import ALittleIsEnough
from phalanx.attacks.base import Attack
from phalanx.attacks.constant import Constant
from phalanx.attacks.reverse_gradient import ReverseGradient


@dataclass(frozen=True)
class Mixed(Attack):
    """Different attacks by the Byzantine workers of a round, in turn.

    The Byzantine worker of rank `r` (the r-th smallest id among them in the round) carries out
    `parts[r % len(parts)]`; where that is itself mixed, the attack of its own worker of rank
    `r // len(parts)`. An engine asks `member(rank)` and then only that member; asked itself, the
    mixture answers for the worker of rank 0, save that it is `omniscient` as soon as one member is,
    and as many `rounds_behind` as the slowest member.
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

    # None and not the list itself: a saved configuration can hold that as it is.
    attacks: list[Attack] | None = None
    """The attacks, dealt out to the Byzantine workers in turn; reversed gradient, constant, and a
    little is enough, if not given."""

    def __post_init__(self) -> None:
        if self.attacks == []:
            raise ValueError("attacks must name at least 1 attack, got []")

    @property
    def parts(self) -> tuple[Attack, ...]:
        """The attacks that are mixed."""
        if self.attacks is None:
            return ReverseGradient(), Constant(), ALittleIsEnough()
        return tuple(self.attacks)

    @property
    def omniscient(self) -> bool:
        """Whether any member reads the honest messages."""
        return any(attack.omniscient for attack in self.parts)

    @property
    def sends(self) -> bool:
        """Whether the Byzantine worker of rank 0 sends."""
        return self.member(0).sends

    @property
    def delay_s(self) -> float:
        """Seconds by which the Byzantine worker of rank 0 is late."""
        return self.member(0).delay_s

    @property
    def rounds_behind(self) -> int:
        """The largest number of rounds by which any member is behind."""
        return max(attack.rounds_behind for attack in self.parts)

    @property
    def relabels(self) -> bool:
        """Whether the Byzantine worker of rank 0 computes with other targets."""
        return self.member(0).relabels

    def relabel(self, targets: Tensor, num_classes: int) -> Tensor:
        """The targets of the Byzantine worker of rank 0."""
        return self.member(0).relabel(targets, num_classes)

    def problem(self, honest: Collection[int]) -> str | None:
        """The first problem that a member has."""
        found = (attack.problem(honest) for attack in self.parts)
        return next((one for one in found if one is not None), None)

    def member(self, rank: int) -> Attack:
        """The attack that falls to the Byzantine worker of this rank."""
        turn, place = divmod(rank, len(self.parts))
        return self.parts[place].member(turn)

    def forge(
        self,
        own: Float[Tensor, " dim"],
        honest: Float[Tensor, "honest dim"] | None,
        num_byzantine: int,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The message of the Byzantine worker of rank 0."""
        return self.member(0).forge(own, honest, num_byzantine, generator)
