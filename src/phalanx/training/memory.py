"""What is remembered for the bad workers of a drill, from round to round."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Memory:
    """The state of a drill between rounds; empty before the first, and checkpointed with the run.

    Attributes:
        past: parameters of the last rounds, `(dim,)` each, oldest first: as many as the attack's
            slowest worker is behind.
        plans: what the plans of attacks remember, by rank (see `Attack.plans`).
    """

    past: tuple[Tensor, ...] = ()
    plans: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)
