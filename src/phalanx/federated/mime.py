"""Mime and MimeLite: local steps that mimic a centralised optimizer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from phalanx.computations import Broadcast, Computation, Gradient
from phalanx.federated.base import FederatedAlgorithm
from phalanx.federated.frozen_optimizers import FrozenAdam, FrozenOptimizer, FrozenSGD
from phalanx.federated.local_computation import FullGradients, LocalComputation, State
from phalanx.federated.local_steps import LocalStep, Minibatches
from phalanx.parameters import ParameterLayout
from phalanx.training import ServerMomentum, ServerStep

_CONTROL, _STATISTICS = "control", "statistics."


@dataclass(frozen=True)
class MimeTraining(LocalComputation):
    """Local steps of a client by an optimizer whose statistics are the server's.

    `u <- u - lr U(g, s)` with `g = g(u) - g(w) + c` on the same minibatch where the server sends a
    control variate c, else `g = g(u)`. Sent are `w - u`, and the gradient of all samples at w.
    """

    base: FrozenOptimizer = FrozenSGD()  # noqa: RUF009 - frozen
    """The optimizer."""

    sends_gradient: bool = True
    """Whether the gradient of all samples is sent."""

    @property
    def num_vectors(self) -> int:
        """Two with the gradient."""
        return 2 if self.sends_gradient else 1

    def begin(self, broadcast: Broadcast, points: Tensor, states: State) -> dict[str, Tensor]:
        """The round's parameters."""
        return {"points": points}

    def advance(
        self, step: LocalStep, values: dict[str, Tensor], broadcast: Broadcast
    ) -> tuple[dict[str, Tensor], Tensor]:
        """One step of the optimizer."""
        points, extra = values["points"], broadcast.extra
        gradient, loss = step.gradient(points)
        if _CONTROL in extra:
            start = broadcast.parameters
            start = start.expand_as(points) if points.ndim > 1 else start
            gradient = gradient - step.gradient(start)[0] + extra[_CONTROL]
        number = sum(name.startswith(_STATISTICS) for name in extra)
        statistics = [extra[f"{_STATISTICS}{place}"] for place in range(number)]
        return {"points": self.base.step(points, gradient, statistics, self.lr)}, loss

    def finish(
        self,
        values: dict[str, Tensor],
        broadcast: Broadcast,
        num_steps: Tensor,
        full: FullGradients,
    ) -> tuple[Tensor, State]:
        """How far the steps led, and the gradient."""
        way = broadcast.parameters - values["points"]
        return (torch.cat([way, full()], dim=-1) if self.sends_gradient else way), ()


@dataclass(frozen=True)
class MimeStep(ServerStep):
    """Server step of Mime: the model by the updates, the statistics by gradients at the old model.

    State: that of the inner step, the statistics, and the control variate if there is one.
    """

    base: FrozenOptimizer = FrozenSGD()  # noqa: RUF009 - frozen
    """The optimizer."""

    inner: ServerStep = ServerMomentum(momentum=0.0)  # noqa: RUF009 - frozen
    """What is done with the mean of the updates."""

    sends_gradient: bool = True
    """Whether updates come with the gradient of all samples."""

    keeps_control: bool = False
    """Whether the gradients of a round are the control variate of the next."""

    @property
    def num_vectors(self) -> int:
        """Two with the gradient."""
        return 2 if self.sends_gradient else 1

    def init(self, model: nn.Module) -> Any:
        """The statistics before the first gradient, and no control variate."""
        like = ParameterLayout.of(model).read(model)
        return self.inner.init(model), tuple(self.base.init(like)), None

    def prepare(self, update: Float[Tensor, " dim"], state: Any) -> Any:
        """The gradient is the control variate."""
        return state[0], state[1], update.clone()

    def apply(self, model: nn.Module, update: Float[Tensor, " width"], state: Any) -> Any:
        """The model, then the statistics by the gradients at the model that was."""
        inner, statistics, control = state
        before = ParameterLayout.of(model).read(model)
        way, gradient = update.chunk(2) if self.sends_gradient else (update, control)
        inner = self.inner.apply(model, way, inner)
        if gradient is not None:
            statistics = tuple(self.base.update(before, gradient, statistics))
        return inner, statistics, gradient.clone() if self.keeps_control else None

    def observe(self, state: Any, entry: Mapping[str, Any]) -> Any:
        """What the inner step makes of it."""
        return self.inner.observe(state[0], entry), *state[1:]

    def metrics(self, state: Any) -> Mapping[str, float]:
        """Those of the inner step."""
        return self.inner.metrics(state[0])

    def extra(self, state: Any) -> Mapping[str, Tensor]:
        """The statistics and the control variate."""
        told = {f"{_STATISTICS}{place}": one for place, one in enumerate(state[1])}
        return told if state[2] is None else {**told, _CONTROL: state[2]}

    def dump(self, state: Any) -> Any:
        """The state, as tensors."""
        return [self.inner.dump(state[0]), list(state[1]), state[2]]

    def load(self, model: nn.Module, dumped: Any) -> Any:
        """The same, where the model is."""
        device = ParameterLayout.of(model).read(model).device
        inner, statistics, control = dumped
        control = None if control is None else control.to(device)
        return self.inner.load(model, inner), tuple(one.to(device) for one in statistics), control


