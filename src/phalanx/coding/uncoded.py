"""No redundancy: every worker computes one partition, and a robust rule aggregates."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from phalanx.aggregation import Aggregator, Mean
from phalanx.coding.base import Code, Decoded, State
from phalanx.coding.groups import check_messages, check_owned, check_partitions
from phalanx.errors import DecodeError, TooManyByzantineError


@dataclass(frozen=True)
class Uncoded(Code):
    """One partition per worker: worker i sends the update of partition i, and a rule aggregates.

    Not exact against Byzantine workers; the bound is the rule's. Messages that did not arrive are
    not held against the rule's `num_byzantine`: all Byzantine workers may be among those that did.

    Suspects: who sent NaN or infinity. Whom the rule leaves out, or finds far from the others, is
    an outlier and may be honest: any finite message may be.

    Source: that of the rule; of the mean Dekel, Gilad-Bachrach, Shamir and Xiao, "Optimal
    Distributed Online Prediction Using Mini-Batches", JMLR 2012.

    >>> import torch
    >>> from phalanx.aggregation import CoordinateMedian
    >>> from phalanx.coding import Uncoded
    >>> code = Uncoded(3, CoordinateMedian())
    >>> code.decode(torch.tensor([[1.0], [2.0], [900.0]])).gradient
    tensor([2.])
    """

    exact: ClassVar[bool] = False
    compressible: ClassVar[Literal["freely", "alike", "never"]] = "freely"

    rule: Aggregator = Mean()  # noqa: RUF009 - frozen
    """The robust rule."""

    weights: tuple[float, ...] | None = None
    """How much each worker counts, such as its number of samples; None if all count alike. Not
    every rule gives weights a meaning."""

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, got {self.num_workers}")
        self.rule.num_tolerated(self.num_workers)
        if self.weights is not None and len(self.weights) != self.num_workers:
            raise ValueError(
                f"weights must be one for each of {self.num_workers} workers, got "
                f"{len(self.weights)}"
            )

    @cached_property
    def assignment(self) -> Bool[Tensor, "workers partitions"]:
        """The identity."""
        return torch.eye(self.num_workers, dtype=torch.bool)

    @property
    def num_tolerated(self) -> int:
        """What the rule says."""
        return self.rule.num_tolerated(self.num_workers)

    @property
    def method(self) -> object:
        """The rule."""
        return self.rule

    @property
    def needs_distances_only(self) -> bool:
        """What the rule says."""
        return self.rule.needs_distances_only

    def encode(self, worker: int, gradients: Float[Tensor, "owned dim"]) -> Float[Tensor, " width"]:
        """The update itself.

        Raises:
            ValueError: if there is not exactly one.
        """
        check_owned(len(gradients), 1, worker)
        return gradients[0]

    def encode_all(
        self, blocks: Iterable[Float[Tensor, "_ dim"]]
    ) -> Float[Tensor, "workers width"]:
        """The updates themselves, not copied if they come in one block.

        Raises:
            ValueError: if the blocks do not hold one update for each partition.
        """
        held = list(blocks)
        check_partitions(sum(map(len, held)), self.num_partitions)
        return torch.cat(held) if len(held) > 1 else held[0]

    def init(
        self, dim: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> State:
        """What the rule remembers."""
        return self.rule.init(dim)

    def decode(
        self,
        messages: Float[Tensor, "workers width"],
        arrived: Bool[Tensor, " workers"] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Decoded:
        """The aggregate of what arrived, by a rule that remembers nothing of earlier rounds."""
        return self.update(messages, arrived, self.init(messages.shape[1]))[0]

    def update(
        self,
        messages: Float[Tensor, "workers width"],
        arrived: Bool[Tensor, " workers"] | None,
        state: State,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Decoded, State]:
        """The aggregate of what arrived, and what the rule remembers.

        Raises:
            DecodeError: if too few arrived for the rule, or more of them are not finite than it
                survives.
            ValueError: if there is not one row, and one flag, for each worker.
        """
        if arrived is None:
            arrived = torch.ones(self.num_workers, dtype=torch.bool)
        check_messages(messages, arrived, self.num_workers)
        workers = arrived.nonzero().flatten()
        missing = (~arrived).nonzero().flatten().tolist()
        if len(workers) == 0:
            raise DecodeError("no message arrived", workers=missing, bound=0)
        try:
            bound = self.rule.num_tolerated(len(workers))
        except ValueError as error:
            raise DecodeError(
                f"too few messages arrived for {self.rule}: {error}; missing: {missing}",
                workers=missing,
                bound=0,
            ) from error
        rows = messages if not missing else messages[workers]
        try:
            own = None if self.weights is None else torch.tensor(self.weights)[workers]
            aggregate, state = self.rule.update(rows, state, own)
        except TooManyByzantineError as error:
            ids = workers[error.workers].tolist()
            raise DecodeError(
                f"messages of workers {ids} contain NaN or Inf; {self.rule} tolerates at most "
                f"{bound}: tell the rule of more Byzantine workers, or mend what these compute",
                workers=ids,
                bound=bound,
            ) from error
        suspects = torch.zeros(self.num_workers, dtype=torch.bool)
        outliers = suspects.clone()
        suspects[workers[aggregate.dropped]] = True
        outliers[workers[aggregate.suspects & ~aggregate.dropped]] = True
        return Decoded(aggregate.value, suspects, 0.0, outliers=outliers), state

    def excluding(self, number: int) -> "Uncoded":
        """With a rule that has so many Byzantine workers fewer to survive, if it says how many."""
        bound = getattr(self.rule, "num_byzantine", None)
        if number == 0 or bound is None:
            return self
        rule = self.rule.with_num_byzantine(max(bound - number, 0))
        return replace(self, rule=rule)

    def weighing(self, weights: Sequence[float]) -> "Uncoded":
        """With these weights."""
        return replace(self, weights=tuple(weights))

    def attacked(
        self, messages: Float[Tensor, "sent width"], state: State, byzantine: Sequence[int]
    ) -> Float[Tensor, " dim"]:
        """See `Code.attacked`; to a rule all workers are alike."""
        own = None
        if self.weights is not None and len(messages) == self.num_workers:
            honest = [worker for worker in range(self.num_workers) if worker not in byzantine]
            own = torch.tensor(self.weights)[[*honest, *byzantine]]
        try:
            return self.rule.update(messages, state, own)[0].value
        except (ValueError, TooManyByzantineError):
            return messages.mean(dim=0)
