"""Plan of a federation on Flower: what its server and all of its clients know."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from torch.utils.data import Dataset

from phalanx.aggregation import Aggregator, Mean
from phalanx.checks import require_at_least, require_finite_above
from phalanx.coding import Uncoded
from phalanx.evaluation import Metric
from phalanx.federated.base import FederatedAlgorithm
from phalanx.federated.client_privacy import ClientPrivacy
from phalanx.federated.fed_avg import FedAvg
from phalanx.federated.federate import weighted_by_samples
from phalanx.losses import Loss, cross_entropy
from phalanx.ordering import Order
from phalanx.randomness import seeded
from phalanx.training import AggregationProtocol, Callback, Round
from phalanx.transforms import MessageTransform

Data = Dataset[tuple[Tensor, ...]]


@dataclass(frozen=True, kw_only=True)
class FederationPlan:
    """Plan of a federation; see `as_flower` for what its fields mean."""

    algorithm: FederatedAlgorithm = FedAvg()  # noqa: RUF009 - frozen
    model_fn: Callable[[], nn.Module]
    data_fn: Callable[[int], Data]
    num_clients: int
    rounds: int = 100
    clients_per_round: int | None = None
    rule: Aggregator = Mean()  # noqa: RUF009 - frozen
    aggregation: AggregationProtocol | None = None
    transforms: Sequence[MessageTransform] = ()
    privacy: ClientPrivacy | None = None
    loss: Loss = cross_entropy
    seed: int = 0
    quorum: int = 1
    round_timeout_s: float = 600.0
    start_timeout_s: float = 600.0
    attempts: int = 3
    poll_s: float = 0.5
    test_fn: Callable[[], Data] | None = None
    metrics: Mapping[str, Metric] | None = None
    out: Path | str | None = None
    resume: bool = False
    evaluate_every: int = 10
    checkpoint_every: int = 20
    title: str | None = None
    callbacks: Sequence[Callback] = ()

    def __post_init__(self) -> None:
        require_at_least(
            1,
            num_clients=self.num_clients,
            rounds=self.rounds,
            clients_per_round=self.num_sampled,
            quorum=self.quorum,
            attempts=self.attempts,
            evaluate_every=self.evaluate_every,
            checkpoint_every=self.checkpoint_every,
        )
        require_finite_above(
            0,
            round_timeout_s=self.round_timeout_s,
            start_timeout_s=self.start_timeout_s,
            poll_s=self.poll_s,
        )
        if self.num_sampled > self.num_clients:
            raise ValueError(
                f"clients_per_round must be at most the {self.num_clients} clients, got "
                f"{self.num_sampled}"
            )
        if self.quorum > self.num_sampled:
            raise ValueError(
                f"quorum must be at most the {self.num_sampled} clients of a round, got "
                f"{self.quorum}"
            )
        for name, kind in (("algorithm", FederatedAlgorithm), ("rule", Aggregator)):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(
                    f"{name} must be a {kind.__name__}, got {getattr(self, name)!r:.80}"
                )
        for name in ("model_fn", "data_fn", "test_fn"):
            given = getattr(self, name)
            if isinstance(given, nn.Module) or not (given is None or callable(given)):
                raise ValueError(
                    f"{name} must be a function, called where it is needed, got {given!r:.80}"
                )
        self.weighted  # noqa: B018 - raises if the rule cannot weigh

    @property
    def num_sampled(self) -> int:
        """Clients of a round."""
        return self.num_clients if self.clients_per_round is None else self.clients_per_round

    @property
    def weighted(self) -> bool:
        """Whether clients count by their number of samples."""
        return weighted_by_samples(self.algorithm, self.rule, self.num_sampled, self.aggregation)

    def model(self) -> nn.Module:
        """The model, with weights that follow from the seed."""
        with seeded(self.seed, "weights"):
            return self.model_fn()

    def stages(self, order: Order) -> Round:
        """The round, as the server or a client sees the data."""
        stages = Round(
            Uncoded(self.num_sampled, self.rule),
            order,
            self.algorithm.compute,
            self.transforms,
            step=self.algorithm.step,
            preparation=self.algorithm.preparation,
            weighted=self.weighted,
            aggregation=self.aggregation,
        )
        return stages if self.privacy is None else self.privacy.stages(stages)
