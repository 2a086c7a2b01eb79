"""Server steps: how the server updates the model by a round's decoded update."""

import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from phalanx.checks import require_finite_above
from phalanx.parameters import ParameterLayout, trained_parameters
from phalanx.training.received import Received

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
"""Makes an optimizer from the parameters: a class of `torch.optim`, or a partial of one."""

MakeScheduler = Callable[[Optimizer], LRScheduler]
"""Makes a learning-rate scheduler from the optimizer: a class of `torch.optim.lr_scheduler`, a
partial of one, or a function that puts several together."""

Interval = Literal["round", "epoch"]
"""How often a learning-rate scheduler steps."""


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

    @property
    def num_vectors(self) -> int:
        """Vectors of the model's size in an update, as `Computation.num_vectors` has to say."""
        return 1

    @property
    def needs_messages(self) -> bool:
        """Whether `receive` looks at the messages one by one."""
        return False

    def receive(self, model: nn.Module, received: Received, state: Any) -> Any:
        """What `apply` does, for a step that asks for more than the decoded update.

        By default the update is applied. A step that looks at the messages one by one decides for
        itself which of them it believes: no rule stands before it.
        """
        return self.apply(model, received.update, state)

    def prepare(self, update: Float[Tensor, " dim"], state: Any) -> Any:
        """What is remembered of the aggregate of what workers sent first: `Round.preparation`."""
        return state

    def observe(self, state: Any, entry: Mapping[str, Any]) -> Any:
        """What is remembered once a round has been measured; schedules move on by it.

        Args:
            state: what `apply` gave.
            entry: the round's metrics: `loss`, `epoch`, and the evaluation if there was one.
        """
        return state

    def metrics(self, state: Any) -> Mapping[str, float]:
        """What the step adds to the metrics of a round, by name, once it is applied."""
        return {}

    def extra(self, state: Any) -> Mapping[str, Tensor]:
        """What workers are to know beside the parameters, by name: `Broadcast.extra`."""
        return {}

    def dump(self, state: Any) -> Any:
        """The state as tensors and plain values, for a checkpoint."""
        return state

    def load(self, model: nn.Module, dumped: Any) -> Any:
        """The state that was dumped, for a model that has its parameters of then already."""
        return dumped


@dataclass
class _Optimization:
    """An optimizer, its scheduler, and the learning rates that these two left."""

    optimizer: Optimizer
    scheduler: LRScheduler | None
    rates: list[float] | None  # None: somebody else was caught changing them

    def settle(self) -> None:
        if self.rates is not None:
            self.rates = _rates(self.optimizer)


