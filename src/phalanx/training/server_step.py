"""Server steps: how the server updates the model by a round's decoded update."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from phalanx.parameters import ParameterLayout, trained_parameters

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


def default_optimizer(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """SGD with learning rate 0.1 and momentum 0.9."""
    return SGD(parameters, lr=0.1, momentum=0.9)


@dataclass(frozen=True)
class ServerStep(ABC):
    """Server update rule: how the model moves by a decoded update.

    What it remembers is explicit: `init` gives it, `apply` changes the model and gives the next.
    """

    @abstractmethod
    def init(self, model: nn.Module) -> Any:
        """What is remembered before the first round.

        Raises:
            ValueError: if the step does not fit the model.
        """

    @abstractmethod
    def apply(self, model: nn.Module, update: Float[Tensor, " dim"], state: Any) -> Any:
        """Changes the model's trained parameters in place; returns what is remembered."""

    def extra(self, state: Any) -> Mapping[str, Tensor]:
        """What workers are to know beside the parameters, by name: `Broadcast.extra`."""
        return {}

    def dump(self, state: Any) -> Any:
        """The state as tensors and plain values, for a checkpoint."""
        return state

    def load(self, model: nn.Module, dumped: Any) -> Any:
        """The state that was dumped, for a model that has its parameters of then already."""
        return dumped


@dataclass(frozen=True)
class OptimizerStep(ServerStep):
    """Optimizer step: any `torch.optim.Optimizer`, with the decoded update as the gradient."""

    optimizer: MakeOptimizer = default_optimizer
    """Makes the optimizer from the parameters."""

    def init(self, model: nn.Module) -> Optimizer:
        """The optimizer, which remembers what it does.

        Raises:
            ValueError: if its steps need the loss to be computed again.
        """
        made = self.optimizer(trained_parameters(model))
        closure = inspect.signature(made.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise ValueError(
                f"optimizer must take one gradient per step, got {type(made).__name__}"
            )
        return made

    def apply(self, model: nn.Module, update: Float[Tensor, " dim"], state: Any) -> Any:
        """One `step`."""
        parameters = trained_parameters(model)
        parts = update.split([value.numel() for value in parameters])
        for value, part in zip(parameters, parts, strict=True):
            value.grad = part.view_as(value)
        state.step()
        state.zero_grad()
        return state

    def dump(self, state: Any) -> Any:
        """The optimizer's `state_dict`."""
        return state.state_dict()

    def load(self, model: nn.Module, dumped: Any) -> Any:
        """A new optimizer with that `state_dict`."""
        made = self.init(model)
        made.load_state_dict(dumped)
        return made


@dataclass(frozen=True)
class ServerMomentum(ServerStep):
    """Momentum on the server: `v <- momentum v + u`, `x <- x - lr v`.

    With `LocalSteps` this is FedAvgM: the server averages how far clients came, and goes on in the
    direction of the rounds before. With `Gradient` it is SGD with heavy-ball momentum.

    Cost: one vector, and two passes over the parameters.
    Source: Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for
    Federated Visual Classification", arXiv 1909.06335, 2019 (FedAvgM).

    >>> import torch
    >>> from phalanx.training import ServerMomentum
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.zeros_(model.weight)
    >>> step = ServerMomentum(momentum=0.5, lr=1.0)
    >>> state = step.apply(model, torch.tensor([1.0]), step.init(model))
    >>> state = step.apply(model, torch.tensor([1.0]), state)
    >>> model.weight.item()
    -2.5
    """

    momentum: float = 0.9
    """What the velocity keeps of itself from round to round, at least 0 and below 1."""

    lr: float = 1.0
    """Learning rate of the server."""

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, got {self.momentum}")
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"lr must be finite and above 0, got {self.lr}")

    def init(self, model: nn.Module) -> Any:
        """No velocity."""
        return (torch.zeros_like(ParameterLayout.of(model).read(model)),)

    def apply(self, model: nn.Module, update: Float[Tensor, " dim"], state: Any) -> Any:
        """One step along the velocity."""
        velocity = self.momentum * state[0] + update
        layout = ParameterLayout.of(model)
        layout.write(model, layout.read(model) - self.lr * velocity)
        return (velocity,)

    def dump(self, state: Any) -> Any:
        """The velocity."""
        return list(state)

    def load(self, model: nn.Module, dumped: Any) -> Any:
        """The velocity, where the model is."""
        return tuple(one.to(ParameterLayout.of(model).read(model).device) for one in dumped)
