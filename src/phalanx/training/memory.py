"""What is remembered for the bad workers of a drill, from round to round."""

from dataclasses import dataclass, field

from torch import Tensor

from phalanx.attacks import State


@dataclass(frozen=True)
class Memory:
    """The state of a drill between rounds: empty before the first, checkpointed with the run."""

    past: tuple[Tensor, ...] = ()
    """Parameters of the last rounds, `(dim,)` each, oldest first: as many as the attack's slowest
    worker is behind."""

    plans: dict[int, State] = field(default_factory=dict)
    """What the plans of attacks remember, by rank (see `Attack.plans`)."""
