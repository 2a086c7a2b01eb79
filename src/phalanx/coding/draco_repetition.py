"""DRACO, repetition code: replicated work and a majority vote per group."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from phalanx.checks import require_below_one, require_minority, require_one_of
from phalanx.coding.base import Code, Decoded
from phalanx.coding.groups import (
    check_messages,
    check_owned,
    check_partitions,
    consecutive_groups,
    group_lengths,
    name,
)
from phalanx.coding.voting import Party, vote
from phalanx.columns import WIDE_BLOCK, Shard, column_blocks, whole
from phalanx.errors import DecodeError
from phalanx.floats import working


@dataclass(frozen=True)
class DracoRepetition(Code):
    """DRACO, repetition code: groups of 2 s + 1 workers send the same sum; the majority is right.

    The groups are consecutive; where num_workers is no multiple of 2 s + 1, the last group is
    larger.

    Guarantee: bit for bit the gradient of a run without attack, and named every Byzantine worker
    that did not send the honest message, as long as in each group more than half of the messages
    that arrived are honest: s Byzantine workers in any group of 2 s + 1, or s - 1 after one or two
    messages were lost, and so on. No strict majority in some group: a `DecodeError`. If most of a
    group send *the same* wrong message, no code of this redundancy can tell.

    The honest must agree to the bit, which they do on equal hardware and software with equal
    numbers of threads. `tolerance` allows for last bits that differ: any two honest messages of a
    group must be that near. A Byzantine message may then be as near to some of them, and who is
    honest have several explanations: sets of more than half of a group any two of which are near.
    Named is who belongs to none of them, so that no honest worker ever is. Every message left lies
    within the tolerance of an honest one; the answer is the one whose farthest is nearest, at most
    about twice the tolerance from what any honest worker sent. `Decoded.error` says how far: the
    sum over the groups of that distance, over the sum of the smallest norms of messages left.

    Cost: encoding 2 s + 1 vector additions; decoding one pass over the messages when all are
    honest, two on average whatever Byzantine workers do (the worker compared with is drawn at
    random, and honest more often than not), and one addition per group; no memory but the gradient.
    With a `tolerance` all pairs within a group are compared: s times as much, and a search that is
    exponential in s at worst.

    Source: Chen, Wang, Charles and Papailiopoulos, "DRACO: Byzantine-resilient Distributed Training
    via Redundant Gradients", ICML 2018, section 3. The official code takes any vote for a majority
    and votes layer by layer; here whole messages vote, and a vote without a strict majority is an
    error.

    >>> import torch
    >>> from phalanx.coding import DracoRepetition
    >>> code = DracoRepetition(num_workers=3, num_byzantine=1)
    >>> decoded = code.decode(torch.tensor([[6.0], [-100.0], [6.0]]))
    >>> decoded.gradient, decoded.suspects
    (tensor([2.]), tensor([False,  True, False]))
    """

    compressible: ClassVar[Literal["freely", "alike", "never"]] = "alike"

    num_byzantine: int = 3
    """Byzantine workers tolerated in each group (s in the paper); fewer than half of all."""

    partitions: Literal["all", "group"] = "all"
    """'all': as many partitions as workers, and each worker computes as many as its group has
    members, as in the paper. 'group': one partition for each group, as in the paper's
    experiments."""

    tolerance: float = 0.0
    """Largest distance, relative to the longer of two messages, at which they count as the same."""

    def __post_init__(self) -> None:
        require_minority(self.num_byzantine, self.num_workers)
        require_one_of(("all", "group"), partitions=self.partitions)
        require_below_one(tolerance=self.tolerance)

    @cached_property
    def groups(self) -> tuple[range, ...]:
        """The workers of each group."""
        return consecutive_groups(group_lengths(self.num_workers, 2 * self.num_byzantine + 1))

    @cached_property
    def assignment(self) -> Bool[Tensor, "workers partitions"]:
        """Which worker computes the gradient of which partition: all of its group's."""
        number = self.num_workers if self.partitions == "all" else len(self.groups)
        held = torch.zeros(self.num_workers, number, dtype=torch.bool)
        for index, group in enumerate(self.groups):
            owned = group if self.partitions == "all" else [index]
            held[group.start : group.stop, list(owned)] = True
        return held

    def can_decode(self, arrived: Bool[Tensor, " workers"]) -> bool:
        """Whether a message of each group is there."""
        return all(bool(arrived[group.start : group.stop].any()) for group in self.groups)

    @property
    def min_workers(self) -> int:
        """All but one less than the smallest group has."""
        return self.num_workers - min(map(len, self.groups)) + 1

    def encode(self, worker: int, gradients: Float[Tensor, "owned dim"]) -> Float[Tensor, " width"]:
        """The plain sum of the worker's gradients, in order, so that replicas agree to the bit.

        Raises:
            ValueError: if there is not one gradient for each partition that the worker owns.
        """
        check_owned(len(gradients), int(self.assignment[worker].sum()), worker)
        total = gradients[0].clone()
        for gradient in gradients[1:]:
            total += gradient
        return total

    def encode_all(
        self, blocks: Iterable[Float[Tensor, "_ dim"]]
    ) -> Float[Tensor, "workers width"]:
        """All messages, each group's sum computed once; see `Code.encode_all`.

        Raises:
            ValueError: if the blocks do not hold one gradient for each partition.
        """
        sums: list[Tensor] = []
        seen = 0
        starts = {int(owned.int().argmax()) for owned in self.assignment}
        rows = (gradient for block in blocks for gradient in block)
        for seen, gradient in enumerate(rows, start=1):
            check_partitions(seen, self.num_partitions, complete=False)
            if seen - 1 in starts:
                sums.append(gradient.clone())
            else:
                sums[-1] += gradient
        check_partitions(seen, self.num_partitions)
        group_of = [index for index, group in enumerate(self.groups) for _ in group]
        return torch.stack([sums[index] for index in group_of])

    def decode(
        self,
        messages: Float[Tensor, "workers width"],
        arrived: Bool[Tensor, " workers"] | None = None,
        *,
        generator: torch.Generator | None = None,
        shard: Shard | None = None,
    ) -> Decoded:
        """The mean gradient, and who is Byzantine; see `Code.decode`.

        With a `shard`, messages hold its columns only, and so does the gradient; who disagrees in
        one shard disagrees in all.
        """
        shard = shard or whole(messages)
        if arrived is None:
            arrived = torch.ones(self.num_workers, dtype=torch.bool)
        check_messages(messages, arrived, self.num_workers)
        if generator is None:
            generator = shard.generator()
        parties: list[Party] = []
        here = arrived.cpu()
        for group in self.groups:
            voters = [worker for worker in group if here[worker]]
            party = vote(messages, voters, self.tolerance, generator, shard)
            if not party.members:
                raise self._error(group, voters, "no strict majority of their messages agrees")
            parties.append(party)
        gradient = self._mean(messages, [party.members[0] for party in parties], shard)
        suspects = here.clone()
        suspects[[member for party in parties for member in party.members]] = False
        residual = max(party.spread for party in parties)
        # A group's message is no longer than the norms of its partitions' gradients add up to.
        radius = sum(party.radius for party in parties)
        error = radius / sum(party.shortest for party in parties) if radius else 0.0
        return Decoded(gradient, suspects.to(messages.device), residual, error)

    def _mean(self, messages: Tensor, winners: list[int], shard: Shard) -> Tensor:
        gradient = torch.empty_like(messages[0])
        sound = True
        for columns in column_blocks(messages.shape[1], WIDE_BLOCK):
            total = messages[winners[0], columns].to(working(messages.dtype), copy=True)
            for winner in winners[1:]:
                total += messages[winner, columns]
            # Infinities and NaN survive every addition, and show in the extremes.
            low, high = torch.aminmax(total)
            sound = sound and bool((high - low).isfinite())
            gradient[columns] = total.div_(self.num_partitions)
        if shard.anywhere(torch.tensor([not sound])):
            self._refuse_not_finite(messages, winners, shard)
        return gradient

    def _refuse_not_finite(self, messages: Tensor, winners: list[int], shard: Shard) -> None:
        broken = shard.anywhere(~messages[winners].isfinite().all(dim=1).cpu())
        for group, unfit in zip(self.groups, broken.tolist(), strict=True):
            if unfit:
                raise self._error(group, list(group), "the majority's message is not finite")

    def _error(self, group: range, voters: Sequence[int], reason: str) -> DecodeError:
        missing = sorted(set(group) - set(voters))
        return DecodeError(
            f"workers {group.start} to {group.stop - 1} cannot be decoded: {reason}; missing: "
            f"{name(missing)}; up to {self.num_byzantine} Byzantine workers of "
            f"{2 * self.num_byzantine + 1} are tolerated, fewer where messages are missing",
            workers=list(group),
            bound=self.num_byzantine,
        )
