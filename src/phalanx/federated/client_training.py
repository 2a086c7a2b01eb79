"""Training of a client's own network on its own samples."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from phalanx.checks import (
    require_at_least,
    require_below_one,
    require_finite_above,
    require_finite_at_least,
)
from phalanx.fetch import fetch
from phalanx.losses import Loss
from phalanx.randomness import generator, seeded


@dataclass(frozen=True)
class ClientTraining:
    """Stochastic gradient descent with momentum over whole epochs of a client's samples."""

    epochs: int = 20
    """Passes over the samples; none leaves the network as it is."""
    lr: float = 0.01
    """Learning rate."""
    momentum: float = 0.9
    """Of the gradients; it starts at zero each time."""
    weight_decay: float = 0.0
    """Decay of the weights (L2)."""
    batch_size: int = 64
    """Samples of a step; the last one of an epoch may have fewer."""

    def __post_init__(self) -> None:
        require_at_least(0, epochs=self.epochs)
        require_at_least(1, batch_size=self.batch_size)
        require_finite_above(0, lr=self.lr)
        require_finite_at_least(0, weight_decay=self.weight_decay)
        require_below_one(momentum=self.momentum)

    def train(
        self,
        model: nn.Module,
        dataset: Dataset[tuple[Tensor, ...]],
        loss: Loss,
        *names: int | str,
    ) -> float | None:
        """Trains, in place, what requires a gradient; the mean loss of the last epoch.

        Args:
            model: the network.
            dataset: of pairs of an input and a target.
            loss: mean loss of a batch.
            names: of the randomness: the order of the samples, and what layers draw.

        Returns:
            None if there was nothing to do.
        """
        trained = [one for one in model.parameters() if one.requires_grad]
        size = len(dataset)  # type: ignore[arg-type]
        if not (trained and self.epochs and size):
            return None
        optimizer = torch.optim.SGD(
            trained, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        source, total, on = generator(*names, "order"), 0.0, trained[0].device
        model.train()
        with seeded(*names, "layers"):
            for _ in range(self.epochs):
                total = 0.0
                for samples in torch.randperm(size, generator=source).split(self.batch_size):
                    inputs, targets = fetch(dataset, samples)
                    optimizer.zero_grad()
                    value = loss(model(inputs.to(on)), targets.to(on))
                    value.backward()
                    optimizer.step()
                    total += value.item() * len(samples)
        model.eval()
        return total / size
