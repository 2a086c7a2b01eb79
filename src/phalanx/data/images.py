"""Conversion of pictures to arrays."""

from collections.abc import Iterable

import numpy as np
from PIL import Image

from phalanx.checks import require_at_least
from phalanx.data.arrays import Array


def stack_images(images: Iterable[Image.Image], name: str, size: int | None = None) -> Array:
    """Pictures as uint8 `(n, height, width)` if all are grey, else `(n, height, width, 3)`.

    Args:
        images: the pictures, of any mode.
        name: where they come from, for messages.
        size: height and width to which they are resized (bilinear); None keeps theirs.

    Raises:
        ValueError: if there is none, or their sizes differ and no `size` is given.
    """
    pictures = [
        picture if size is None else picture.resize((size, size), Image.Resampling.BILINEAR)
        for picture in images
    ]
    sizes = {picture.size for picture in pictures}
    if len(sizes) != 1:
        raise ValueError(
            f"{name}: images must have one size (give image_size to resize them), "
            f"got {len(sizes)} sizes among {len(pictures)} images"
        )
    mode = "L" if all(picture.mode in ("1", "L") for picture in pictures) else "RGB"
    return np.stack([np.asarray(picture.convert(mode)) for picture in pictures])


def check_size(image_size: int | None) -> None:
    """Refuses a size below one pixel."""
    require_at_least(1, image_size=image_size)
