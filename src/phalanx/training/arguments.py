"""Argument checks of `train` that need no data: what is of the wrong kind, and what is meant."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from phalanx.aggregation import Aggregator
from phalanx.attacks import Attack, Schedule
from phalanx.checks import require_finite_above
from phalanx.coding import Code
from phalanx.computations import Computation
from phalanx.ordering import Order
from phalanx.randomness import generator
from phalanx.training.callbacks import Callback
from phalanx.training.engines.base import Engine
from phalanx.training.server_step import ServerStep
from phalanx.transforms import MessageTransform

_STEPS = 200  # if neither steps nor epochs are given

_KINDS: dict[str, type] = {
    "model": nn.Module,
    "code": Code,
    "rule": Aggregator,
    "order": Order,
    "compute": Computation,
    "attack": Attack,
    "byzantine": Schedule,
    "step": ServerStep,
    "engine": Engine,
}
_LISTS: dict[str, type] = {"transforms": MessageTransform, "callbacks": Callback}


def check_kinds(arguments: Mapping[str, Any]) -> None:
    """Raises ValueError for all arguments of `train` that are of another kind than they must be.

    Args:
        arguments: by name; those that are None are left out.
    """
    problems = []
    for name, kind in _KINDS.items():
        problems += _problem(name, arguments.get(name), kind)
    for name, kind in _LISTS.items():
        values = arguments.get(name, ())
        if isinstance(values, str) or not isinstance(values, Sequence):
            problems.append(f"{name} must be a list, got {_of(values)}")
            continue
        for value in values:
            problems += _problem(f"{name} must hold", value, kind)
    for name in ("dataset", "test", "validation"):
        value = arguments.get(name)
        if isinstance(value, DataLoader):
            problems.append(
                f"{name} must be a Dataset, got a DataLoader: give its .dataset; train makes the "
                "batches itself, of batch_size samples"
            )
    loss = arguments["loss"]
    if isinstance(loss, type) or not callable(loss):
        hint = f": give {loss.__name__}()" if isinstance(loss, type) else ""
        problems.append(f"loss must be a function of outputs and targets, got {_of(loss)}{hint}")
    problems += _metric_problems(arguments.get("metrics") or {})
    if problems:
        raise ValueError("; ".join(problems))


def _problem(name: str, value: Any, kind: type) -> list[str]:
    if value is None or isinstance(value, kind):
        return []
    rule = name if name.endswith("must hold") else f"{name} must be"
    hint = ""
    if isinstance(value, type) and issubclass(value, kind):
        hint = f": give an instance, {value.__name__}(...)"
    return [f"{rule} {_article(kind.__name__)}, got {_of(value)}{hint}"]


def _metric_problems(metrics: Any) -> list[str]:
    if not isinstance(metrics, Mapping):
        return [f"metrics must be a dict of functions by name, got {_of(metrics)}"]
    return [
        f"metrics must hold functions of outputs and targets, got {_of(metric)} for {name!r}"
        for name, metric in metrics.items()
        if isinstance(metric, type) or not callable(metric)
    ] + [
        f"metrics must have names of their own, got {name!r}"
        for name in metrics
        if name in ("loss", "accuracy")
    ]


def _of(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"{value!r:.80}"


def _article(name: str) -> str:
    return f"an {name}" if name[0] in "AEIOU" else f"a {name}"


def place(model: nn.Module, device: torch.device | str | None) -> None:
    """Moves a model to a device, if one is given; else it stays where it is.

    Raises:
        ValueError: if the device is not usable here, or the model has no values yet.
    """
    empty = [name for name, value in model.named_parameters() if value.is_meta]
    if empty:
        raise ValueError(
            f"model must have values, got parameters on the meta device: {empty[:3]}; see "
            "torch.nn.Module.to_empty"
        )
    if device is not None:
        model.to(usable(device))


def usable(device: torch.device | str) -> torch.device:
    """The device of that name, if this machine has it."""
    try:
        home = torch.device(device)
        torch.empty(0, device=home)
    except (RuntimeError, AssertionError) as error:  # the latter from a torch without CUDA
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"device must be one that can be used here, got {str(device)!r}: {reason}"
        ) from error
    return home


def check_monitor(monitor: str, evaluated: Sequence[str]) -> None:
    """Raises ValueError unless a scheduler's metric is one that rounds may measure."""
    known = ["loss", *evaluated]
    if monitor not in known:
        raise ValueError(f"lr_scheduler_monitor must be one of {known}, got {monitor!r}")


def rounds_in(steps: int | None, epochs: int | float | None, rounds_per_epoch: int) -> int:
    """The rounds of a run that is given steps or epochs; 200 if neither.

    Raises:
        ValueError: if both are given, or there are no rounds.
    """
    if steps is not None and epochs is not None:
        raise ValueError(f"give steps or epochs, not both: got steps={steps}, epochs={epochs}")
    require_finite_above(0, epochs=epochs)
    if epochs is None:
        return _STEPS if steps is None else steps
    rounds = round(epochs * rounds_per_epoch)
    if rounds < 1:
        raise ValueError(
            f"epochs must come to at least 1 round, got {epochs} of {rounds_per_epoch} rounds"
        )
    return rounds


def split_off(
    dataset: Dataset[Any], validation: Dataset[Any] | float | None, seed: int
) -> tuple[Dataset[Any], Dataset[Any] | None]:
    """Training and validation data: a share of the former is drawn by the seed and taken out.

    Raises:
        ValueError: if the share is not between 0 and 1, or leaves one of the two empty.
    """
    if not isinstance(validation, int | float):
        return dataset, validation
    if not hasattr(dataset, "__len__"):
        return dataset, None  # which is refused, for that
    number = len(dataset)
    held = round(validation * number)
    if not 0 < held < number:
        raise ValueError(
            f"validation must be a dataset or a share that leaves samples on both sides, got "
            f"{validation} of {number}"
        )
    order = torch.randperm(number, generator=generator(seed, "validation"))
    kept, taken = order[held:].sort().values, order[:held].sort().values
    if type(dataset) is TensorDataset:
        return (
            TensorDataset(*(one[kept] for one in dataset.tensors)),
            TensorDataset(*(one[taken] for one in dataset.tensors)),
        )
    return Subset(dataset, kept.tolist()), Subset(dataset, taken.tolist())
