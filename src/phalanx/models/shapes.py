"""Checks of input shapes and numbers of classes."""

from math import prod

from phalanx.checks import require_at_least


def num_inputs(input_shape: tuple[int, ...], num_classes: int) -> int:
    """Numbers in one input.

    Raises:
        ValueError: if a size or `num_classes` is below 1.
    """
    if any(size < 1 for size in input_shape):
        raise ValueError(f"input_shape must have sizes of at least 1, got {input_shape}")
    require_at_least(1, num_classes=num_classes)
    return prod(input_shape)


def image_shape(
    input_shape: tuple[int, ...], num_classes: int, smallest: int
) -> tuple[int, int, int]:
    """Channels, height and width of images.

    Raises:
        ValueError: if `input_shape` is no image of at least `smallest` pixels each way, or
            `num_classes` is below 1.
    """
    num_inputs(input_shape, num_classes)
    if len(input_shape) != 3 or min(input_shape[1:]) < smallest:
        raise ValueError(
            "input_shape must be (channels, height, width) with height and width of at least "
            f"{smallest}, got {input_shape}"
        )
    channels, height, width = input_shape
    return channels, height, width
