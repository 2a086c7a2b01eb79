"""ATOMO: which atoms are worth their bytes, and what the shape of a matrix costs."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
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
from phalanx.experiments import Cell, Pivot, Records, build, grid, line_plot, load, pivot
from phalanx.models import MLP
from phalanx.randomness import generator
from phalanx.reporting import Table
from phalanx.reproduce.base import Claim, Findings, Recipe, Scope, above, claim, figures, published
from phalanx.reproduce.digits_training import DigitsTraining, percents, training_table
from phalanx.reproduce.network_bytes import megabytes_claim, resnet18

_PAPER = published("atomo")
_ATOMS: dict[str, Atoms] = {
    "singular vectors": SingularVectors(),
    "vectors and entries": RandomizedSingularVectors(),
    "entries": Entries(),
    "waves": Waves(),
}
_SHARES = {f"{share:.0%}": share for share in (0.02, 0.05, 0.1, 0.2)}
_MOMENTS = {"before training": {"passes": 0}, "after an epoch": {"passes": 1}}
_SPECTRAL = {f"singular vectors, s = {s}": Atomo(budget=float(s)) for s in (1, 2, 3)}
_METHODS: dict[str, Compressor] = {
    "SGD": Uncompressed(),
    **_SPECTRAL,
    "vectors and entries, s = 1": Atomo(RandomizedSingularVectors(), budget=1.0),
    "QSGD, 1 level": QSGD(levels=1),
    "TernGrad": TernGrad(),
}


@dataclass(frozen=True)
class AtomoRecipe(DigitsTraining, Recipe):
    """Bytes of ResNet-18 exactly, variance against bytes, and training on digits.

    Cost: in quick mode about two minutes on one core.
    Source: Wang, Sievert, Charles, Liu, Wright and Papailiopoulos, "ATOMO: Communication-efficient
    Learning via Atomic Sparsification", NeurIPS 2018; its traffic and accuracy on ResNet-18 as
    measured by Vogels, Karimireddy and Jaggi, "PowerSGD", NeurIPS 2019, table 6.
    """

    name: ClassVar[str] = "atomo"
    paper: ClassVar[str] = (
        "Wang, Sievert, Charles, Liu, Wright and Papailiopoulos, ATOMO: Communication-efficient "
        "Learning via Atomic Sparsification, NeurIPS 2018"
    )

    methods: ClassVar[Mapping[str, Compressor]] = _METHODS

    def cells(self, scope: Scope) -> list[Cell]:
        """Variances, and training with every method."""
        variances = grid(variance_run, {"moment": _MOMENTS, "atoms": _ATOMS, "share": _SHARES})
        return [*variances, *super().cells(scope)]

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Counts of bytes, variances, and how training ended."""
        variances = pivot(found, ("moment", "atoms"), "share", "variance")
        score, factors = percents(found), _factors()
        spectral = [score[name] for name in _SPECTRAL]
        return Findings(
            answer=(
                f"With 1, 2 and 3 atoms a matrix ATOMO reaches {figures(spectral)} % on digits, "
                f"SGD {score['SGD']} %; as the authors reshape ResNet-18, an atom of each tensor "
                f"is {factors['paper', 1][1]:.1f} times smaller than the gradient, first axis "
                f"against all others {factors['out-first', 1][1]:.0f} times."
            ),
            claims=[
                megabytes_claim(
                    "Megabytes an epoch that a worker sends for ResNet-18, two atoms a tensor.",
                    [_PAPER["megabytes with two atoms"]],
                    [resnet18().megabytes(factors["paper", 2][0])],
                ),
                *_claims(score["SGD"], spectral, factors, variances),
            ],
            tables=(
                _size_table(factors),
                variances.table(
                    "Variance in as many bytes",
                    "Squared error relative to the squared norm, for atoms that take this share of "
                    "the bytes.",
                    "gradient and atoms",
                    lambda value: float(f"{value:.3g}"),
                ),
                training_table(found),
            ),
            plots=tuple(
                line_plot(
                    f"Variance against bytes: {moment}",
                    "Squared error relative to the squared norm of the layer's gradient.",
                    {
                        name: (list(_SHARES.values()), variances.row((moment, name)))
                        for name in _ATOMS
                    },
                    x="share of the gradient's bytes (log scale)",
                    y="relative variance (log scale)",
                    log="xy",
                )
                for moment in _MOMENTS
            ),
            notes=_PAPER["notes"],
            settings={"num_seeds": self.seeds(scope)},
        )


Factors = Mapping[tuple[Literal["paper", "out-first"], int], tuple[int, float]]


def _factors() -> Factors:
    """Values of so many atoms of every tensor of ResNet-18, and how many times fewer that is."""
    network, found = resnet18(), {}
    reshapes: tuple[Literal["paper", "out-first"], ...] = ("paper", "out-first")
    for reshape in reshapes:
        atoms = SingularVectors(reshape)
        for number in (1, 2, 3):
            values = sum(
                shape[0]
                if len(shape) < 2 and reshape == "out-first"
                else number * (sum(atoms.sides(shape)) + 1)
                for shape in network.shapes
            )
            found[reshape, number] = values, network.num_values / values
    return found


def _size_table(factors: Factors) -> Table:
    titles = {"paper": "as the authors reshape", "out-first": "first axis"}
    rows = [
        (f"{titles[reshape]}, {number}", values, round(factor, 1))
        for (reshape, number), (values, factor) in factors.items()
    ]
    return Table(
        "Traffic of ResNet-18",
        "Values of so many atoms of every tensor, how many times fewer than the gradient's, and "
        "megabytes an epoch of 24 steps. First axis against all others: vectors as they are.",
        ("matrices, atoms", "values", "fewer", "MB an epoch"),
        tuple((*row, round(resnet18().megabytes(row[1]), 1)) for row in rows),
    )


def _claims(plain: float, spectral: list[float], factors: Factors, variances: Pivot) -> list[Claim]:
    told, fewer = _PAPER["claims"], [factor for _, factor in factors.values()]
    entries, both = (
        [
            variances[(moment, "singular vectors"), share] < variances[(moment, other), share]
            for moment in _MOMENTS
            for share in _SHARES
        ]
        for other in ("entries", "vectors and entries")
    )
    return [
        claim(
            told["smaller"],
            f"as the authors reshape {figures(fewer[:3])}; first axis against all others "
            f"{figures(fewer[3:])}",
        ),
        claim(
            told["training"],
            f"{figures(spectral)} with 1, 2, 3; SGD {plain}",
            [above(one, plain, -1.0) for one in spectral],
        ),
        claim(
            told["variance"],
            f"in {sum(entries)} of {len(entries)} cases; and less than vectors with entries of "
            f"what they leave in {sum(both)}",
            entries,
        ),
    ]


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
