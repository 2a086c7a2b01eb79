"""The server that keeps the model: it learns the aggregate, and nothing of distances."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from phalanx.privacy.secure_aggregation.dealer import (
    mask_shares,
    product_shares,
    sum_shares,
    weighted_share,
)
from phalanx.privacy.secure_aggregation.entropy import SEED_BYTES, expand
from phalanx.privacy.secure_aggregation.fixed_point import decode
from phalanx.privacy.secure_aggregation.messages import (
    DistanceShares,
    MaskedShares,
    ModelServerDeal,
    Roll,
    SeedShare,
    SumShare,
    WeightedShare,
)
from phalanx.privacy.secure_aggregation.range_check import signed_sums
from phalanx.privacy.secure_aggregation.ring import pairs, products
from phalanx.privacy.secure_aggregation.setup import SecureSetup
from phalanx.privacy.secure_aggregation.views import learnt


@dataclass(frozen=True)
class ModelServerView:
    """All that the model server knows of a round, in the order in which it learns it.

    There is no field for a distance, a weight or a verdict: they never get here.
    """

    setup: SecureSetup
    """What everybody agreed on."""
    round: int
    """The number of the round."""
    seeds: Mapping[int, bytes] = field(default_factory=lambda: MappingProxyType({}))
    """What workers sent, by their ids."""
    marked: frozenset[int] = frozenset()
    """Workers who sent something malformed, or two different things."""
    workers: tuple[int, ...] = ()
    """Who is in the round."""
    deal: ModelServerDeal | None = None
    """Its part of the correlated randomness."""
    masks: Int64[Tensor, "workers dim"] | None = None
    """Its shares of the masks, expanded."""
    masked: Int64[Tensor, "present dim"] | None = None
    """The messages less their masks, opened: uniform noise."""
    answer: WeightedShare | SumShare | None = None
    """What the worker server sent last."""
    aggregate: Float[Tensor, " dim"] | None = None
    """The outcome of the round."""

    def receive(self, share: SeedShare) -> "ModelServerView":
        """Takes a worker's share in; one that is malformed, or a second one, marks its sender."""
        known = self.seeds.get(share.worker, share.seed)
        if len(share.seed) != SEED_BYTES or share.seed != known:
            return self.mark(share.worker)
        if share.round != self.round or not self.setup.has(share.worker):
            return self
        seeds = MappingProxyType({**self.seeds, share.worker: share.seed})
        return replace(self, seeds=seeds)

    def mark(self, worker: int) -> "ModelServerView":
        """Notes that a worker sent something malformed; who is no worker is nobody's concern."""
        if not self.setup.has(worker):
            return self
        return replace(self, marked=self.marked | {worker})

    def roll(self) -> Roll:
        """Says whose shares are here."""
        return Roll(self.round, tuple(sorted(self.seeds)), tuple(sorted(self.marked)))

    def mask(self, roll: Roll, deal: ModelServerDeal) -> tuple["ModelServerView", MaskedShares]:
        """Hides the shares of those who are in the round behind those of the masks."""
        masks = mask_shares(deal.seed, self.setup)
        view = replace(self, workers=roll.workers, deal=deal, masks=masks)
        return view, MaskedShares(self.round, view.shares() - masks[list(roll.workers)])

    def measure(
        self, own: MaskedShares, other: MaskedShares
    ) -> tuple["ModelServerView", DistanceShares]:
        """Opens the masked messages; its shares of what the worker server is to learn."""
        deal, masks = learnt(self.deal), learnt(self.masks)
        rows = list(self.workers)
        masked = own.rows + other.rows
        # With x = e + a: <x, y> = <e, e'> + <e, a'> + <a, e'> + <a, a'>. Distances add <x, y> and
        # <y, x>, so twice <e, a'> does for both; only this server adds <e, e'>.
        shares = products(masked, masked + 2 * masks[rows])
        shares += product_shares(deal.seed, self.setup)[rows][:, rows]
        sums = signed_sums(deal.seed, masked) + sum_shares(deal.seed, self.setup)[rows]
        view = replace(self, masked=masked)
        return view, DistanceShares(self.round, pairs(shares), sums[1:] - sums[:1])

    def open(self, answer: WeightedShare) -> "ModelServerView":
        """Puts the shares of the weighted sum together."""
        deal, masks = learnt(self.deal), learnt(self.masks)
        total = answer.values + answer.offsets @ masks + weighted_share(deal.seed, self.setup)
        aggregate = decode(total >> answer.shift, answer.divisor, self.setup)
        return replace(self, answer=answer, aggregate=aggregate)

    def open_sum(self, roll: Roll, answer: SumShare) -> "ModelServerView":
        """Puts the shares of the plain sum together, and divides by who is in the round."""
        view = replace(self, workers=roll.workers, answer=answer)
        total = answer.values + view.shares().sum(dim=0)
        return replace(view, aggregate=decode(total, len(roll.workers), self.setup))

    def shares(self) -> Int64[Tensor, "present dim"]:
        """Its shares of the messages of those who are in the round."""
        rows = torch.empty(len(self.workers), self.setup.dim, dtype=torch.int64)
        for row, worker in zip(rows, self.workers, strict=True):
            row.copy_(expand(self.seeds[worker], "message", self.setup.dim))
        return rows
