"""Base of differentially private generators: what a method spends, and how it is fitted."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from phalanx.privacy.accountant import Accountant, Budget, Relation
from phalanx.privacy.epsilon import Method
from phalanx.privacy.generation.domain import Domain
from phalanx.privacy.generation.private_data import PrivateData


@dataclass(frozen=True)
class Mechanism:
    """Gaussian releases that a step of fitting makes."""

    noise_multiplier: float
    """Standard deviation of the noise over the sensitivity of a release."""
    sampling_rate: float
    """Share of the records of a Poisson sample; 1 where all are used."""
    releases: int
    """Releases of a step, each of the same budget."""
    steps: int
    """Steps that the method would take; fewer if the budget does not last."""


class Fitting(ABC):
    """Fitting under way: a generator that the private records are shown to step by step."""

    @abstractmethod
    def step(self, number: int) -> None:
        """Makes the releases of step `number`: the same ones whenever it is made anew."""

    @abstractmethod
    def sample(self, labels: Int[Tensor, " n"], chance: torch.Generator) -> Float[Tensor, "n d"]:
        """Synthetic records of these classes, in [-1, 1]; costs no privacy."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All that the next steps depend on, as tensors and plain values."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a state over."""

    def class_shares(self) -> Tensor | None:
        """Shares of the classes, where the releases tell; else None."""
        return None


class Synthesizer(ABC):
    """Method that makes a differentially private generator of labelled records."""

    relation: ClassVar[Relation]
    """Which data sets are neighbours under its guarantee."""
    accounting: ClassVar[Method] = "pld"
    """How releases of samples are counted, see `Accountant`."""
    not_counted: ClassVar[tuple[str, ...]] = ("choice of hyper-parameters",)
    """What it takes for public."""

    @abstractmethod
    def mechanism(self, num_records: int, domain: Domain, budget: Budget) -> Mechanism:
        """What a step releases; noise that is not given is such that all steps fit the budget.

        Raises:
            ValueError: if the method does not fit such records.
        """

    @abstractmethod
    def start(self, data: PrivateData, mechanism: Mechanism, seed: int) -> Fitting:
        """A fitting before its first step."""

    def accountant(self, domain: Domain) -> Accountant:
        """An empty ledger with the statement of this guarantee."""
        return Accountant(
            "record", self.relation, self.accounting, (*self.not_counted, *domain.from_data)
        )
