"""Network width and large batches: gradient diversity beside the epochs that batches take."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

from phalanx.experiments import Cell, Records, grid
from phalanx.reproduce.base import Findings, Recipe, Scope, report, sized
from phalanx.reproduce.network_families import (
    Family,
    ResidualNetwork,
    best_epochs,
    diversities,
    fully_connected,
    linear_diversity,
    pooled,
)

_SHAPE = "depth x width"
_TOLERANCE = 0.1  # more epochs than the best batch takes: no slow-down
_CONNECTED = Family(
    fully_connected, ((1, 128), (4, 93), (16, 61)), "mnist.npz", "MNIST", 4096, 0.3, 0.99
)
_RESIDUAL = Family(
    ResidualNetwork, ((2, 32), (8, 16), (32, 8)), "cifar10_12k.npz", "CIFAR-10", 4096, 1.5, 0.6
)


@dataclass(frozen=True)
class LargeBatchWidth(Recipe):
    """Diversity of linear, fully connected and residual networks; batches that they stand.

    At size quick all learn scikit-learn's digits.
    """

    name: ClassVar[str] = "large-batch-width"

    linear_widths: tuple[int, ...] = (2, 5, 10, 20, 50, 100, 200)
    """Hidden units of the linear networks (K), growing."""
    num_inputs: int = 50
    """Inputs of the linear networks (d)."""
    num_samples: int = 200
    """Samples that they see (n)."""
    draws: int = sized(20, 20, 200)
    """Draws of inputs, labels and weights."""
    families: Mapping[str, Family] = field(
        default_factory=lambda: {"fully connected": _CONNECTED, "residual": _RESIDUAL}
    )
    """The networks that learn images."""
    batch_sizes: tuple[int, ...] = sized((16, 512), (16, 128, 1024), (16, 64, 256, 1024, 4096))
    """Batches whose epochs are counted, growing."""
    rates: tuple[float, ...] = sized((0.1, 0.3), (0.1, 0.3, 0.03, 1.0), (0.1, 0.3, 0.03, 1.0, 3.0))
    """Learning rates that each of them is tried with."""
    most_epochs: int = sized(4, 40, 200)
    """Epochs after which it is given up."""
    seeds: int = sized(1, 3, 10)
    """Initial weights."""

    def cells(self, scope: Scope) -> list[Cell]:
        """Diversity by width, by network and seed, and epochs by network, batch size and seed."""
        drawn = {name: getattr(self, name) for name in ("num_inputs", "num_samples", "draws")}
        cells = grid(linear_diversity, {"width": self.linear_widths}, drawn)
        for name, family in self.families.items():
            images = scope.images([family.file], family.data, ("default", "full"))
            fixed: dict[str, Any] = {"source": images.source, "family": family}
            fixed["most_epochs"] = self.most_epochs
            shapes = {f"{deep} x {wide}": {"shape": (deep, wide)} for deep, wide in family.shapes}
            axes: dict[str, Any] = {"networks": {name: {}}, _SHAPE: shapes}
            axes["seed"] = range(self.seeds)
            cells += grid(diversities, axes, fixed)
            batches = axes | {"batch": self.batch_sizes}
            cells += grid(best_epochs, batches, fixed | {"rates": self.rates})
        return cells

    @property
    def limit(self) -> float:
        """What the ratio of expectations tends to as the linear networks get wide."""
        n, d = self.num_samples, self.num_inputs
        return n * d / (n + d)

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Whether diversity grows with the width, and with it the batch that costs no epochs."""
        linear = Records(one for one in found if "width" in one.labels)
        diversity, widths = [one["diversity"] for one in linear], self.linear_widths
        families = {
            name: [self._summary(found.where(networks=name), shape) for shape in family.shapes]
            for name, family in self.families.items()
        }
        told = {
            key: {name: [one[key] for one in each] for name, each in families.items()}
            for key in ("at_loss", "untrained", "price", "largest")
        }
        at_loss, prices, largest = (told[key].values() for key in ("at_loss", "price", "largest"))
        holds = {
            "linear": [diversity == sorted(diversity), abs(diversity[-1] / self.limit - 1) <= 0.1],
            "diversity": [_falls(one) for one in at_loss],
            "largest": [(one[0] or 0) > (one[-1] or 0) for one in largest],
            "price": [one == sorted(one) and one[0] < one[-1] for one in prices],
            "untrained": None,
        }
        values = {
            "recipe": self,
            "linear": {f"K={one['width']}:": one["diversity"] for one in linear},
            "losses": {name: one.loss for name, one in self.families.items()},
            "percents": {name: 100 * one.accuracy for name, one in self.families.items()},
            "samples": {name: one.samples for name, one in self.families.items()},
            "files": {name: one.file for name, one in self.families.items()},
            **told,
        }
        every = [(name, one) for name, each in families.items() for one in each]
        tables = {
            "linear": [
                (width, one, one / self.limit) for width, one in zip(widths, diversity, strict=True)
            ],
            "networks": [
                (name, *(one[key] for key in (_SHAPE, "parameters", "untrained", "at_loss")))
                for name, one in every
            ],
            "epochs": [
                (name, one[_SHAPE], *pair)
                for name, one in every
                for pair in zip(self.batch_sizes, one["epochs"], one["rates"], strict=True)
            ],
        }
        lines = {"networks": (widths, diversity), "limit": (widths, [self.limit] * len(widths))}
        by_batch = {
            f"{name} {one[_SHAPE]}": (self.batch_sizes, one["epochs"]) for name, one in every
        }
        wider = all(all(held) for key in ("diversity", "largest") if (held := holds[key]))
        return report(
            self.told,
            holds,
            values,
            tables,
            {"linear": lines, "epochs": by_batch},
            answer="wider" if wider else "mixed",
            notes=("notes", "quick" if scope.size == "quick" else "default"),
        )

    def _summary(self, found: Records, shape: tuple[int, int]) -> dict[str, Any]:
        """What all seeds say of one network."""
        ours = {_SHAPE: "{} x {}".format(*shape)}
        drawn = Records(one for one in found.where(**ours) if "batch" not in one.labels)
        swept = Records(one for one in found.where(**ours) if "batch" in one.labels)
        epochs = [swept.mean("epochs", batch=size) for size in self.batch_sizes]
        known = [one for one in epochs if one is not None]
        fast = [
            size
            for size, one in zip(self.batch_sizes, epochs, strict=True)
            if one is not None and one <= (1 + _TOLERANCE) * min(known)
        ]
        return {
            **ours,
            "parameters": drawn[0]["parameters"],
            "untrained": drawn.reduce("untrained", pooled),
            "at_loss": drawn.reduce("at_loss", pooled),
            "epochs": epochs,
            "rates": [swept.reduce("learning rate", list, batch=size) for size in self.batch_sizes],
            "price": epochs[-1] / epochs[0] if epochs[0] and epochs[-1] else math.inf,
            "largest": max(fast, default=None),
        }


def _falls(values: Sequence[float]) -> bool:
    return all(first > second for first, second in pairwise(values))
