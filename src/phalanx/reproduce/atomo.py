"""ATOMO: which atoms are worth their bytes, and what the shape of a matrix costs."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from matplotlib.axes import Axes
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
from phalanx.models import MLP
from phalanx.randomness import generator, seeded
from phalanx.reporting import Plot, Table
from phalanx.reporting.plots import COLOURS
from phalanx.reproduce.base import (
    NOT_QUOTED,
    Finding,
    Findings,
    Progress,
    Recipe,
    above,
    figures,
    verdict,
)
from phalanx.reproduce.compressed_training import DigitsTraining, Trained
from phalanx.reproduce.network_bytes import (
    RESNET18_STEPS,
    mebibytes_an_epoch,
    num_values,
    resnet18_shapes,
)

_ATOMS: dict[str, Atoms] = {
    "singular vectors": SingularVectors(),
    "vectors and entries": RandomizedSingularVectors(),
    "entries": Entries(),
    "waves": Waves(),
}
_SHARES = (0.02, 0.05, 0.1, 0.2)
_NOTES = (
    "Data: scikit-learn's digits; the authors train ResNet-18 and VGG-11 on CIFAR-10 and SVHN. "
    "Compare the order of the methods, not the figures.",
    "Bytes follow from the shapes of ResNet-18's tensors. An atom is counted as its authors do, "
    "with a number for its singular value; messages here carry it in the left vector.",
    "Variances are exact, of the gradient of the digits network's largest layer; entries and waves "
    "have the largest budget whose messages, all counted, are not longer.",
    "That SVD gives the better atoms than entries depends on what an entry costs: here it costs a "
    "position and a sign, about a third of a number.",
)


@dataclass(frozen=True)
class AtomoRecipe(Recipe):
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

    training: DigitsTraining = field(default_factory=DigitsTraining)
    """How long, how often and with which learning rates."""

    def measure(self, out: Path, *, full: bool, data: Path | None, progress: Progress) -> Findings:
        """Counts, compares variances, then trains; `data` is not needed."""
        progress("variances")
        variances = {
            (moment, name): _variances(gradient, atoms)
            for moment, gradient in _gradients().items()
            for name, atoms in _ATOMS.items()
        }
        methods: dict[str, Compressor] = {
            "SGD": Uncompressed(),
            **{f"singular vectors, s = {s}": Atomo(budget=float(s)) for s in (1, 2, 3)},
            "vectors and entries, s = 1": Atomo(RandomizedSingularVectors(), budget=1.0),
            "QSGD, 1 level": QSGD(levels=1),
            "TernGrad": TernGrad(),
        }
        results, table = self.training.train(methods, full, progress)
        spectral = [results[f"singular vectors, s = {s}"].accuracy for s in (1, 2, 3)]
        return Findings(
            answer=(
                f"With 1, 2 and 3 atoms a matrix ATOMO reaches {figures(spectral)} % on digits, "
                f"SGD {results['SGD'].accuracy} %; as the authors reshape ResNet-18, an atom of "
                f"each tensor is {_atoms(1, 'paper')[1]:.1f} times smaller than the gradient, "
                f"first axis against all others {_atoms(1, 'out-first')[1]:.0f} times."
            ),
            findings=(*_byte_findings(), *_findings(results, variances)),
            tables=(_byte_table(), _variance_table(variances), table),
            plots=tuple(
                Plot(
                    f"Variance against bytes: {moment}",
                    "Squared error relative to the squared norm of the layer's gradient.",
                    f"Variance against bytes, {moment}: see the table.",
                    partial(plot_variances, {name: variances[moment, name] for name in _ATOMS}),
                )
                for moment in ("before training", "after an epoch")
            ),
            notes=_NOTES,
            settings=self.training.settings(full),
        )


def _atoms(number: int, reshape: str) -> tuple[int, float]:
    """Values of so many atoms of every tensor of ResNet-18, and how many times fewer that is."""
    atoms = SingularVectors(reshape)  # type: ignore[arg-type]
    shapes = resnet18_shapes()
    values = 0
    for shape in shapes:
        dense = len(shape) < 2 and reshape == "out-first"
        values += shape[0] if dense else number * (sum(atoms.sides(shape)) + 1)
    return values, num_values(shapes) / values


def _byte_findings() -> tuple[Finding, ...]:
    epoch = mebibytes_an_epoch(_atoms(2, "paper")[0], RESNET18_STEPS)
    factors = {
        reshape: [_atoms(number, reshape)[1] for number in (1, 2, 3)]
        for reshape in ("paper", "out-first")
    }
    return (
        Finding(
            "Megabytes an epoch that a worker sends for ResNet-18, two atoms a tensor.",
            "113",
            f"{epoch:.0f}",
            verdict([round(epoch) == 113]),
        ),
        Finding(
            "One, two and three atoms of every tensor are so many times smaller than the gradient.",
            NOT_QUOTED,
            f"as the authors reshape {figures(factors['paper'])}; first axis against all others "
            f"{figures(factors['out-first'])}",
            "—",
        ),
    )


def _findings(
    results: dict[str, Trained], variances: dict[tuple[str, str], list[tuple[float, float]]]
) -> tuple[Finding, ...]:
    plain = results["SGD"].accuracy
    spectral = [results[f"singular vectors, s = {s}"].accuracy for s in (1, 2, 3)]
    better = {
        other: [
            one < rest
            for moment in ("before training", "after an epoch")
            for (_, one), (_, rest) in zip(
                variances[moment, "singular vectors"], variances[moment, other], strict=True
            )
        ]
        for other in ("entries", "vectors and entries")
    }
    return (
        Finding(
            "A few singular vectors train as well as the whole gradient.",
            "92.6 with two atoms, SGD 94.3 (ResNet-18, CIFAR-10, as measured in PowerSGD's paper)",
            f"{figures(spectral)} with 1, 2, 3; SGD {plain}",
            verdict([above(one, plain, -1.0) for one in spectral]),
        ),
        Finding(
            "In as many bytes singular vectors have less variance than entries.",
            NOT_QUOTED,
            f"in {sum(better['entries'])} of {len(better['entries'])} cases; and less than vectors "
            f"with entries of what they leave in {sum(better['vectors and entries'])}",
            verdict(better["entries"]),
        ),
    )


def _gradients() -> dict[str, Tensor]:
    """A worker's gradient of the first layer, before training and after an epoch of it."""
    splits = Digits().load()
    inputs, targets = splits.train[:]
    with seeded(0, "weights"):
        model = MLP(splits.input_shape, splits.num_classes, (128, 128))
    layer, sgd = max(model.parameters(), key=Tensor.numel), SGD(model.parameters(), lr=0.05)

    def gradient(samples: Tensor) -> Tensor:
        sgd.zero_grad()
        cross_entropy(model(inputs[samples]), targets[samples]).backward()
        assert layer.grad is not None  # just computed
        return layer.grad.clone()

    rows = torch.randperm(len(inputs), generator=generator(0, "order"))
    first = gradient(rows[:32])
    for batch in rows[: len(rows) // 32 * 32].view(-1, 32):
        gradient(batch)
        sgd.step()
    return {"before training": first, "after an epoch": gradient(rows[:32])}


def _variances(gradient: Tensor, atoms: Atoms) -> list[tuple[float, float]]:
    """Share of the gradient's bytes, and relative variance."""
    whole_size, square = 4 * gradient.numel(), float(gradient.square().sum())
    found = []
    for share in _SHARES:
        compressor = Atomo(atoms, bytes_budget=share * whole_size)
        if isinstance(atoms, Basis):
            compressor = _of_size(gradient, atoms, share * whole_size)
        found.append((share, compressor.variance(gradient) / square))
    return found


def _of_size(gradient: Tensor, atoms: Basis, wanted: float) -> Atomo:
    """The largest budget whose messages are no longer than wanted, values of certain atoms too."""
    low, high = 1e-3, float(gradient.numel())
    for _ in range(20):
        middle = (low * high) ** 0.5
        message = Atomo(atoms, budget=middle).encode(gradient, generator(0, "sizes"))
        low, high = (low, middle) if message.num_bytes > wanted else (middle, high)
    return Atomo(atoms, budget=low)


def _variance_table(variances: dict[tuple[str, str], list[tuple[float, float]]]) -> Table:
    return Table(
        "Variance in as many bytes",
        "Squared error relative to the squared norm, for atoms that take this share of the bytes.",
        ("gradient and atoms", *(f"{share:.0%}" for share in _SHARES)),
        tuple(
            (f"{moment}, {name}", *(float(f"{value:.3g}") for _, value in found))
            for (moment, name), found in variances.items()
        ),
    )


def _byte_table() -> Table:
    rows = []
    for reshape, title in (("paper", "as the authors reshape"), ("out-first", "first axis")):
        for number in (1, 2, 3):
            values, factor = _atoms(number, reshape)
            epoch = mebibytes_an_epoch(values, RESNET18_STEPS)
            rows.append((f"{title}, {number}", values, round(factor, 1), round(epoch, 1)))
    return Table(
        "Traffic of ResNet-18",
        "Values of so many atoms of every tensor, how many times fewer than the gradient's, and "
        "megabytes an epoch of 24 steps. First axis against all others: vectors as they are.",
        ("matrices, atoms", "values", "fewer", "MB an epoch"),
        tuple(rows),
    )


def plot_variances(variances: dict[str, list[tuple[float, float]]], ax: Axes) -> None:
    """Relative variance over the share of bytes, one line for each kind of atoms."""
    for colour, (name, found) in zip(COLOURS, variances.items(), strict=False):
        ax.plot(*zip(*found, strict=True), color=colour, label=name, marker="o")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("share of the gradient's bytes (log scale)")
    ax.set_ylabel("relative variance (log scale)")
    ax.legend()
