"""The server that faces the workers' vectors: it learns distances, and never the aggregate."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from phalanx.aggregation import Aggregate, Aggregator, Mean, weigh_distances
from phalanx.errors import DecodeError, TooManyByzantineError
from phalanx.privacy.secure_aggregation.dealer import mask_shares, random_weights
from phalanx.privacy.secure_aggregation.entropy import SEED_BYTES, Entropy, expand
from phalanx.privacy.secure_aggregation.fixed_point import decode_squares
from phalanx.privacy.secure_aggregation.messages import (
    DistanceShares,
    MaskedShares,
    Roll,
    SumShare,
    VectorShare,
    WeightedShare,
    WorkerServerDeal,
)
from phalanx.privacy.secure_aggregation.range_check import in_range
from phalanx.privacy.secure_aggregation.ring import pairs, products, square
from phalanx.privacy.secure_aggregation.setup import SecureSetup
from phalanx.privacy.secure_aggregation.views import learnt
from phalanx.privacy.secure_aggregation.weights import whole

State = tuple[Tensor, ...]


@dataclass(frozen=True)
class WorkerServerView:
    """All that the worker server knows of a round, in the order in which it learns it.

    There is no field for the aggregate: it never gets here.
    """

    setup: SecureSetup
    """What everybody agreed on."""
    round: int
    """The number of the round."""
    vectors: Mapping[int, Int64[Tensor, " dim"]] = field(
        default_factory=lambda: MappingProxyType({})
    )
    """What workers sent, by their ids: uniform noise."""
    marked: frozenset[int] = frozenset()
    """Workers who sent something malformed, or two different things, to either server."""
    workers: tuple[int, ...] = ()
    """Who is in the round."""
    deal: WorkerServerDeal | None = None
    """Its part of the correlated randomness."""
    masks: Int64[Tensor, "workers dim"] | None = None
    """Its shares of the masks, expanded."""
    masked: Int64[Tensor, "present dim"] | None = None
    """The messages less their masks, opened: uniform noise."""
    squared_distances: Float[Tensor, "present present"] | None = None
    """Squared distances of those who are in the round, opened."""
    sums: Int64[Tensor, "present sums"] | None = None
    """Random sums of their messages in noise, less those of the first, opened."""
    verdict: Aggregate | None = None
    """What the rule says: weights, scores and suspects of all workers; no value."""

    def receive(self, share: VectorShare) -> "WorkerServerView":
        """Takes a worker's share in; one that is malformed, or a second one, marks its sender."""
        known = self.vectors.get(share.worker, share.values)
        if share.values.shape != (self.setup.dim,) or not torch.equal(share.values, known):
            return self.mark(share.worker)
        if share.round != self.round or not self.setup.has(share.worker):
            return self
        vectors = MappingProxyType({**self.vectors, share.worker: share.values})
        return replace(self, vectors=vectors)

    def mark(self, worker: int) -> "WorkerServerView":
        """Notes that a worker sent something malformed; who is no worker is nobody's concern."""
        if not self.setup.has(worker):
            return self
        return replace(self, marked=self.marked | {worker})

    def call(self, roll: Roll) -> tuple["WorkerServerView", Roll]:
        """Decides who is in the round: whose shares reached both servers, both well-formed.

        Raises:
            DecodeError: if that is nobody.
        """
        marked = self.marked | set(roll.marked)
        workers = tuple(sorted(set(roll.workers) & set(self.vectors) - marked))
        if not workers:
            absent = list(range(self.setup.num_workers))
            raise DecodeError("no worker's shares reached both servers", workers=absent, bound=0)
        view = replace(self, workers=workers, marked=marked)
        return view, Roll(self.round, workers, tuple(sorted(marked)))

    def mask(
        self, other: MaskedShares, deal: WorkerServerDeal
    ) -> tuple["WorkerServerView", MaskedShares]:
        """Opens the masked messages, and gives its shares of them for the other to do the same."""
        masks = mask_shares(deal.seed, self.setup)
        own = self.shares() - masks[list(self.workers)]
        view = replace(self, deal=deal, masks=masks, masked=own + other.rows)
        return view, MaskedShares(self.round, own)

    def weigh(
        self, shares: DistanceShares, rule: Aggregator, state: State, entropy: Entropy
    ) -> tuple["WorkerServerView", WeightedShare, State]:
        """Opens distances, runs the rule on them, and gives its share of the weighted sum.

        Raises:
            TooManyByzantineError: if more workers are marked or out of range than the rule
                survives.
            DecodeError: if too few workers are in the round for the rule.
        """
        view = self._opened(shares)
        verdict, state = view._judged(rule, state, in_range(learnt(view.sums)))
        view = replace(view, verdict=verdict)
        return view, view._weighted(entropy), state

    def add_up(self) -> tuple["WorkerServerView", SumShare]:
        """Its share of the plain sum.

        Raises:
            TooManyByzantineError: if anybody is marked; the plain sum survives nobody.
        """
        view = replace(self, squared_distances=torch.zeros(2 * (len(self.workers),)).double())
        verdict, _ = view._judged(Mean(), (), torch.ones(len(self.workers), dtype=torch.bool))
        view = replace(self, verdict=verdict)
        return view, SumShare(self.round, self.shares().sum(dim=0))

    def shares(self) -> Int64[Tensor, "present dim"]:
        """Its shares of the messages of those who are in the round."""
        return torch.stack([self.vectors[worker] for worker in self.workers])

    def _opened(self, shares: DistanceShares) -> "WorkerServerView":
        deal, masks, masked = learnt(self.deal), learnt(self.masks), learnt(self.masked)
        rows = list(self.workers)
        own = 2 * products(masked, masks[rows]) + deal.products[rows][:, rows]
        squared = square(decode_squares(pairs(own) + shares.pairs, self.setup), len(rows))
        sums = torch.zeros_like(deal.sums[rows])
        sums[1:] = deal.sums[rows[1:]] - deal.sums[rows[:1]] + shares.differences
        return replace(self, squared_distances=squared, sums=sums)

    def _judged(
        self, rule: Aggregator, state: State, fine: Bool[Tensor, " present"]
    ) -> tuple[Aggregate, State]:
        """The rule's verdict on those whose messages are in range."""
        bad = self.marked | {who for who, kept in zip(self.workers, fine, strict=True) if not kept}
        present = torch.zeros(self.setup.num_workers, dtype=torch.bool)
        present[list(self.workers)] = fine
        bound = self._bound(rule, sorted(bad))
        squared = learnt(self.squared_distances)[fine][:, fine]
        verdict, state = weigh_distances(rule, squared, bound - len(bad), state, present)
        suspects = verdict.suspects & present  # who is merely absent is no suspect
        suspects[sorted(bad)] = True
        return verdict._replace(suspects=suspects), state

    def _bound(self, rule: Aggregator, bad: list[int]) -> int:
        """How many bad workers the rule survives among those who sent anything."""
        heard = set(self.workers) | set(bad)
        absent = [who for who in range(self.setup.num_workers) if who not in heard]
        try:
            bound = rule.num_tolerated(len(heard))
        except ValueError as error:
            raise DecodeError(
                f"too few shares for {rule}: {error}; missing: {absent}", workers=absent, bound=0
            ) from error
        if len(bad) > bound:
            raise TooManyByzantineError(
                f"the shares of workers {bad} are malformed or out of range, and {rule} survives "
                f"{bound}",
                workers=bad,
                bound=bound,
            )
        return bound

    def _weighted(self, entropy: Entropy) -> WeightedShare:
        """Its share of the weighted sum, for the verdict's weights."""
        deal, masks, masked = learnt(self.deal), learnt(self.masks), learnt(self.masked)
        weights = whole(learnt(learnt(self.verdict).weights))
        offsets = weights.values - random_weights(deal.seed, self.setup)
        # With x = e + a: sum p x = sum p e + sum (p - u) a + sum u a, with absent workers' p = 0.
        values = weights.values[list(self.workers)] @ masked + offsets @ masks + deal.weighted
        if weights.shift:
            # Whoever knows a sum with weights of many digits to the last one may find the parts.
            # Noise below one unit makes it the same sum, rounded at random and without bias.
            dither = expand(entropy(SEED_BYTES), "dither", self.setup.dim)
            values += dither & ((1 << weights.shift) - 1)
        return WeightedShare(self.round, offsets, values, weights.shift, weights.divisor)
