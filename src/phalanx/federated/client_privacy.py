"""Client-level differential privacy of federations."""

from dataclasses import dataclass, replace

from phalanx.aggregation import Mean
from phalanx.checks import require_finite_above, require_one_of
from phalanx.coding import Uncoded
from phalanx.computations import ClippedUpdate
from phalanx.privacy import Accountant, Budget
from phalanx.privacy.epsilon import Method
from phalanx.training import PrivacyLedger, PrivateStep, Round
from phalanx.training.differential_privacy import (
    NOT_COUNTED,
    fresh_secret,
    mixing_layers,
    noise_multiplier,
    step_problems,
)
from phalanx.training.job import Job


@dataclass(frozen=True)
class ClientPrivacy:
    """Client-level differential privacy: whether a client took part at all stays hidden.

    Every client clips its update as a whole (`ClippedUpdate`), the server adds noise to the mean
    (`PrivateStep`). All clients take part in every round, and count alike, whatever they hold; one
    that is missing counts as zero. Neighbours add or remove one client with all its samples.

    Protected is who sees models; the server sees updates and is trusted, and so is a client to clip
    its own. Clients drawn for each round would cost less, but by coins that the server keeps to
    itself; they are not offered, and `clients_per_round` is refused.

    Source: McMahan, Ramage, Talwar and Zhang, "Learning Differentially Private Recurrent Language
    Models", ICLR 2018.

    >>> from phalanx.federated import ClientPrivacy
    >>> ClientPrivacy(epsilon=8.0, max_norm=0.5).budget
    Budget(epsilon=8.0, delta=1e-05)
    """

    epsilon: float = 8.0
    """What all rounds together may spend, at `delta`."""

    delta: float = 1e-5
    """Probability with which more may leak; well below one over the number of clients."""

    max_norm: float = 1.0
    """Euclidean norm to which a client's update is cut down."""

    noise_multiplier: float | None = None
    """Standard deviation of the noise over the sensitivity; None: the least with which the rounds
    fit the budget."""

    method: Method = "pld"
    """How epsilon is computed, see `phalanx.privacy.Accountant`."""

    repeatable: bool = False
    """Whether noise follows from the run's seed: for experiments on public data."""

    def __post_init__(self) -> None:
        self.budget  # noqa: B018 - raises if it is none
        require_finite_above(0, max_norm=self.max_norm, noise_multiplier=self.noise_multiplier)
        require_one_of(("pld", "rdp"), method=self.method)

    @property
    def budget(self) -> Budget:
        """Epsilon and delta."""
        return Budget(self.epsilon, self.delta)

    def stages(self, stages: Round) -> Round:
        """The round with clipped updates that count alike: what clients, too, must know."""
        return replace(stages, compute=ClippedUpdate(stages.compute, self.max_norm), weighted=False)

    def bind(self, job: Job, rounds: int, *, resume: bool = False) -> tuple[Job, PrivacyLedger]:
        """The server's job with noise, and the ledger that its loop must call.

        Args:
            job: with the round of `stages`.
            rounds: of the run.
            resume: whether the run goes on, with its ledger.

        Raises:
            ValueError: with all that breaks the guarantee.
        """
        stages = job.round
        if problems := _problems(job):
            raise ValueError("; ".join(problems))
        multiplier = noise_multiplier(self.noise_multiplier, self.budget, 1.0, rounds, self.method)
        secret = fresh_secret(job.seed, repeatable=self.repeatable)
        moved = self.max_norm / stages.code.num_workers
        step = PrivateStep(stages.step, multiplier * moved, moved, secret)
        accountant = Accountant("client", method=self.method, not_counted=NOT_COUNTED)
        ledger = PrivacyLedger(accountant, self.budget, multiplier, 1.0, resume=resume)
        return replace(job, round=replace(stages, step=step)), ledger


def protected(
    privacy: ClientPrivacy | None, job: Job, rounds: int, *, resume: bool = False
) -> tuple[Job, list[PrivacyLedger]]:
    """The job with noise on the server, if there is any, and the ledger of all that adds noise.

    Raises:
        ValueError: with all that breaks the guarantee.
    """
    if privacy is not None:
        private, ledger = privacy.bind(job, rounds, resume=resume)
        return private, [ledger]
    if job.round.aggregation is None:
        return job, []
    sums = 1 if job.round.preparation is None else 2
    found = job.round.aggregation.ledger(rounds, sums, resume=resume)
    return job, [] if found is None else [found]


def _problems(job: Job) -> list[str]:
    """What breaks the guarantee."""
    stages, problems = job.round, [*mixing_layers(job.model), *step_problems(job.round.step)]
    if stages.code.num_workers != job.num_clients:
        problems.append(
            f"privacy needs clients_per_round to be all {job.num_clients} clients, got "
            f"{stages.code.num_workers}"
        )
    if not (isinstance(stages.code, Uncoded) and isinstance(stages.code.rule, Mean)):
        problems.append(f"privacy needs rule Mean, before noise, got {stages.code.method}")
    if stages.preparation is not None:
        problems.append(
            "privacy needs an algorithm whose clients send one update a round, got one that sends "
            f"{stages.preparation} first"
        )
    if stages.aggregation is not None and stages.aggregation.ledger(1, 1) is not None:
        problems.append(
            f"privacy needs aggregation without noise of its own, got {stages.aggregation}"
        )
    for name, given in (("transforms", stages.transforms), ("attack", stages.attack)):
        if given:
            problems.append(f"privacy needs {name} to be none, before noise, got {given}")
    return problems
