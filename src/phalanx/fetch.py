"""Fetching of samples from a data set by index, stacked."""

from torch import Tensor
from torch.utils.data import Dataset, TensorDataset, default_collate


def fetch(dataset: Dataset[tuple[Tensor, ...]], samples: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs and targets, stacked; tensors are indexed, other data sets asked in turn."""
    if type(dataset) is TensorDataset:  # one derived from it may change what it is asked for
        inputs, targets = dataset.tensors
        return inputs[samples], targets[samples]
    inputs, targets = default_collate([dataset[index] for index in samples.tolist()])
    return inputs, targets
