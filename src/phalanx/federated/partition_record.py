"""Partition record: how many samples of each class each client holds, in the run folder."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from phalanx.federated.client_sampling import ClientSampling
from phalanx.training import Callback, Run
from phalanx.training.run_folder import RunFolder

_CLASSES = 1000  # of more, no picture is made


class PartitionRecord(Callback):
    """Callback that writes `partition.json` after the first round, where targets are classes.

    Args:
        dataset: all clients' samples, held in memory; of others nothing is written.
        order: which of them are whose.
    """

    def __init__(self, dataset: Dataset[tuple[Tensor, ...]], order: ClientSampling) -> None:
        self._dataset, self._order, self._written = dataset, order, False

    def on_round(self, run: Run, entry: Mapping[str, Any]) -> None:
        """Writes the file, once."""
        if run.folder is None or self._written or type(self._dataset) is not TensorDataset:
            return
        self._written = True
        targets = self._dataset.tensors[1]
        if targets.ndim != 1 or targets.is_floating_point() or not len(targets):
            return
        number = int(targets.max()) + 1
        if number > _CLASSES or int(targets.min()) < 0:
            return
        held = [targets[own.to(targets.device)] for own in self._order.held]
        counts = [torch.bincount(own, minlength=number).tolist() for own in held]
        RunFolder(run.folder, resume=True).write_json("partition.json", {"class_counts": counts})
