"""FedAvg: clients train for a while, and the server averages their models."""

from dataclasses import dataclass

from torch import Tensor

from phalanx.checks import require_at_least
from phalanx.computations import Broadcast, Computation
from phalanx.federated.base import FederatedAlgorithm
from phalanx.federated.local_computation import FullGradients, LocalComputation, State
from phalanx.federated.local_steps import LocalStep, Minibatches


@dataclass(frozen=True)
class LocalTraining(LocalComputation):
    """Local SGD of a client on its own samples, as in FedAvg and FedProx.

    `u <- u - lr v`, `v <- momentum v + g(u) + weight_decay u + proximal (u - w)`, from `u = w` and
    `v = 0`; sent is `w - u`.

    Cost: a backward pass per minibatch; two vectors beside the model's, three with momentum.
    """

    momentum: float = 0.0
    """What the velocity keeps of itself from step to step, within a round."""

    weight_decay: float = 0.0
    """Weight of the pull to the origin."""

    proximal: float = 0.0
    """Weight of the pull to the round's parameters (mu in FedProx)."""

    def begin(self, broadcast: Broadcast, points: Tensor, states: State) -> dict[str, Tensor]:
        """The round's parameters, and no velocity."""
        return {"points": points, **({"velocity": points * 0} if self.momentum else {})}

    def advance(
        self, step: LocalStep, values: dict[str, Tensor], broadcast: Broadcast
    ) -> tuple[dict[str, Tensor], Tensor]:
        """One step of SGD."""
        points = values["points"]
        direction, loss = step.gradient(points)
        if self.weight_decay:
            direction = direction + self.weight_decay * points
        if self.proximal:
            direction = direction + self.proximal * (points - broadcast.parameters)
        if self.momentum:
            direction = self.momentum * values["velocity"] + direction
        moved = {"points": points - self.lr * direction}
        return ({**moved, "velocity": direction} if self.momentum else moved), loss

    def finish(
        self,
        values: dict[str, Tensor],
        broadcast: Broadcast,
        num_steps: Tensor,
        full: FullGradients,
    ) -> tuple[Tensor, State]:
        """How far the steps led."""
        return broadcast.parameters - values["points"], ()


@dataclass(frozen=True)
class FedAvg(FederatedAlgorithm):
    """FedAvg: `w <- w + server(sum_j p_j (w_j - w))`, w_j the model of client j after local steps.

    `p_j` is client j's share of the samples of those that answered; under a robust rule clients
    count alike, since a client could claim any number. With `server` other than the default it is
    FedAvgM (`ServerMomentum`), FedAdam, FedYogi or FedAdagrad (`ServerAdam`, ...). One step of a
    batch that holds all samples is a step of SGD on the pooled data.

    Cost: the model down and up, per client and round.
    Source: McMahan, Moore, Ramage, Hampson and Aguera y Arcas, "Communication-Efficient Learning of
    Deep Networks from Decentralized Data", AISTATS 2017 (Algorithm 1).

    >>> from phalanx.federated import FedAvg
    >>> FedAvg(lr=0.05, epochs=5).compute.batches.epochs
    5
    """

    momentum: float = 0.0
    """Momentum of the local steps, within a round."""

    weight_decay: float = 0.0
    """Weight decay of the local steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(0, weight_decay=self.weight_decay)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, got {self.momentum}")

    @property
    def compute(self) -> Computation:
        """Local SGD."""
        batches = Minibatches(self.batch_size, self.epochs, self.num_steps)
        return LocalTraining(self.lr, batches, self.momentum, self.weight_decay)


@dataclass(frozen=True)
class FedProx(FedAvg):
    """FedProx: FedAvg with local losses `f_j(u) + proximal / 2 ||u - w||^2`.

    The gradient of the added term is zero at `u = w`, so that the first local step is FedAvg's.

    Cost: that of FedAvg.
    Source: Li, Sahu, Zaheer, Sanjabi, Talwalkar and Smith, "Federated Optimization in Heterogeneous
    Networks", MLSys 2020.

    >>> from phalanx.federated import FedProx
    >>> FedProx(proximal=0.1).compute.proximal
    0.1
    """

    proximal: float = 0.01
    """Weight of the pull to the round's parameters (mu in the paper)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(0, proximal=self.proximal)

    @property
    def compute(self) -> Computation:
        """Local SGD with the pull."""
        batches = Minibatches(self.batch_size, self.epochs, self.num_steps)
        return LocalTraining(self.lr, batches, self.momentum, self.weight_decay, self.proximal)
