"""FedDF: distilled ensembles of networks that differ, and rounds to a target."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, ClassVar

from phalanx.data import LabelledTexts, NpzFile
from phalanx.experiments import Cell, Records, grid
from phalanx.federated import FedAvg, FedDF, FederatedAlgorithm, FedProx, Scaffold
from phalanx.models import MLP
from phalanx.reproduce.base import Findings, Recipe, Scope, report, sized
from phalanx.reproduce.distilled_federations import (
    METHODS,
    OURS,
    RIVALS,
    VOCABULARY,
    StridedNetwork,
    WordSum,
    curves,
    gains,
    needed,
    prototypes_run,
    rounds_run,
)
from phalanx.training import ServerMomentum

_SOURCES = {"own": "in domain", "other": "out of domain", "generated": "generated"}
_SOURCES |= {"noise": "noise"}
_FAR = ("out of domain", "generated")
_IMAGES, _TEXTS = "images", "texts"


@dataclass(frozen=True)
class FedDFRecipe(Recipe):
    """Ensemble distillation with CIFAR-10 and AG News; scikit-learn's digits at size quick.

    Source: Lin, Kong, Stich and Jaggi, "Ensemble Distillation for Robust Model Fusion in Federated
    Learning", NeurIPS 2020, experiments.
    """

    name: ClassVar[str] = "feddf"
    pixels: int = sized(8, 16, 32)
    """Side of the images, which are averaged to it."""
    samples: Sequence[int] = sized((600, 0), (4500, 3000), (22_500, 3000))
    """Training images and texts of all clients."""
    num_clients: int = sized(6, 10, 20)
    """Clients with one network, of whom 40 % take part in a round."""
    per_prototype: int = sized(2, 3, 7)
    """Clients of each of three networks that differ, all of whom take part."""
    alphas: Sequence[float] = sized((1.0,), (1.0, 0.1), (1.0, 0.1))
    """Concentrations of the classes of a client."""
    rounds: int = sized(3, 8, 100)
    """Rounds of clients with one network."""
    epochs: int = sized(5, 20, 40)
    """Passes of a client over its samples in a round."""
    steps: int = sized(60, 300, 10_000)
    """Most steps of a distillation."""
    seeds: int = sized(1, 3, 3)
    """Runs with one network; of those that differ there is one more."""

    def _methods(self, lr: float) -> dict[str, dict[str, FederatedAlgorithm]]:
        common: Any = {"lr": lr, "batch_size": 64, "epochs": self.epochs}
        made: dict[str, FederatedAlgorithm] = {
            "FedAvg": FedAvg(**common),
            "FedProx": FedProx(**common, proximal=0.01),
            "FedAvgM": FedAvg(**common, server=ServerMomentum(momentum=0.3)),
            "SCAFFOLD": Scaffold(**common),
            OURS: FedDF(**common),
        }
        return {name: {"algorithm": one} for name, one in made.items()}

    def cells(self, scope: Scope) -> list[Cell]:
        """Prototypes by unlabelled data and seed; rounds by data, alpha, method and seed."""
        quick = scope.size == "quick"
        files = ["cifar10_full_jpeg.npz" if scope.full else "cifar10_12k.npz"]
        images = scope.images(files, "CIFAR-10", ("default", "full")).source
        shared = {"pixels": self.pixels, "samples": self.samples[0], "steps": self.steps}
        far = {} if quick else {"other": NpzFile(scope.file("gtsrb_small.npz"))}
        sources = {
            name: {"source": key} | (far if key == "other" else {})
            for key, name in _SOURCES.items()
            if key != "other" or far
        }
        differing = {"data": images, "num_clients": 3 * self.per_prototype, "alpha": 1.0}
        differing |= {"rounds": 1, "epochs": self.epochs, **shared}
        seeds = range(self.seeds + 1)
        axes: dict[str, Any] = {"part": {"prototypes": {}}, "unlabelled": sources, "seed": seeds}
        cells = grid(prototypes_run, axes, differing)
        sets: dict[str, Any] = {
            _IMAGES: {"data": images, "model": MLP if quick else StridedNetwork} | shared
        }
        if not quick:
            news = LabelledTexts(
                scope.file("ag_news_7600.csv.gz"),
                ["title", "description"],
                vocabulary=VOCABULARY,
                hashed=True,
            )
            sets[_TEXTS] = {**shared, "data": news, "model": WordSum, "samples": self.samples[1]}
        for name, chosen in sets.items():
            axes = {
                "part": {"rounds": {}},
                "set": {name: chosen},
                "alpha": list(self.alphas),
                "method": self._methods(0.3 if name == _TEXTS else 0.1),
                "seed": range(self.seeds),
            }
            sampled = max(1, round(0.4 * self.num_clients))
            fixed = {"num_clients": self.num_clients, "clients_per_round": sampled}
            cells += grid(rounds_run, axes, fixed | {"rounds": self.rounds})
        return cells

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Gains of prototypes in round 1, and rounds until where FedAvg ends."""
        shown = {str(name): gains(found, name) for name in found.labels("unlabelled")}
        own, far = shown["in domain"], [shown[name] for name in _FAR if name in shown]
        sooner = {
            f"{data}, alpha {alpha}": needed(found.where(part="rounds", set=data, alpha=alpha))
            for data in found.labels("set")
            for alpha in self.alphas
        }
        rivals = [
            [min(others) for others in zip(*(rows[one] for one in RIVALS), strict=True)]
            for rows in sooner.values()
        ]
        ours = [rows[OURS] for rows in sooner.values()]
        mean = {
            name: round(fmean(one for rows in sooner.values() for one in rows[name]), 1)
            for name in METHODS
        }
        looks = [
            (after, before)
            for one in found.where(part="rounds", method=OURS)
            for after, before in zip(one["distilled_accuracy"], one["mean_accuracy"], strict=True)
        ]
        worse = sum(after < before for after, before in looks)
        holds = {
            "prototypes": [own["gain"] >= 9.0, *(one > 0 for one in own["gains"])],
            "rounds": [
                all(one < other for one, other in zip(*pair, strict=True))
                for pair in zip(ours, rivals, strict=True)
            ],
            "fraction": [
                fmean(rows[OURS]) <= fmean(rows["FedAvg"]) / 2 for rows in sooner.values()
            ],
            "ensemble": [one >= own["ensemble"] - 2.0 for one in own["after"]],
            "data": [one["gain"] >= own["gain"] - 2.0 for one in far],
            "noise": [shown["noise"]["gain"] < one["gain"] for one in (own, *far)],
            "guard": [worse == 0],
        }
        values: dict[str, Any] = {
            "recipe": self,
            "own": own,
            "gain": {name: one["gain"] for name, one in shown.items()},
            "mean": mean,
            "best": min(RIVALS, key=lambda name: mean[name]),
            "ours": ours,
            "rivals": rivals,
            "averaged": [rows["FedAvg"] for rows in sooner.values()],
            "worse": worse,
            "looks": len(looks),
            "more": self.seeds + 1,
            "never": self.rounds + 1,
        }
        values["fewest"] = mean[values["best"]]
        tables = {
            "prototypes": [
                (name, *one["told"], one["gain"], one["ensemble"]) for name, one in shown.items()
            ],
            "rounds": [
                (place, *(f"{', '.join(map(str, rows[name]))}" for name in METHODS))
                for place, rows in sooner.items()
            ],
        }
        plots = {"rounds": curves(found.where(part="rounds", set=_IMAGES, alpha=self.alphas[0]))}
        answer = "answer" if all(holds["prototypes"] + holds["rounds"]) else "short"
        notes = ("notes", "quick" if scope.size == "quick" else "default")
        return report(self.told, holds, values, tables, plots, answer, notes)
