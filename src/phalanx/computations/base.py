"""Computation interface: a worker's update from the broadcast and its samples."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.computations.objective import Objective
from phalanx.parameters import ParameterLayout

State = tuple[Tensor, ...]
"""What a worker's computation remembers between rounds; empty for one without memory."""


@dataclass(frozen=True)
class Broadcast:
    """Broadcast of the server to all workers in a round."""

    parameters: Float[Tensor, " dim"]
    """The model's, flat."""
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    """What else workers are to know, by name: `ServerStep.extra` and `Code.broadcast`."""


class Samples(NamedTuple):
    """Samples of a partition.

    Attributes:
        inputs: `(samples, ...)`.
        targets: `(samples, ...)`.
    """

    inputs: Tensor
    targets: Tensor


class Computed(NamedTuple):
    """Result of a computation: update, loss and state.

    Attributes:
        update: `(dim,)`, what the server is to step against: a gradient, or what stands for one;
            `num_vectors` of them, one after the other.
        loss: the mean loss of the samples.
        state: what is remembered.
    """

    update: Float[Tensor, " dim"]
    loss: Float[Tensor, ""]
    state: State = ()


@dataclass(frozen=True)
class Computation(ABC):
    """Computation of a worker: its update from the round's parameters and its samples.

    A pure function. One without memory gives all replicas of a partition the same update, so that
    it goes with every code; one that remembers (`init` gives a state) needs workers with partitions
    of their own, under a rule.
    """

    @property
    def vectorised(self) -> bool:
        """Whether `compute_many` takes several partitions at once."""
        return False

    @property
    def num_vectors(self) -> int:
        """Vectors of the model's size in an update; one, unless the server step takes more."""
        return 1

    @property
    def takes_clients(self) -> bool:
        """Whether `compute_clients` takes several clients at once, whatever data they hold."""
        return False

    @property
    def influence(self) -> float | None:
        """How far one sample may move the sum of the samples' updates; None for any distance.

        Euclidean, by adding or removing it; of an update by `expecting(b)` b times that.
        """
        return None

    def expecting(self, num_samples: int) -> "Computation":
        """The same computation, with this number of samples in place of the actual one.

        The actual number, which a mean is divided by, would tell whether somebody is among them.

        Raises:
            ValueError: if the influence of a sample is not bounded.
        """
        raise ValueError(
            f"compute must bound what one sample does, as ClippedGradient does, got {self}"
        )

    def init(self, layout: ParameterLayout) -> State:
        """What a worker remembers before the first round."""
        return ()

    @abstractmethod
    def compute(
        self,
        objective: Objective,
        broadcast: Broadcast,
        samples: Samples,
        state: State,
        generator: torch.Generator | None,
    ) -> Computed:
        """The update of one partition.

        Args:
            objective: the loss as a function of the parameters, and its gradients.
            broadcast: of the round; never overwritten.
            samples: of the partition.
            state: what this worker remembers.
            generator: randomness of this round and partition, on the CPU, the same for replicas;
                None draws from torch's global one.
        """

    def compute_many(
        self, objective: Objective, broadcast: Broadcast, samples: Samples
    ) -> tuple[Float[Tensor, "partitions dim"], Float[Tensor, " partitions"]]:
        """Updates and losses of several partitions by one call, if `vectorised`.

        The same numbers as `compute` gives one by one, to rounding.

        Args:
            objective: see `compute`.
            broadcast: see `compute`.
            samples: `(partitions, samples, ...)` both.

        Raises:
            RuntimeError: if `torch.func.vmap` cannot take the model.
        """
        raise NotImplementedError(f"{type(self).__name__} computes partitions one by one")

    def compute_clients(
        self,
        objective: Objective,
        broadcast: Broadcast,
        samples: Sequence[Samples],
        states: Sequence[State],
        generators: Sequence[torch.Generator],
    ) -> Sequence[Computed]:
        """Updates of clients whose data differ in size, by one call, if `takes_clients`.

        The same numbers as `compute` gives one by one, to rounding; what remembers, too.

        Raises:
            RuntimeError: if `torch.func.vmap` cannot take the model.
        """
        raise NotImplementedError(f"{type(self).__name__} computes clients one by one")
