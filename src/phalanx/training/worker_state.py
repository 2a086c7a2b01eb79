"""What engines remember of workers, the bad ones of a drill among them, from round to round."""

from dataclasses import dataclass, field

from torch import Tensor

from phalanx.attacks import State
from phalanx.transforms.compressed import States


@dataclass(frozen=True)
class Memory:
    """The state of workers between rounds: empty before the first, checkpointed with the run."""

    past: tuple[Tensor, ...] = ()
    """Parameters of the last rounds, `(dim,)` each, oldest first: as many as the attack's slowest
    worker is behind."""

    plans: dict[int, State] = field(default_factory=dict)
    """What the plans of attacks remember, by rank (see `Attack.plans`)."""

    momenta: Tensor | None = None
    """The momentum of every worker, `(workers, width)`: what it would have sent last, were it
    honest; NaN for a worker that is not known to have one. None before the first round, and where
    workers send none."""

    waiting: tuple[float, ...] = ()
    """What the waiting policy remembers (see `WaitingPolicy.update`); empty before the first round,
    and for policies that remember nothing."""

    compression: tuple[States, ...] = ()
    """What the compressor of every worker remembers: what was left out of messages so far, say.
    Empty before the first round, where nothing is remembered, and while it lies with processes that
    have not been asked for it (see `Session.recall`)."""
