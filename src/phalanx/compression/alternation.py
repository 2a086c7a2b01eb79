"""Alternating power iteration: a matrix as a sum of parts of low rank, one product each."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.communication.collectives import State
from phalanx.floats import power_of_two

Matrix = Float[Tensor, "rows columns"]
RIGHT, LEFT = range(2)
"""On which side the last factor stands: the next product is from there."""


@dataclass
class Alternation:
    """One matrix in a round of alternating iterations: what is left of it, and what was sent.

    Its values change with `advance`; it lives for a round only.
    """

    rest: Matrix
    """The worker's matrix less what was sent of it."""
    factor: Float[Tensor, "side rank"]
    """What the last product gave, or a start."""
    side: int
    """`RIGHT` or `LEFT`."""
    total: Matrix
    """The sum of the parts so far."""
    sent: Matrix
    """What of them counts as this worker's own."""
    basis: Float[Tensor, "side rank"] = field(init=False)
    lefts: list[Tensor] = field(default_factory=list)
    rights: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, matrix: Matrix, start: Float[Tensor, "side rank"], state: State) -> "Alternation":
        """The beginning of a round; a state without a factor begins at the right."""
        warm = bool(state) and bool(state[0].any())
        zeros = torch.zeros_like(matrix)
        side = int(state[1]) if warm else RIGHT
        return cls(matrix, start, side, zeros, zeros)

    def multiplied(self) -> Float[Tensor, "other rank"]:
        """The product with the basis of the factor: what workers average."""
        self.basis = orthonormal(self.factor / power_of_two(self.factor))
        return (self.rest if self.side == RIGHT else self.rest.T) @ self.basis

    def advance(self, mean: Float[Tensor, "other rank"], own: Float[Tensor, "other rank"]) -> None:
        """Adds the part that the mean of the products makes; takes off what was sent."""
        mine = self._part(own)
        self.total = self.total + (mine if own is mean else self._part(mean))
        self.sent, self.rest = self.sent + mine, self.rest - mine
        pair = (mean, self.basis) if self.side == RIGHT else (self.basis, mean)
        self.lefts.append(pair[0])
        self.rights.append(pair[1])
        self.factor, self.side = mean, LEFT if self.side == RIGHT else RIGHT

    def _part(self, product: Float[Tensor, "other rank"]) -> Matrix:
        if self.side == RIGHT:
            return product @ self.basis.T
        return self.basis @ product.T

    @property
    def state(self) -> State:
        """What the next round starts from."""
        return self.factor, torch.tensor(self.side)

    @property
    def factors(self) -> tuple[Matrix, Matrix]:
        """Left and right factors of all parts, beside one another."""
        return torch.cat(self.lefts, dim=1), torch.cat(self.rights, dim=1)


def orthonormal(matrix: Matrix) -> Matrix:
    """An orthonormal basis of the columns, finite even if they are zero or depend on each other."""
    basis: Tensor = torch.linalg.qr(matrix).Q
    return basis
