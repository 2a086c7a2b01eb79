"""What every robust rule looks like: messages in, one vector and a verdict on every worker out."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from phalanx.aggregation.aggregate import Aggregate
from phalanx.aggregation.messages import as_rows
from phalanx.aggregation.mixtures import Mixtures
from phalanx.errors import TooManyByzantineError

State = tuple[Tensor, ...]
"""What a rule remembers between rounds; empty for a rule without memory."""


@dataclass(frozen=True)
class Aggregator(ABC):
    """A robust rule: hyper-parameters only, never state.

    A rule implements `num_tolerated` and `judge` on a `(workers, dim)` tensor; most do so through
    `GeometryRule` or `CoordinateRule`. A rule with memory also overrides `init` and `update`, and
    its `judge` is one round from a fresh state.
    """

    needs_geometry: ClassVar[bool] = False
    """Whether `combine` asks how the mixtures lie to one another."""

    @property
    def needs_distances_only(self) -> bool:
        """Whether its weights follow from how far the messages lie apart; see `weigh_distances`.

        Not for rules that look at coordinates, and those that measure from an origin or a centre.
        """
        return False

    def __call__(self, gradients: Any) -> Any:
        """The aggregate of the messages, in the kind that was given.

        Args:
            gradients: a `(workers, dim)` tensor or ndarray, or a list with one tensor, ndarray or
                `{name: tensor}` dict per worker, all of equal shapes; float16, bfloat16, float32
                or float64. Never overwritten. A list is stacked, which copies it.

        Returns:
            A `(dim,)` tensor or ndarray, or one tensor, ndarray or dict shaped like a worker's.

        Raises:
            ValueError: if shapes or dtypes are unfit, or there are too few workers for the rule.
            TooManyByzantineError: if more messages are not finite than the rule survives.
        """
        rows, restore = as_rows(gradients)
        return restore(self.merge(rows))

    def explain(self, gradients: Any) -> Aggregate:
        """The aggregate as a flat `(dim,)` tensor, and who counted and who was suspect.

        Arguments and errors are those of calling the rule.
        """
        return self.judge(as_rows(gradients)[0])

    def init(
        self, dim: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> State:
        """The state before the first round: `dim` values a message of this dtype and device."""
        return ()

    def update(self, gradients: Any, state: State) -> tuple[Aggregate, State]:
        """One round: the aggregate of the messages given the state, and the next state."""
        return self.explain(gradients), state

    @abstractmethod
    def num_tolerated(self, num_workers: int) -> int:
        """How many unusable messages out of `num_workers` the rule survives.

        Raises:
            ValueError: if the rule cannot work with so few workers.
        """

    @abstractmethod
    def judge(self, rows: Float[Tensor, "workers dim"]) -> Aggregate:
        """The aggregate of stacked messages, and the verdict on every worker."""

    def merge(self, rows: Float[Tensor, "workers dim"]) -> Float[Tensor, " dim"]:
        """The aggregate alone; cheaper than `judge` where the verdict costs a pass of its own."""
        return self.judge(rows).value

    def combine(
        self, mixtures: Mixtures, num_byzantine: int, state: State
    ) -> tuple[Aggregate, State]:
        """One round on mixtures of messages, in a `Pipeline`: the aggregate and the next state.

        By default the mixtures are formed, at the price of a copy; rules of the room do without.

        Args:
            mixtures: what pre-aggregation made of the finite messages.
            num_byzantine: how many of them may be lies.
            state: what `init` or the round before gave.
        """
        answer, state = self.told(num_byzantine).update(mixtures.values(), state)
        weights = None if answer.weights is None else answer.weights @ mixtures.mixing
        verdict = mixtures.per_worker(answer.scores, answer.suspects)
        return Aggregate(answer.value, weights, *verdict), state

    def told(self, num_byzantine: int) -> "Aggregator":
        """The rule with another `num_byzantine`; the rule itself if it has no such field."""
        if all(field.name != "num_byzantine" for field in fields(self)):
            return self
        return replace(self, **{"num_byzantine": num_byzantine})


def require_tolerated(finite: Bool[Tensor, " workers"], bound: int) -> int:
    """How many workers are still to be survived once those that are not `finite` are dropped.

    Raises:
        TooManyByzantineError: if more than `bound` are dropped.
    """
    dropped = (~finite).nonzero().flatten().tolist()
    if len(dropped) > bound:
        raise TooManyByzantineError(
            f"the messages of workers {dropped} are not finite, and the rule survives {bound}",
            workers=dropped,
            bound=bound,
        )
    return bound - len(dropped)


def require_not_negative(num_byzantine: int | None) -> None:
    """Raises ValueError if `num_byzantine` is negative."""
    if num_byzantine is not None and num_byzantine < 0:
        raise ValueError(f"num_byzantine must be at least 0, got {num_byzantine}")


def minority(num_byzantine: int | None, num_workers: int) -> int:
    """`num_byzantine`, or the largest number below half of the workers if it is None.

    Raises:
        ValueError: if `num_byzantine` is not below half of the workers.
    """
    if num_byzantine is None:
        return (num_workers - 1) // 2
    require_majority(num_byzantine, num_workers)
    return num_byzantine


def require_majority(num_byzantine: int, num_workers: int) -> None:
    """Raises ValueError unless fewer than half of the workers may lie."""
    if 2 * num_byzantine >= num_workers:
        raise ValueError(
            f"num_byzantine must be below num_workers / 2, got {num_byzantine} of {num_workers}"
        )
