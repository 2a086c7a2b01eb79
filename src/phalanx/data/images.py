"""Conversion of pictures to arrays."""

import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from phalanx.checks import require_at_least
from phalanx.data.arrays import Array


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Turns what Pillow raises over damaged or huge images into a `ValueError` with this name."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it can make do with
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"{name} must have at most PIL.Image.MAX_IMAGE_PIXELS={Image.MAX_IMAGE_PIXELS} "
            f"pixels: {error}"
        ) from error
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{name} must be a whole image: {error}") from error


def stack_images(
    images: Iterable[Image.Image], name: str, size: int | None = None, *, max_bytes: int
) -> Array:
    """Pictures as uint8 `(n, height, width)` if all are grey, else `(n, height, width, 3)`.

    Args:
        images: the pictures, of any mode; those that are only opened are decoded here, one by one,
            after the checks.
        name: where they come from, for messages.
        size: height and width to which they are resized (bilinear); None keeps theirs.
        max_bytes: how large their pixels may be together, before and after resizing.

    Raises:
        ValueError: if there is none, one is damaged, they are larger, or their sizes differ and no
            `size` is given.
    """
    pictures = list(images)
    sizes = {picture.size for picture in pictures}
    if not sizes or (size is None and len(sizes) > 1):
        raise ValueError(
            f"{name}: images must have one size (give image_size to resize them), "
            f"got {len(sizes)} sizes among {len(pictures)} images"
        )
    mode = "L" if all(picture.mode in ("1", "L") for picture in pictures) else "RGB"
    width, height = sizes.pop() if size is None else (size, size)
    shape = (len(pictures), height, width, *((3,) if mode == "RGB" else ()))
    pixels = sum(math.prod(picture.size) * len(picture.getbands()) for picture in pictures)
    if (largest := max(pixels, math.prod(shape))) > max_bytes:
        raise ValueError(
            f"{name}: images must hold at most max_bytes={max_bytes} bytes of pixels, got {largest}"
        )
    stacked = np.empty(shape, np.uint8)
    for index, picture in enumerate(pictures):
        with naming(f"{name}: image {index}"):
            converted = (
                picture if size is None else picture.resize((size, size), Image.Resampling.BILINEAR)
            )
            stacked[index] = np.asarray(converted.convert(mode))
    return stacked


def check_size(image_size: int | None) -> None:
    """Refuses a size below one pixel."""
    require_at_least(1, image_size=image_size)
