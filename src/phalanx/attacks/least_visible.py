"""Least visible lie: the direction that a linear code's parity checks see least."""

import itertools
import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.attacks.adversary_knowledge import AdversaryKnowledge
from phalanx.attacks.base import Attack, State, require_honest
from phalanx.attacks.planned_attack import PlannedAttack
from phalanx.checks import require_at_least
from phalanx.floats import euclidean_norm

_AT_ONCE = 2000  # sets of framed workers that are all tried; beyond, they are chosen one by one


@dataclass(frozen=True)
class LeastVisible(PlannedAttack):
    """A small lie, against any linear code, for which other workers can be blamed.

    Honest messages are `weights @ gradients`, so that `H weights = 0` holds for the rows of a
    matrix of parity checks H, and a lie `E`, a row per Byzantine worker, shows as `H_B E`. If some
    honest workers F count as Byzantine instead, only what is outside of the span of their columns
    shows. The lie takes the right singular vector v of the smallest singular value of `[H_B H_F]`,
    for the F that makes it smallest:

        E_w = size * v_w / |v_B| * (mean norm of the honest messages) * direction,

    in the direction opposite to the honest mean. A decoder that takes the first set that explains
    the messages names F, or believes all of it. Of a code without checks (a plain rule) all
    Byzantine workers send the same lie.

    Cost: a singular value decomposition of `checks x (b + f)` for each of at most 2,000 sets F, and
    for each worker that is added to it beyond; two passes over the honest messages.
    Source: this package; it is what an adversary who knows the code (Chen et al., "DRACO", ICML
    2018) does to a decoder that compares with a tolerance.

    >>> honest = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    >>> LeastVisible(size=0.5)(honest, num_byzantine=1)
    tensor([[0.5000, 0.0000]])
    """

    size: float = 1e-4
    """Norm of the whole lie, relative to the mean norm of the honest messages."""

    num_framed: int | None = None
    """Honest workers to be blamed; as many as are Byzantine by default."""

    rank: int = 0
    """Which of the Byzantine workers this one is; filled in by the drill."""

    def __post_init__(self) -> None:
        require_at_least(0, size=self.size, num_framed=self.num_framed, rank=self.rank)

    def member(self, rank: int) -> Attack:
        """This attack, by the Byzantine worker of that rank."""
        return replace(self, rank=rank)

    def plan(self, view: AdversaryKnowledge, memory: State = ()) -> tuple[Attack, State]:
        """The worker's share of the lie.

        Raises:
            ValueError: if there is no honest message.
        """
        rows = require_honest(view.honest, self)
        shares = torch.ones(view.num_byzantine, dtype=torch.float64)
        if view.encoding is not None:
            honest = list(view.workers)
            byzantine = [w for w in range(len(view.encoding)) if w not in honest]
            byzantine = byzantine[: view.num_byzantine]
            framed = view.num_byzantine if self.num_framed is None else self.num_framed
            shares = _least_seen(view.encoding, byzantine, honest, framed, shares)
        share = shares[min(self.rank, len(shares) - 1)] / shares.norm()
        mean = rows.mean(dim=0, dtype=torch.float64)
        length = euclidean_norm(mean)
        scale = euclidean_norm(rows, dim=1).mean() / length.where(length > 0, 1.0)
        return _Shift(-self.size * float(share * scale) * mean), ()


@dataclass(frozen=True, eq=False)
class _Shift(Attack):
    """Its own message, shifted."""

    by: Tensor

    def forge(
        self,
        own: Float[Tensor, " dim"],
        honest: Float[Tensor, "honest dim"] | None,
        num_byzantine: int,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The worker's honest message, and the shift."""
        return (own.double() + self.by.to(own.device)).to(own.dtype)


def _least_seen(
    encoding: Tensor, byzantine: list[int], honest: list[int], num_framed: int, alone: Tensor
) -> Tensor:
    """Each Byzantine worker's share of the lie that shows least once honest ones are blamed."""
    weights = encoding.double()
    rank = int(torch.linalg.matrix_rank(weights))
    checks = torch.linalg.svd(weights).U[:, rank:].T
    if not len(checks) or not byzantine:
        return alone
    num_framed = max(min(num_framed, len(honest), len(checks) - len(byzantine)), 0)
    if math.comb(len(honest), num_framed) <= _AT_ONCE:
        return _seen(checks, byzantine, list(itertools.combinations(honest, num_framed)))[1]
    framed: tuple[int, ...] = ()
    for _ in range(num_framed):
        more = [(*framed, worker) for worker in honest if worker not in framed]
        framed = more[_seen(checks, byzantine, more)[0]]
    return _seen(checks, byzantine, [framed])[1]


def _seen(checks: Tensor, byzantine: list[int], sets: list[tuple[int, ...]]) -> tuple[int, Tensor]:
    """Which set of framed workers hides a lie best, and the lie."""
    columns = torch.tensor([[*byzantine, *framed] for framed in sets])
    values, vectors = torch.linalg.svd(checks[:, columns].permute(1, 0, 2))[1:]
    lies = vectors[:, -1, : len(byzantine)]
    # What shows of a lie of norm 1; a vector that leaves the Byzantine workers out is none.
    shown = values[:, -1] / lies.norm(dim=1).clamp_min(1e-9)
    best = int(shown.argmin())
    return best, lies[best]
