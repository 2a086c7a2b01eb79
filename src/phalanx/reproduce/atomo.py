"""ATOMO: time to an accuracy over links against QSGD and TernGrad at their bytes; and variances."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from phalanx.compression import (
    QSGD,
    Atomo,
    Atoms,
    AutoBasis,
    Compressor,
    Entries,
    RandomizedSingularVectors,
    SingularVectors,
    TernGrad,
    Uncompressed,
    Waves,
)
from phalanx.data import DataSource
from phalanx.experiments import Cell, Records, build, grid, load, tuned
from phalanx.fetch import fetch
from phalanx.models import ResNet18
from phalanx.randomness import generator
from phalanx.reproduce.base import Findings, Measure, Recipe, Scope, report, sized
from phalanx.reproduce.cifar_training import (
    BANDWIDTHS,
    CifarTraining,
    cifar10,
    round_costs,
    seconds_per_round,
)
from phalanx.reproduce.network_bytes import megabytes_claim, resnet18

_ATOMS: dict[str, Atoms] = {
    "singular vectors": SingularVectors(),
    "entries": Entries(),
    "waves": Waves(),
    "vectors and entries": RandomizedSingularVectors(),
    "auto": AutoBasis(),
}
_SHARES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2)
_RIVALS: dict[str, tuple[Compressor, float]] = {  # and the share of the bytes that they send
    "TernGrad": (TernGrad(share_scale=False), 0.05),
    "QSGD, 4 bits": (QSGD(levels=7), 0.127),
}


def _ours(atoms: str, rival: str) -> str:
    return f"ATOMO, {atoms}, bytes of {rival}"


@dataclass(frozen=True)
class AtomoRecipe(CifarTraining, Recipe):
    """Seconds to an accuracy on CIFAR-10, variances of ResNet-18's gradients, and its bytes.

    Source: Wang, Sievert, Charles, Liu, Wright and Papailiopoulos, "ATOMO: Communication-efficient
    Learning via Atomic Sparsification", NeurIPS 2018; its traffic on ResNet-18 as measured by
    Vogels, Karimireddy and Jaggi, "PowerSGD", NeurIPS 2019, table 6.
    """

    name: ClassVar[str] = "atomo"
    methods: ClassVar[Mapping[str, Compressor]] = {
        "SGD": Uncompressed(),
        **{name: rival for name, (rival, _) in _RIVALS.items()},
        **{
            _ours(atoms, rival): Atomo(_ATOMS[atoms], bytes_share=share)
            for rival, (_, share) in _RIVALS.items()
            for atoms in ("auto", "singular vectors")
        },
    }

    epochs: int = sized(4, 6, 40)
    rates: tuple[float, ...] = (0.03, 0.1, 0.3)
    target: float = sized(0.4, 0.4, 0.6)
    """Test accuracy whose time is taken."""
    evaluate_every: int = sized(4, 13, 13)
    """Rounds from one look at the accuracy to the next."""
    width: int = sized(4, 16, 64)
    """Channels of the ResNet-18 whose gradients have variances."""
    steps: tuple[int, ...] = (0, 20)
    """Of training, after which these gradients are taken."""

    def cells(self, scope: Scope) -> list[Cell]:
        """Training and the costs of a round with every method; variances."""
        fixed = {"data": cifar10(scope).source, "samples": self.samples}
        costs = grid(round_costs, {"compressor": self.methods}, fixed, alone=True)
        options = {**fixed, "width": self.width}
        return [*super().cells(scope), *costs, *grid(variance_run, {"steps": self.steps}, options)]

    def options(self, scope: Scope) -> dict[str, Any]:
        """Runs end where they reach the target."""
        return {"target": self.target, "evaluate_every": self.evaluate_every}

    def measure(self, scope: Scope, run: Measure) -> Records:
        """The first seed chooses the learning rate that takes the fewest rounds."""
        return tuned(self.cells(scope), "rate", "reached", run)

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Seconds to the target, variances, and counts of bytes."""
        rows = {name: self._row(found, name) for name in self.methods}
        times = {name: row[3:] for name, row in rows.items()}
        pairs = {name: (times[name], times[_ours("auto", name)]) for name in _RIVALS}
        ratios = {
            name: [None if a is None or b is None else a / b for a, b in zip(*pair, strict=True)]
            for name, pair in pairs.items()
        }
        faster = [one is not None and one > 1 for each in ratios.values() for one in each]
        spectral, entries, least = self._variances(found)
        better = [one < other for one, other in zip(spectral, entries, strict=True)]
        traffic = _traffic()
        values: dict[str, Any] = {"data": cifar10(scope).origin, "recipe": self}
        values |= {"links": list(BANDWIDTHS), "ratios": ratios, "percent": 100 * self.target}
        values |= {"rounds": {name: row[2] for name, row in rows.items()}}
        values |= {"better": sum(better), "cases": len(better), "least": least}
        values |= {"fewer": [row[2] for row in traffic], "won": sum(faster), "of": len(faster)}
        values["plain"] = times["SGD"]
        values["pairs"] = {name: [rows[_ours("auto", name)][2], rows[name][2]] for name in _RIVALS}
        quick = [one is not None and one >= 2 for one in ratios["QSGD, 4 bits"]]
        quick += [one is not None and one >= 3 for one in ratios["TernGrad"]]
        holds = {"time": faster, "published": quick, "smaller": None}
        holds["variance"] = [all(better), 2 * sum(better) > len(better)]
        variances = [
            (
                f"{steps} steps, {share:.0%}",
                *(self._variance(found, steps, n, share) for n in _ATOMS),
            )
            for steps in self.steps
            for share in _SHARES
        ]
        shown = [(name, size, round(x, 1), round(sent, 1)) for name, size, x, sent in traffic]
        tables = {"time": list(rows.values()), "variance": variances, "traffic": shown}
        answer = "faster" if all(faster) else "partly" if any(faster) else "slower"
        sizes = [self.told["megabytes with two atoms"]], [traffic[1][3]]
        counted = megabytes_claim(self.told, "ResNet-18, two atoms a tensor", *sizes)
        return report(self.told, holds, values, tables, answer=answer) + counted

    def _row(self, found: Records, name: str) -> tuple[Any, ...]:
        """A method, its bytes, the mean rounds to the target, and seconds over every link."""
        runs = found.where(compressor=name, tuned=True)
        costs = next(one for one in runs if one["compute_s"] is not None)
        rounds = Records(one for one in runs if "seed" in one.labels).mean("reached")
        compute_s = min(one["compute_s"] for one in found if one["compute_s"] is not None)
        seconds = [seconds_per_round(costs, compute_s, rate) for rate in BANDWIDTHS.values()]
        spent = [None if rounds is None else rounds * one for one in seconds]
        return name, costs["payload_bytes"], rounds, *spent

    def _variance(self, found: Records, steps: int, atoms: str, share: float) -> float:
        return float(found.mean(f"{atoms}, {share}", steps=steps))

    def _variances(self, found: Records) -> tuple[list[float], list[float], int]:
        """Those of singular vectors and of entries; and how often the choice has the least."""
        cases = [
            [self._variance(found, steps, name, share) for name in _ATOMS]
            for steps in self.steps
            for share in _SHARES
        ]
        least = sum(row[-1] <= min(row[:3]) * (1 + 1e-6) for row in cases)
        return [row[0] for row in cases], [row[1] for row in cases], least


