"""Natural-id partitioner: samples go by who made them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from phalanx.data.partitioner import Partitioner, check_split, shuffled


@dataclass(frozen=True)
class NaturalIdPartitioner(Partitioner):
    """Partition by a natural id, such as the writer, the user or the sensor of each sample.

    All samples of one id are with one client. As many clients as ids have one each, in the order of
    the ids; fewer clients have several, dealt in turn in random order; of more, some have none.

    >>> import torch
    >>> from phalanx.data import NaturalIdPartitioner
    >>> writers = NaturalIdPartitioner(ids=["ann", "bob", "ann", "cid"])
    >>> [shard.tolist() for shard in writers.split(torch.tensor([0, 1, 1, 0]), num_workers=3)]
    [[0, 2], [1], [3]]
    """

    ids: Sequence[int | str] | None = None
    """Of each sample; its class by default."""

    def split(
        self,
        targets: Int[Tensor, " samples"],
        num_workers: int,
        generator: torch.Generator | None = None,
    ) -> list[Int[Tensor, " shard"]]:
        """The samples of each client, in their own order; see `Partitioner.split`.

        Raises:
            ValueError: also if there is not one id for each sample.
        """
        classes = check_split(targets, num_workers)
        ids = classes.tolist() if self.ids is None else list(self.ids)
        if len(ids) != len(classes):
            raise ValueError(f"ids must be one for each of {len(classes)} samples, got {len(ids)}")
        known = sorted(set(ids), key=lambda one: (isinstance(one, str), one))
        places = list(range(len(known)))
        if num_workers < len(known):
            places = shuffled(len(known), generator).tolist()
        client = {one: place % num_workers for one, place in zip(known, places, strict=True)}
        owners = torch.tensor([client[one] for one in ids], dtype=torch.int64)
        return [(owners == worker).nonzero().flatten() for worker in range(num_workers)]
