"""What every robust rule looks like: messages in, one vector and a verdict on every worker out."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from phalanx.aggregation.messages import as_rows
from phalanx.errors import TooManyByzantineError

State = tuple[Tensor, ...]
"""What a rule remembers between rounds; empty for a rule without memory."""


class Aggregate(NamedTuple):
    """What a rule answers.

    Attributes:
        value: the aggregate, `(dim,)`, in the dtype and on the device of the messages.
        weights: `(workers,)` float64 with `value = weights @ messages`, or None where the rule is
            coordinate-wise and no such weights exist.
        scores: `(workers,)` float64; higher is more suspicious; infinite for dropped workers.
        dropped: `(workers,)` bool; the messages that never entered arithmetic (not finite).
        suspects: `(workers,)` bool; the workers that the rule holds to be lying: the dropped ones
            and those that it left out.

    `value` lies on the device of the messages, the rest in main memory.
    """

    value: Float[Tensor, " dim"]
    weights: Float[Tensor, " workers"] | None
    scores: Float[Tensor, " workers"]
    dropped: Bool[Tensor, " workers"]
    suspects: Bool[Tensor, " workers"]


@dataclass(frozen=True)
class Aggregator(ABC):
    """A robust rule: hyper-parameters only, never state.

    A rule implements `num_tolerated` and `judge` on a `(workers, dim)` tensor; most do so through
    `GeometryRule` or `CoordinateRule`. A rule with memory also overrides `init` and `update`, and
    its `judge` is one round from a fresh state.
    """

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


def require_majority(num_byzantine: int, num_workers: int) -> None:
    """Raises ValueError unless fewer than half of the workers may lie."""
    if 2 * num_byzantine >= num_workers:
        raise ValueError(
            f"num_byzantine must be below num_workers / 2, got {num_byzantine} of {num_workers}"
        )


def far_out(distances: Float[Tensor, " workers"]) -> Bool[Tensor, " workers"]:
    """Who is more than three times as far from the aggregate as the median worker.

    A heuristic: it names crude liars, misses those that hide within the honest spread, and may
    name honest workers whose data differ a lot. Nothing is computed from it.
    """
    return distances > 3.0 * distances.sort().values[len(distances) // 2]
