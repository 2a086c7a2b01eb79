"""Differentially private training: what a run needs to be so, checked and put together."""

import secrets
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.optim.lr_scheduler import ReduceLROnPlateau

from phalanx.aggregation import Mean
from phalanx.checks import require_finite_above, require_one_of
from phalanx.coding import Uncoded
from phalanx.computations import MixedPrecision
from phalanx.ordering import PoissonSampling
from phalanx.privacy import Accountant, Budget, noise_multiplier_for
from phalanx.privacy.accountant import NOT_COUNTED as OUTSIDE
from phalanx.privacy.epsilon import Method
from phalanx.randomness import derive_seed
from phalanx.training.job import Job
from phalanx.training.privacy_ledger import PrivacyLedger
from phalanx.training.private_step import PrivateStep
from phalanx.training.server_step import OptimizerStep, ServerStep
from phalanx.transforms import GaussianNoise

NOT_COUNTED = (*OUTSIDE, "losses in the metrics", "the number of records and clients")
"""What looks at the private data of a run beside its releases."""


@dataclass(frozen=True)
class DifferentialPrivacy:
    """Differential privacy of a run: its budget, its noise, and who is protected from whom.

    Training with a computation of bounded influence (`ClippedGradient`, `TopAggGradient`) on
    Poisson samples (`PoissonSampling`), and Gaussian noise on every update: DP-SGD. What is
    released is the model after every round; the run stops before a round that would exceed the
    budget, see `PrivacyLedger`. Protected is one record; neighbours add or remove one.

    Noise on the server protects from those who see models, and trusts the server and the workers;
    codes that decode the exact mean, and the plain mean, go with it. Noise at the workers protects
    from the server, too: every message is private by itself, so that whatever comes after it
    (compressors, robust rules, simulated attacks) costs no privacy; for n workers the mean is
    noisier by `sqrt(n)`.

    Needs `pip install 'phalanx[private]'`.

    Source: Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar and Zhang, "Deep Learning with
    Differential Privacy", CCS 2016.

    >>> from phalanx.training import DifferentialPrivacy
    >>> DifferentialPrivacy(epsilon=2.0).budget
    Budget(epsilon=2.0, delta=1e-05)
    """

    epsilon: float = 3.0
    """What all rounds together may spend, at `delta`."""

    delta: float = 1e-5
    """Probability with which more may leak; well below one over the number of records."""

    noise_multiplier: float | None = None
    """Standard deviation of the noise over the sensitivity; None: the least with which the run's
    rounds fit the budget."""

    noise_at: Literal["server", "workers"] = "server"
    """Who adds noise: the server to the mean, or every worker to its message."""

    method: Method = "pld"
    """How epsilon is computed, see `Accountant`."""

    repeatable: bool = False
    """Whether noise and samples follow from the run's seed: for experiments on public data. Whoever
    knows the seed can then take the noise away."""

    def __post_init__(self) -> None:
        self.budget  # noqa: B018 - raises if it is none
        require_finite_above(0, noise_multiplier=self.noise_multiplier)
        require_one_of(("server", "workers"), noise_at=self.noise_at)
        require_one_of(("pld", "rdp"), method=self.method)

    @property
    def budget(self) -> Budget:
        """Epsilon and delta."""
        return Budget(self.epsilon, self.delta)

    def bind(self, job: Job, steps: int, *, resume: bool = False) -> tuple[Job, PrivacyLedger]:
        """A job that is private, and the ledger that its loop must call.

        Args:
            job: whose stages are to be used.
            steps: rounds of the run.
            resume: whether the run goes on, with its ledger.

        Raises:
            ValueError: with all that breaks the guarantee.
            ImportError: if dp-accounting is not installed.
        """
        if problems := self._problems(job):
            raise ValueError("; ".join(problems))
        stages, size = job.round, job.batches.size
        rate = min(1.0, job.batch_size / job.batches.num_samples)
        multiplier = noise_multiplier(self.noise_multiplier, self.budget, rate, steps, self.method)
        secret = fresh_secret(job.seed, repeatable=self.repeatable)
        influence = stages.compute.influence
        assert influence is not None
        private = replace(
            stages,
            order=PoissonSampling(f"{secret} coins"),
            compute=stages.compute.expecting(size),
        )
        if self.noise_at == "server":
            moved = influence / job.batch_size
            step = PrivateStep(stages.step, multiplier * moved, moved, secret)
            private = replace(private, step=step)
        else:
            moved = influence / size
            noise = GaussianNoise(multiplier * moved, secret, moved)
            private = replace(private, transforms=(noise, *stages.transforms))
        accountant = Accountant(method=self.method, not_counted=NOT_COUNTED)
        ledger = PrivacyLedger(accountant, self.budget, multiplier, rate, resume=resume)
        # Dropout and augmentation draw from one stream for a batch: a sample more shifts the draws
        # of those after it, which tells nothing as long as nobody knows the stream.
        seed = job.seed if self.repeatable else derive_seed(secret, "layers")
        return replace(job, round=private, seed=seed), ledger

    def _problems(self, job: Job) -> list[str]:
        """What breaks the guarantee."""
        stages = job.round
        problems = [*mixing_layers(job.model), *step_problems(stages.step)]
        if stages.compute.influence is None:
            problems.append(
                "privacy needs compute to bound what one sample does, as ClippedGradient does, got "
                f"{stages.compute}"
            )
        if not isinstance(stages.order, PoissonSampling):
            problems.append(
                "privacy needs order PoissonSampling: for batches of a fixed size epsilon would be "
                f"another, got {stages.order}"
            )
        half = stages.compute
        if isinstance(half, MixedPrecision) and half.dtype == "float16":
            problems.append(
                "privacy needs mixed_precision bf16 or no, got fp16, whose scale of the loss is "
                "one for all samples"
            )
        code = stages.code
        if self.noise_at == "workers":
            if not isinstance(code, Uncoded):
                problems.append(
                    "privacy with noise_at 'workers' needs a rule instead of a code, which "
                    f"compares messages, got {code}"
                )
            if stages.attack is not None and stages.attack.computation is not None:
                problems.append(
                    "privacy needs an attack that computes what workers compute, got "
                    f"{stages.attack}"
                )
            return problems
        plain = isinstance(code, Uncoded) and isinstance(code.rule, Mean)
        if not (plain or (code.exact and code.message_dtype(job.layout.dtype).is_floating_point)):
            problems.append(
                "privacy with noise_at 'server' needs the plain mean, or a code that decodes it "
                f"exactly, got {code}; give noise_at 'workers'"
            )
        for name, given in (("transforms", stages.transforms), ("attack", stages.attack)):
            if given:
                problems.append(
                    f"privacy with noise_at 'server' needs {name} to be none, since noise would "
                    f"come after them, got {given}; give noise_at 'workers'"
                )
        return problems


