"""The image classification sets of torchvision, by name."""

import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from phalanx.data.arrays import Array, channels_first, in_memory, number_labels, standardise
from phalanx.data.base import DataSource, Splits
from phalanx.data.images import check_size, stack_images


@dataclass(frozen=True)
class TorchvisionDataset(DataSource):
    """A class of `torchvision.datasets` with images and one label each, such as `CIFAR10`.

    Needs `pip install 'phalanx[vision]'`. The whole set is held in memory; channels are
    standardised as in `NpzFile`. Augmentation belongs into the model or a data set of your own.

    >>> TorchvisionDataset("CIFAR10", root="data").name
    'CIFAR10'
    """

    name: str = "MNIST"
    """The class, such as MNIST, FashionMNIST, CIFAR10, CIFAR100, SVHN or GTSRB."""

    root: str | Path = "data"
    """Folder where torchvision keeps its files."""

    download: bool = True
    """Fetch the files from their origin where they are missing."""

    image_size: int | None = None
    """Height and width to which images are resized; needed where their sizes differ."""

    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the class, such as `{"split": "letters"}` for EMNIST."""

    def __post_init__(self) -> None:
        check_size(self.image_size)

    def load(self) -> Splits:
        """Reads the set, after a download where that is allowed and needed.

        Raises:
            ValueError: if torchvision is not installed, has no such data set, or what it has are
                no images with one label each.
        """
        try:
            import torchvision
        except ImportError as error:
            raise ValueError(
                "TorchvisionDataset needs torchvision: pip install 'phalanx[vision]'"
            ) from error
        kind = getattr(torchvision.datasets, self.name, None)
        if not inspect.isclass(kind):
            raise ValueError(f"name must be a class of torchvision.datasets, got {self.name!r}")
        x_train, y_train = self._part(kind, train=True)
        x_test, y_test = self._part(kind, train=False)
        y_train, y_test, num_classes = number_labels(y_train, y_test, self.name)
        scaled = standardise(x_train, x_test)
        return in_memory((scaled[0], y_train), (scaled[1], y_test), num_classes, self.name)

    def _part(self, kind: type, *, train: bool) -> tuple[Array, Array]:
        accepted = inspect.signature(kind).parameters
        # Most classes take train=bool, the newer ones split="train"; EMNIST's split is another
        # matter, which `options` settles, and its train=bool hides in **kwargs.
        if "split" in accepted and "split" not in self.options:
            chosen: dict[str, Any] = {"split": "train" if train else "test"}
        else:
            chosen = {"train": train}
        if "download" in accepted or "split" not in accepted or "train" in chosen:
            chosen["download"] = self.download
        items = list(kind(root=str(self.root), **chosen, **self.options))
        images = stack_images((item[0] for item in items), self.name, self.image_size)
        return channels_first(images, self.name), np.asarray([int(item[1]) for item in items])
