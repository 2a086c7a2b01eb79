"""What every robust rule looks like: messages in, one vector and a verdict on every worker out."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor


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
    """

    value: Float[Tensor, " dim"]
    weights: Float[Tensor, " workers"] | None
    scores: Float[Tensor, " workers"]
    dropped: Bool[Tensor, " workers"]
    suspects: Bool[Tensor, " workers"]


@dataclass(frozen=True)
class Aggregator(ABC):
    """A robust rule: hyper-parameters only, never state."""

    @abstractmethod
    def explain(self, gradients: Any) -> Aggregate:
        """The aggregate, and who counted and who was suspect."""
