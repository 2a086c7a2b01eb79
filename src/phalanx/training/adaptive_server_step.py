"""Adaptive server steps: Adam, Yogi and Adagrad on the mean update, as in FedOpt."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from phalanx.checks import require_below_one, require_finite_above
from phalanx.parameters import ParameterLayout
from phalanx.training.server_step import ServerStep


@dataclass(frozen=True)
class AdaptiveServerStep(ServerStep):
    """Adaptive server step: `m <- b1 m + (1 - b1) u`, `x <- x - lr m / (sqrt(v) + tau)`.

    Subclasses say what becomes of v, which begins at `tau^2`. There is no bias correction.

    Source: Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar and McMahan, "Adaptive Federated
    Optimization", ICLR 2021 (Algorithm 2).
    """

    lr: float = 0.1
    """Learning rate of the server (eta)."""

    beta1: float = 0.9
    """What the mean of the updates keeps of itself from round to round, below 1."""

    tau: float = 1e-3
    """Degree of adaptivity: added to the root of v."""

    def __post_init__(self) -> None:
        require_finite_above(0, lr=self.lr, tau=self.tau)
        require_below_one(beta1=self.beta1)

    @abstractmethod
    def second(self, v: Tensor, squares: Tensor) -> Tensor:
        """The next v, from the squares of an update."""

    def init(self, model: nn.Module) -> Any:
        """No mean, and `tau^2`."""
        zero = torch.zeros_like(ParameterLayout.of(model).read(model))
        return zero, zero + self.tau**2

    def apply(self, model: nn.Module, update: Float[Tensor, " dim"], state: Any) -> Any:
        """One step."""
        mean = self.beta1 * state[0] + (1 - self.beta1) * update
        v = self.second(state[1], update**2)
        layout = ParameterLayout.of(model)
        layout.write(model, layout.read(model) - self.lr * mean / (v.sqrt() + self.tau))
        return mean, v

    def dump(self, state: Any) -> Any:
        """Both vectors."""
        return list(state)

    def load(self, model: nn.Module, dumped: Any) -> Any:
        """Both, where the model is."""
        return tuple(one.to(ParameterLayout.of(model).read(model).device) for one in dumped)


@dataclass(frozen=True)
class ServerAdam(AdaptiveServerStep):
    """Adam on the server, FedAdam with local steps: `v <- b2 v + (1 - b2) u^2`.

    Cost: two vectors, and a few passes over the parameters.
    Source: that of FedOpt: Reddi et al., "Adaptive Federated Optimization", ICLR 2021.
    """

    beta2: float = 0.99
    """What the mean of the squares keeps of itself, below 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_below_one(beta2=self.beta2)

    def second(self, v: Tensor, squares: Tensor) -> Tensor:
        """The mean of the squares."""
        return self.beta2 * v + (1 - self.beta2) * squares


@dataclass(frozen=True)
class ServerYogi(ServerAdam):
    """Yogi on the server, FedYogi with local steps: `v <- v - (1 - b2) u^2 sign(v - u^2)`.

    Cost: that of `ServerAdam`.
    Source: Reddi et al., "Adaptive Federated Optimization", ICLR 2021.
    """

    def second(self, v: Tensor, squares: Tensor) -> Tensor:
        """A step towards the squares, as long as they are."""
        return v - (1 - self.beta2) * squares * torch.sign(v - squares)


@dataclass(frozen=True)
class ServerAdagrad(AdaptiveServerStep):
    """Adagrad on the server, FedAdagrad with local steps: `v <- v + u^2`.

    Cost: that of `ServerAdam`.
    Source: Reddi et al., "Adaptive Federated Optimization", ICLR 2021.
    """

    beta1: float = 0.0
    """What the mean of the updates keeps of itself from round to round; 0 as in the paper."""

    def second(self, v: Tensor, squares: Tensor) -> Tensor:
        """The sum of the squares."""
        return v + squares
