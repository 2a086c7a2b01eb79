"""Clients' data sets: one data set dealt out, or several put together."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from phalanx.data import Partitioner
from phalanx.federated.client_sampling import ClientSampling
from phalanx.ordering.per_client import targets_of
from phalanx.randomness import generator


def deal(
    dataset: Dataset[tuple[Tensor, ...]], partitioner: Partitioner, num_clients: int, seed: int = 0
) -> list[Subset[tuple[Tensor, ...]]]:
    """The data sets of clients: a data set dealt out by a partitioner, as a function of the seed.

    Clients to whom a partitioner leaves nothing are left out, so that there may be fewer.

    Raises:
        ValueError: if targets are no classes, or the partitioner does not fit them.

    >>> import torch
    >>> from phalanx.data import ShardPartitioner
    >>> from phalanx.federated import deal
    >>> data = torch.utils.data.TensorDataset(torch.zeros(6, 1), torch.tensor([0, 1] * 3))
    >>> [len(client) for client in deal(data, ShardPartitioner(), num_clients=3)]
    [2, 2, 2]
    """
    source = generator(seed, "deal")
    shares = partitioner.split(targets_of(dataset, seed), num_clients, source)
    return [Subset(dataset, share.tolist()) for share in shares if len(share)]


def joined(
    clients: Sequence[Dataset[tuple[Tensor, ...]]],
) -> tuple[Dataset[tuple[Tensor, ...]], ClientSampling]:
    """All clients' data as one data set, and which samples are whose.

    Raises:
        ValueError: if there are no clients, or one has no samples.
    """
    if isinstance(clients, Dataset) or not clients:
        got = type(clients).__name__ if isinstance(clients, Dataset) else "none"
        raise ValueError(f"clients must be a list of data sets, one for each, got {got}")
    unfit = [place for place, one in enumerate(clients) if not hasattr(one, "__len__")]
    if unfit:
        raise ValueError(f"clients must be data sets with a length, which {unfit[:5]} are not")
    sizes = torch.tensor([len(one) for one in clients])  # type: ignore[arg-type]
    if empty := (sizes == 0).nonzero().flatten().tolist():
        raise ValueError(f"clients must hold at least 1 sample each, got none of clients {empty}")
    first: Any = clients[0]
    if all(isinstance(one, Subset) and one.dataset is first.dataset for one in clients):
        chosen = [torch.as_tensor(one.indices) for one in clients]  # type: ignore[attr-defined]
        return first.dataset, ClientSampling(torch.cat(chosen), sizes)
    order = ClientSampling(torch.arange(int(sizes.sum())), sizes)
    if all(type(one) is TensorDataset for one in clients):
        columns = zip(*(one.tensors for one in clients), strict=True)  # type: ignore[attr-defined]
        return TensorDataset(*(torch.cat(column) for column in columns)), order
    return ConcatDataset(clients), order
