"""Interface of robust aggregation rules."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from phalanx.aggregation.aggregate import Aggregate
from phalanx.aggregation.messages import as_rows
from phalanx.aggregation.mixtures import Mixtures
from phalanx.aggregation.weights import as_weights, present
from phalanx.checks import require_at_least, require_minority
from phalanx.errors import TooManyByzantineError

Rule = TypeVar("Rule", bound="Bounded")

State = tuple[Tensor, ...]
"""What a rule remembers between rounds; empty for a rule without memory."""


@dataclass(frozen=True)
class Bounded:
    """Base of rules and of pre-aggregations, which may have a field `num_byzantine`."""

    from_origin: ClassVar[bool] = False
    """Whether it measures from the origin, which is then the last point of the geometry."""

    def __post_init__(self) -> None:
        require_at_least(0, num_byzantine=getattr(self, "num_byzantine", None))

    def with_num_byzantine(self: Rule, num_byzantine: int) -> Rule:
        """The same with another `num_byzantine`; itself if it has no such field."""
        if all(field.name != "num_byzantine" for field in fields(self)):
            return self
        return replace(self, **{"num_byzantine": num_byzantine})


@dataclass(frozen=True)
class ByzantineBound(Bounded):
    """The field `num_byzantine` of rules, and of what goes before them."""

    num_byzantine: int = 1
    """Byzantine workers tolerated (f)."""


@dataclass(frozen=True)
class Aggregator(Bounded, ABC):
    """A robust aggregation rule: hyper-parameters only, never state.

    An author implements one method: `judge` here, `weigh` of a `GeometryRule`, `reducer` of a
    `CoordinateRule`. One with memory also overrides `init` and `update`, and its `judge` is one
    round from a fresh state. A field `num_byzantine` says how many Byzantine workers are tolerated,
    fewer than half of all; None stands for as many as that allows.
    """

    _needs_geometry: ClassVar[bool] = False
    """Whether `_combine` asks how the mixtures lie to one another."""

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
                ndarray of one finite number per worker, none below 0; only their ratios matter.
                Equal ones give what None gives, to the bit. A worker of weight 0 takes no part, as
                if there were fewer workers.

        Returns:
            A `(dim,)` tensor or ndarray, or one tensor, ndarray or dict shaped like a worker's.

        Raises:
            ValueError: if shapes, dtypes or weights are unfit, there are too few workers for the
                rule, or it is one that weights have no meaning for.
            TooManyByzantineError: if more messages are not finite than the rule tolerates.
        """
        rows, restore = as_rows(gradients)
        return restore(self._merge(rows, as_weights(weights, len(rows))))

    def explain(self, gradients: Any, weights: Any = None) -> Aggregate:
        """The aggregate as a flat `(dim,)` tensor, and who counted and who was suspect.

        Arguments and errors are those of calling the rule.
        """
        rows, _ = as_rows(gradients)
        weights = as_weights(weights, len(rows))
        return self._judged(rows, weights).only(present(weights, len(rows)))

    def init(
        self, dim: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> State:
        """The state before the first round: `dim` values per message, of this dtype and device."""
        return ()

    def update(self, gradients: Any, state: State, weights: Any = None) -> tuple[Aggregate, State]:
        """One round: the aggregate of the messages given the state, and the next state.

        Arguments and errors are those of calling the rule.
        """
        rows, _ = as_rows(gradients)
        weights = as_weights(weights, len(rows))
        answer, state = self._step(rows, state, weights)
        return answer.only(present(weights, len(rows))), state

    def num_tolerated(self, num_workers: int) -> int:
        """How many Byzantine or unusable messages out of `num_workers` the rule tolerates.

        `num_byzantine`, or the largest number below half of the workers if that is None; 0 for a
        rule without this field.

        Raises:
            ValueError: unless `num_byzantine` is below half of the workers, or if the rule cannot
                work with so few of them.
        """
        bound: int | None = getattr(self, "num_byzantine", 0)
        if bound is None:
            return (num_workers - 1) // 2
        require_minority(bound, num_workers)
        return bound

    @abstractmethod
    def judge(
        self, rows: Float[Tensor, "workers dim"], weights: Float[Tensor, " workers"] | None = None
    ) -> Aggregate:
        """The aggregate of stacked messages, and the verdict on every worker.

        Args:
            rows: one message per worker, some of which may not be finite: see `require_tolerated`.
            weights: float64 sample weights, 0 for workers that take no part; None if all count
                alike. A rule that gives them no meaning may leave this argument out.
        """

    def _merge(self, rows: Tensor, weights: Tensor | None) -> Tensor:
        """The aggregate alone; cheaper than `judge` where the verdict costs a pass of its own."""
        return self._judged(rows, weights).value

    def _step(self, rows: Tensor, state: State, weights: Tensor | None) -> tuple[Aggregate, State]:
        """One round on stacked messages: the answer, and the next state."""
        return self._judged(rows, weights), state

    def _judged(self, rows: Tensor, weights: Tensor | None) -> Aggregate:
        """The answer of a rule that may not know of weights, as long as nobody gives any."""
        return self.judge(rows) if weights is None else self.judge(rows, weights)

    def _combine(
        self, mixtures: Mixtures, num_byzantine: int, state: State
    ) -> tuple[Aggregate, State]:
        """One round on mixtures of messages, in a `Pipeline`: the aggregate and the next state.

        By default the mixtures are formed, at the price of a copy; rules of the room do without.

        Args:
            mixtures: what pre-aggregation made of the finite messages.
            num_byzantine: how many of them may be Byzantine.
            state: what `init` or the round before gave.
        """
        rule = self.with_num_byzantine(num_byzantine)
        answer, state = rule.update(mixtures.values(), state, mixtures.geometry.weights)
        weights = None if answer.weights is None else answer.weights @ mixtures.mixing
        verdict = mixtures.per_worker(answer.scores, answer.suspects)
        return Aggregate(answer.value, weights, *verdict), state


def require_tolerated(
    rule: Aggregator,
    finite: Bool[Tensor, " workers"],
    bound: int,
    weights: Float[Tensor, " workers"] | None = None,
) -> int:
    """How many Byzantine workers remain to be tolerated once messages not `finite` are dropped.

    Workers of weight 0 take no part, so they do not count.

    Args:
        rule: who asks.
        finite: whose messages are finite.
        bound: how many the rule tolerates in all.
        weights: the sample weights, if there are any.

    Raises:
        TooManyByzantineError: if more than `bound` are dropped.
    """
    dropped = (present(weights, len(finite)) & ~finite).nonzero().flatten().tolist()
    if len(dropped) > bound:
        raise TooManyByzantineError(
            f"messages of workers {dropped} contain NaN or Inf; {rule} tolerates at most {bound}: "
            "look into these workers, or take a rule that tolerates more",
            workers=dropped,
            bound=bound,
        )
    return bound - len(dropped)
