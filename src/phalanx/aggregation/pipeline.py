"""Pipelines: pre-aggregations, then a rule, as one rule."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, overload

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.aggregation.aggregate import Aggregate
from phalanx.aggregation.base import Aggregator, Bounded, State
from phalanx.aggregation.coordinate_rule import CoordinateRule
from phalanx.aggregation.geometry_rule import MixtureRule
from phalanx.aggregation.gram import Geometry
from phalanx.aggregation.krum import Krum
from phalanx.aggregation.mixtures import Mixtures, gather, gather_unmeasured
from phalanx.aggregation.weights import normalized
from phalanx.columns import Shard
from phalanx.randomness import generator


@dataclass(frozen=True)
class PreAggregation(Bounded, ABC):
    """A pre-aggregation: replaces the messages by mixtures of them before a rule.

    It says with which weights, and never touches the messages. `>>` puts it before another one, a
    rule, or a `Pipeline`.
    """

    needs_geometry: ClassVar[bool] = True
    """Whether `mix` asks how the messages lie to one another, or for their number alone."""

    from_origin: ClassVar[bool] = False
    """Whether it shrinks messages: what its weights lack to one belongs to the origin, which is
    then the first point of the geometry."""

    @abstractmethod
    def mix(
        self, geometry: Geometry, num_byzantine: int, random: torch.Generator
    ) -> Float[Tensor, "mixtures messages"]:
        """The weights of the messages in every mixture, float64.

        Args:
            geometry: how the messages, or earlier mixtures of them, lie to one another.
            num_byzantine: how many of them may be Byzantine.
            random: the only source of randomness.
        """

    def init(self) -> State:
        """What is remembered before the first round: nothing, by default; never of the model."""
        return ()

    def update(
        self, geometry: Geometry, num_byzantine: int, random: torch.Generator, state: State
    ) -> tuple[Float[Tensor, "mixtures messages"], State]:
        """What `mix` gives, and what is remembered, for a part with memory."""
        return self.mix(geometry, num_byzantine, random), state

    def counts(self, num_messages: int, num_byzantine: int) -> tuple[int, int]:
        """How many mixtures come out, and how many of them may be Byzantine."""
        return num_messages, num_byzantine

    def mixture_weights(
        self, matrix: Float[Tensor, "mixtures messages"], weights: Float[Tensor, " messages"]
    ) -> Float[Tensor, " mixtures"]:
        """How much every mixture counts: what the messages in it count, each dealt out in full.

        Args:
            matrix: what `mix` gave.
            weights: how much each message counts.
        """
        dealt = matrix.sum(dim=0)
        return matrix @ (weights / dealt.where(dealt > 0, 1.0))

    @overload
    def __rshift__(self, then: "PreAggregation | Chain") -> "Chain": ...
    @overload
    def __rshift__(self, then: Aggregator) -> "Pipeline": ...
    def __rshift__(self, then: "PreAggregation | Chain | Aggregator") -> "Chain | Pipeline":
        """This, then that."""
        return Chain((self,)) >> then


@dataclass(frozen=True)
class Chain:
    """Several pre-aggregations in a row, which still lack a rule; `>>` adds to them."""

    parts: tuple[PreAggregation, ...]
    """From the first to the last."""

    @overload
    def __rshift__(self, then: "PreAggregation | Chain") -> "Chain": ...
    @overload
    def __rshift__(self, then: Aggregator) -> "Pipeline": ...
    def __rshift__(self, then: "PreAggregation | Chain | Aggregator") -> "Chain | Pipeline":
        """These, then that."""
        if isinstance(then, PreAggregation):
            return Chain((*self.parts, then))
        if isinstance(then, Chain):
            return Chain((*self.parts, *then.parts))
        if isinstance(then, Pipeline):
            return replace(then, before=(*self.parts, *then.before))
        return Pipeline(self.parts, then)


@dataclass(frozen=True)
class Pipeline(MixtureRule):
    """A rule on mixtures of the messages: `Bucketing(2) >> NearestNeighborMixing(2) >> Krum(2)`.

    The mixtures are never formed. Their Gram matrix is `M G M^T` for mixing weights `M`, and the
    weights `w` that the rule gives to them are `M^T w` for the workers. Coordinate-wise rules form
    them block by block.

    `num_byzantine` means Byzantine workers in every part, and is passed on as the parts say;
    parts that give it must agree. What parts draw at random depends on `seed` and the number of the
    round, which is part of the state: a run that is resumed draws the same. Calling the rule is the
    first round.

    With sample weights, a mixture is the mean of its messages by their weights, and carries on what
    these count. Which messages are mixed does not depend on the weights.

    Scores: of a worker, the average over the mixtures that it went into; the distance of the
    message to the aggregate where the rule is coordinate-wise. Suspects: who went into suspected
    mixtures only; by distance where the rule is coordinate-wise.
    Cost: that of the rule, and one pass for the Gram matrix if any part needs it.
    Source: He, Karimireddy, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via
    Bucketing", ICLR 2022 (rules on mixtures); the parts name their own.

    >>> import torch
    >>> from phalanx.aggregation import Krum, NearestNeighborMixing
    >>> gradients = torch.tensor([[1.0, 5.0], [2.0, 4.0], [2.0, 5.0], [3.0, 6.0], [900.0, -900.0]])
    >>> (NearestNeighborMixing(1) >> Krum(1))(gradients)
    tensor([2., 5.])
    """

    before: Sequence[PreAggregation] = ()
    """What goes before the rule, in this order."""

    rule: Aggregator = Krum(num_byzantine=1)  # noqa: RUF009 - frozen
    """The rule."""

    seed: int = 0
    """Of everything that the parts draw at random."""

    def __post_init__(self) -> None:
        if isinstance(self.rule, Pipeline):
            raise ValueError("rule must not be a Pipeline; name all parts in before")
        if len(found := self._declared()) > 1:
            raise ValueError(f"num_byzantine must be the same in all parts, got {sorted(found)}")

    @property
    def num_byzantine(self) -> int | None:
        """Byzantine workers tolerated (f), as the parts say; None if none of them does."""
        return next(iter(self._declared()), None)

    @property
    def needs_distances_only(self) -> bool:
        """Whether that holds for the rule, and no part shrinks messages towards the origin."""
        shrinks = any(part.from_origin for part in self.before)
        return self.rule.needs_distances_only and not shrinks

    def init(
        self, dim: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> State:
        """The number of the round, what the rule remembers, and what the parts do."""
        rule = self.rule.init(dim, dtype=dtype, device=device)
        return torch.tensor(0), *rule, *self._memories()

    def num_tolerated(self, num_workers: int) -> int:
        """`num_byzantine` of the parts, or as many as the rule tolerates among the mixtures.

        Raises:
            ValueError: if a part cannot work with so few workers or mixtures.
        """
        if self.num_byzantine is not None:
            self._check(num_workers, self.num_byzantine)
            return self.num_byzantine
        num_mixtures, _ = self._counts(num_workers, 0)
        bound = self.rule.num_tolerated(num_mixtures)
        return max(f for f in range(bound + 1) if self._counts(num_workers, f)[1] <= bound)

    def update_shard(
        self, rows: Float[Tensor, "workers columns"], state: State, shard: Shard
    ) -> tuple[Aggregate, State]:
        """One round where every process holds a shard of the columns of all messages.

        All of them together do what `update` does on the whole messages: each gets its own columns
        of the aggregate, and the same verdict as the others. A rule by itself goes as
        `Pipeline((), rule)`.

        Args:
            rows: the columns at hand, of the messages of all workers.
            state: the number of the round, and the same columns of what the rule remembers.
            shard: what these columns are of the whole.

        Raises:
            ValueError: if the rule takes messages as a whole, and does not say how they are mixed.
            TooManyByzantineError: if more messages are not finite than the rule tolerates, wherever
                that is; on all shards alike.
        """
        if type(self.rule)._combine is Aggregator._combine:
            raise ValueError(
                "rule must be a GeometryRule, a CoordinateRule or one of the room to work on "
                f"shards, got {type(self.rule).__name__}"
            )
        return self._combine(*self._gathered(rows, state, None, shard), state)

    def with_num_byzantine(self, num_byzantine: int) -> "Pipeline":
        """The pipeline with another `num_byzantine` in all parts."""
        before = [part.with_num_byzantine(num_byzantine) for part in self.before]
        return replace(self, before=before, rule=self.rule.with_num_byzantine(num_byzantine))

    def _merge(self, rows: Tensor, weights: Tensor | None) -> Tensor:
        """The aggregate alone; a coordinate-wise rule takes no pass for scores."""
        if not isinstance(self.rule, CoordinateRule):
            return super()._merge(rows, weights)
        fresh = self.init(0)
        gathered = self._gathered(rows, fresh, weights)
        mixtures, num_byzantine, _ = self._mixed(*gathered, 0, self._memories())
        return self.rule._reduce(mixtures, num_byzantine)

    def _combine(
        self, mixtures: Mixtures, num_byzantine: int, state: State
    ) -> tuple[Aggregate, State]:
        """One round on messages that are measured already."""
        round_, kept = state[0], len(state) - len(self._memories())
        memory, parts = state[1:kept], state[kept:]
        mixed = self._mixed(mixtures, num_byzantine, int(round_), parts)
        mixtures, num_byzantine, parts = mixed
        answer, memory = self.rule._combine(mixtures, num_byzantine, memory)
        return answer, (round_ + 1, *memory, *parts)

    def _memories(self) -> State:
        """What the parts remember before the first round."""
        return tuple(one for part in self.before for one in part.init())

    def _measured(
        self, rows: Tensor, state: State, weights: Tensor | None, shard: Shard | None
    ) -> Mixtures:
        if not (self.rule._needs_geometry or any(part.needs_geometry for part in self.before)):
            return gather_unmeasured(rows, weights, shard)
        remembers = len(state) > 1 + len(self._memories())
        centre = state[1] if self.rule._needs_geometry and remembers else None
        origin = any(part.from_origin for part in (*self.before, self.rule))
        return gather(rows, weights, origin=origin, centre=centre, shard=shard)

    def _mixed(
        self, mixtures: Mixtures, num_byzantine: int, step: int, memories: State
    ) -> tuple[Mixtures, int, State]:
        """What the parts make of the messages, how many may be Byzantine, and memories."""
        following: list[Tensor] = []
        for position, part in enumerate(self.before):
            random = generator(self.seed, "mixing", position, step)
            own = memories[len(following) : len(following) + len(part.init())]
            matrix, own = part.update(mixtures.geometry, num_byzantine, random, own)
            following += own
            _, num_byzantine = part.counts(len(mixtures.mixing), num_byzantine)
            weights = mixtures.geometry.weights
            carried = None if weights is None else normalized(part.mixture_weights(matrix, weights))
            mixtures = mixtures.mixed(matrix, carried, from_origin=part.from_origin)
        return mixtures, num_byzantine, tuple(following)

    def _declared(self) -> set[int]:
        """What the parts say about `num_byzantine`."""
        found = {getattr(part, "num_byzantine", None) for part in (*self.before, self.rule)}
        return {bound for bound in found if bound is not None}

    def _counts(self, num_messages: int, num_byzantine: int) -> tuple[int, int]:
        for part in self.before:
            num_messages, num_byzantine = part.counts(num_messages, num_byzantine)
        return num_messages, num_byzantine

    def _check(self, num_workers: int, num_byzantine: int) -> None:
        num_mixtures, num_bad = self._counts(num_workers, num_byzantine)
        try:
            self.rule.with_num_byzantine(num_bad).num_tolerated(num_mixtures)
        except ValueError as error:
            if (num_mixtures, num_bad) == (num_workers, num_byzantine):
                raise
            raise ValueError(
                f"{num_workers} workers, {num_byzantine} of them Byzantine, make {num_mixtures} "
                f"mixtures, {num_bad} of them Byzantine, for which {error}"
            ) from error
