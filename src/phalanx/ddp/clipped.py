"""Centred clipping by plain all-reduce: every rank clips its own message."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor

from phalanx.aggregation import (
    Aggregate,
    CenteredClipping,
    Geometry,
    far_out,
    require_tolerated,
)
from phalanx.communication.point_to_point import Peers
from phalanx.errors import naming
from phalanx.floats import euclidean_norm, power_of_two, working

_WIDTH = 1 << 18  # columns whose difference is in memory at once


class _Piece(NamedTuple):
    flat: Float[Tensor, " length"]
    centre: Float[Tensor, " length"]


class ClippedAllReduce:
    """Pieces of a vector are posted one after the other; `finish` aggregates the whole of it.

    Every rank knows the centre, the last aggregate, and with it how far its own message is from
    there: one number, which it tells the others. The rest is arithmetic on those numbers, and an
    all-reduce of messages that their own senders have shortened.

    Cost: one all-reduce of float32 numbers (float64 for float64), whatever the dtype of the
    messages; it starts after the last piece, because a norm needs all of them. Two passes over the
    pieces, and a vector's worth of memory.
    """

    def __init__(self, rule: CenteredClipping, peers: Peers) -> None:
        """Checks the rule.

        Raises:
            ValueError: if the rule takes more than one step per round, for which whole messages are
                needed, or cannot work with so few ranks.
        """
        if rule.iterations != 1:
            raise ValueError(f"iterations must be 1 to clip by all-reduce, got {rule.iterations}")
        self.rule, self.peers = rule, peers
        self._bound = rule.num_tolerated(peers.size)
        self._pieces: list[_Piece] = []
        self._apart: list[Tensor] = []
        self._buffers: list[Tensor] = []

    def post(
        self, flat: Float[Tensor, " length"], memory: Float[Tensor, " length"] | None = None
    ) -> None:
        """Takes a piece, and measures how far it is from the centre.

        Args:
            flat: this rank's, to be left alone until `finish` has filled it with the aggregate.
            memory: the piece's part of the centre; None for the origin.
        """
        centre = torch.zeros_like(flat) if memory is None else memory
        self._pieces.append(_Piece(flat, centre))
        self._apart.append(distance(flat, centre))

    def finish(self, step: int) -> tuple[Aggregate, Bool[Tensor, " ranks"]]:
        """Aggregates what was posted by all ranks, and puts the aggregate in its place.

        Args:
            step: the number of the round; nothing depends on it.

        Returns:
            What the rule answered, without its `value`, which lies in the pieces; and nobody, as
            nobody can be outvoted here.

        Raises:
            TooManyByzantineError: if more messages are not finite than the rule survives. On all
                ranks alike.
            RankLostError: if a rank is gone or silent.
        """
        try:
            distances, finite = self._distances()
            left = require_tolerated(self.rule, finite, self._bound)
            weights = torch.zeros(self.peers.size, dtype=torch.float64)
            weights[finite] = self._shares(distances[finite], left)
            scores = self._combine(weights).where(finite, torch.inf)
        finally:
            self._pieces.clear()
            self._apart.clear()
        suspects = ~finite
        suspects[finite] = far_out(scores[finite])
        nobody = torch.zeros_like(finite)
        return Aggregate(torch.empty(0), weights, scores, ~finite, suspects), nobody

    def _distances(self) -> tuple[Float[Tensor, " ranks"], Bool[Tensor, " ranks"]]:
        """Distance of every message to the centre, and which messages are finite."""
        own = euclidean_norm(torch.stack(self._apart))
        finite = bool(torch.isfinite(own)) or all(
            torch.isfinite(piece.flat).all() for piece in self._pieces
        )
        told = self.peers.gather(torch.stack([own, own.new_tensor(float(finite))])).cpu()
        return told[:, 0], told[:, 1] == 1

    def _shares(self, distances: Float[Tensor, " rows"], bound: int) -> Float[Tensor, " rows"]:
        """The weights of the messages, which depend on their distances to the centre alone."""
        ordered = distances.sort().values
        unit = power_of_two(ordered[len(ordered) // 2 : len(ordered) // 2 + 1]).item()
        squared = torch.cat([distances / unit, distances.new_zeros(1)]).square()
        geometry = Geometry(squared.diag(), num_points=1, unit=unit)
        return self.rule.weigh(geometry.in_its_own_unit(), bound).weights

    def _combine(self, weights: Float[Tensor, " ranks"]) -> Float[Tensor, " ranks"]:
        """Puts the aggregate into the pieces; tells how far every message is from it."""
        own, rest = weights[self.peers.rank].item(), 1 - weights.sum().item()
        self._reserve()
        works = []
        for (flat, _), total in zip(self._pieces, self._buffers, strict=True):
            if own:
                torch.mul(flat.to(total.dtype), own, out=total)
            else:  # a message without weight may hold anything, NaN included
                total.zero_()
            works.append(dist.all_reduce(total, group=self.peers.group, async_op=True))
        distances = []
        for (flat, centre), total, work in zip(self._pieces, self._buffers, works, strict=True):
            with naming():
                work.wait()
            total.add_(centre, alpha=rest)
            distances.append(distance(flat, total))
            flat.copy_(total)
        return self.peers.gather(euclidean_norm(torch.stack(distances))).cpu()

    def _reserve(self) -> None:
        """Buffers for the sums, which are the last round's unless the pieces have changed."""
        wide = [
            torch.float64 if flat.dtype == torch.float64 else torch.float32
            for flat, _ in self._pieces
        ]
        wanted = [(flat.shape, dtype) for (flat, _), dtype in zip(self._pieces, wide, strict=True)]
        if wanted != [(buffer.shape, buffer.dtype) for buffer in self._buffers]:
            self._buffers = [
                torch.empty_like(flat, dtype=dtype)
                for (flat, _), dtype in zip(self._pieces, wide, strict=True)
            ]


def distance(one: Float[Tensor, " length"], other: Float[Tensor, " length"]) -> Float[Tensor, ""]:
    """Euclidean distance, summed in float64."""
    parts = [torch.zeros((), dtype=torch.float64, device=one.device)]
    for left, right in zip(one.split(_WIDTH), other.split(_WIDTH), strict=True):
        wide = working(left.dtype, right.dtype)
        difference = left.to(wide) - right
        parts.append(euclidean_norm(difference))
    return euclidean_norm(torch.stack(parts))
