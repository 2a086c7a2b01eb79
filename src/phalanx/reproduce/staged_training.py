"""Training of pipelines in one process, one of them or several that average their gradients."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from phalanx.compression import Compressor, TensorStates, simulate
from phalanx.pipeline import SimulatedPipeline
from phalanx.randomness import generator

DIRECT, DIFFERENCES = "direct", "differences"
"""How activations are rounded: as they are, or what changed since the sample's last visit."""


@dataclass(frozen=True)
class StagedTraining:
    """How pipelines over the same stages are trained."""

    inputs: Tensor
    """Of all samples; replica r of R holds r, R + r, 2 R + r ..., for good."""
    targets: Tensor
    """Of them."""
    epochs: int
    """Visits of each sample."""
    batch_size: int
    """Samples a step, over all replicas."""
    seed: int
    """Of the order."""
    gradients: Compressor | None = None
    """How gradients of several replicas are compressed before their mean is taken."""

    def run(self, pipelines: Sequence[SimulatedPipeline], optimizer: Optimizer) -> Iterator[float]:
        """Trains, and tells after every epoch the relative error of the activations, on average.

        Args:
            pipelines: the replicas, which share their stages.
            optimizer: of the stages' weights.

        Raises:
            NotFiniteError: if activations or gradients are not finite.
        """
        weights = dict(nn.ModuleList(pipelines[0].stages).named_parameters())
        memories = [TensorStates()] * len(pipelines)
        for epoch in range(self.epochs):
            errors = []
            for batches in self._batches(len(pipelines), epoch):
                rows = []
                for pipeline, ids in zip(pipelines, batches, strict=True):
                    optimizer.zero_grad()
                    pipeline.step(ids, self.inputs[ids], self.targets[ids])
                    rows.append(
                        {name: one.grad for name, one in weights.items() if one.grad is not None}
                    )
                    errors.append(fmean(pipeline.errors) if pipeline.errors else 0.0)
                if self.gradients is not None:
                    means, memories = simulate(self.gradients, rows, memories, seed=self.seed)
                    for name, mean in means[0].items():
                        weights[name].grad = mean
                optimizer.step()
            yield fmean(errors)

    def num_steps(self, num_replicas: int = 1) -> int:
        """Steps of the optimizer in all."""
        return self.epochs * sum(1 for _ in self._batches(num_replicas, 0))

    def _batches(self, num_replicas: int, epoch: int) -> Iterator[tuple[Tensor, ...]]:
        """The ids of each replica, step by step."""
        samples = torch.arange(len(self.inputs))
        orders = []
        for own in (samples[place::num_replicas] for place in range(num_replicas)):
            order = torch.randperm(len(own), generator=generator(self.seed, "order", epoch))
            orders.append(own[order].split(self.batch_size // num_replicas))
        return zip(*orders, strict=True)
