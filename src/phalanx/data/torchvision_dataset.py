"""Image classification data sets of torchvision, by name."""

import inspect
import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from phalanx.checks import require_at_least
from phalanx.data.arrays import Array, channels_first, in_memory, number_labels, standardise
from phalanx.data.base import DataSource, Splits
from phalanx.data.images import check_size, naming, stack_images


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

    train_split: str = "train"
    """The part to train on, of classes that name their parts."""

    test_split: str = "test"
    """The part to test on, of classes that name their parts."""

    image_size: int | None = None
    """Height and width to which images are resized; needed where their sizes differ."""

    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the class, such as `{"split": "letters"}` for EMNIST."""

    max_bytes: int = 2**31
    """Largest size of the pixels of a split, in bytes."""

    def __post_init__(self) -> None:
        check_size(self.image_size)
        require_at_least(1, max_bytes=self.max_bytes)

    def load(self) -> Splits:
        """The training and test sets, after a download where that is allowed and needed.

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
        images = self._open(kind, train=train)
        labels: list[int] = []

        def pictures() -> Iterator[Image.Image]:
            for index in range(len(images)):
                with naming(f"{self.name}: image {index}"):
                    picture, label = images[index]
                try:
                    labels.append(operator.index(label))
                except TypeError:
                    raise ValueError(
                        f"{self.name}: labels must be one whole number each, got {label!r}"
                    ) from None
                yield picture

        stacked = stack_images(pictures(), self.name, self.image_size, max_bytes=self.max_bytes)
        return channels_first(stacked, self.name), np.asarray(labels)

    def _open(self, kind: type, *, train: bool) -> Any:
        parameters = inspect.signature(kind).parameters
        named = set(parameters)
        if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
            named |= {"train", "download"}  # EMNIST hands them on to MNIST
        # EMNIST's split is another matter than training and testing, and is among the options.
        if "split" in named and "split" not in self.options:
            chosen: dict[str, Any] = {"split": self.train_split if train else self.test_split}
        elif "train" in named:
            chosen = {"train": train}
        else:
            raise ValueError(
                f"name must be a data set with a test part of its own, got {self.name}"
            )
        if "download" in named:
            chosen["download"] = self.download
        return kind(root=str(self.root), **(chosen | self.options))
