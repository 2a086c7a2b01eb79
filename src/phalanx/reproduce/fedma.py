"""FedMA: matched networks against averaged ones, in one shot and over rounds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from phalanx.experiments import Cell, Records, grid, pivot
from phalanx.federated import ClientTraining
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
from phalanx.reproduce.matched_networks import (
    ImageClients,
    RoleClients,
    one_shot_run,
    rounds_run,
)

_WAYS = (
    *("local", "averaged", "averaged, same start", "FedMA", "FedMA, retrained", "ensemble"),
    "width",
)
_METHODS = ("FedMA", "FedAvg", "FedAvg, longer", "FedProx", "ensemble")
_RIVALS = _METHODS[1:4]
_LONGER = 3  # times the epochs
_VGG, _LSTM = "VGG-9", "LSTM"


@dataclass(frozen=True)
class FedMARecipe(Recipe):
    """Networks trained apart on data that differ, put together by matching and by averaging.

    One hidden layer on MNIST in one shot; over rounds a narrow VGG-9 on CIFAR-10, and an LSTM on
    the roles of Shakespeare's plays. Scikit-learn's digits where it has to be quick.

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
    deep_samples: int = sized(600, 10_000, 50_000)
    """Training images of the VGG-9."""
    pixels: int = sized(8, 8, 32)
    """Side of its images, which are averaged to it."""
    deep_width: int = sized(4, 8, 32)
    """Channels of its first layer."""
    deep_clients: int = sized(3, 16, 16)
    """Its clients."""
    epochs: int = sized(2, 10, 20)
    """Its epochs a round, and after each matched layer."""
    roles: int = sized(0, 66, 66)
    """Clients of the LSTM; none at size quick."""
    characters: int = sized(0, 3000, 50_000)
    """What each of them has, at most."""
    hidden_units: int = sized(0, 64, 256)
    """Units of the LSTM."""
    deep_seeds: int = sized(1, 2, 3)
    """Runs of both."""
    rounds: Sequence[int] = sized((1, 1), (1, 3), (5, 5))
    """Rounds of VGG-9 and LSTM."""

    def cells(self, scope: Scope) -> list[Cell]:
        """One shot by seed; rounds by network, method and seed."""
        sizes: tuple[Size, ...] = ("default", "full")
        digits = scope.images(["mnist.npz"], "MNIST", sizes).source
        images = scope.images(
            ["cifar10_full_jpeg.npz" if scope.full else "cifar10_12k.npz"], "CIFAR-10", sizes
        ).source
        fixed: dict[str, Any] = {"data": digits, "samples": self.samples, "hidden": self.hidden}
        fixed |= {"num_clients": 5, "epochs": 8, "retraining": 2}
        cells = grid(one_shot_run, {"part": {"one shot": {}}, "seed": range(self.seeds)}, fixed)
        pictures = ImageClients(
            images, self.deep_samples, self.pixels, self.deep_width, self.deep_clients
        )
        cells += self._rounds(
            _VGG, pictures, ClientTraining(self.epochs, batch_size=32), self.rounds[0], 7.0
        )
        if scope.size == "quick":
            return cells
        plays = scope.file("tinyshakespeare.txt.gz")
        spoken = RoleClients(plays, self.roles, self.characters, hidden=self.hidden_units)
        training = ClientTraining(5, lr=0.25, batch_size=5)
        return cells + self._rounds(_LSTM, spoken, training, self.rounds[1], 1e-3)

    def _rounds(
        self,
        part: str,
        federation: ImageClients | RoleClients,
        training: ClientTraining,
        rounds: int,
        mass: float,
    ) -> list[Cell]:
        longer = replace(training, epochs=_LONGER * training.epochs)
        methods = {
            name: {
                "method": name.partition(",")[0],
                "training": longer if "longer" in name else training,
            }
            for name in _METHODS
        }
        axes: dict[str, Any] = {
            "part": {part: {}},
            "method": methods,
            "seed": range(self.deep_seeds),
        }
        fixed = {"federation": federation, "rounds": rounds, "retraining": training, "mass": mass}
        return grid(rounds_run, axes, fixed)

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Accuracies of all ways, and what of the abstract's claims they bear out."""
        one = found.where(part="one shot")
        shot: dict[str, Any] = {way: points(one, way) for way in _WAYS[:-1]}
        holds: dict[str, Sequence[bool]] = {
            "one shot": [above(shot["FedMA"], shot["averaged"], 20.0)],
            "retrained": [above(shot["FedMA, retrained"], shot["ensemble"], -3.0)],
        }
        values: dict[str, Any] = {"shot": shot, "width": one.mean("width"), "recipe": self}
        values |= {"longer": self.epochs * _LONGER, "hidden": self.hidden, "seeds": self.seeds}
        tables: dict[str, Any] = {
            "one shot": [(way, one.mean(way), one.spread(way)) for way in _WAYS]
        }
        better = list[bool]()
        figures: dict[str, Any] = {"test accuracy": _value, "size": "growth", "bytes": "bytes"}
        for part in (_VGG, *([_LSTM] if _LSTM in found.labels("part") else [])):
            deep = found.where(part=part)
            told = _compared(deep)
            last, rivals = told["last"], [told["last"][name] for name in _RIVALS]
            beaten = [above(last["FedMA"], rival, 0.1) for rival in rivals]
            traffic, growth = told["traffic"], told["growth"]
            holds[f"rounds {part}"] = [traffic is not None and traffic <= 1.1, *beaten]
            holds[f"ensemble {part}"] = [above(last["FedMA"], last["ensemble"], 0.1)]
            holds[f"growth {part}"] = [growth is not None and growth <= 1.2]
            better += beaten
            values[part] = told
            tables[f"rounds {part}"] = pivot(deep, "method", None, figures)
        quick = scope.size == "quick"
        answer = ("better" if all(better) else "worse") + (" quick" if quick else "")
        notes = ("notes", "quick" if quick else "default")
        return report(self.told, holds, values, tables, None, answer, notes)


def _compared(found: Records) -> dict[str, Any]:
    """Accuracies at the end by method, growth, and bytes by those of FedAvg."""
    last = {name: _last(found, method=name) for name in _METHODS}
    sent = [found.mean("bytes", method=name) for name in ("FedMA", "FedAvg")]
    return {
        "last": last,
        "best": max(_RIVALS, key=lambda name: last[name] or 0.0),
        "most": max(last[name] or 0.0 for name in _RIVALS),
        "growth": found.mean("growth", method="FedMA"),
        "traffic": sent[0] / sent[1] if None not in sent else None,
    }


def _value(record: Any) -> float | None:
    told = record["accuracies"]
    return told[-1] if told else None


def _last(found: Records, **labels: Any) -> float | None:
    share: float | None = found.reduce(_value, to_points, **labels)
    return share