@dataclass(frozen=True)
class OptimizerStep(ServerStep):
    """Optimizer step: any `torch.optim.Optimizer`, with the decoded update as the gradient.

    A learning-rate scheduler of torch moves on after every round, or at the end of every epoch. Its
    state is part of the checkpoint, so that a resumed run ends with the same bits.
    `ReduceLROnPlateau` is given the metric `monitor`, and waits where a round has not measured it.
    """

    optimizer: MakeOptimizer = default_optimizer
    """Makes the optimizer from the parameters."""

    lr_scheduler: MakeScheduler | None = None
    """Makes the learning-rate scheduler from the optimizer; a constant learning rate if None."""

    interval: Interval = "round"
    """Whether the scheduler steps after every round, or at the end of every epoch."""

    monitor: str = "loss"
    """The metric that `ReduceLROnPlateau` watches, such as `loss` or `validation_loss`."""

    def __post_init__(self) -> None:
        if self.interval not in ("round", "epoch"):
            raise ValueError(f"interval must be 'round' or 'epoch', got {self.interval!r}")

    def init(self, model: nn.Module) -> Any:
        """The optimizer and its scheduler, which remember what they do.

        Raises:
            ValueError: if one of them is no factory, or steps need the loss computed again.
        """
        made = _made("optimizer", self.optimizer, Optimizer, trained_parameters(model))
        closure = inspect.signature(made.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise ValueError(
                f"optimizer must take one gradient per step, got {type(made).__name__}"
            )
        scheduler = None
        if self.lr_scheduler is not None:
            scheduler = _made("lr_scheduler", self.lr_scheduler, LRScheduler, made)
        return _Optimization(made, scheduler, _rates(made))

    def apply(self, model: nn.Module, update: Float[Tensor, " dim"], state: Any) -> Any:
        """One `step`."""
        if state.rates is not None and state.rates != _rates(state.optimizer):
            state.rates = None
            warnings.warn(
                "the learning rate was changed by something other than lr_scheduler: a resumed run "
                "goes on with its last value, but what changed it begins anew; give lr_scheduler, "
                "such as partial(torch.optim.lr_scheduler.MultiStepLR, milestones=[100])",
                stacklevel=2,
            )
        parameters = trained_parameters(model)
        parts = update.split([value.numel() for value in parameters])
        for value, part in zip(parameters, parts, strict=True):
            value.grad = part.view_as(value)
        state.optimizer.step()
        state.optimizer.zero_grad()
        return state

    def observe(self, state: Any, entry: Mapping[str, Any]) -> Any:
        """One step of the scheduler, if its time has come."""
        scheduler = state.scheduler
        if scheduler is None or (
            self.interval == "epoch" and not float(entry["epoch"]).is_integer()
        ):
            return state
        if not isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step()
        elif entry.get(self.monitor) is not None:
            scheduler.step(entry[self.monitor])
        state.settle()
        return state

    def metrics(self, state: Any) -> Mapping[str, float]:
        """`lr`, the learning rate of the optimizer's first group."""
        return {"lr": _rates(state.optimizer)[0]}

    def dump(self, state: Any) -> Any:
        """The `state_dict` of the optimizer, and that of the scheduler."""
        scheduler = None if state.scheduler is None else state.scheduler.state_dict()
        return {"optimizer": state.optimizer.state_dict(), "lr_scheduler": scheduler}

    def load(self, model: nn.Module, dumped: Any) -> Any:
        """A new optimizer and scheduler with these `state_dict`s.

        Raises:
            ValueError: if one of the two runs has a scheduler and the other none.
        """
        made, scheduler = self.init(model), dumped["lr_scheduler"]
        if (made.scheduler is None) != (scheduler is None):
            had, has = ("none", "one") if scheduler is None else ("one", "none")
            raise ValueError(
                f"lr_scheduler must be that of the run to be resumed: it had {had}, this has {has}"
            )
        made.optimizer.load_state_dict(dumped["optimizer"])
        if scheduler is not None:
            made.scheduler.load_state_dict(scheduler)
        made.settle()
        return made


def _made(name: str, factory: Any, kind: type, argument: Any) -> Any:
    """What a factory makes; a `ValueError` if it is none."""
    example = {
        "optimizer": "partial(torch.optim.Adam, lr=0.001)",
        "lr_scheduler": "partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=100)",
    }[name]
    rule = f"{name} must be a class or function that makes one, such as {example}"
    if isinstance(factory, kind) or not callable(factory):
        article = "an instance of " if isinstance(factory, kind) else ""
        raise ValueError(f"{rule}, got {article}{type(factory).__name__}")
    made = factory(argument)
    if not isinstance(made, kind):
        raise ValueError(f"{rule}, got one that makes {type(made).__name__}")
    return made


def _rates(optimizer: Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


@dataclass(frozen=True)
class StepAround(ServerStep):
    """Server step that changes the update before another step is made by it.

    Its state is that of the other step, and something of its own, which is a plain value. What it
    does not override is that of the other step, but for `receive`: it takes the decoded update.
    """

    inner: ServerStep = OptimizerStep()
    """What is done with the changed update."""

    @property
    def num_vectors(self) -> int:
        """That of the step."""
        return self.inner.num_vectors

    def prepare(self, update: Float[Tensor, " dim"], state: Any) -> Any:
        """What the step makes of it."""
        return (self.inner.prepare(update, state[0]), state[1])

    def observe(self, state: Any, entry: Mapping[str, Any]) -> Any:
        """What the step makes of it."""
        return (self.inner.observe(state[0], entry), state[1])

    def metrics(self, state: Any) -> Mapping[str, float]:
        """Those of the step."""
        return self.inner.metrics(state[0])

    def extra(self, state: Any) -> Mapping[str, Tensor]:
        """That of the step."""
        return self.inner.extra(state[0])

    def dump(self, state: Any) -> Any:
        """What the step dumps, and what is its own."""
        return [self.inner.dump(state[0]), state[1]]

    def load(self, model: nn.Module, dumped: Any) -> Any:
        """What the step loads, and what is its own."""
        return (self.inner.load(model, dumped[0]), dumped[1])


@dataclass(frozen=True)
class ClippedStep(StepAround):
    """Gradient clipping on the server: an update that is too long is cut down to a norm.

    `u min(1, c / ||u||)` for the decoded update u, before another step is made by it, as
    `torch.nn.utils.clip_grad_norm_` does in a loop of one's own. Gradients of single samples are
    clipped by `ClippedGradient`, on the workers.

    Cost: one pass over the update.
    Source: Pascanu, Mikolov and Bengio, "On the Difficulty of Training Recurrent Neural Networks",
    ICML 2013.

    >>> import torch
    >>> from phalanx.training import ClippedStep, ServerMomentum
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> _ = torch.nn.init.zeros_(model.weight)
    >>> step = ClippedStep(ServerMomentum(), max_norm=1.0)
    >>> state = step.apply(model, torch.tensor([3.0, 4.0]), step.init(model))
    >>> model.weight.tolist()
    [[-0.6000000238418579, -0.800000011920929]]
    >>> step.metrics(state)
    {'gradient_norm': 5.0}
    """

    max_norm: float = 1.0
    """Largest Euclidean norm of an update."""

    def __post_init__(self) -> None:
        require_finite_above(0, max_norm=self.max_norm)

    def init(self, model: nn.Module) -> Any:
        """What the step remembers, and no norm."""
        return (self.inner.init(model), None)

    def apply(self, model: nn.Module, update: Float[Tensor, " dim"], state: Any) -> Any:
        """The step, by the clipped update."""
        norm = torch.linalg.vector_norm(update)
        clipped = update * (self.max_norm / norm).clamp(max=1.0) if norm > 0 else update
        return (self.inner.apply(model, clipped, state[0]), norm.item())

    def metrics(self, state: Any) -> Mapping[str, float]:
        """Those of the step, and `gradient_norm`: that of the update before it was clipped."""
        norm = {} if state[1] is None else {"gradient_norm": state[1]}
        return {**self.inner.metrics(state[0]), **norm}

    def dump(self, state: Any) -> Any:
        """What the step dumps."""
        return self.inner.dump(state[0])

    def load(self, model: nn.Module, dumped: Any) -> Any:
        """What the step loads, and no norm."""
        return (self.inner.load(model, dumped), None)


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

    nesterov: bool = False
    """Whether the step looks ahead: `x <- x - lr (u + momentum v)`, as torch's SGD does."""

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
        way = update + self.momentum * velocity if self.nesterov else velocity
        layout.write(model, layout.read(model) - self.lr * way)
        return (velocity,)

    def dump(self, state: Any) -> Any:
        """The velocity."""
        return list(state)

    def load(self, model: nn.Module, dumped: Any) -> Any:
        """The velocity, where the model is."""
        return tuple(one.to(ParameterLayout.of(model).read(model).device) for one in dumped)
