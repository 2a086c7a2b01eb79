"""Largest batch size that needs no more epochs than a small one, by a sweep."""

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from phalanx.checks import require_at_least
from phalanx.evaluation import evaluate
from phalanx.fetch import fetch
from phalanx.losses import Loss, cross_entropy
from phalanx.randomness import generator

EpochsToTarget = Callable[[int, float], int | None]
"""Epochs that training with a batch size and a learning rate takes; None if it does not get there.
"""


class BatchTrial(NamedTuple):
    """Best run found for a batch size.

    Attributes:
        batch_size: samples in a batch.
        rate: the learning rate that took the fewest epochs; None if none reached the target.
        epochs: how many these were; None if none did.
    """

    batch_size: int
    rate: float | None
    epochs: int | None


class LargestBatch(NamedTuple):
    """Result of a batch size sweep.

    Attributes:
        batch_size: the largest that takes hardly more epochs than the best; None if none got there.
        trials: one a batch size, in increasing order.
    """

    batch_size: int | None
    trials: tuple[BatchTrial, ...]


def largest_batch(
    epochs_to_target: EpochsToTarget,
    batch_sizes: Sequence[int],
    rates: Sequence[float],
    *,
    tolerance: float = 0.1,
) -> LargestBatch:
    """Tries batch sizes, each with the learning rate that suits it best.

    Args:
        epochs_to_target: trains, from the same weights every time; `epochs_to_accuracy` is one.
        batch_sizes: what to try.
        rates: learning rates to try with each of them: a geometric grid.
        tolerance: share of the fewest epochs by which a size may exceed them.

    Raises:
        ValueError: if there is nothing to try, or `tolerance` is below 0.

    Cost: a training for every size and rate.
    Source: Chen, Wang, Zhao, Papailiopoulos, Koutris, "The Effect of Network Width on the
    Performance of Large-batch Training", NeurIPS 2018, section 5: epochs to a fixed accuracy.

    >>> largest_batch(lambda size, rate: 3 + size // 64, [16, 64, 8], [0.1]).batch_size
    16
    """
    if not batch_sizes or not rates:
        raise ValueError(
            f"batch_sizes and rates must not be empty, got {list(batch_sizes)} and {list(rates)}"
        )
    require_at_least(0, tolerance=tolerance)
    trials = tuple(_trial(epochs_to_target, size, rates) for size in sorted(batch_sizes))
    known = [trial.epochs for trial in trials if trial.epochs is not None]
    within = [
        trial.batch_size
        for trial in trials
        if trial.epochs is not None and trial.epochs <= (1 + tolerance) * min(known)
    ]
    return LargestBatch(max(within, default=None), trials)


def _trial(epochs_to_target: EpochsToTarget, size: int, rates: Sequence[float]) -> BatchTrial:
    found = [(epochs, rate) for rate in rates if (epochs := epochs_to_target(size, rate))]
    if not found:
        return BatchTrial(size, None, None)
    epochs, rate = min(found)
    return BatchTrial(size, rate, epochs)


def epochs_to_accuracy(
    model: nn.Module,
    dataset: Dataset[tuple[Tensor, ...]],
    batch_size: int,
    rate: float,
    *,
    target: float = 0.97,
    most_epochs: int = 40,
    loss: Loss = cross_entropy,
    seed: int = 0,
) -> int | None:
    """Epochs of plain SGD until the accuracy on the training data is reached.

    Args:
        model: as it is before the first step; it is not changed.
        dataset: pairs of input and class.
        batch_size: samples a step; what does not fill a batch waits for the next epoch.
        rate: learning rate.
        target: accuracy, as a share.
        most_epochs: epochs after which it is given up.
        loss: mean loss over a batch.
        seed: of the order of the samples.

    Returns:
        The number of whole epochs; None if the target was not reached, or the loss overflowed.
    """
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    size = len(dataset)  # type: ignore[arg-type]
    device = next(model.parameters()).device
    for epoch in range(most_epochs):
        order = torch.randperm(size, generator=generator(seed, "order", epoch))
        for samples in order[: size // batch_size * batch_size].split(batch_size):
            inputs, targets = fetch(dataset, samples)
            optimizer.zero_grad()
            value = loss(model(inputs.to(device)), targets.to(device))
            if not value.isfinite():
                return None
            value.backward()
            optimizer.step()
        found = evaluate(model, loss, dataset, dataset).accuracy
        if found is not None and found >= target:
            return epoch + 1
    return None