@dataclass(frozen=True)
class MimeLite(FederatedAlgorithm):
    """MimeLite: local steps of an optimizer whose statistics are the server's, and frozen.

    The server updates the statistics once a round by `sum_j p_j grad f_j(w)`, at the parameters
    that the round began with. With `FrozenSGD` there are none, and it is FedAvg to the bit.

    Cost: the model and the statistics down, the update and a gradient up; one pass over all samples
    beside the local steps. With `FrozenSGD` those of FedAvg.
    Source: Karimireddy, Jaggi, Kale, Mohri, Reddi, Stich and Suresh, "Breaking the Centralized
    Barrier for Cross-Device Federated Learning", NeurIPS 2021 (Algorithm 1).

    >>> from phalanx.federated import FrozenSGD, MimeLite
    >>> MimeLite(base=FrozenSGD()).step.num_vectors
    1
    """

    base: FrozenOptimizer = FrozenAdam()  # noqa: RUF009 - frozen
    """The optimizer that is mimicked."""

    @property
    def compute(self) -> Computation:
        """Local steps, and the gradient that the statistics need."""
        batches = Minibatches(self.batch_size, self.epochs, self.num_steps)
        return MimeTraining(self.lr, batches, self.base, self._sends_gradient)

    @property
    def step(self) -> ServerStep:
        """The model and the statistics."""
        return MimeStep(self.base, self.server, self._sends_gradient)

    @property
    def _sends_gradient(self) -> bool:
        return self.base != FrozenSGD()


@dataclass(frozen=True)
class Mime(MimeLite):
    """Mime: MimeLite with an SVRG-like correction of every local gradient.

    `g = grad f_j(u; b) - grad f_j(w; b) + c` on the same minibatch b, where
    `c = sum_j p_j grad f_j(w)` over the clients of the round. Clients keep nothing.

    Guarantee: one local step of all samples of all clients is one step of the optimizer on the
    pooled data.
    Cost: twice the gradients of FedAvg and a pass over all samples. A fresh control variate takes a
    second exchange per round; a stale one that of the round before, and none in the first.
    Source: that of `MimeLite`.

    >>> from phalanx.federated import Mime
    >>> Mime().preparation
    Gradient()
    """

    control: Literal["fresh", "stale"] = "fresh"
    """Whether c is made by the clients of the round, first, or by those of the round before."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.control not in ("fresh", "stale"):
            raise ValueError(f"control must be fresh or stale, got {self.control!r}")

    @property
    def preparation(self) -> Computation | None:
        """The gradient of all samples, for a fresh control variate."""
        return Gradient() if self.control == "fresh" else None

    @property
    def step(self) -> ServerStep:
        """The model, the statistics and the control variate."""
        stale = self.control == "stale"
        return MimeStep(self.base, self.server, self._sends_gradient, keeps_control=stale)

    @property
    def _sends_gradient(self) -> bool:
        return self.control == "stale"
