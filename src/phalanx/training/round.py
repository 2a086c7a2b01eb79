"""The round as a value: all stages of distributed training, from samples to weights."""

from collections.abc import Sequence
from dataclasses import dataclass

from phalanx.attacks import Attack, RandomWorkers, Schedule
from phalanx.coding import Code, Uncoded
from phalanx.computations import Computation, Gradient
from phalanx.ordering import Order, RandomReshuffling
from phalanx.training.aggregation_protocol import AggregationProtocol
from phalanx.training.server_step import OptimizerStep, ServerStep
from phalanx.transforms import MessageTransform


@dataclass(frozen=True)
class Round:
    """Round of distributed training: its stages as one frozen value.

        order -> compute -> transforms -> code.encode -> (attack) -> transport
              -> code.decode -> step

    (A worker's message is encoded by the code before it is transformed.)

    >>> from phalanx.aggregation import Krum
    >>> from phalanx.coding import Uncoded
    >>> from phalanx.training import Round
    >>> Round(Uncoded(9, Krum(2))).code.num_tolerated
    2
    """

    code: Code = Uncoded()  # noqa: RUF009 - frozen
    """Who computes what, what they send, and how it is decoded; a robust rule is `Uncoded`."""

    order: Order = RandomReshuffling()  # noqa: RUF009 - frozen
    """Which samples make which partition of which round."""

    compute: Computation = Gradient()  # noqa: RUF009 - frozen
    """What a worker computes from the parameters and its samples."""

    transforms: Sequence[MessageTransform] = ()
    """What workers do to their messages before they send them, in order; kept as a tuple."""

    attack: Attack | None = None
    """What Byzantine workers do, in a simulated attack; None for none."""

    byzantine: Schedule | None = None
    """Which workers are Byzantine when; as many as the code survives, drawn anew every round, if
    there is an attack and nothing is given."""

    step: ServerStep = OptimizerStep()  # noqa: RUF009 - frozen
    """What becomes of the decoded update."""

    preparation: Computation | None = None
    """What workers compute and send first, whose aggregate the step is given by `prepare`, and may
    then tell all of them; nothing by default."""

    weighted: bool = False
    """Whether updates count by the number of samples of their clients, under a rule."""

    aggregation: AggregationProtocol | None = None
    """A protocol by which the server learns the aggregate of updates, and no update; by default it
    is sent all of them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "transforms", tuple(self.transforms))
        if self.attack is not None and self.byzantine is None:
            object.__setattr__(self, "byzantine", RandomWorkers(_survived(self.code)))

    def conduct(self, step: int, seed: int) -> dict[int, Attack]:
        """What each Byzantine worker of a round does, by id; their ranks are in order."""
        if self.attack is None or self.byzantine is None:
            return {}
        members = self.order.clients(step, self.code.num_workers, seed)
        everybody = self.order.pool_size(self.code.num_workers)
        mask = self.byzantine.among(members, step, everybody, seed)
        workers = mask.nonzero().flatten().tolist()
        return {worker: self.attack.member(rank) for rank, worker in enumerate(workers)}


def _survived(code: Code) -> int:
    found = getattr(code.method, "num_byzantine", None)
    if found is None:
        raise ValueError(
            f"byzantine must say who is Byzantine: {code.method} does not say how many Byzantine "
            "workers it survives"
        )
    return int(found)
