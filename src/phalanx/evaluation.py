"""Evaluation of a model on the server's own data."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset

from phalanx.fetch import fetch
from phalanx.losses import Loss, classes_second
from phalanx.randomness import generator

Metric = Callable[[Any, Tensor], Any]
"""A figure of merit, from the model's outputs and the targets: a function that returns a number, or
an object with `reset`, `update(outputs, targets)` and `compute`, as those of torchmetrics."""

_BATCH = 1024
_ESTIMATED_FROM = 8  # batches of training data from which running statistics are estimated


class Evaluation(NamedTuple):
    """Test accuracy, mean loss and what else was to be measured.

    Sequences have an answer at every place. There is no share if the targets are no classes.
    """

    accuracy: float | None
    loss: float
    metrics: Mapping[str, float] = {}


def evaluate(
    model: nn.Module,
    loss: Loss,
    test: Dataset[tuple[Tensor, ...]],
    train: Dataset[tuple[Tensor, ...]],
    metrics: Mapping[str, Metric] | None = None,
) -> Evaluation:
    """Accuracy, loss and other metrics over a data set.

    The running statistics of batch normalisation are estimated first, from the server's own
    training data: workers are not asked, so that they cannot falsify them, and the statistics are
    a function of the weights alone. Those of layers in evaluation mode are frozen, and stay.

    Args:
        model: the model; left as it is.
        loss: mean loss of a batch.
        test: the data set.
        train: training data, for the running statistics.
        metrics: other metrics by name. A function is called once, with the outputs and targets of
            the whole data set on the CPU, which are held for it; an object with `update` sees a
            batch after the other.

    Raises:
        ValueError: if a metric is no number, or a function is to see outputs that are no tensors.
    """
    model = with_statistics(model, train)
    found = {name: _measured(name, metric) for name, metric in (metrics or {}).items()}
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
            for one in found.values():
                one.update(outputs, targets)
        others = {name: one.value() for name, one in found.items()}
    return Evaluation(right / answers if classes else None, total / size, others)


class _Streamed:
    """A metric that is given a batch after the other."""

    def __init__(self, name: str, metric: Any) -> None:
        self._name, self._metric = name, metric
        metric.reset()

    def update(self, outputs: Any, targets: Tensor) -> None:
        if hasattr(self._metric, "to"):
            self._metric = self._metric.to(targets.device)
        self._metric.update(outputs, targets)

    def value(self) -> float:
        return _number(self._name, self._metric.compute())


class _Collected:
    """A metric that is a function of all outputs and targets."""

    def __init__(self, name: str, metric: Metric) -> None:
        self._name, self._metric = name, metric
        self._outputs: list[Tensor] = []
        self._targets: list[Tensor] = []

    def update(self, outputs: Any, targets: Tensor) -> None:
        if not isinstance(outputs, Tensor):
            raise ValueError(
                f"metrics that are functions need outputs that are tensors, got "
                f"{type(outputs).__name__} for {self._name!r}; give an object with reset, update "
                "and compute"
            )
        self._outputs.append(outputs.cpu())
        self._targets.append(targets.cpu())

    def value(self) -> float:
        found = self._metric(torch.cat(self._outputs), torch.cat(self._targets))
        return _number(self._name, found)


def _measured(name: str, metric: Any) -> _Streamed | _Collected:
    streams = all(hasattr(metric, one) for one in ("reset", "update", "compute"))
    return _Streamed(name, metric) if streams else _Collected(name, metric)


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        shown = " ".join(repr(value).split())[:80]
        raise ValueError(
            f"metrics must return one number each, got {shown} from {name!r}"
        ) from error


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
