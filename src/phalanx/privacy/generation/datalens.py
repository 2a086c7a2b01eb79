"""DataLens: a generator that follows noisy votes of teachers on disjoint shards."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from phalanx.checks import require_above, require_at_least, require_finite_above
from phalanx.privacy.accountant import Budget, Relation, noise_multiplier_for
from phalanx.privacy.generation.domain import Domain
from phalanx.privacy.generation.generators import ConditionalGenerator
from phalanx.privacy.generation.private_data import PrivateData
from phalanx.privacy.generation.shards import deal_shards
from phalanx.privacy.generation.synthesizer import Fitting, Mechanism, Synthesizer
from phalanx.privacy.generation.teachers import Teachers
from phalanx.privacy.generation.votes import TopAggVote, Vote, require_votes
from phalanx.privacy.noise import noise_key, with_noise
from phalanx.randomness import derive_seed, generator

_BETAS = (0.5, 0.999)


@dataclass(frozen=True)
class DataLens(Synthesizer):
    """DataLens: discriminators on disjoint shards vote on where each fake should move.

    Every step trains the teachers against fakes of the generator, then has them vote on a batch of
    fakes; the generator takes one step of Adam along the noisy decisions. Votes alone leave the
    teachers: each fake is one Gaussian release of the vote's sensitivity.

    The scale of a decision plays no part, as Adam divides it out again. Shards are dealt by row
    number, not by class as the authors do: see `deal_shards`.

    Source: Wang, Wu, Long, Rimanic, Zhang, Li, "DataLens: Scalable Privacy Preserving Training via
    Gradient Compression and Aggregation", CCS 2021. With `ProjectedVote` it is G-PATE.
    """

    relation: ClassVar[Relation] = "replace"
    not_counted: ClassVar[tuple[str, ...]] = ("choice of hyper-parameters", "number of records")

    num_teachers: int = 2000
    """T; each is given N / T records."""
    vote: Vote | None = None
    """What teachers say of a fake, and how it is decided; `TopAggVote` on a quarter of a record's
    numbers if not given."""
    noise_std: float | None = None
    """sigma on a sum of votes, for which the budget lasts as long as it lasts; if not given, it is
    such that all steps fit the budget."""
    steps: int = 30
    """Steps of the generator at most."""
    batch_size: int = 30
    """B: fakes that are voted on in a step."""
    teacher_steps: int = 2
    """Steps of every teacher before each vote."""
    first_teacher_steps: int = 10
    """Steps of every teacher before the first vote."""
    teacher_batch: int = 30
    """Records of a teacher's step, drawn from its shard, and as many fakes."""
    num_hidden: int = 16
    """Neurons of a teacher."""
    lr: float = 0.003
    """Learning rate of the generator."""
    teacher_lr: float = 0.0001
    """Learning rate of the teachers."""
    num_noise: int = 50
    """Numbers of the generator's noise."""
    width: int = 64
    """Of the generator."""
    pool: int = 64
    """Fakes of each class that a step of the teachers takes from."""

    def __post_init__(self) -> None:
        for name in ("num_teachers", "steps", "batch_size", "teacher_batch", "num_hidden"):
            require_at_least(1, **{name: getattr(self, name)})
        for name in ("num_noise", "width", "pool"):
            require_at_least(1, **{name: getattr(self, name)})
        require_at_least(
            0, teacher_steps=self.teacher_steps, first_teacher_steps=self.first_teacher_steps
        )
        require_finite_above(0, lr=self.lr, teacher_lr=self.teacher_lr)
        require_above(0, noise_std=self.noise_std)

    def voting(self, domain: Domain) -> Vote:
        """The vote on records of this domain."""
        return self.vote or TopAggVote(max(1, domain.num_features // 4))

    def mechanism(self, num_records: int, domain: Domain, budget: Budget) -> Mechanism:
        """A release for every fake of a batch."""
        vote = self.voting(domain)
        require_votes(vote, domain.num_features)
        if self.num_teachers > num_records:
            raise ValueError(
                f"num_teachers must be at most the {num_records} records, got {self.num_teachers}"
            )
        if self.noise_std is None:
            multiplier = noise_multiplier_for(budget, steps=self.steps * self.batch_size)
        else:
            multiplier = self.noise_std / vote.sensitivity
        return Mechanism(multiplier, 1.0, self.batch_size, self.steps)

    def start(self, data: PrivateData, mechanism: Mechanism, seed: int) -> Fitting:
        """Teachers and generator as they are drawn from the seed."""
        vote = self.voting(data.domain)
        noise_std = mechanism.noise_multiplier * vote.sensitivity
        return _DataLensFitting(replace(self, noise_std=noise_std), vote, data, seed)


class _DataLensFitting(Fitting):
    def __init__(self, method: DataLens, vote: Vote, data: PrivateData, seed: int) -> None:
        self._method, self._vote, self._seed = method, vote, seed
        domain, classes = data.domain, len(data.domain.classes)
        shards = deal_shards(len(data.x), method.num_teachers, seed)
        # From 0 to 1: what is empty in most records then weighs nothing in a teacher.
        self._x, self._y = (data.x[shards] + 1) / 2, data.y[shards]
        self._num_classes = classes
        self.teachers = Teachers(
            method.num_teachers,
            domain.num_features,
            classes,
            method.num_hidden,
            generator(seed, "teachers"),
        )
        self.generator = ConditionalGenerator(
            domain.record_shape, classes, method.num_noise, method.width, seed
        )
        self._teaching = torch.optim.Adam(
            self.teachers.parameters(), method.teacher_lr, betas=_BETAS, fused=True
        )
        self._learning = torch.optim.Adam(self.generator.parameters(), method.lr, betas=_BETAS)
        self._parts: dict[str, Any] = {
            "teachers": self.teachers,
            "generator": self.generator,
            "teaching": self._teaching,
            "learning": self._learning,
        }

    def step(self, number: int) -> None:
        method, seed = self._method, derive_seed(self._seed, "step", number)
        for turn in range(method.teacher_steps + (0 if number else method.first_teacher_steps)):
            self._teach(generator(seed, "teaching", turn))
        chance = generator(seed, "fakes")
        y = torch.randint(self._num_classes, (method.batch_size,), generator=chance)
        fakes = self.generator(y, chance)
        decided = self.decide((fakes.detach() + 1) / 2, y, number)
        self._learning.zero_grad(set_to_none=True)
        # The gradient of |fakes - (fakes + alpha decided)|^2, but for a factor without effect.
        (-(fakes * decided).sum() / len(y)).backward()
        self._learning.step()

    def decide(
        self, fakes: Float[Tensor, "b d"], y: Int[Tensor, " b"], number: int
    ) -> Float[Tensor, "b d"]:
        """The noisy decision on fakes in a step: the one thing that leaves the teachers."""
        method, seed = self._method, derive_seed(self._seed, "step", number)
        votes = torch.zeros(())
        for part, rows in enumerate(self.teachers.chunks()):
            directions = self.teachers.directions(fakes, y, rows)
            votes = votes + self._vote.count(directions, seed, part)
        std, key, label = method.noise_std or 0.0, noise_key(self._seed), f"votes {number}"
        noisy = with_noise(votes.flatten(), std, self._vote.sensitivity, key, label)
        return self._vote.decide(noisy.view_as(votes), method.num_teachers, seed, fakes.shape[1])

    def _teach(self, chance: torch.Generator) -> None:
        method, (_, held, _) = self._method, self._x.shape
        classes = torch.arange(self._num_classes).repeat_interleave(method.pool)
        with torch.no_grad():
            fakes = (self.generator(classes, chance) + 1) / 2
        size = min(method.teacher_batch, held)
        first = int(torch.randint(held - size + 1, (), generator=chance))
        batch = slice(first, first + size)  # a view; rows of a shard are in random order
        y = self._y[:, batch]
        picked = y * method.pool + torch.randint(method.pool, y.shape, generator=chance)
        self.teachers.learn(self._teaching, self._x[:, batch], y, fakes, picked)

    def sample(self, labels: Int[Tensor, " n"], chance: torch.Generator) -> Float[Tensor, "n d"]:
        return self.generator.sample(labels, chance)

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
