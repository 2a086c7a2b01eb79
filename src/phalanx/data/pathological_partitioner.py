"""Pathological partitioner: a fixed number of classes per client."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from phalanx.checks import require_at_least
from phalanx.data.partitioner import Partitioner, check_split, shuffled


@dataclass(frozen=True)
class PathologicalPartitioner(Partitioner):
    """So many classes to each client, each class shared evenly by those that have it.

    Classes are dealt in turn, in random order, so that each falls to about as many clients.

    Source: McMahan, Moore, Ramage, Hampson and Aguera y Arcas, "Communication-Efficient Learning of
    Deep Networks from Decentralized Data", AISTATS 2017, experiments (pathological non-iid).

    >>> import torch
    >>> targets = torch.arange(40) % 4
    >>> shards = PathologicalPartitioner(num_classes=1).split(targets, num_workers=8)
    >>> [(len(shard), len(targets[shard].unique())) for shard in shards] == [(5, 1)] * 8
    True
    """

    num_classes: int = 2
    """Classes of each client; as many as there are, or fewer."""

    def __post_init__(self) -> None:
        require_at_least(1, num_classes=self.num_classes)

    def split(
        self,
        targets: Int[Tensor, " samples"],
        num_workers: int,
        generator: torch.Generator | None = None,
    ) -> list[Int[Tensor, " shard"]]:
        """Each class in random order, cut evenly; see `Partitioner.split`.

        Raises:
            ValueError: also if there are fewer classes than each client is to have, or so many that
                nobody would have some.
        """
        classes = check_split(targets, num_workers)
        order = shuffled(len(classes), generator)
        present = classes.unique()
        if len(present) and not self.num_classes <= len(present):
            raise ValueError(
                f"num_classes must be at most the {len(present)} classes that there are, got "
                f"{self.num_classes}"
            )
        if num_workers * self.num_classes < len(present):
            raise ValueError(
                f"num_classes must be such that {num_workers} clients have all {len(present)} "
                f"classes, got {self.num_classes}"
            )
        turn = present[shuffled(len(present), generator)].tolist()
        holders: dict[int, list[int]] = {each: [] for each in turn}
        for place, client in enumerate(shuffled(num_workers, generator).tolist()):
            for number in range(self.num_classes if turn else 0):
                each = turn[(place * self.num_classes + number) % len(turn)]
                holders[each].append(client)
        pieces: list[list[Tensor]] = [[] for _ in range(num_workers)]
        for each, clients in holders.items():
            members = order[classes[order] == each]
            for client, piece in zip(clients, members.tensor_split(len(clients)), strict=True):
                pieces[client].append(piece)
        return [torch.cat([order[:0], *own]) for own in pieces]
