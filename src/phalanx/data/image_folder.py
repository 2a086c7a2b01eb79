"""Images in folders that are named after their classes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from phalanx.checks import require_at_least
from phalanx.data.arrays import (
    Array,
    channels_first,
    check_fraction,
    hold_out,
    in_memory,
    number_labels,
    standardise,
)
from phalanx.data.base import DataSource, Splits
from phalanx.data.images import check_size, naming, stack_images

_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"})


@dataclass(frozen=True)
class ImageFolder(DataSource):
    """A folder with one folder of images for each class, or `train` and `test` with such folders.

    Classes are the names of the folders, in sorted order; images are taken in the order of their
    names. All are grey if each of them is, else in colour; channels are standardised as in
    `NpzFile`. Without `train` and `test` a fixed, stratified share is held out.

    >>> import os, tempfile
    >>> from PIL import Image
    >>> folder = tempfile.TemporaryDirectory()
    >>> for name in ("cat", "dog"):
    ...     os.mkdir(os.path.join(folder.name, name))
    ...     for i in range(5):
    ...         Image.new("L", (4, 4), i).save(os.path.join(folder.name, name, f"{i}.png"))
    >>> splits = ImageFolder(folder.name).load()
    >>> splits.input_shape, splits.num_classes, len(splits.train), len(splits.test)
    ((1, 4, 4), 2, 8, 2)
    >>> folder.cleanup()
    """

    path: str | Path = "images"
    """The folder."""

    image_size: int | None = None
    """Height and width to which images are resized; needed if their sizes differ."""

    test_fraction: float = 0.2
    """Share of the images that is held out where there are no `train` and `test`."""

    max_bytes: int = 2**31
    """Largest size of all pixels, in bytes."""

    def __post_init__(self) -> None:
        check_size(self.image_size)
        check_fraction(self.test_fraction)
        require_at_least(1, max_bytes=self.max_bytes)

    def load(self) -> Splits:
        """The training and test images.

        Raises:
            FileNotFoundError: if the folder is missing.
            ValueError: if there are no images of two classes, one is damaged, or their sizes differ
                and no `image_size` is given; the message names the file.
        """
        root = Path(self.path)
        if not root.is_dir():
            raise FileNotFoundError(2, "is no folder", str(root))
        if (root / "train").is_dir() and (root / "test").is_dir():
            files = [*_files(root / "train"), *_files(root / "test")]
            num_train = len(_files(root / "train"))
            train, test = np.arange(num_train), np.arange(num_train, len(files))
            labels = np.array([file.parent.name for file in files])
        else:
            files = _files(root)
            labels = np.array([file.parent.name for file in files])
            train, test = hold_out(labels, self.test_fraction, str(root))
        inputs = channels_first(self._pixels(files), str(root))
        scaled = standardise(inputs[train], inputs[test])
        y_train, y_test, num_classes = number_labels(labels[train], labels[test], str(root))
        return in_memory((scaled[0], y_train), (scaled[1], y_test), num_classes, str(root))

    def _pixels(self, files: list[Path]) -> Array:
        pictures = []
        for file in files:
            with naming(str(file)), Image.open(file) as picture:
                picture.load()  # and closed: a file for each image is too many
                pictures.append(picture.copy())
        return stack_images(pictures, str(self.path), self.image_size, max_bytes=self.max_bytes)


def _files(folder: Path) -> list[Path]:
    """The images of all classes, in the order of their names.

    Raises:
        ValueError: if a class has none, or there is no class.
    """
    classes = sorted(one for one in folder.iterdir() if one.is_dir() and one.name[0] != ".")
    found = []
    for one in classes:
        images = sorted(file for file in one.iterdir() if file.suffix.lower() in _ENDINGS)
        if not images:
            raise ValueError(f"{one} must hold images, got none ({', '.join(sorted(_ENDINGS))})")
        found += images
    if not found:
        raise ValueError(f"{folder} must hold a folder of images for each class, got none")
    return found
