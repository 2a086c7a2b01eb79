"""Long-tailed class imbalance, before a partitioner."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from phalanx.checks import require_share
from phalanx.data.iid_partitioner import IidPartitioner
from phalanx.data.partitioner import Partitioner, check_split, shuffled


@dataclass(frozen=True)
class LongTailedPartitioner(Partitioner):
    """A partition of long-tailed data: `keep ** c` of the samples of class `c` are kept.

    A class keeps one sample at least; which ones is random.

    Source: Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via
    Bucketing", ICLR 2022, experiments (long-tailed MNIST).

    >>> import torch
    >>> targets = torch.arange(300) % 3
    >>> kept = torch.cat(LongTailedPartitioner(keep=0.5).split(targets, num_workers=7))
    >>> targets[kept].bincount().tolist()
    [100, 50, 25]
    """

    keep: float = 0.5
    """What a class keeps, as a share of what the class before keeps (gamma), in (0, 1]."""

    partitioner: Partitioner = field(default_factory=IidPartitioner)
    """How the samples that are left are dealt out."""

    def __post_init__(self) -> None:
        require_share(keep=self.keep)

    def split(
        self,
        targets: Int[Tensor, " samples"],
        num_workers: int,
        generator: torch.Generator | None = None,
    ) -> list[Int[Tensor, " shard"]]:
        """The shards of what is kept; see `Partitioner.split`."""
        classes = check_split(targets, num_workers)
        order = shuffled(len(classes), generator)
        kept = order[:0]
        for each in classes.unique().tolist():
            members = order[classes[order] == each]
            number = max(1, round(self.keep**each * len(members)))
            kept = torch.cat([kept, members[:number]])
        # Sorted: what comes next sees the data set, thinned, in its own order.
        kept = kept.sort().values
        return [kept[own] for own in self.partitioner.split(classes[kept], num_workers, generator)]
