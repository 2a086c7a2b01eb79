"""Mime: local steps that mimic a centralised optimizer, against FedAvg, SCAFFOLD and FedAdam."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, ClassVar

from phalanx.data import PathologicalPartitioner
from phalanx.experiments import Cell, Records, grid
from phalanx.federated import (
    FedAvg,
    FederatedAlgorithm,
    FrozenAdam,
    FrozenMomentum,
    FrozenSGD,
    Mime,
    MimeLite,
    Scaffold,
)
from phalanx.reproduce.base import Findings, Images, Recipe, Scope, report, sized
from phalanx.reproduce.federated_training import federated_run, rounds_to
from phalanx.training import ServerAdam

_SGD, _MOMENTUM, _ADAM = (0.03, 0.1, 0.3), (0.1, 0.3, 1.0), (0.001, 0.003, 0.01)
_METHODS: Mapping[str, tuple[FederatedAlgorithm, tuple[float, ...]]] = {
    "FedAvg": (FedAvg(), _SGD),
    "SCAFFOLD": (Scaffold(), _SGD),
    "FedAdam": (FedAvg(server=ServerAdam()), (0.003, 0.01, 0.03)),
    "Mime, SGD": (Mime(base=FrozenSGD()), _SGD),
    "Mime, momentum": (Mime(base=FrozenMomentum()), _MOMENTUM),
    "MimeLite, Adam": (MimeLite(base=FrozenAdam()), _ADAM),
    "Mime, Adam": (Mime(base=FrozenAdam()), _ADAM),
}
_OURS = ("Mime, SGD", "Mime, momentum", "MimeLite, Adam", "Mime, Adam")


def _algorithm(name: str, rate: float) -> FederatedAlgorithm:
    """A method with a learning rate: of the clients; of FedAdam the server's, as is tuned there."""
    made, _ = _METHODS[name]
    if name == "FedAdam":
        return replace(made, server=ServerAdam(lr=rate))
    return replace(made, lr=rate)


@dataclass(frozen=True)
class MimeRecipe(Recipe):
    """Mime and MimeLite with SGD, momentum and Adam, where every client has two classes only.

    Source: Karimireddy, Jaggi, Kale, Mohri, Reddi, Stich and Suresh, "Breaking the Centralized
    Barrier for Cross-Device Federated Learning", NeurIPS 2021, experiments.
    """

    name: ClassVar[str] = "mime"
    num_clients: int = sized(20, 60, 100)
    """Clients, with samples of two classes each."""
    clients_per_round: int = sized(4, 6, 10)
    """Clients of a round."""
    rounds: int = sized(4, 40, 100)
    """Rounds of a run."""
    samples: int = sized(400, 6000, 10_000)
    """Training samples of all clients."""
    seeds: int = sized(1, 3, 5)
    """Runs of which the mean counts."""
    target: float = 0.8
    """Test accuracy that is waited for."""

    def cells(self, scope: Scope) -> list[Cell]:
        """Every method with each of its learning rates."""
        fixed = {
            "data": self._images(scope).source,
            "partitioner": PathologicalPartitioner(2),
            "num_clients": self.num_clients,
            "clients_per_round": self.clients_per_round,
            "rounds": self.rounds,
            "samples": self.samples,
        }
        return [
            cell
            for name, (_, rates) in _METHODS.items()
            for rate in rates
            for cell in grid(
                federated_run,
                {
                    "method": {name: {"algorithm": _algorithm(name, rate)}},
                    "rate": {rate: {}},
                    "seed": range(self.seeds),
                },
                fixed,
            )
        ]

    def _images(self, scope: Scope) -> Images:
        return scope.images(["mnist.npz"], "MNIST", sizes=("default", "full"))

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Rounds to the target, with the learning rate that did best on validation data."""
        best = {name: self._best(found, name) for name in _METHODS}
        curves = {
            name: [one["test"] for one in found.where(method=name, rate=best[name])]
            for name in _METHODS
        }
        needed = {
            name: [rounds_to(curve, self.target) for curve in own] for name, own in curves.items()
        }
        last = {
            name: round(100 * fmean(fmean(curve[-5:]) for curve in own), 1)
            for name, own in curves.items()
        }
        mean = {name: round(fmean(own), 1) for name, own in needed.items()}

        def sooner(name: str, other: str) -> list[bool]:
            return [a < b for a, b in zip(needed[name], needed[other], strict=True)]

        fastest = min(_OURS, key=lambda name: mean[name])
        holds = {
            "drift": sooner("Mime, SGD", "FedAvg"),
            "adapts": sooner("Mime, Adam", "FedAvg"),
            "server": sooner("Mime, Adam", "FedAdam"),
            "scaffold": sooner("Mime, Adam", "SCAFFOLD"),
            "lite": [abs(last["MimeLite, Adam"] - last["Mime, Adam"]) <= 3],
        }
        rows = [
            (name, best[name], ", ".join(map(str, needed[name])), mean[name], last[name])
            for name in _METHODS
        ]
        values: dict[str, Any] = {
            "recipe": self,
            "data": self._images(scope).origin,
            "mean": mean,
            "last": last,
            "fastest": fastest,
            "least": mean[fastest],
            "most": self.rounds + 1,
            "percent": round(100 * self.target),
        }
        for name, own in needed.items():
            values[name.replace(", ", "_").replace(" ", "_")] = ", ".join(map(str, own))
        others = min(mean["FedAvg"], mean["FedAdam"], mean["SCAFFOLD"])
        answer = "answer" if mean[fastest] < others else "baseline"
        lines = {
            name: (
                list(range(1, self.rounds + 1)),
                [100 * fmean(at) for at in zip(*own, strict=True)],
            )
            for name, own in curves.items()
        }
        tables, plots = {"methods": rows}, {"accuracy": lines}
        return report(self.told, holds, values, tables, plots, answer=answer)

    def _best(self, found: Records, name: str) -> float:
        """The learning rate with the highest validation accuracy on average over the rounds."""
        rates = _METHODS[name][1]

        def reached(rate: float) -> float:
            return fmean(fmean(one["validation"]) for one in found.where(method=name, rate=rate))

        return max(rates, key=reached)
