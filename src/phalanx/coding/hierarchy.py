"""Hierarchical robust aggregation: a rule in every bucket, then a rule over the buckets."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from phalanx.aggregation import Aggregate, Aggregator
from phalanx.coding.base import State


class Answer(NamedTuple):
    """What both stages came to.

    Attributes:
        value: `(dim,)`.
        suspects: `(rows,)` bool, in main memory.
        memory: what the outer rule remembers.
    """

    value: Float[Tensor, " dim"]
    suspects: Bool[Tensor, " rows"]
    memory: State


@dataclass(frozen=True)
class Hierarchy:
    """Rows at random into buckets, a rule in each, and another one over their answers.

    A bucket of one row answers with that row.
    """

    inner: Aggregator
    """The rule in every bucket; one without memory."""

    outer: Aggregator
    """The rule over the answers."""

    num_buckets: int | None
    """How many; None: one a row."""

    def sizes(self, num_rows: int) -> list[int]:
        """Rows in every bucket: as equal as can be, none of them empty."""
        number = min(self.num_buckets or num_rows, num_rows)
        return [num_rows // number + (index < num_rows % number) for index in range(number)]

    def with_num_byzantine(self, num_rows: int, num_corrupted: int) -> "Hierarchy":
        """The same with rules that know how much may be corrupted of what they are given.

        A bucket is corrupted if more of its rows are than its rule tolerates. A rule that leaves
        its `num_byzantine` open tolerates what it can.

        Raises:
            ValueError: if a rule tolerates less.
        """
        inner, sizes = _told(self.inner, num_corrupted), self.sizes(num_rows)
        try:
            tolerated = min(inner.num_tolerated(size) if size > 1 else 0 for size in sizes)
        except ValueError as error:
            raise ValueError(
                f"inner must survive {num_corrupted} corrupted of {min(sizes)} groups in a bucket: "
                f"{error}"
            ) from error
        num_bad = num_corrupted // (tolerated + 1)
        outer = _told(self.outer, num_bad)
        try:
            outer.num_tolerated(len(sizes))
        except ValueError as error:
            raise ValueError(
                f"outer must survive {num_bad} corrupted of {len(sizes)} buckets: {error}"
            ) from error
        return Hierarchy(inner, outer, self.num_buckets)

    def aggregate(
        self, rows: Float[Tensor, "rows dim"], memory: State, generator: torch.Generator
    ) -> Answer:
        """One round of both stages.

        Args:
            rows: finite ones.
            memory: what the outer rule remembers.
            generator: draws the buckets.
        """
        order = torch.randperm(len(rows), generator=generator)
        buckets = order.split(self.sizes(len(rows)))
        inside = [
            self.inner.explain(rows[bucket]) if len(bucket) > 1 else None for bucket in buckets
        ]
        values = [
            rows[int(bucket)] if found is None else found.value
            for bucket, found in zip(buckets, inside, strict=True)
        ]
        answer, after = self.outer.update(torch.stack(values), memory)
        return Answer(answer.value, self._suspects(rows, memory, buckets, inside, answer), after)

    def _suspects(
        self,
        rows: Tensor,
        memory: State,
        buckets: tuple[Tensor, ...],
        inside: list[Aggregate | None],
        answer: Aggregate,
    ) -> Tensor:
        """Rows that their bucket's rule suspects, and those to blame for suspected buckets.

        Who is to blame in a bucket of several, the outer rule says when it is shown all rows.
        """
        blamed = torch.ones(len(rows), dtype=torch.bool)
        if answer.suspects.any() and len(buckets) < len(rows):
            blamed = self.outer.update(rows, memory)[0].suspects
        suspects = torch.zeros(len(rows), dtype=torch.bool)
        for bucket, found, suspected in zip(buckets, inside, answer.suspects, strict=True):
            if found is None:
                suspects[bucket] = suspected
            else:
                suspects[bucket] = found.suspects | (suspected & blamed[bucket])
        return suspects


def _told(rule: Aggregator, num_byzantine: int) -> Aggregator:
    """The rule with this number, unless it leaves its own open."""
    left_open = getattr(rule, "num_byzantine", None) is None
    return rule if left_open else rule.with_num_byzantine(num_byzantine)
