"""DETOX: majority votes in small groups, then a robust rule over the winners."""

import secrets
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import comb
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from phalanx.aggregation import Aggregator, CoordinateMedian, Mean
from phalanx.checks import require_below_one, require_minority
from phalanx.coding.base import Code, Decoded, State
from phalanx.coding.groups import (
    check_messages,
    check_owned,
    check_partitions,
    group_lengths,
    name,
)
from phalanx.coding.hierarchy import Hierarchy
from phalanx.coding.voting import Party, vote
from phalanx.errors import DecodeError, TooManyByzantineError
from phalanx.randomness import generator as seeded_generator


@dataclass(frozen=True)
class Detox(Code):
    """DETOX: votes in small random groups, then a robust rule over what the groups agree on.

    There is one partition for each group of `group_size` workers, and all of a group send its
    gradient; where num_workers is no multiple of it, the last group is larger. The majority of
    every group goes on. These winners are put at random into `num_buckets` buckets; `inner`
    aggregates every bucket, and `outer` the buckets. Groups and buckets are drawn anew every round.

    A winner needs a strict majority of the messages that arrived, and no fewer than more than half
    of `group_size`: so no fewer Byzantine workers than that win a group, whatever messages are
    lost. A group without a winner is left out, and so is one whose winner is not finite, as long as
    the second stage tolerates the rest; else a `DecodeError` names them.

    Guarantee: bit for bit the gradient of a run without attack as long as the honest win every
    group. q Byzantine workers that do not choose their groups win `expected_corrupted_groups` on
    average, and never more than `max_corrupted_groups`; how far those pull, `inner` and `outer`
    bound. Without attack the gradient is that of these rules, not the mean: the code is not exact.
    Byzantine workers that know the groups, as all do who hold `seed`, win no more of them, but can
    tell the truth whenever they would be outvoted.

    Suspects: the bound is on all workers together, so being outvoted proves nothing by itself: in
    that group the Byzantine may be the majority. Let `c(i)` be how many members of i's group sent
    what i sent, i included, and C the largest of a group. It takes `size - C` Byzantine workers at
    least to explain a group, and `C - c(i)` more if i is honest. Named is who is honest in no
    explanation with `num_byzantine` of them: `sum over groups (size - C) + C - c(i) >
    num_byzantine`. So those outvoted are named when nearly all that the bound allows are outvoted.
    Who sends NaN or infinity is named always. If not even the fewest fit within the bound, honest
    replicas disagree or the bound is wrong, and nobody else is named.

    Outliers, who may be honest: the others that were outvoted, all members of a group whose voters
    disagree without a winner, and those of a group that the rules suspect.

    Rules with a `num_byzantine` are told theirs: of the corrupted groups, for `inner`; of the
    corrupted buckets, for `outer`. `outer` may have memory.

    The honest must agree to the bit, as with `DracoRepetition`; `tolerance` allows for less, and
    lets a Byzantine message be the winner that lies within about twice of it of the honest ones.

    Cost: encoding none; decoding one pass over the messages for the votes (two under attack),
    a copy of the winners, and the rules on `num_workers / group_size` rows.

    Source: Rajput, Wang, Charles and Papailiopoulos, "DETOX: A Redundancy-based Framework for
    Faster and More Robust Gradient Aggregation", NeurIPS 2019, section 3. The official code draws
    its groups once, votes layer by layer, and takes any vote for a majority.

    >>> import torch
    >>> from phalanx.coding import Detox
    >>> code = Detox(num_workers=9, num_byzantine=1)
    >>> messages = code.encode_all([torch.tensor([[1.0], [2.0], [3.0]])])
    >>> messages[4] = -100.0
    >>> decoded = code.decode(messages)
    >>> decoded.gradient, decoded.suspects.nonzero().flatten()
    (tensor([2.]), tensor([4]))
    """

    exact: ClassVar[bool] = False
    compressible: ClassVar[Literal["freely", "alike", "never"]] = "alike"

    num_byzantine: int = 3
    """Liars in all (q in the paper); needs num_workers >= 2 num_byzantine + 1."""

    group_size: int = 3
    """Workers in a group, all computing the same (r in the paper); odd."""

    num_buckets: int | None = None
    """Buckets of winners (k in the paper); None: one a group, so that only `outer` works."""

    inner: Aggregator = Mean()  # noqa: RUF009 - frozen
    """The rule in every bucket of two or more winners (A0 in the paper); one without memory."""

    outer: Aggregator = CoordinateMedian()  # noqa: RUF009 - frozen
    """The rule over the buckets (A1 in the paper)."""

    num_corrupted: int | None = None
    """Groups won by Byzantine workers that the rules tolerate; None: `max_corrupted_groups`."""

    regroup: bool = True
    """Whether groups and buckets are drawn anew every round; else those of round 0 stay."""

    seed: int = 0
    """Of groups and buckets."""

    tolerance: float = 0.0
    """Largest distance, relative to the longer of two messages, at which they count as the same."""

    step: int = 0
    """The round whose groups these are; set by `at`."""

    def __post_init__(self) -> None:
        require_minority(self.num_byzantine, self.num_workers)
        if self.group_size % 2 == 0 or not 1 <= self.group_size <= self.num_workers:
            raise ValueError(
                f"group_size must be odd, and from 1 to num_workers = {self.num_workers}, got "
                f"{self.group_size}"
            )
        number = self.num_partitions
        if self.num_buckets is not None and not 1 <= self.num_buckets <= number:
            raise ValueError(
                f"num_buckets must be from 1 to the {number} groups, got {self.num_buckets}"
            )
        if self.num_corrupted is not None and not 0 <= self.num_corrupted <= number:
            raise ValueError(
                f"num_corrupted must be from 0 to the {number} groups, got {self.num_corrupted}"
            )
        if self.inner.init(1):
            raise ValueError(f"inner must be a rule without memory, got {self.inner}")
        require_below_one(tolerance=self.tolerance)
        self._rules.with_num_byzantine(number, self._bound)
        if self.step == 0:  # said once, not every round
            self._warn_of_few_buckets()

    @property
    def num_partitions(self) -> int:
        """One for each group."""
        return self.num_workers // self.group_size

    @property
    def max_corrupted_groups(self) -> int:
        """Groups that Byzantine workers can win, were they to choose where they are."""
        return min(self.num_byzantine // self._quorum, self.num_partitions)

    @property
    def expected_corrupted_groups(self) -> float:
        """Groups that Byzantine workers win on average, over the draw of the groups.

        The sum over the groups of the chance that a group holds a Byzantine majority, whose number
        in a group is hypergeometric.

        >>> round(Detox(45, num_byzantine=5, group_size=3).expected_corrupted_groups, 3)
        0.433
        """
        n, q = self.num_workers, self.num_byzantine
        sets = sum(
            comb(length, bad) * comb(n - length, q - bad)
            for length in group_lengths(n, self.group_size)
            for bad in range(length // 2 + 1, min(length, q) + 1)
        )
        return sets / comb(n, q)

    @cached_property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The workers of each group in round `step`; group i computes partition i."""
        source = seeded_generator(self.seed, "groups", self.step)
        order = torch.randperm(self.num_workers, generator=source)
        parts = order.split(group_lengths(self.num_workers, self.group_size))
        return tuple(tuple(sorted(part.tolist())) for part in parts)

    @cached_property
    def assignment(self) -> Bool[Tensor, "workers partitions"]:
        """Which worker computes the gradient of which partition: its group's, and no other."""
        held = torch.zeros(self.num_workers, self.num_partitions, dtype=torch.bool)
        for index, group in enumerate(self.groups):
            held[list(group), index] = True
        return held

    def at(self, step: int) -> "Detox":
        """The groups of another round; see `Code.at`."""
        if not self.regroup or step == self.step:
            return self
        return replace(self, step=step)

    def encode(self, worker: int, gradients: Float[Tensor, "owned dim"]) -> Float[Tensor, " width"]:
        """The gradient of the partition of the worker's group.

        Raises:
            ValueError: if there is not exactly one gradient.
        """
        check_owned(len(gradients), 1, worker)
        return gradients[0].clone()

    def encode_all(
        self, blocks: Iterable[Float[Tensor, "_ dim"]]
    ) -> Float[Tensor, "workers width"]:
        """All messages; see `Code.encode_all`.

        Raises:
            ValueError: if the blocks do not hold one gradient for each partition.
        """
        gradients = torch.cat(list(blocks))
        check_partitions(len(gradients), self.num_partitions)
        return gradients[self.assignment.int().argmax(dim=1).to(gradients.device)]

    def decode(
        self,
        messages: Float[Tensor, "workers width"],
        arrived: Bool[Tensor, " workers"] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Decoded:
        """The gradient of round `step`, and the suspects; a rule with memory starts afresh."""
        return self._round(messages, arrived, None, generator)[0]

    def init(
        self, dim: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> State:
        """The number of the round, and what the outer rule remembers."""
        return torch.tensor(0), *self.outer.init(dim, dtype=dtype, device=device)

    def update(
        self,
        messages: Float[Tensor, "workers width"],
        arrived: Bool[Tensor, " workers"] | None,
        state: State,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Decoded, State]:
        """Decodes the round that the state counts; also the next state. See `Code.update`."""
        step, memory = state[0], state[1:]
        decoded, memory = self.at(int(step))._round(messages, arrived, memory, generator)
        return decoded, (step + 1, *memory)

    @property
    def _quorum(self) -> int:
        """How many equal messages it takes to win a group."""
        return self.group_size // 2 + 1

    @property
    def _bound(self) -> int:
        return self.max_corrupted_groups if self.num_corrupted is None else self.num_corrupted

    @property
    def _rules(self) -> Hierarchy:
        return Hierarchy(self.inner, self.outer, self.num_buckets)

    def _warn_of_few_buckets(self) -> None:
        expected, buckets = self.expected_corrupted_groups, self.num_buckets or self.num_partitions
        if expected and expected >= buckets / 4:
            warnings.warn(
                f"{self.num_byzantine} Byzantine workers of {self.num_workers} win {expected:.2f} "
                f"groups of {self.group_size} on average, a quarter of the {buckets} buckets or "
                "more: take more buckets, or larger groups",
                stacklevel=4,
            )

    def _round(
        self,
        messages: Tensor,
        arrived: Tensor | None,
        memory: State | None,
        generator: torch.Generator | None,
    ) -> tuple[Decoded, State]:
        if arrived is None:
            arrived = torch.ones(self.num_workers, dtype=torch.bool)
        check_messages(messages, arrived, self.num_workers)
        if generator is None:
            generator = torch.Generator().manual_seed(secrets.randbits(63))
        if memory is None:
            memory = self.outer.init(
                messages.shape[1], dtype=messages.dtype, device=messages.device
            )
        here = arrived.cpu()
        ballots = [self._ballot(messages, here, group, generator) for group in self.groups]
        won = [index for index, ballot in enumerate(ballots) if ballot.outcome == "won"]
        rules = self._rules_for(ballots)
        rows = messages[[ballots[index].party.members[0] for index in won]]
        source = seeded_generator(self.seed, "buckets", self.step)
        try:
            answer = rules.aggregate(rows, memory, source)
        except TooManyByzantineError as error:  # its ids are those of buckets
            raise self._error(ballots, "what the buckets came to is not finite") from error
        doubted = here.clone()
        for index, suspected in zip(won, answer.suspects.tolist(), strict=True):
            doubted[ballots[index].party.members] = suspected
        for ballot in ballots:
            if ballot.outcome == "too few":  # nobody contradicts them
                doubted[ballot.voters] = False
        residual = max(ballots[index].party.spread for index in won)
        suspects = torch.zeros_like(here)
        suspects[self._proven(ballots)] = True
        decoded = Decoded(
            answer.value,
            suspects.to(messages.device),
            residual,
            outliers=(doubted & ~suspects).to(messages.device),
        )
        return decoded, answer.memory

    def _proven(self, ballots: Sequence["_Ballot"]) -> list[int]:
        """Who is Byzantine in every explanation within the bound; see the class."""
        company = [ballot.party.company for ballot in ballots]
        largest = [max(one.values(), default=0) for one in company]
        fewest = sum(len(one) - most for one, most in zip(company, largest, strict=True))
        left = self.num_byzantine - fewest
        return [
            voter
            for one, most in zip(company, largest, strict=True)
            for voter, size in one.items()
            if size == 0 or 0 <= left < most - size
        ]

    def _ballot(
        self, messages: Tensor, arrived: Tensor, group: Sequence[int], generator: torch.Generator
    ) -> "_Ballot":
        voters = [worker for worker in group if arrived[worker]]
        party = vote(messages, voters, self.tolerance, generator, complete=True)
        if len(party.members) < self._quorum:
            agree = len(party.members) == len(voters)
            return _Ballot(voters, party, "too few" if agree else "no majority")
        finite = party.company[party.members[0]] > 0
        return _Ballot(voters, party, "won" if finite else "not finite")

    def _rules_for(self, ballots: Sequence["_Ballot"]) -> Hierarchy:
        """The rules, told what they are to tolerate among the winners of this round."""
        outcomes = [ballot.outcome for ballot in ballots]
        num_won, spoiled = outcomes.count("won"), outcomes.count("not finite")
        if num_won == 0:
            raise self._error(ballots, "no group has a winner")
        if spoiled > self._bound:
            raise self._error(ballots, f"the winners of {spoiled} groups are not finite")
        try:
            return self._rules.with_num_byzantine(num_won, min(self._bound - spoiled, num_won))
        except ValueError as error:
            raise self._error(ballots, str(error)) from error

    def _error(self, ballots: Sequence["_Ballot"], reason: str) -> DecodeError:
        lost = [index for index, ballot in enumerate(ballots) if ballot.outcome != "won"]
        members = sorted(worker for index in lost for worker in self.groups[index])
        return DecodeError(
            f"what the groups agree on cannot be aggregated: {reason}; workers of groups without a "
            f"finite winner: {name(members)}; up to {self._bound} groups won by "
            "Byzantine workers are tolerated",
            workers=members,
            bound=self.num_byzantine,
        )


class _Ballot(NamedTuple):
    """How a group voted.

    Attributes:
        voters: whose messages arrived.
        party: the strict majority of them, if there is one.
        outcome: "too few" is an agreement of fewer than win a group.
    """

    voters: list[int]
    party: Party
    outcome: Literal["won", "no majority", "too few", "not finite"]
