"""Interface of federated algorithms: what clients compute, and what the server does with it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from phalanx.checks import require_at_least, require_finite_above
from phalanx.computations import Computation
from phalanx.training import ServerMomentum, ServerStep


@dataclass(frozen=True)
class FederatedAlgorithm(ABC):
    """A federated algorithm: the computation of clients, and the step of the server, as one value.

    Both are stages of a round like any other; see `phalanx.training.Round`. What all of them have
    in common are the local steps: a client visits its samples in a new order every epoch, in
    minibatches, the last of which may be smaller.
    """

    lr: float = 0.1
    """Learning rate of the local steps."""

    batch_size: int = 10
    """Samples of a local step; a client that holds fewer takes all it has."""

    epochs: int = 1
    """Passes of a client over its samples in a round, unless `num_steps` is given."""

    num_steps: int | None = None
    """Local steps of a client in a round, however many samples it holds."""

    server: ServerStep = ServerMomentum(momentum=0.0)  # noqa: RUF009 - frozen
    """What the server does with the mean of the clients' updates; by default it is taken as it is,
    so that the model becomes the mean of the clients' models."""

    weighted: bool | None = None
    """Whether clients count by their number of samples; by default where the algorithm's paper has
    it so, unless a robust rule aggregates: a client could claim any number."""

    def __post_init__(self) -> None:
        require_finite_above(0, lr=self.lr)
        require_at_least(1, batch_size=self.batch_size, epochs=self.epochs)
        require_at_least(1, num_steps=self.num_steps)
        if self.server.num_vectors != 1:
            raise ValueError(
                f"server must take one vector, got {type(self.server).__name__}, which takes "
                f"{self.server.num_vectors}: it belongs to an algorithm of its own"
            )

    @property
    @abstractmethod
    def compute(self) -> Computation:
        """What a client does in a round."""

    @property
    def step(self) -> ServerStep:
        """What the server does with what clients send."""
        return self.server

    @property
    def preparation(self) -> Computation | None:
        """What clients compute and send first, see `Round.preparation`; nothing by default."""
        return None

    @property
    def counts_samples(self) -> bool:
        """Whether clients count by their number of samples if `weighted` is not given."""
        return True
