"""Label-flipping attack: a gradient of wrong labels."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from phalanx.attacks.base import Attack


@dataclass(frozen=True)
class LabelFlip(Attack):
    """An honest gradient on flipped labels: class `y` of `C` becomes `C - 1 - y`.

    The fault is in the data of the worker, all partitions that it owns; the message is as large and
    as scattered as an honest one. The engine has the worker compute it so; called by itself the
    attack has no data, and sends the worker's own message.

    Cost: none; in one process, the worker's gradients again.
    Source: Karimireddy, He, Jaggi, "Learning from History for Byzantine Robust Optimization", ICML
    2021, experiments (label flipping); after Tolpegin, Truex, Gursoy, Liu, "Data Poisoning Attacks
    Against Federated Learning Systems", ESORICS 2020.

    >>> import torch
    >>> LabelFlip().relabel(torch.tensor([0, 1, 9]), num_classes=10)
    tensor([9, 8, 0])
    """

    @property
    def relabels(self) -> bool:
        """True."""
        return True

    def relabel(self, targets: Tensor, num_classes: int) -> Int[Tensor, "..."]:
        """The flipped labels.

        Raises:
            ValueError: if targets are no classes, or there are fewer than 2 of them.
        """
        if targets.is_floating_point() or num_classes < 2:
            raise ValueError(
                "targets must be whole numbers of at least 2 classes for LabelFlip, "
                f"got {targets.dtype} of {num_classes}"
            )
        return num_classes - 1 - targets

    def forge(
        self,
        own: Float[Tensor, " dim"],
        honest: Float[Tensor, "honest dim"] | None,
        num_byzantine: int,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " dim"]:
        """The worker's message, which an engine had it compute from the flipped labels."""
        return own
