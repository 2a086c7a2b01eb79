"""The rows of a coded shuffle for a `DataLoader`."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from phalanx.coded_computation.coded_shuffle import CodedShuffle
from phalanx.randomness import generator


class CodedShuffleSampler(Sampler[int]):
    """A worker's rows of an epoch in random order, for a `DataLoader`; as `DistributedSampler`.

    It needs no caches and no plan: everybody who knows the seed knows the shares.

    >>> from phalanx.coded_computation import CodedShuffle, CodedShuffleSampler
    >>> sampler = CodedShuffleSampler(CodedShuffle(num_workers=4, num_rows=40), worker=1)
    >>> sampler.set_epoch(3)
    >>> sorted(sampler) == sampler.shuffle.share(1, 3).tolist()
    True
    """

    def __init__(self, shuffle: CodedShuffle, worker: int) -> None:
        """Starts at epoch 0.

        Args:
            shuffle: deals the rows out.
            worker: whose.

        Raises:
            ValueError: if there is no such worker.
        """
        if not 0 <= worker < shuffle.num_workers:
            raise ValueError(f"worker must be from 0 to {shuffle.num_workers - 1}, got {worker}")
        self.shuffle, self.worker, self._epoch = shuffle, worker, 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose rows come next."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        share = self.shuffle.share(self.worker, self._epoch)
        source = generator(self.shuffle.seed, "order", self._epoch, self.worker)
        return iter(share[torch.randperm(len(share), generator=source)].tolist())

    def __len__(self) -> int:
        return len(self.shuffle.share(self.worker, self._epoch))
