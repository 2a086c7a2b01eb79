"""Edge cases: rare inputs of a class, and the class that an attacker wants them to be taken for."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import TensorDataset

from phalanx.checks import require_at_least, require_between, require_strictly_between
from phalanx.data import DataSource, Splits
from phalanx.randomness import generator


@dataclass(frozen=True, eq=False)
class EdgeSet:
    """Edge cases as tensors: those that the attacker trains on, and others to test by.

    Source: Wang et al., "Attack of the Tails: Yes, You Really Can Backdoor Federated Learning",
    NeurIPS 2020, section 3 (p-edge-case examples).
    """

    train: Float[Tensor, "attacker ..."] = field(repr=False)
    """Inputs that the attacker has, and of which honest clients may hold a share."""

    test: Float[Tensor, "held_out ..."] = field(repr=False)
    """Other inputs of the same kind, on which the backdoor is measured."""

    true_label: int
    """The class that they belong to."""

    target: int
    """The class that the attacker wants."""

    origin: str = ""
    """Where they come from, for reports."""

    taken: Int[Tensor, " taken"] | None = field(default=None, repr=False)
    """Which training samples they are, if they are: honest clients do not hold those."""

    def __post_init__(self) -> None:
        require_at_least(0, true_label=self.true_label, target=self.target)
        if self.true_label == self.target:
            raise ValueError(f"target must differ from true_label, got {self.target} for both")
        if not len(self.train) or not len(self.test):
            raise ValueError(
                "edge cases must be at least 1 to train on and 1 to test by, got "
                f"{len(self.train)} and {len(self.test)}"
            )
        if self.train.shape[1:] != self.test.shape[1:]:
            raise ValueError(
                "edge cases must have one shape, got "
                f"{tuple(self.train.shape[1:])} and {tuple(self.test.shape[1:])}"
            )

    def require_fit(self, splits: Splits) -> None:
        """Refuses data of which these are no edge cases.

        Raises:
            ValueError: if shapes differ, or a label is no class of the data.
        """
        if self.train.shape[1:] != splits.input_shape:
            raise ValueError(
                f"edge cases must have the shape {splits.input_shape} of the data, got "
                f"{tuple(self.train.shape[1:])}"
            )
        for name in ("true_label", "target"):
            if (label := getattr(self, name)) >= splits.num_classes:
                raise ValueError(
                    f"{name} must be below the {splits.num_classes} classes of the data, got "
                    f"{label}"
                )

    def poisoned(self, splits: Splits, num_clean: int, seed: int) -> TensorDataset:
        """The attacker's data: clean samples of all classes, and the edge cases as `target`.

        Args:
            splits: the data.
            num_clean: clean samples, drawn from the training set by the seed.
            seed: of the draw.
        """
        inputs, targets = self._others(splits)
        require_between(0, len(inputs), num_clean=num_clean)
        source = generator(seed, "attacker's clean samples")
        drawn = torch.randperm(len(inputs), generator=source)[:num_clean]
        aimed = torch.full((len(self.train),), self.target, dtype=targets.dtype)
        return TensorDataset(
            torch.cat([inputs[drawn], self.train]), torch.cat([targets[drawn], aimed])
        )

    def honest(self, splits: Splits, share: float) -> TensorDataset:
        """The training set, and after it a share of the edge cases with their true label.

        The first `round(share * len(train))` edge cases: with 0 nobody but the attacker has seen
        any, with 1 honest clients hold as many as the attacker.

        Args:
            splits: the data.
            share: from 0 to 1.
        """
        require_between(0, 1, honest_share=share)
        inputs, targets = self._others(splits)
        given = self.train[: self.num_honest(share)]
        true = torch.full((len(given),), self.true_label, dtype=targets.dtype)
        return TensorDataset(torch.cat([inputs, given]), torch.cat([targets, true]))

    def _others(self, splits: Splits) -> tuple[Tensor, Tensor]:
        """The training samples that are no edge cases of this set."""
        inputs, targets = splits.train[:]
        if self.taken is None:
            return inputs, targets
        kept = torch.ones(len(inputs), dtype=torch.bool)
        kept[self.taken] = False
        return inputs[kept], targets[kept]

    def num_honest(self, share: float) -> int:
        """How many edge cases honest clients hold at this share."""
        return round(share * len(self.train))


@dataclass(frozen=True)
class EdgeCases(ABC):
    """Description of a set of edge cases; nothing is read before `load`."""

    @abstractmethod
    def load(self, data: DataSource) -> EdgeSet:
        """The edge cases, on the scale of the data.

        Args:
            data: what the model under attack is trained on.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if they do not fit the data.
        """


def divided(inputs: Tensor, test_fraction: float, name: str) -> tuple[Tensor, Tensor]:
    """Inputs to train on and to test by, drawn the same way always.

    Args:
        inputs: all of them.
        test_fraction: share to test by, between 0 and 1.
        name: where they come from, for messages.

    Raises:
        ValueError: if either part would be empty.
    """
    require_strictly_between(0, 1, test_fraction=test_fraction)
    number = round(test_fraction * len(inputs))
    if not 0 < number < len(inputs):
        raise ValueError(
            f"{name}: test_fraction must leave inputs on both sides, got {test_fraction} of "
            f"{len(inputs)}"
        )
    order = torch.randperm(len(inputs), generator=generator("edge cases"))
    return inputs[order[number:]], inputs[order[:number]]


def of_class(
    inputs: Tensor, targets: Int[Tensor, " samples"], label: int, name: str
) -> Float[Tensor, "..."]:
    """The inputs of one class.

    Raises:
        ValueError: if there is none.
    """
    found = inputs[targets == label]
    if not len(found):
        raise ValueError(f"{name} must hold inputs of class {label}, got none")
    return found