def _traffic() -> list[tuple[str, int, float, float]]:
    """Values of so many atoms of every tensor of ResNet-18, times fewer, megabytes an epoch."""
    network, found = resnet18(), list[tuple[str, int, float, float]]()
    reshapes: tuple[Literal["paper", "out-first"], ...] = ("paper", "out-first")
    for reshape, number in product(reshapes, (1, 2, 3)):
        atoms = SingularVectors(reshape)
        size = sum(
            shape[0]
            if len(shape) < 2 and reshape == "out-first"
            else number * (sum(atoms.sides(shape)) + 1)
            for shape in network.shapes
        )
        name = "as the authors reshape" if reshape == "paper" else "first axis"
        fewer = network.num_values / size
        found.append((f"{name}, {number}", size, fewer, network.megabytes(size)))
    return found


def variance_run(*, data: DataSource, samples: int, width: int, steps: int) -> dict[str, float]:
    """Variances of a worker's gradient of ResNet-18, relative to its squared norm.

    Every tensor is compressed by itself, to the same share of its bytes.

    Args:
        data: images.
        samples: of the gradient.
        width: channels of the first stage.
        steps: of SGD before it is taken.
    """
    gradient = _gradient(data, samples, width, steps)
    whole = sum(float(one.square().sum()) for one in gradient)
    return {
        f"{name}, {share}": sum(Atomo(atoms, bytes_share=share).variance(x) for x in gradient)
        / whole
        for name, atoms in _ATOMS.items()
        for share in _SHARES
    }


def _gradient(data: DataSource, samples: int, width: int, steps: int) -> list[Tensor]:
    splits = load(data)
    model = build(partial(ResNet18, width=width), splits, 0)
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    order = torch.randperm(len(splits.train), generator=generator(0, "order"))  # type: ignore[arg-type]
    for step in range(steps + 1):
        batch = order.roll(-samples * step)[:samples]
        inputs, targets = fetch(splits.train, batch)
        optimizer.zero_grad()
        cross_entropy(model(inputs), targets).backward()
        if step < steps:
            optimizer.step()
    return [one.grad for one in model.parameters() if one.grad is not None]
