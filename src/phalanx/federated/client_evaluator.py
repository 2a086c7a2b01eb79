"""Evaluation of the global model, on test data and on every client's own."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.evaluation import with_statistics
from phalanx.federated.client_sampling import ClientSampling
from phalanx.fetch import fetch
from phalanx.losses import classes_second
from phalanx.training.evaluator import Evaluator
from phalanx.training.job import Job

MEDIAN, WORST = "client_accuracy_median", "client_accuracy_worst_decile"

_BATCH = 1024


@dataclass(frozen=True)
class ClientEvaluator(Evaluator):
    """Evaluator that also says how clients fare on their own samples, which are trained on."""

    order: ClientSampling | None = None
    """Which samples are whose."""

    @property
    def names(self) -> tuple[str, ...]:
        """Those of an evaluator, then the median and the worst tenth of the clients."""
        return *super().names, MEDIAN, WORST

    def measure(self, job: Job) -> dict[str, float | None]:
        """All of it; None for accuracies where targets are no classes."""
        assert self.order is not None
        found = super().measure(job)
        accuracies = client_accuracies(job, self.order)
        if accuracies is None:
            return {**found, MEDIAN: None, WORST: None}
        worst = accuracies.sort().values[: max(1, len(accuracies) // 10)]
        return {**found, MEDIAN: accuracies.median().item(), WORST: worst.mean().item()}


@torch.no_grad()
def client_accuracies(job: Job, order: ClientSampling) -> Float[Tensor, " clients"] | None:
    """The model's accuracy on the samples of each client; None where targets are no classes."""
    model = with_statistics(job.model, job.dataset)
    device = next(model.parameters()).device
    parts = []
    for samples in order.indices.split(_BATCH):
        inputs, targets = fetch(job.dataset, samples)
        outputs = model(inputs.to(device))
        classes = isinstance(outputs, Tensor) and outputs.ndim == targets.ndim + 1
        if not classes or targets.is_floating_point():
            return None
        right = classes_second(outputs).argmax(dim=1).cpu() == targets.cpu()
        parts.append(right.double().flatten(1).mean(dim=1) if right.ndim > 1 else right.double())
    owners = torch.arange(len(order.sizes)).repeat_interleave(order.sizes)
    total = torch.zeros(len(order.sizes), dtype=torch.float64)
    return total.index_add(0, owners, torch.cat(parts)) / order.sizes
