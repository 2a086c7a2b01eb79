"""A-little-is-enough attack: a shift that hides in the spread of the honest workers."""

from dataclasses import dataclass
from statistics import NormalDist

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.attacks.base import Attack, require_honest
from phalanx.attacks.column_spread import column_std


@dataclass(frozen=True)
class ALittleIsEnough(Attack):
    """The honest mean, moved by `z` honest standard deviations in every coordinate.

    All Byzantine workers send it. So small a shift is not to be told from an honest deviation by
    distance or by rank, yet it is in the same direction in every forged message and, where some
    rule selects one, in every round. With `z=None` it is the largest shift for which, by the normal
    approximation, a majority counting the Byzantine workers lies farther out:
    `z = Phi^-1((n - f - s) / (n - f))` with `s = floor(n / 2 + 1) - f`, for `n` workers of which
    `f` are Byzantine. Standard deviations divide by the number of honest workers less one; a single
    honest worker has none, and its message is sent as it is.

    Cost: two passes over the honest messages.
    Source: Baruch, Baruch, Goldberg, "A Little Is Enough: Circumventing Defenses For Distributed
    Learning", NeurIPS 2019, the attack that prevents convergence.

    >>> import torch
    >>> honest = torch.tensor([[1.0, 0.0], [3.0, 0.0], [5.0, 0.0]])
    >>> ALittleIsEnough(z=1.5)(honest, num_byzantine=1)
    tensor([[0., 0.]])
    >>> round(ALittleIsEnough.largest_z(num_workers=50, num_byzantine=12), 4)
    0.336
    """

    z: float | None = None
    """Shift in honest standard deviations; the paper's formula if not given."""

    sign: int = -1
    """-1 subtracts the shift from the honest mean, 1 adds it."""

    def __post_init__(self) -> None:
        if self.sign not in (-1, 1):
            raise ValueError(f"sign must be -1 or 1, got {self.sign}")

    @property
    def omniscient(self) -> bool:
        """True: it needs the mean and the spread of the honest messages."""
        return True

    def forge(
        self,
        own: Float[Tensor, " dim"],
        honest: Float[Tensor, "honest dim"] | None,
        num_byzantine: int,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " dim"]:
        """The shifted mean, the same for every Byzantine worker.

        Raises:
            ValueError: if there is no honest message, or `z` is None and `largest_z` has no value.
        """
        honest = require_honest(honest, self)
        z = self.z
        if z is None:
            z = self.largest_z(len(honest) + num_byzantine, num_byzantine)
        mean = honest.mean(dim=0)
        if len(honest) == 1:
            return mean
        return column_std(honest).mul_(self.sign * z).add_(mean)

    @staticmethod
    def largest_z(num_workers: int, num_byzantine: int) -> float:
        """The paper's `z_max`, negative where so few are Byzantine that any shift shows.

        Args:
            num_workers: all workers (n in the paper).
            num_byzantine: the Byzantine ones (m in the paper).

        Raises:
            ValueError: if the formula has no finite value: the Byzantine workers are a majority
                by themselves, or even all honest workers cannot make one for them.
        """
        honest = num_workers - num_byzantine
        supporters = num_workers // 2 + 1 - num_byzantine
        if not 0 < supporters < honest:
            raise ValueError(
                "z must be given where the paper's formula has no finite value, "
                f"got z=None with num_byzantine={num_byzantine} of {num_workers} workers"
            )
        return NormalDist().inv_cdf((honest - supporters) / honest)
