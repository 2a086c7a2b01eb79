"""DataLens: private generators by votes of teachers, beside the simplest ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, ClassVar

from phalanx.experiments import Cell, Records, grid
from phalanx.privacy import (
    ClassMoments,
    DataLens,
    DPGan,
    ProjectedVote,
    Synthesizer,
    composed_gaussian_epsilon,
    top_agg_sensitivity,
)
from phalanx.reproduce.base import Findings, Recipe, Scope, points, report, sized
from phalanx.reproduce.private_generators import (
    BATCH,
    DELTA,
    exact_steps,
    generation_run,
    published_steps,
)

_METHODS = ("DataLens", "G-PATE", "DP-GAN", "class moments")
_SETS = {"MNIST": "mnist.npz", "Fashion-MNIST": "fashion_mnist.npz"}


@dataclass(frozen=True)
class DataLensRecipe(Recipe):
    """Private generators on MNIST and Fashion-MNIST: DataLens, G-PATE, DP-GAN and class moments.

    On scikit-learn's digits at size quick.

    Source: Wang, Wu, Long, Rimanic, Zhang and Li, "DataLens: Scalable Privacy Preserving Training
    via Gradient Compression and Aggregation", CCS 2021.
    """

    name: ClassVar[str] = "datalens"
    num_teachers: int = sized(150, 2000, 4000)
    """Teachers of DataLens and G-PATE."""
    num_hidden: int = sized(8, 8, 64)
    """Neurons of a teacher."""
    steps: int = sized(20, 30, 70)
    """Votes on a batch of 30 fakes."""
    gan_steps: int = sized(30, 400, 5000)
    """Steps of DP-GAN."""
    samples: int = sized(1000, 10000, 100000)
    """Synthetic records of a generator."""
    pairs: int = sized(100, 1000, 1000)
    """Pairs of records of which coins leave one out, for the audit."""
    seeds: int = sized(1, 2, 5)
    """Runs of which the mean counts."""

    @property
    def methods(self) -> dict[str, Synthesizer]:
        """By name; DataLens and G-PATE differ by their vote alone."""
        teachers: dict[str, Any] = {
            "num_teachers": self.num_teachers,
            "num_hidden": self.num_hidden,
            "steps": self.steps,
            "teacher_batch": 15,
        }
        return {
            "DataLens": DataLens(**teachers),
            "G-PATE": DataLens(vote=ProjectedVote(), **teachers),
            "DP-GAN": DPGan(steps=self.gan_steps),
            "class moments": ClassMoments(),
        }

    def sources(self, scope: Scope) -> dict[str, str | None]:
        """The files, by what the data are called."""
        if scope.size == "quick":
            return {"digits": None}
        return {name: str(scope.file(file)) for name, file in _SETS.items()}

    def cells(self, scope: Scope) -> list[Cell]:
        """Data sets by budgets, methods and seeds."""
        fixed = {"pairs": self.pairs, "samples": self.samples}
        axes: dict[str, Any] = {
            "data": {name: {"path": path} for name, path in self.sources(scope).items()},
            "epsilon": (1.0, 10.0),
            "method": self.methods,
            "seed": range(self.seeds),
        }
        return grid(generation_run, axes, fixed)

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Accuracies beside the paper's, steps of the published settings, and the audits."""
        published, rows, holds = self.told["published"], [], list[bool]()
        told, ours = dict[str, Sequence[Any]](), dict[str, Sequence[Any]]()
        for name in self.sources(scope):
            for epsilon in (1.0, 10.0):
                key = f"{name}, epsilon {epsilon:g}"
                paper = [published.get(key, {}).get(one) for one in _METHODS[:3]]
                mine = [
                    points(found, "accuracy", data=name, epsilon=epsilon, method=one)
                    for one in _METHODS
                ]
                rows.append((key, *mine, *paper))
                told[key], ours[key] = paper, mine[:3]
                holds += [(mine[0] or 0.0) > (mine[1] or 0.0), (mine[0] or 0.0) > (mine[2] or 0.0)]
        steps = [
            (setting, k, sigma, published_steps(k, sigma, epsilon), exact_steps(k, sigma, epsilon))
            for setting, k, sigma, epsilon, _ in self.told["settings"]
        ]
        spent = [
            composed_gaussian_epsilon(sigma / top_agg_sensitivity(k), BATCH * count, DELTA)
            for _, k, sigma, count, _ in steps
        ]
        stated = [one[4] for one in self.told["settings"]]
        worst = max(found, key=lambda one: one["bound"] - one["claim"])
        largest = max(found, key=lambda one: one["bound"])
        means = [fmean(row[i] or 0.0 for row in rows) for i in range(1, 5)]
        values: dict[str, Any] = {
            "where": "; ".join(ours),
            "published": told if scope.size != "quick" else "not of these data",
            "accuracies": ours,
            "told": stated,
            "counted": [one[3] for one in steps],
            "exact": [one[4] for one in steps],
            "bound": largest["bound"],
            "claim": largest["claim"],
            "seeds": self.seeds,
            "teachers": self.num_teachers,
            "hidden": self.num_hidden,
            "steps": self.steps,
            **dict(zip(("ours", "votes", "gan", "simple"), means, strict=True)),
        }
        verdicts: dict[str, Sequence[bool] | None] = {
            "better": holds,
            "steps": [one[3] == count for one, count in zip(steps, stated, strict=True)],
            "exact": [one[4] > one[3] for one in steps],
            "audit": [worst["bound"] <= worst["claim"]],
        }
        lost = all((row[4] or 0.0) > (row[1] or 0.0) for row in rows)
        counted = [(*one, round(each, 3)) for one, each in zip(steps, spent, strict=True)]
        tables = {"accuracy": rows, "steps": counted}
        return report(self.told, verdicts, values, tables, answer="lost" if lost else "won")
