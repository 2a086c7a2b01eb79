"""Conversion of pictures to arrays."""

import numpy as np
import pytest
from PIL import Image

from phalanx.data.images import stack_images


def test_grey_stays_grey_and_anything_else_becomes_colour():
    grey, black, red = (Image.new(mode, (4, 3)) for mode in ("L", "1", "RGB"))
    assert stack_images([grey, black], "x", max_bytes=1000).shape == (2, 3, 4)
    assert stack_images([grey, red, Image.new("RGBA", (4, 3))], "x", max_bytes=1000).shape == (
        3,
        3,
        4,
        3,
    )


def test_sizes_must_agree_or_be_given():
    pictures = [Image.new("L", (4, 3), 9), Image.new("L", (5, 7), 9)]
    with pytest.raises(ValueError, match=r"x: images must have one size .* got 2 sizes among 2"):
        stack_images(pictures, "x", max_bytes=1000)
    resized = stack_images(pictures, "x", size=6, max_bytes=1000)
    assert resized.dtype == np.uint8
    assert (resized == np.full((2, 6, 6), 9)).all()
    with pytest.raises(ValueError, match="x: images must have one size"):
        stack_images([], "x", max_bytes=1000)
