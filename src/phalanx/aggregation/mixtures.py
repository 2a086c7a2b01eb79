"""Weighted means of messages that are never formed, only measured and summed."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from phalanx.aggregation.aggregate import Aggregate, far_out
from phalanx.aggregation.gram import Geometry, measure
from phalanx.aggregation.weights import normalized, present
from phalanx.columns import (
    BLOCK,
    Reducer,
    Shard,
    column_blocks,
    finite_rows,
    weighted_sum,
    whole,
)
from phalanx.floats import working


class Mixtures(NamedTuple):
    """What a rule works on: the finite messages, or what pre-aggregation made of them.

    Attributes:
        rows: the messages of all workers, `(workers, dim)`.
        finite: `(workers,)` bool; the messages that take part: finite, of a sample weight above 0.
        mixing: `(mixtures, workers)` float64; the mixtures are `mixing @ rows`, zero where a
            worker takes no part.
        geometry: how the mixtures lie to one another, and to the origin and the centre if these
            were asked for, and how much each counts. All zeros if nobody asked how they lie.
        centre: `(dim,)`, the last point of the geometry, or None.
        shard: what the columns of the rows are of the whole messages, whose geometry this is; None
            if they are all of them.
    """

    rows: Float[Tensor, "workers dim"]
    finite: Bool[Tensor, " workers"]
    mixing: Float[Tensor, "mixtures workers"]
    geometry: Geometry
    centre: Float[Tensor, " dim"] | None = None
    shard: Shard | None = None

    def mixed(
        self,
        matrix: Float[Tensor, "outputs mixtures"],
        weights: Float[Tensor, " outputs"] | None = None,
        *,
        from_origin: bool = False,
    ) -> "Mixtures":
        """Mixtures of these mixtures, each counted by its sample weight; see `Geometry.mixed`."""
        if self.geometry.weights is not None:
            weighed = matrix * self.geometry.weights
            sums = weighed.sum(dim=1, keepdim=True)
            matrix = weighed / sums.where(sums > 0, 1.0) * matrix.sum(dim=1, keepdim=True)
        return self._replace(
            mixing=matrix @ self.mixing,
            geometry=self.geometry.mixed(matrix, weights, from_origin=from_origin),
        )

    def values(self) -> Float[Tensor, "mixtures dim"]:
        """The mixtures themselves, formed after all: as much memory as the messages."""
        formed = self.rows.new_empty(len(self.mixing), self.rows.shape[1])
        for columns, block in self._blocks():
            formed[:, columns] = block
        return formed

    def reduce(self, reducer: Reducer) -> Float[Tensor, " dim"]:
        """The reducer's answer to all coordinates of the mixtures, block by block."""
        value = self.rows.new_empty(self.rows.shape[1])
        for columns, block in self._blocks():
            value[columns] = reducer(block)
        return value

    def _blocks(self) -> Iterator[tuple[slice, Float[Tensor, "mixtures width"]]]:
        """The mixtures in the dtype to calculate in, a block of columns at a time."""
        dtype = working(self.rows.dtype)
        mixing = self.mixing[:, self.finite]
        plain = bool(((mixing == 1).sum(dim=1) == 1).all() & ((mixing != 0).sum(dim=1) == 1).all())
        chosen = self.finite.nonzero().flatten()
        chosen = (chosen[mixing.argmax(dim=1)] if plain else chosen).to(self.rows.device)
        mixing = mixing.to(self.rows.device, dtype)
        for columns in column_blocks(self.rows.shape[1], BLOCK):
            block = self.rows[chosen, columns].to(dtype)
            yield columns, block if plain else mixing @ block

    def weighted(
        self,
        weights: Float[Tensor, " mixtures"],
        scores: Float[Tensor, " mixtures"],
        suspects: Bool[Tensor, " mixtures"],
    ) -> Aggregate:
        """The answer of a rule that weighs mixtures, in terms of the workers.

        The score of a worker is the average over the mixtures that it went into; a suspect is who
        went into suspected mixtures only. What the weights lack to one belongs to the centre.
        """
        over_workers = weights @ self.mixing
        value = weighted_sum(self.rows, over_workers)
        if self.centre is not None:
            value.add_(self.centre, alpha=1 - weights.sum().item())
        return Aggregate(value, over_workers, *self.per_worker(scores, suspects))

    def per_worker(
        self, scores: Float[Tensor, " mixtures"], suspects: Bool[Tensor, " mixtures"]
    ) -> tuple[Float[Tensor, " workers"], Bool[Tensor, " workers"], Bool[Tensor, " workers"]]:
        """Scores, who was dropped, and suspects among the workers."""
        part = self.mixing != 0
        shares = self.mixing.sum(dim=0)
        known = (self.mixing * scores[:, None]).where(part, 0.0).sum(dim=0) / shares
        blamed = (~part | suspects[:, None]).all(dim=0)
        return known.where(shares > 0, torch.inf), ~self.finite, blamed


def gather(
    rows: Float[Tensor, "workers dim"],
    weights: Float[Tensor, " workers"] | None = None,
    *,
    origin: bool = False,
    centre: Float[Tensor, " dim"] | None = None,
    shard: Shard | None = None,
) -> Mixtures:
    """The finite messages of weight above 0, measured in one pass, with the origin or a centre."""
    points = []
    if origin:
        points.append(rows.new_zeros(1, 1).expand(1, rows.shape[1]))
    if centre is not None:
        centre = centre.to(rows)
        points.append(centre[None])
    here = present(weights, len(rows))
    geometry, finite = measure(rows, _joined(points), shard, here)
    kept = finite & here
    if weights is not None:
        geometry = geometry.among(kept[finite], normalized(weights[kept]))
    return Mixtures(rows, kept, _plain(kept), geometry, centre, shard)


def gather_unmeasured(
    rows: Float[Tensor, "workers dim"],
    weights: Float[Tensor, " workers"] | None = None,
    shard: Shard | None = None,
) -> Mixtures:
    """The finite messages of weight above 0, for who asks for no distances."""
    here = present(weights, len(rows))
    kept = here & ~(shard or whole(rows)).anywhere(here & ~finite_rows(rows, here))
    mixing = _plain(kept)
    relative = None if weights is None else normalized(weights[kept])
    nowhere = mixing.new_zeros(len(mixing), len(mixing))
    return Mixtures(rows, kept, mixing, Geometry(nowhere, weights=relative), shard=shard)


def judge_by_distance(
    value: Float[Tensor, " dim"],
    distances: Float[Tensor, " workers"],
    finite: Bool[Tensor, " workers"],
) -> Aggregate:
    """The answer of a coordinate-wise rule: workers are judged by their distance to its value."""
    scores = distances.where(finite, torch.inf)
    suspects = ~finite
    suspects[finite] = far_out(scores[finite])
    return Aggregate(value, None, scores, ~finite, suspects)


def _joined(points: list[Tensor]) -> Tensor | None:
    """One tensor of all points; a single one is not copied."""
    if len(points) > 1:
        return torch.cat(points)
    return points[0] if points else None


def _plain(finite: Tensor) -> Tensor:
    return torch.eye(len(finite), dtype=torch.float64)[finite]
