"""ATOMO: which atoms are worth their bytes, and what the shape of a matrix costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from statistics import fmean
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from phalanx.compression import (
    QSGD,
    Atomo,
    Atoms,
    Basis,
    Compressor,
    Entries,
    RandomizedSingularVectors,
    SingularVectors,
    TernGrad,
    Uncompressed,
    Waves,
)
from phalanx.data import Digits
from phalanx.experiments import Cell, Records, build, grid, load, pivot
from phalanx.models import MLP
from phalanx.randomness import generator
from phalanx.reproduce.base import Findings, Recipe, Scope, above, report
from phalanx.reproduce.digits_training import DigitsTraining, percents, training
from phalanx.reproduce.network_bytes import megabytes_claim, resnet18

_ATOMS: dict[str, Atoms] = {
    "singular vectors": SingularVectors(),
    "vectors and entries": RandomizedSingularVectors(),
    "entries": Entries(),
    "waves": Waves(),
}
_SHARES = {f"{share:.0%}": share for share in (0.02, 0.05, 0.1, 0.2)}
_MOMENTS = {"before training": {"passes": 0}, "after an epoch": {"passes": 1}}
_SPECTRAL = {f"singular vectors, s = {s}": Atomo(budget=float(s)) for s in (1, 2, 3)}


@dataclass(frozen=True)
class AtomoRecipe(DigitsTraining, Recipe):
    """Bytes of ResNet-18 exactly, variance against bytes, and training on digits.

    Source: Wang, Sievert, Charles, Liu, Wright and Papailiopoulos, "ATOMO: Communication-efficient
    Learning via Atomic Sparsification", NeurIPS 2018; its traffic and accuracy on ResNet-18 as
    measured by Vogels, Karimireddy and Jaggi, "PowerSGD", NeurIPS 2019, table 6.
    """

    name: ClassVar[str] = "atomo"
    methods: ClassVar[Mapping[str, Compressor]] = {
        "SGD": Uncompressed(),
        **_SPECTRAL,
        "vectors and entries, s = 1": Atomo(RandomizedSingularVectors(), budget=1.0),
        "QSGD, 1 level": QSGD(levels=1),
        "TernGrad": TernGrad(),
    }

    def cells(self, scope: Scope) -> list[Cell]:
        """Variances, and training with every method."""
        variances = grid(variance_run, {"moment": _MOMENTS, "atoms": _ATOMS, "share": _SHARES})
        return [*variances, *super().cells(scope)]

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Counts of bytes, variances, and how training ended."""
        variances = pivot(found, ("moment", "atoms"), "share", "variance", _three_digits)
        score, traffic = percents(found), _traffic()
        plain, spectral = score["SGD"], [score[name] for name in _SPECTRAL]
        entries, both = (
            [
                found.mean("variance", **place, atoms="singular vectors")
                < found.mean("variance", **place, atoms=other)
                for place in ({"moment": m, "share": s} for m in _MOMENTS for s in _SHARES)
            ]
            for other in ("entries", "vectors and entries")
        )
        values = {"plain": plain, "spectral": spectral, "fewer": [row[2] for row in traffic]}
        values |= {"entries": sum(entries), "both": sum(both), "cases": len(entries)}
        holds = {
            "smaller": None,
            "training": [above(one, plain, -1.0) for one in spectral],
            "variance": entries,
        }
        rows = [(name, size, round(x, 1), round(sent, 1)) for name, size, x, sent in traffic]
        tables = {"traffic": rows, "variance": variances, "training": training(found)}
        sizes = [self.told["megabytes with two atoms"]], [traffic[1][3]]
        parts = megabytes_claim(self.told, "ResNet-18, two atoms a tensor", *sizes)
        parts += report(self.told, holds, values, tables, answer="answer")
        for moment in _MOMENTS:
            lines = {
                name: (list(_SHARES.values()), variances.row((moment, name))) for name in _ATOMS
            }
            parts += report(self.told, {}, {"moment": moment}, plots={"variance": lines})
        return parts


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


def _three_digits(values: Sequence[float]) -> float:
    return float(f"{fmean(values):.3g}")


def variance_run(*, passes: int, atoms: Atoms, share: float) -> dict[str, float]:
    """The variance of a worker's gradient of the first layer, relative to its squared norm.

    Args:
        passes: of SGD over the data before it is taken.
        atoms: what the gradient is made of.
        share: of the gradient's bytes that messages take.
    """
    gradient = _gradient(passes)
    wanted = share * 4 * gradient.numel()
    compressor = (
        _of_size(gradient, atoms, wanted)
        if isinstance(atoms, Basis)
        else Atomo(atoms, bytes_budget=wanted)
    )
    return {"variance": compressor.variance(gradient) / float(gradient.square().sum())}


def _gradient(passes: int) -> Tensor:
    splits = load(Digits())
    inputs, targets = splits.train[:]
    model = build(partial(MLP, hidden=(128, 128)), splits, 0)
    layer, sgd = max(model.parameters(), key=Tensor.numel), SGD(model.parameters(), lr=0.05)
    rows = torch.randperm(len(inputs), generator=generator(0, "order"))
    batches = rows[: len(rows) // 32 * 32].view(-1, 32)
    for place, batch in enumerate([*batches] * passes + [rows[:32]]):
        if place:
            sgd.step()
        sgd.zero_grad()
        cross_entropy(model(inputs[batch]), targets[batch]).backward()
    assert layer.grad is not None  # just computed
    return layer.grad


def _of_size(gradient: Tensor, atoms: Basis, wanted: float) -> Atomo:
    """The largest budget whose messages are no longer than wanted, values of certain atoms too."""
    low, high = 1e-3, float(gradient.numel())
    for _ in range(20):
        middle = (low * high) ** 0.5
        message = Atomo(atoms, budget=middle).encode(gradient, generator(0, "sizes"))
        low, high = (low, middle) if message.num_bytes > wanted else (middle, high)
    return Atomo(atoms, budget=low)
