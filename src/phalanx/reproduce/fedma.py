"""FedMA: matched networks against averaged ones, in one shot and over rounds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from phalanx.experiments import Cell, Records, grid, pivot
from phalanx.reproduce.base import (
    Findings,
    Recipe,
    Scope,
    Size,
    above,
    points,
    report,
    sized,
    to_points,
)
from phalanx.reproduce.matched_networks import one_shot_run, rounds_run

_WAYS = (
    *("local", "averaged", "averaged, same start", "FedMA", "FedMA, retrained", "ensemble"),
    "width",
)
_METHODS = ("FedMA", "FedAvg", "FedAvg, longer", "FedProx", "ensemble")
_LONGER = 3  # times the epochs


@dataclass(frozen=True)
class FedMARecipe(Recipe):
    """Networks trained apart on data that differ, put together by matching and by averaging.

    One hidden layer on MNIST in one shot, and a narrow VGG-9 on CIFAR-10 over rounds; on
    scikit-learn's digits where it has to be quick.

    Source: Wang, Yurochkin, Sun, Papailiopoulos, Khazaeni, "Federated Learning with Matched
    Averaging", ICLR 2020, experiments.
    """

    name: ClassVar[str] = "fedma"
    samples: int = sized(1000, 8000, 60000)
    """Training images of the networks with one hidden layer."""
    hidden: int = sized(40, 100, 100)
    """Their neurons."""
    seeds: int = sized(1, 5, 5)
    """Runs of which the mean counts."""
    deep_samples: int = sized(600, 4000, 50000)
    """Training images of the VGG-9."""
    pixels: int = sized(8, 8, 32)
    """Side of its images, which are averaged to it."""
    deep_width: int = sized(4, 8, 32)
    """Channels of its first layer."""
    deep_clients: int = sized(3, 4, 16)
    """Its clients."""
    deep_seeds: int = sized(1, 2, 3)
    """Its runs."""
    rounds: int = sized(1, 1, 5)
    """Its rounds."""
    epochs: int = sized(2, 5, 20)
    """Its epochs a round, and after each matched layer."""

    def cells(self, scope: Scope) -> list[Cell]:
        """One shot by seed; rounds by method and seed."""
        sizes: tuple[Size, ...] = ("default", "full")
        digits = scope.images(["mnist.npz"], "MNIST", sizes).source
        images = scope.images(
            ["cifar10_full_jpeg.npz" if scope.full else "cifar10_12k.npz"], "CIFAR-10", sizes
        ).source
        fixed: dict[str, Any] = {"data": digits, "samples": self.samples, "hidden": self.hidden}
        fixed |= {"num_clients": 5, "epochs": 8, "retraining": 2}
        one = grid(one_shot_run, {"part": {"one shot": {}}, "seed": range(self.seeds)}, fixed)
        methods = {
            name: {
                "method": name.partition(",")[0],
                "epochs": self.epochs * (_LONGER if "longer" in name else 1),
            }
            for name in _METHODS
        }
        deep = {"data": images, "samples": self.deep_samples, "pixels": self.pixels}
        deep |= {"width": self.deep_width, "num_clients": self.deep_clients}
        deep |= {"rounds": self.rounds, "retraining": self.epochs}
        axes: dict[str, Any] = {
            "part": {"rounds": {}},
            "method": methods,
            "seed": range(self.deep_seeds),
        }
        return one + grid(rounds_run, axes, deep)

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Accuracies of all ways, and what of the abstract's claims they bear out."""
        one, deep = found.where(part="one shot"), found.where(part="rounds")
        shot: dict[str, Any] = {way: points(one, way) for way in _WAYS[:-1]}
        last = {name: _last(deep, method=name) for name in _METHODS}
        ours, rivals = last["FedMA"], [last[name] for name in _METHODS[1:4]]
        growth = deep.mean("growth", method="FedMA")
        sent = [deep.mean("bytes", method=name) for name in ("FedMA", "FedAvg")]
        traffic = sent[0] / sent[1] if None not in sent else None
        values = {
            **{name: getattr(self, name) for name in ("samples", "hidden", "seeds", "rounds")},
            **{name: getattr(self, name) for name in ("deep_samples", "pixels", "deep_width")},
            **{name: getattr(self, name) for name in ("deep_clients", "deep_seeds", "epochs")},
            "shot": shot,
            "last": last,
            "best": max(rivals, key=lambda value: value or 0.0),
            "growth": growth,
            "traffic": traffic,
            "width": one.mean("width"),
            "spread": [100 * (one.spread(way) or 0.0) for way in _WAYS[:-1]],
            "longer": self.epochs * _LONGER,
        }
        holds: dict[str, Sequence[bool] | None] = {
            "one shot": [above(shot["FedMA"], shot["averaged"], 20.0)],
            "retrained": [above(shot["FedMA, retrained"], shot["ensemble"], -3.0)],
            "rounds": [traffic is not None and traffic <= 1.1]
            + [above(ours, rival, 0.1) for rival in rivals],
            "ensemble": [above(ours, last["ensemble"], 0.1)],
            "growth": [growth is not None and growth <= 1.2],
        }
        better = all(above(ours, rival, 0.1) for rival in rivals)
        tables = {
            "one shot": [(way, one.mean(way), one.spread(way)) for way in _WAYS],
            "rounds": pivot(
                deep, "method", None, {"test accuracy": _value, "size": "growth", "bytes": "bytes"}
            ),
        }
        answer = "better" if better else "worse"
        quick = ("notes", "default") if scope.size != "quick" else ("notes", "quick")
        return report(self.told, holds, values, tables, None, answer, quick)


def _value(record: Any) -> float | None:
    told = record["accuracies"]
    return told[-1] if told else None


def _last(found: Records, **labels: Any) -> float | None:
    share: float | None = found.reduce(_value, to_points, **labels)
    return share
