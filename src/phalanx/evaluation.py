"""Evaluation of a model on the server's own data."""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset

from phalanx.fetch import fetch
from phalanx.losses import Loss, classes_second
from phalanx.randomness import generator

_BATCH = 1024
_ESTIMATED_FROM = 8  # batches of training data from which running statistics are estimated


class Evaluation(NamedTuple):
    """Test accuracy and mean loss.

    Sequences have an answer at every place. There is no share if the targets are no classes.
    """

    accuracy: float | None
    loss: float


def evaluate(
    model: nn.Module,
    loss: Loss,
    test: Dataset[tuple[Tensor, ...]],
    train: Dataset[tuple[Tensor, ...]],
) -> Evaluation:
    """Accuracy and loss over a data set.

    The running statistics of batch normalisation are estimated first, from the server's own
    training data: workers are not asked, so that they cannot falsify them, and the statistics are
    a function of the weights alone. Those of layers in evaluation mode are frozen, and stay.
    """
    model = with_statistics(model, train)
    right, answers, total, classes = 0, 0, 0.0, True
    size = len(test)  # type: ignore[arg-type]
    with torch.no_grad():
        for samples in torch.arange(size).split(_BATCH):
            inputs, targets = _on_device(model, fetch(test, samples))
            outputs = model(inputs)
            total += loss(outputs, targets).item() * len(samples)
            classes = classes and _are_classes(outputs, targets)
            if classes:
                right += int((classes_second(outputs).argmax(dim=1) == targets).sum())
                answers += targets.numel()
    return Evaluation(right / answers if classes else None, total / size)


def with_statistics(model: nn.Module, train: Dataset[tuple[Tensor, ...]]) -> nn.Module:
    """A copy of the model, ready for evaluation, its batch normalisation estimated from `train`.

    Unless it is in evaluation mode already: then its statistics are frozen.
    """
    model = copy.deepcopy(model)
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    tracked = [norm for norm in norms if norm.training and norm.running_mean is not None]
    if tracked:
        model.eval()
        for norm in tracked:
            norm.reset_running_stats()
            norm.track_running_stats, norm.momentum = True, None  # None: a plain average
            norm.train()
        with torch.no_grad():
            # In random order, as data may be sorted; of equal sizes, as batches count equally.
            size = len(train)  # type: ignore[arg-type]
            order = torch.randperm(size, generator=generator("statistics"))
            chosen = order[: _BATCH * _ESTIMATED_FROM]
            for samples in chosen.tensor_split(-(-len(chosen) // _BATCH)):
                model(_on_device(model, fetch(train, samples))[0])
    return model.eval()


def _are_classes(outputs: Any, targets: Tensor) -> bool:
    logits = isinstance(outputs, Tensor) and outputs.ndim in (2, 3)
    return logits and targets.ndim == outputs.ndim - 1 and not targets.is_floating_point()


def _on_device(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    device = next(model.parameters()).device
    return batch[0].to(device), batch[1].to(device)
