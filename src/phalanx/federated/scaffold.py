"""SCAFFOLD: control variates correct the drift of local steps."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from phalanx.computations import Broadcast, Computation
from phalanx.federated.base import FederatedAlgorithm
from phalanx.federated.local_computation import FullGradients, LocalComputation, State
from phalanx.federated.local_steps import LocalStep, Minibatches
from phalanx.parameters import ParameterLayout
from phalanx.training import ServerMomentum, ServerStep
from phalanx.training.received import Received

_CONTROL = "control"


@dataclass(frozen=True)
class ScaffoldTraining(LocalComputation):
    """Local SGD of a client with control variates; it remembers its own, `c_j`.

    `u <- u - lr (g(u) - c_j + c)`; sent are `w - u` and `c_j' - c_j`.
    """

    option: Literal[1, 2] = 2
    """How `c_j'` is made: 1 is the gradient of all samples at w, 2 follows from the steps."""

    @property
    def num_vectors(self) -> int:
        """Two."""
        return 2

    def init(self, layout: ParameterLayout) -> State:
        """A control variate of zero."""
        return (torch.zeros(layout.dim, dtype=layout.dtype),)

    def begin(self, broadcast: Broadcast, points: Tensor, states: State) -> dict[str, Tensor]:
        """The round's parameters, and the client's control variate."""
        return {"points": points, _CONTROL: states[0]}

    def advance(
        self, step: LocalStep, values: dict[str, Tensor], broadcast: Broadcast
    ) -> tuple[dict[str, Tensor], Tensor]:
        """One corrected step of SGD."""
        gradient, loss = step.gradient(values["points"])
        direction = gradient - values[_CONTROL] + broadcast.extra[_CONTROL]
        return {**values, "points": values["points"] - self.lr * direction}, loss

    def finish(
        self,
        values: dict[str, Tensor],
        broadcast: Broadcast,
        num_steps: Tensor,
        full: FullGradients,
    ) -> tuple[Tensor, State]:
        """How far the steps led, how the control variate changes, and the new one."""
        way, own = broadcast.parameters - values["points"], values[_CONTROL]
        if self.option == 1:
            control = full()
        else:
            control = own - broadcast.extra[_CONTROL] + way / (num_steps * self.lr)
        return torch.cat([way, control - own], dim=-1), (control,)


@dataclass(frozen=True)
class ScaffoldStep(ServerStep):
    """Server step of SCAFFOLD: the model by one vector, the control variate by the other.

    `c <- c + |S| / N mean_S (c_j' - c_j)`, S being the clients that answered, out of N.
    """

    inner: ServerStep = ServerMomentum(momentum=0.0)  # noqa: RUF009 - frozen
    """What is done with the mean of the first vectors."""

    @property
    def num_vectors(self) -> int:
        """Two."""
        return 2

    def init(self, model: nn.Module) -> Any:
        """A control variate of zero."""
        return self.inner.init(model), torch.zeros_like(ParameterLayout.of(model).read(model))

    def apply(self, model: nn.Module, update: Float[Tensor, " width"], state: Any) -> Any:
        """All clients answered."""
        way, change = update.chunk(2)
        return self.inner.apply(model, way, state[0]), state[1] + change

    def receive(self, model: nn.Module, received: Received, state: Any) -> Any:
        """As many answered as did."""
        share = int(received.usable.sum()) / received.num_clients
        way, change = received.update.chunk(2)
        return self.inner.apply(model, way, state[0]), state[1] + share * change

    def observe(self, state: Any, entry: Mapping[str, Any]) -> Any:
        """What the inner step makes of it."""
        return self.inner.observe(state[0], entry), state[1]

    def metrics(self, state: Any) -> Mapping[str, float]:
        """Those of the inner step."""
        return self.inner.metrics(state[0])

    def extra(self, state: Any) -> Mapping[str, Tensor]:
        """The control variate of the server."""
        return {_CONTROL: state[1]}

    def dump(self, state: Any) -> Any:
        """What the inner step dumps, and the control variate."""
        return [self.inner.dump(state[0]), state[1]]

    def load(self, model: nn.Module, dumped: Any) -> Any:
        """The same, where the model is."""
        device = ParameterLayout.of(model).read(model).device
        return self.inner.load(model, dumped[0]), dumped[1].to(device)


@dataclass(frozen=True)
class Scaffold(FederatedAlgorithm):
    """SCAFFOLD: local SGD whose direction is corrected by control variates.

    Client j steps by `g_j(u) - c_j + c`. Its own variate estimates its gradient, that of the server
    the mean gradient, so that the correction removes what the client's data are unlike the others'.
    Every client starts from `c_j = 0` and keeps a vector between rounds; one whose message does not
    arrive keeps the one that it had. Local steps are plain SGD: with momentum or weight decay the
    variates of option 2 would be wrong.

    Guarantee: while all clients take part and the rule is the mean, `mean_j c_j = c`; one client
    alone does SGD.
    Cost: twice the traffic of FedAvg, both ways; a vector per client, so for tens or hundreds of
    clients that come back, not for millions that do not. Option 1 takes a pass over all samples.
    Source: Karimireddy, Kale, Mohri, Reddi, Stich and Suresh, "SCAFFOLD: Stochastic Controlled
    Averaging for Federated Learning", ICML 2020 (Algorithm 1).

    >>> from phalanx.federated import Scaffold
    >>> Scaffold().step.num_vectors
    2
    """

    option: Literal[1, 2] = 2
    """How a client makes its new control variate: 1 is its full gradient at the round's parameters,
    2 the mean gradient along its steps, which costs nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.option not in (1, 2):
            raise ValueError(f"option must be 1 or 2, got {self.option!r}")

    @property
    def compute(self) -> Computation:
        """Corrected local SGD."""
        batches = Minibatches(self.batch_size, self.epochs, self.num_steps)
        return ScaffoldTraining(self.lr, batches, self.option)

    @property
    def step(self) -> ServerStep:
        """The model, and the control variate."""
        return ScaffoldStep(self.server)

    @property
    def counts_samples(self) -> bool:
        """No: clients count alike, as in the paper."""
        return False
