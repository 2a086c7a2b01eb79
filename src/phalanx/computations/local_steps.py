"""Local SGD steps, as in FedAvg and FedProx."""

from dataclasses import dataclass

import torch

from phalanx.computations.base import Broadcast, Computation, Computed, Samples, State
from phalanx.computations.objective import Objective


@dataclass(frozen=True)
class LocalSteps(Computation):
    """Local SGD: several steps, and how far they led from the round's parameters.

    From `y_0 = x` a worker takes K steps `y_{k+1} = y_k - lr (g(y_k) + proximal (y_k - x))`, each
    with its share of the round's samples, and sends `x - y_K`. A server that steps by exactly that
    (`--optimizer SGD --optimizer.lr 1`) averages the local models: FedAvg; with `proximal` above 0
    FedProx. One step with `lr = 1` is the gradient.

    Cost: K backward passes over a K-th of the samples each.
    Source: McMahan, Moore, Ramage, Hampson and Aguera y Arcas, "Communication-Efficient Learning of
    Deep Networks from Decentralized Data", AISTATS 2017 (Algorithm 1); Li, Sahu, Zaheer, Sanjabi,
    Talwalkar and Smith, "Federated Optimization in Heterogeneous Networks", MLSys 2020 (proximal
    term).

    >>> import torch
    >>> from phalanx.computations import Broadcast, LocalSteps, Objective, Samples
    >>> objective = Objective(torch.nn.Linear(1, 1, bias=False), torch.nn.functional.mse_loss)
    >>> samples = Samples(torch.ones(2, 1), torch.zeros(2, 1))
    >>> steps = LocalSteps(num_steps=2, lr=0.25)
    >>> steps.compute(objective, Broadcast(torch.tensor([4.0])), samples, (), None).update
    tensor([3.])
    """

    num_steps: int = 4
    """Local steps per round (K); the samples of a round are cut into so many minibatches."""

    lr: float = 0.1
    """Learning rate of the local steps."""

    proximal: float = 0.0
    """Weight of the pull back to the round's parameters (mu in FedProx); 0 is FedAvg."""

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}")
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"lr must be finite and above 0, got {self.lr}")
        if not 0 <= self.proximal < float("inf"):
            raise ValueError(f"proximal must be finite and at least 0, got {self.proximal}")

    def compute(
        self,
        objective: Objective,
        broadcast: Broadcast,
        samples: Samples,
        state: State,
        generator: torch.Generator | None,
    ) -> Computed:
        """The way from the round's parameters to the local ones; see `Computation.compute`.

        Raises:
            ValueError: if there are fewer samples than steps.
        """
        start, number = broadcast.parameters, len(samples.inputs)
        if number < self.num_steps:
            raise ValueError(
                f"num_steps must be at most the {number} samples per worker and round, got "
                f"{self.num_steps}"
            )
        local, total = start.clone(), torch.zeros((), device=start.device)
        batches = zip(*(part.tensor_split(self.num_steps) for part in samples), strict=True)
        for inputs, targets in batches:
            gradient, loss = objective.gradient(local, inputs, targets)
            if self.proximal:
                gradient = gradient + self.proximal * (local - start)
            local = local - self.lr * gradient
            total = total + loss * len(inputs)
        return Computed(start - local, total / number)
