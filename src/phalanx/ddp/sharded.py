"""Sharded all-reduce by a robust rule: every rank aggregates a shard of the columns."""

import hashlib
import itertools
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from phalanx.aggregation import Aggregate, Aggregator, GeometryRule, Pipeline, Shard
from phalanx.coding import Code, DracoRepetition, vote
from phalanx.communication import SharedTensor
from phalanx.communication.point_to_point import Peers, Swap
from phalanx.communication.wire import from_buffer
from phalanx.ddp.coded import Decoder, ShardedCode
from phalanx.errors import DecodeError


@dataclass
class _Piece:
    """A part of the messages that travels by itself: a bucket.

    Attributes:
        flat: this rank's, which the aggregate replaces.
        bounds: the shard of every group of ranks.
        columns: where this rank's shard stands among the columns at hand.
        landing: the shard of all ranks, `(ranks, width)`.
        arriving: what fills it.
        memory: the shard's columns of what the rule remembers, if it does.
    """

    flat: Float[Tensor, " length"]
    bounds: list[slice]
    columns: slice
    landing: Float[Tensor, "ranks width"]
    arriving: Swap
    memory: Float[Tensor, " width"] | None


class ShardedAllReduce:
    """Pieces of a vector are posted one after the other; `finish` aggregates the whole of it.

    The ranks are cut into groups of 2 s + 1, and each vector into as many shards as there are
    groups. Everybody sends every shard to all ranks of its group; these run the rule on it, with
    sums over the columns added up over the groups; and send their columns of the aggregate to
    everybody. With s > 0 all that a group says is decided by a vote of its members.

    Cost: with s = 0, `2 (n - 1) / n` times the vector is sent and received by each of n ranks, as
    in a ring all-reduce, and a vector's worth of memory; each times 2 s + 1, or a little more where
    that does not divide n. Gram matrices travel besides: 8 n^3 bytes a rank each time.
    """

    def __init__(
        self,
        rule: Aggregator | Code,
        peers: Peers,
        *,
        length: int,
        max_pieces: int,
        dtype: torch.dtype,
        num_byzantine_aggregators: int = 0,
    ) -> None:
        """Checks the rule; reserves memory when the first piece is posted.

        Args:
            rule: how to aggregate, or the code of which each rank's vector is a message.
            peers: the ranks that take part.
            length: of all pieces together, at most.
            max_pieces: how many there may be.
            dtype: to hold the pieces in.
            num_byzantine_aggregators: Byzantine ranks that a group survives (s).

        Raises:
            ValueError: if the rule cannot work with so few ranks, the code is for another number of
                them, or they are too few.
        """
        self.pipeline = as_pipeline(rule)
        self.pipeline.num_tolerated(peers.size)
        self.peers, self._dtype, self._bound = peers, dtype, num_byzantine_aggregators
        self.groups = groups_of(peers.size, num_byzantine_aggregators)
        self._group_of = [i for i, group in enumerate(self.groups) for _ in group]
        self._capacity = -(-length // len(self.groups)) + max_pieces
        self._rows: Tensor | None = None
        self._pieces: list[_Piece] = []
        self._outvoted = torch.zeros(peers.size, dtype=torch.bool)
        self._generator = torch.Generator().manual_seed(secrets.randbits(63))

    def post(
        self, flat: Float[Tensor, " length"], memory: Float[Tensor, " length"] | None = None
    ) -> None:
        """Sends a piece on its way, and comes back at once.

        Args:
            flat: this rank's, to be left alone until `finish` has filled it with the aggregate.
            memory: the piece's part of what the rule remembers.

        Raises:
            ValueError: if the pieces are longer, or more, than was said.
            RankLostError: if a rank is gone.
        """
        if self._rows is None:
            self._rows = flat.new_empty(self.peers.size, self._capacity, dtype=self._dtype)
        bounds = cut(len(flat), len(self.groups))
        own = bounds[self._group_of[self.peers.rank]]
        start = self._pieces[-1].columns.stop if self._pieces else 0
        columns = slice(start, start + own.stop - own.start)
        if columns.stop > self._capacity:
            raise ValueError(
                f"length must be at least that of all pieces, got {columns.stop} columns of a "
                f"shard where {self._capacity} were reserved"
            )
        landing = self._rows[:, columns]
        if flat.dtype != self._dtype:
            landing = torch.empty_like(landing, dtype=flat.dtype)
        arriving = self.peers.swap([flat[bounds[group]] for group in self._group_of], list(landing))
        kept = None if memory is None else memory[own]
        self._pieces.append(_Piece(flat, bounds, columns, landing, arriving, kept))

    def finish(self, step: int) -> tuple[Aggregate, Bool[Tensor, " ranks"]]:
        """Aggregates what was posted by all ranks, and puts the aggregate in its place.

        Args:
            step: the number of the round, from which rules draw what they draw at random.

        Returns:
            What the rule answered, its `value` that of this rank's columns alone; and the ranks
            that were outvoted while they aggregated.

        Raises:
            TooManyByzantineError: if more messages are not finite than the rule survives. On all
                ranks alike.
            DecodeError: if a group of ranks does not agree, or more is wrong than the code
                survives. On all honest ranks alike.
            RankLostError: if a rank is gone or silent.
        """
        self._outvoted = torch.zeros(self.peers.size, dtype=torch.bool)
        try:
            rows = self._arrived()
            if self._bound:
                self._compare(rows)
            memory = [piece.memory for piece in self._pieces if piece.memory is not None]
            state = (torch.tensor(step), *([torch.cat(memory)] if memory else []))
            dim = sum(len(piece.flat) for piece in self._pieces)
            answer, _ = self.pipeline.update_shard(rows, state, Shard(dim, self._add_up))
            self._spread(answer.value)
        finally:
            self._pieces.clear()
        return answer, self._outvoted

    def _arrived(self) -> Float[Tensor, "ranks columns"]:
        """The columns at hand, of the messages of all ranks."""
        assert self._rows is not None
        for piece in self._pieces:
            piece.arriving.wait()
            if piece.landing.dtype != self._dtype:
                self._rows[:, piece.columns] = piece.landing
        return self._rows[:, : self._pieces[-1].columns.stop]

    def _compare(self, rows: Float[Tensor, "ranks columns"]) -> None:
        """Makes sure that no rank sent different bits to the ranks of one group.

        Honest ranks of a group that hold different bits both say so to everybody, so that all
        honest ranks see it, whatever the others claim.
        """
        own = torch.stack([_digest(row) for row in rows]).to(rows.device)
        told = self.peers.gather(own)
        for group in self.groups:
            same = (told[group.start : group.stop] == told[group.start]).all(dim=2).all(dim=0)
            if not same.all():
                senders = (~same).nonzero().flatten().tolist()
                raise DecodeError(
                    f"ranks {list(group)} disagree about what ranks {senders} sent to them",
                    workers=senders,
                    bound=self._bound,
                )

    def _add_up(self, part: Tensor) -> Tensor:
        """The sum of the groups' parts, in the same order on all ranks, so that bits agree."""
        told = self.peers.gather(part.to(self._pieces[0].flat.device))
        first, *others = [
            self._elected(told[group.start : group.stop], group) for group in self.groups
        ]
        total = first.clone()
        for other in others:
            total += other
        return total.to(part.device)

    def _spread(self, value: Float[Tensor, " columns"]) -> None:
        """Everybody's columns of the aggregate to everybody, in place of what was posted."""
        told = []
        for piece in self._pieces:
            own = value[piece.columns].to(piece.flat.dtype)
            places = [piece.flat[piece.bounds[group]] for group in self._group_of]
            if self._bound:
                places = [torch.empty_like(place) for place in places]
            told.append((places, self.peers.swap([own] * self.peers.size, places)))
        for _, swap in told:
            swap.wait()
        for piece, (places, _) in zip(self._pieces, told, strict=True) if self._bound else ():
            for group, shard in zip(self.groups, piece.bounds, strict=True):
                votes = torch.stack(places[group.start : group.stop])
                piece.flat[shard] = self._elected(votes, group)

    def _elected(self, votes: Tensor, group: range) -> Tensor:
        """What most ranks of a group say, to the bit; the word of the only one if s = 0."""
        if not self._bound:
            return votes[0]
        table = votes.reshape(len(votes), -1)
        party = vote(table, range(len(votes)), 0.0, self._generator).members
        if not party:
            raise DecodeError(
                f"of ranks {list(group)}, which aggregate the same shard, most do not agree",
                workers=list(group),
                bound=self._bound,
            )
        agreed = {group[position] for position in party}
        self._outvoted[[rank for rank in group if rank not in agreed]] = True
        return votes[party[0]]


def as_pipeline(rule: Aggregator | Code) -> Pipeline | Decoder:
    """The rule with nothing before it, unless it is a pipeline already; the decoder of a code.

    Raises:
        ValueError: if it has a memory other than that of its last aggregate, or is another code.
    """
    if isinstance(rule, ShardedCode):
        return Decoder(rule)
    if not isinstance(rule, Aggregator):
        raise ValueError(
            "rule must be a robust rule, or one of the codes DracoRepetition, DracoCyclic and "
            f"linear codes, got {rule}"
        )
    pipeline = rule if isinstance(rule, Pipeline) else Pipeline((), rule)
    if remembers(pipeline) and not isinstance(pipeline.rule, GeometryRule):
        raise ValueError(
            f"rule must remember its last aggregate or nothing, got {type(pipeline.rule).__name__}"
        )
    return pipeline


def remembers(pipeline: Pipeline | Decoder) -> bool:
    """Whether the rule has a memory besides the number of the round."""
    return len(pipeline.init(1)) > 1


def groups_of(num_ranks: int, num_byzantine: int) -> Sequence[range]:
    """Ranks that aggregate the same shard: 2 s + 1 of them, and in the last group those left over.

    Raises:
        ValueError: if there are fewer than 2 s + 1 ranks.
    """
    if not 0 <= 2 * num_byzantine < num_ranks:
        raise ValueError(
            "num_byzantine_aggregators must be at least 0 and below num_ranks / 2, "
            f"got {num_byzantine} of {num_ranks}"
        )
    return DracoRepetition(num_ranks, num_byzantine).groups


def cut(length: int, parts: int) -> list[slice]:
    """Slices that cover the length, as equal as can be."""
    edges = [length * part // parts for part in range(parts + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def _digest(row: Float[Tensor, " columns"]) -> Tensor:
    """32 bytes that no two rows have in common, as far as anybody knows."""
    content = SharedTensor.pack(row).content.data
    return from_buffer(hashlib.blake2b(content, digest_size=32).digest())
