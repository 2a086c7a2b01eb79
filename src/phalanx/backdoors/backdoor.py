"""Backdoor attack: poisoned training, with or without model replacement."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.attacks import Attack
from phalanx.backdoors.poisoned_steps import PoisonedSteps
from phalanx.checks import require_at_least, require_finite_above


@dataclass(frozen=True)
class Backdoor(Attack):
    """Backdoor attack: a worker trains on poisoned data, and may scale what it sends.

    `boost (x - y)`, for the broadcast x and the poisoned model y. A boost of 1 hides among honest
    messages; one of `replacement_boost` makes the mean y itself, if the others stay where they are.
    With a radius in `training` both together are PGD with model replacement.

    Guarantee: with `boost = 1 / share` of the attacker in a weighted mean, and other messages
    zero, the server's model is the attacker's.
    Source: Wang et al., "Attack of the Tails: Yes, You Really Can Backdoor Federated Learning",
    NeurIPS 2020, section 3.2; Bagdasaryan, Veit, Hua, Estrin and Shmatikov, "How To Backdoor
    Federated Learning", AISTATS 2020 (model replacement).

    >>> import torch
    >>> from phalanx.backdoors import Backdoor, PoisonedSteps
    >>> poison = PoisonedSteps(torch.ones(8, 1), torch.zeros(8, 1))
    >>> Backdoor(poison, boost=10.0)(torch.zeros(9, 1), 1, own=torch.tensor([[0.5]]))
    tensor([[5.]])
    """

    training: PoisonedSteps
    """How the poisoned model is trained."""

    boost: float = 1.0
    """What the message is multiplied by (gamma)."""

    def __post_init__(self) -> None:
        require_finite_above(0, boost=self.boost)

    @property
    def computation(self) -> PoisonedSteps:
        """The poisoned training."""
        return self.training

    def within(self, radius: float | None) -> "Backdoor":
        """The same attack within a ball of another radius; without one if None."""
        return replace(self, training=replace(self.training, radius=radius))

    def forge(
        self,
        own: Float[Tensor, " dim"],
        honest: Float[Tensor, "honest dim"] | None,
        num_byzantine: int,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The message; `num_byzantine` attackers share the boost out among them."""
        return own * (self.boost if self.boost == 1 else max(1.0, self.boost / num_byzantine))


def replacement_boost(num_samples: Sequence[float | int], attackers: Sequence[int] = (0,)) -> float:
    """The boost of model replacement: `sum_j n_j / sum_{j in attackers} n_j`.

    >>> replacement_boost([100, 300, 400], attackers=[0])
    8.0

    Args:
        num_samples: how much each client of the round counts in the mean.
        attackers: positions of the attackers, who send the same model.

    Raises:
        ValueError: if the attackers count nothing.
    """
    require_at_least(0, **{f"num_samples[{place}]": one for place, one in enumerate(num_samples)})
    own = sum(num_samples[one] for one in attackers)
    if not own > 0:
        raise ValueError(f"attackers must count in the mean, got {own} of {sum(num_samples)}")
    return sum(num_samples) / own
