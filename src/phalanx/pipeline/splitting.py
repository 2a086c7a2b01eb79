"""Splitting of a model into stages, and the shapes of what passes between them."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call


class Crossing(NamedTuple):
    """What a stage hands on.

    Attributes:
        shape: of it for one sample.
        dtype: of it.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype


def split(layers: Sequence[nn.Module] | nn.Sequential, num_stages: int) -> list[nn.Sequential]:
    """Cuts a chain of layers into stages whose largest has as few weights as possible.

    A layer without weights stays with the one before it: activation functions are not cut off.

    Args:
        layers: what is applied one after the other; the stages hold the layers themselves.
        num_stages: how many stages to make.

    Raises:
        ValueError: if there are fewer layers with weights than stages.

    >>> [len(stage) for stage in split(nn.Sequential(
    ...     nn.Flatten(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)
    ... ), 2)]
    [3, 3]
    """
    chain = list(layers)
    sizes = [sum(weight.numel() for weight in layer.parameters()) for layer in chain]
    starts = [place for place, size in enumerate(sizes) if size]
    if not 1 <= num_stages <= len(starts):
        raise ValueError(
            f"num_stages must be from 1 to {len(starts)}, the layers with weights, got {num_stages}"
        )
    edges = [0, *starts[1:], len(chain)]  # where cuts may be
    groups = [sum(sizes[start:stop]) for start, stop in pairwise(edges)]
    cuts = _balanced(groups, num_stages)
    return [
        nn.Sequential(*chain[edges[start] : edges[stop]])
        for start, stop in pairwise([0, *cuts, len(groups)])
    ]


def _balanced(sizes: list[int], parts: int) -> list[int]:
    """Where to cut so that the largest part is smallest, by dynamic programming."""
    totals = [sum(sizes[:stop]) for stop in range(len(sizes) + 1)]
    best: list[tuple[int, list[int]]] = [(total, []) for total in totals]
    for part in range(2, parts + 1):
        best = [
            min(
                (
                    (max(best[cut][0], totals[stop] - totals[cut]), [*best[cut][1], cut])
                    for cut in range(part - 1, stop)
                ),
                default=(totals[-1] + 1, []),
            )
            for stop in range(len(sizes) + 1)
        ]
    return best[-1][1]


def crossings(stages: Sequence[nn.Module], example: Tensor) -> list[Crossing]:
    """What every stage hands on, the last one included: found without computing anything.

    Args:
        stages: in order; they must work on torch's meta device.
        example: an input of the first stage, of any number of samples; only its shape counts.

    Raises:
        ValueError: if a stage but the last hands on anything but one floating-point tensor whose
            first axis counts samples.
    """
    found = []
    count = len(example)
    passed: Tensor = example.to("meta")
    with torch.no_grad():
        for place, stage in enumerate(stages):
            weights = {name: tensor.to("meta") for name, tensor in _tensors(stage)}
            passed = functional_call(stage, weights, (passed,))
            whole = isinstance(passed, Tensor) and passed.ndim and len(passed) == count
            if not whole or not (passed.is_floating_point() or place == len(stages) - 1):
                raise ValueError(
                    "stages must hand on one floating-point tensor with samples along its first "
                    f"axis, got {passed} from stage {place}"
                )
            found.append(Crossing(tuple(passed.shape[1:]), passed.dtype))
    return found


def _tensors(stage: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from stage.named_parameters()
    yield from stage.named_buffers()


def noise_upstream(stages: Sequence[nn.Module]) -> list[str]:
    """Modules before a boundary that draw other numbers at every visit of a sample."""
    return [
        f"stage {place}: {name or type(module).__name__}"
        for place, stage in enumerate(stages[:-1])
        for name, module in stage.named_modules()
        if module.training and _dropout(module) > 0
    ]


def _dropout(module: nn.Module) -> float:
    for name in ("p", "dropout"):
        share = getattr(module, name, 0.0)
        if isinstance(share, float) and ("Dropout" in type(module).__name__ or name == "dropout"):
            return share
    return 0.0
