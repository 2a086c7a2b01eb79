"""Edge cases from a NumPy archive, or of a class of another data set in one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from phalanx.backdoors.edge_cases import EdgeCases, EdgeSet, divided
from phalanx.checks import require_at_least, require_strictly_between
from phalanx.data import DataSource, NpzFile
from phalanx.data.npz_members import read_npz


@dataclass(frozen=True)
class NpzEdgeCases(EdgeCases):
    """Edge cases from an `.npz` file: a collection of rare inputs, or a class of other data.

    The file has the inputs as `x_train` and `x_test`, or as `x`, of which a share is held out.
    Handwritten sevens of old archives for MNIST, aircraft of one airline for CIFAR-10 are such
    collections. With `only_label` the file is another data set, with `y_train` and `y_test`, and
    the inputs of that class are taken: sevens of USPS, trousers of Fashion-MNIST. Pixels are put on
    the scale of the data under attack, and resized where the images have another size. Nothing is
    unpickled.

    Source: Wang et al., "Attack of the Tails: Yes, You Really Can Backdoor Federated Learning",
    NeurIPS 2020, section 4 (ARDIS, Southwest).
    """

    path: str | Path = "edge_cases.npz"
    """The file."""

    true_label: int = 7
    """The class that they belong to in the data under attack."""

    target: int = 1
    """The class that the attacker wants."""

    only_label: int | None = None
    """Take the inputs of this class of the file only; all, and no labels are read, if None."""

    test_fraction: float = 1 / 3
    """Share of the inputs that is held out where the file has no `x_test`."""

    num_train: int | None = None
    """Take the first so many to train on; all if not given."""

    max_bytes: int = 2**31
    """Largest size of the arrays together, decompressed; checked before they are read."""

    def __post_init__(self) -> None:
        require_at_least(1, num_train=self.num_train, max_bytes=self.max_bytes)
        require_at_least(0, true_label=self.true_label, target=self.target)
        require_at_least(0, only_label=self.only_label)
        require_strictly_between(0, 1, test_fraction=self.test_fraction)

    def load(self, data: DataSource) -> EdgeSet:
        """The edge cases of the file, see `EdgeCases.load`; the data must be an `NpzFile`."""
        if not isinstance(data, NpzFile):
            raise ValueError(
                "data must be an NpzFile, whose scale pixels from a file can be put on, got "
                f"{type(data).__name__}; give an EdgeSet, or LowDensity"
            )
        names = ["x", "x_train", "x_test", "y", "y_train", "y_test"]
        arrays = read_npz(self.path, [], names, max_bytes=self.max_bytes)
        parts = [self._part(arrays, part) for part in ("_train", "_test", "")]
        given = [part for part in parts if part is not None]
        if not given:
            raise ValueError(f"{self.path} must hold x, or x_train, got {', '.join(arrays) or '-'}")
        size = data.load().input_shape
        train, *test = (
            data.scaled(_resized(part, size), f"{self.path}: edge cases") for part in given
        )
        if not test:
            train, held = divided(train, self.test_fraction, str(self.path))
            test = [held]
        origin = Path(self.path).name
        if self.only_label is not None:
            origin += f", class {self.only_label}"
        return EdgeSet(train[: self.num_train], test[0], self.true_label, self.target, origin)

    def _part(self, arrays: dict[str, NDArray[Any]], part: str) -> NDArray[Any] | None:
        """The inputs of a part of the file, of the wanted class; None if it has no such part."""
        if "x" + part not in arrays:
            return None
        inputs = arrays["x" + part]
        if self.only_label is None:
            return inputs
        if (labels := arrays.get("y" + part)) is None or labels.shape != inputs.shape[:1]:
            raise ValueError(f"{self.path} must hold a label y{part} for every input of x{part}")
        chosen: NDArray[Any] = inputs[labels == self.only_label]
        if not len(chosen):
            raise ValueError(f"{self.path}: x{part} must have class {self.only_label}, got none")
        return chosen


def _resized(images: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Images of the height and width of the data, by bilinear interpolation; tables as they are."""
    if images.ndim < 3 or len(shape) != 3 or images.shape[1:3] == shape[1:]:
        return images
    channels = images.ndim == 4
    planes = images.transpose(0, 3, 1, 2) if channels else images[:, None]
    values = torch.from_numpy(planes.astype(np.float32))
    found = interpolate(values, size=shape[1:], mode="bilinear", align_corners=False).numpy()
    return found.transpose(0, 2, 3, 1) if channels else found[:, 0]
