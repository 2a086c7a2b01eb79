"""What every robust rule looks like: messages in, one vector and a verdict on every worker out."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from phalanx.aggregation.aggregate import Aggregate
from phalanx.aggregation.masses import as_masses, present
from phalanx.aggregation.messages import as_rows
from phalanx.aggregation.mixtures import Mixtures
from phalanx.errors import TooManyByzantineError

State = tuple[Tensor, ...]
"""What a rule remembers between rounds; empty for a rule without memory."""


@dataclass(frozen=True)
class Aggregator(ABC):
    """A robust rule: hyper-parameters only, never state.

    A rule implements `num_tolerated` and `judge` on a `(workers, dim)` tensor; most do so through
    `GeometryRule` or `CoordinateRule`. A rule with memory also overrides `init` and `step`, and
    its `judge` is one round from a fresh state.

    Sample weights reach these methods as `masses`: one a worker, 0 for those that take no part.
    """

    needs_geometry: ClassVar[bool] = False
    """Whether `combine` asks how the mixtures lie to one another."""

    @property
    def needs_distances_only(self) -> bool:
        """Whether its weights follow from how far the messages lie apart; see `weigh_distances`.

        Not for rules that look at coordinates, and those that measure from an origin or a centre.
        """
        return False

    def __call__(self, gradients: Any, weights: Any = None) -> Any:
        """The aggregate of the messages, in the kind that was given.

        Args:
            gradients: a `(workers, dim)` tensor or ndarray, or a list with one tensor, ndarray or
                `{name: tensor}` dict per worker, all of equal shapes; float16, bfloat16, float32
                or float64. Never overwritten. A list is stacked, which copies it.
            weights: how much each worker counts, such as its number of samples: a list, tensor or
                ndarray of one finite number a worker, none below 0; only their ratios matter.
                Equal ones give what None gives, to the bit. A worker of weight 0 takes no part, as
                if there were fewer workers.

        Returns:
            A `(dim,)` tensor or ndarray, or one tensor, ndarray or dict shaped like a worker's.

        Raises:
            ValueError: if shapes, dtypes or weights are unfit, there are too few workers for the
                rule, or it is one that weights have no meaning for.
            TooManyByzantineError: if more messages are not finite than the rule survives.
        """
        rows, restore = as_rows(gradients)
        return restore(self.merge(rows, as_masses(weights, len(rows))))

    def explain(self, gradients: Any, weights: Any = None) -> Aggregate:
        """The aggregate as a flat `(dim,)` tensor, and who counted and who was suspect.

        Arguments and errors are those of calling the rule.
        """
        rows, _ = as_rows(gradients)
        masses = as_masses(weights, len(rows))
        return self._judged(rows, masses).only(present(masses, len(rows)))

    def init(
        self, dim: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> State:
        """The state before the first round: `dim` values a message of this dtype and device."""
        return ()

    def update(self, gradients: Any, state: State, weights: Any = None) -> tuple[Aggregate, State]:
        """One round: the aggregate of the messages given the state, and the next state.

        Arguments and errors are those of calling the rule.
        """
        rows, _ = as_rows(gradients)
        masses = as_masses(weights, len(rows))
        answer, state = self.step(rows, state, masses)
        return answer.only(present(masses, len(rows))), state

    @abstractmethod
    def num_tolerated(self, num_workers: int) -> int:
        """How many unusable messages out of `num_workers` the rule survives.

        Raises:
            ValueError: if the rule cannot work with so few workers.
        """

    @abstractmethod
    def judge(
        self, rows: Float[Tensor, "workers dim"], masses: Float[Tensor, " workers"] | None = None
    ) -> Aggregate:
        """The aggregate of stacked messages, and the verdict on every worker."""

    def merge(
        self, rows: Float[Tensor, "workers dim"], masses: Float[Tensor, " workers"] | None = None
    ) -> Float[Tensor, " dim"]:
        """The aggregate alone; cheaper than `judge` where the verdict costs a pass of its own."""
        return self._judged(rows, masses).value

    def step(
        self,
        rows: Float[Tensor, "workers dim"],
        state: State,
        masses: Float[Tensor, " workers"] | None = None,
    ) -> tuple[Aggregate, State]:
        """One round on stacked messages: the answer, and the next state."""
        return self._judged(rows, masses), state

    def _judged(self, rows: Tensor, masses: Tensor | None) -> Aggregate:
        """The answer of a rule that may not know of masses, as long as nobody gives any."""
        return self.judge(rows) if masses is None else self.judge(rows, masses)

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
        rule = self.with_num_byzantine(num_byzantine)
        answer, state = rule.step(mixtures.values(), state, mixtures.geometry.mass)
        weights = None if answer.weights is None else answer.weights @ mixtures.mixing
        verdict = mixtures.per_worker(answer.scores, answer.suspects)
        return Aggregate(answer.value, weights, *verdict), state

    def with_num_byzantine(self, num_byzantine: int) -> "Aggregator":
        """The rule with another `num_byzantine`; the rule itself if it has no such field."""
        if all(field.name != "num_byzantine" for field in fields(self)):
            return self
        return replace(self, **{"num_byzantine": num_byzantine})


def require_tolerated(
    finite: Bool[Tensor, " workers"],
    bound: int,
    masses: Float[Tensor, " workers"] | None = None,
) -> int:
    """How many workers are still to be survived once those that are not `finite` are dropped.

    Those of weight 0 take no part, so they do not count.

    Raises:
        TooManyByzantineError: if more than `bound` are dropped.
    """
    dropped = (present(masses, len(finite)) & ~finite).nonzero().flatten().tolist()
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
