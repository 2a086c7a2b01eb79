"""Ensemble distillation: a student learns what several teachers say of unlabelled data."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax
from torch.utils.data import Dataset, TensorDataset

from phalanx.aggregation import Aggregator, Mean
from phalanx.checks import require_at_least, require_finite_above
from phalanx.evaluation import evaluate, with_statistics
from phalanx.fetch import fetch
from phalanx.losses import cross_entropy
from phalanx.parameters import trained_parameters

_BATCH = 1024
_ROUNDING = 1e-7  # of a loss in float32: below it, student and teachers agree


class Distilled(NamedTuple):
    """Outcome of a distillation.

    Attributes:
        num_steps: steps that were taken.
        before: accuracy of the student on the validation data before; None without these.
        after: the same after, never less.
    """

    num_steps: int
    before: float | None
    after: float | None


@dataclass(frozen=True)
class Distillation:
    """Distillation of an ensemble by the mean of its logits (AVGLOGITS).

    `q = softmax(mean_j f_j(d) / T)` is the target for an unlabelled sample d, and the student takes
    steps of Adam on `KL(q || softmax(x(d) / T))`, averaged over a minibatch, with a learning rate
    that falls to zero as a cosine. A constant that is added to all logits of a teacher changes
    nothing. The statistics of batch normalisation are those of the unlabelled data, of teachers and
    student.

    Guarantee: given validation data, the student is never less accurate on them than at its start.
    Cost: one pass of every teacher over the unlabelled data, whose logits are kept, and a forward
    and backward pass of the student per step.
    Source: Lin, Kong, Stich and Jaggi, "Ensemble Distillation for Robust Model Fusion in Federated
    Learning", NeurIPS 2020.
    """

    num_steps: int = 1000
    """Most steps (M in the paper, which takes 10,000)."""

    lr: float = 1e-3
    """Learning rate of Adam at the start."""

    batch_size: int = 128
    """Unlabelled samples per step."""

    max_norm: float = 5.0
    """Euclidean norm that gradients are cut down to."""

    temperature: float = 1.0
    """What logits are divided by (T)."""

    rule: Aggregator = Mean()  # noqa: RUF009 - frozen
    """How the teachers' logits are aggregated; a robust rule bears Byzantine ones among them."""

    evaluate_every: int = 100
    """Steps between looks at the validation data."""

    patience: int = 1000
    """Steps without a better look after which it ends."""

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "evaluate_every", "patience"):
            require_at_least(1, **{name: getattr(self, name)})
        require_finite_above(0, lr=self.lr, max_norm=self.max_norm, temperature=self.temperature)

    def targets(self, logits: Float[Tensor, "teachers samples classes"]) -> Tensor:
        """What the student is to say, `(samples, classes)`, probabilities.

        Raises:
            ValueError: if there are too few teachers for the rule.
            TooManyByzantineError: if logits of more teachers than the rule bears are not finite.
        """
        merged: Tensor = self.rule(logits.flatten(1)).view(logits.shape[1:])
        return (merged / self.temperature).softmax(dim=1)

    def ensemble_accuracy(
        self,
        teachers: Sequence[nn.Module],
        dataset: Dataset[tuple[Tensor, ...]],
        inputs: Tensor,
    ) -> float | None:
        """Accuracy of what the teachers say together: what a student can hope for.

        Args:
            teachers: models; they stay as they are.
            dataset: labelled samples.
            inputs: unlabelled samples, for the statistics of batch normalisation.

        Returns:
            None if no teacher says finite numbers.
        """
        held, targets = fetch(dataset, torch.arange(len(dataset)))  # type: ignore[arg-type]
        logits = teacher_logits(teachers, held.to(inputs.device), inputs)
        if not len(logits):
            return None
        right = self.targets(logits).argmax(dim=1).cpu() == targets.cpu()
        return right.double().mean().item()

    def distil(
        self,
        student: nn.Module,
        inputs: Tensor,
        targets: Float[Tensor, "samples classes"],
        validation: Dataset[tuple[Tensor, ...]] | None = None,
        generator: torch.Generator | None = None,
    ) -> Distilled:
        """Trains the student in place, and leaves it at the best that was seen.

        Args:
            student: the model; modes and what is not trained stay as they are.
            inputs: unlabelled samples.
            targets: see `targets`.
            validation: labelled samples that choose the best; the last one by default.
            generator: of the minibatches.
        """
        pupil = with_statistics(student, unlabelled(inputs))
        parameters = trained_parameters(pupil)
        optimizer = torch.optim.Adam(parameters, lr=self.lr)
        start = _measured(pupil, validation)
        best, at, kept = start, 0, [one.detach().clone() for one in parameters]
        step, order = 0, torch.empty(0, dtype=torch.int64)
        for step in range(1, self.num_steps + 1):
            if not len(order):
                order = torch.randperm(len(inputs), generator=generator)
            chosen, order = order[: self.batch_size], order[self.batch_size :]
            said = log_softmax(pupil(inputs[chosen]) / self.temperature, dim=1)
            loss = kl_div(said, targets[chosen], reduction="batchmean")
            if loss.item() > _ROUNDING:  # Adam would make whole steps of noise
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, self.max_norm)
                passed = (step - 1) / self.num_steps
                optimizer.param_groups[0]["lr"] = self.lr * (1 + math.cos(math.pi * passed)) / 2
                optimizer.step()
            if step % self.evaluate_every == 0 or step == self.num_steps:
                found = _measured(pupil, validation)
                if validation is None or found > best:
                    best, at = found, step
                    kept = [one.detach().clone() for one in parameters]
                elif step - at >= self.patience:
                    break
        with torch.no_grad():
            for own, value in zip(trained_parameters(student), kept, strict=True):
                own.copy_(value)
        if validation is None:
            return Distilled(step, None, None)
        return Distilled(step, start[0], best[0])


def unlabelled(inputs: Tensor) -> TensorDataset:
    """Inputs as a data set, with targets that nobody reads."""
    return TensorDataset(inputs, torch.zeros(len(inputs), dtype=torch.int64))


@torch.no_grad()
def teacher_logits(
    teachers: Sequence[nn.Module], inputs: Tensor, statistics: Tensor | None = None
) -> Tensor:
    """What teachers say, `(teachers, samples, classes)`; the teachers stay as they are.

    Those that say NaN or infinity of any sample are left out. `statistics` are the inputs by which
    batch normalisation goes, if others.
    """
    found, known = [], unlabelled(inputs if statistics is None else statistics)
    for teacher in teachers:
        ready = with_statistics(copy.deepcopy(teacher), known)
        said = torch.cat([ready(part) for part in inputs.split(_BATCH)])
        if said.isfinite().all():
            found.append(said)
    return torch.stack(found) if found else inputs.new_empty(0, len(inputs), 1)


def noise_inputs(shape: Sequence[int], number: int, seed: int = 0) -> TensorDataset:
    """Unlabelled data of uniform noise in [0, 1], a weak stand-in where there is nothing else.

    Args:
        shape: of one input.
        number: how many.
        seed: of the noise.
    """
    draws = torch.Generator().manual_seed(seed)
    return unlabelled(torch.rand((number, *shape), generator=draws))


def _measured(
    model: nn.Module, validation: Dataset[tuple[Tensor, ...]] | None
) -> tuple[float, float]:
    """Accuracy, and the negative loss among equals."""
    if validation is None:
        return 0.0, 0.0
    found = evaluate(model, cross_entropy, validation, validation)
    if found.accuracy is None:
        raise ValueError("validation must have classes as targets")
    return found.accuracy, -found.loss