def noise_multiplier(
    given: float | None, budget: Budget, rate: float, steps: int, method: Method
) -> float:
    """The one that is given, or the least with which so many rounds fit a budget."""
    return noise_multiplier_for(budget, rate, steps, method) if given is None else given


def fresh_secret(seed: int, *, repeatable: bool) -> str:
    """What noise and coins are drawn from: 32 bytes of the operating system, or the run's seed."""
    return f"{derive_seed(seed, 'privacy')}" if repeatable else secrets.token_hex(32)


def mixing_layers(model: nn.Module) -> list[str]:
    """Layers in which samples of a batch see each other, with what to put in their place."""
    problems = []
    for name, layer in model.named_modules():
        kind = type(layer).__name__
        if isinstance(layer, _BatchNorm) and layer.training:
            width = layer.num_features
            groups = next(count for count in (32, 16, 8, 4, 2, 1) if width % count == 0)
            problems.append(
                f"model layer {name!r} must not be {kind}, which mixes the samples of a batch: put "
                f"GroupNorm({groups}, {width}) in its place"
            )
        elif isinstance(layer, _InstanceNorm) and layer.track_running_stats:
            problems.append(
                f"model layer {name!r} must not track statistics of the samples: make the {kind} "
                "with track_running_stats=False"
            )
    return problems


def step_problems(step: ServerStep) -> list[str]:
    """Why a server step would see more than noisy updates, if so."""
    problems = []
    if type(step).receive is not ServerStep.receive:
        problems.append(f"privacy needs a step that takes no single messages, got {step}")
    if _watches_losses(step):
        problems.append(
            "privacy needs an lr_scheduler that does not look at the data, got ReduceLROnPlateau"
        )
    return problems


def _watches_losses(step: ServerStep) -> bool:
    """Whether the learning rate depends on measurements of the private data."""
    while not isinstance(step, OptimizerStep):
        inner = getattr(step, "inner", None)
        if not isinstance(inner, ServerStep):
            return False
        step = inner
    scheduler = step.lr_scheduler
    kind = scheduler.func if isinstance(scheduler, partial) else scheduler
    return kind is ReduceLROnPlateau
