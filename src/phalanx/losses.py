"""Cross-entropy loss, with one class per sample or one at every place of a sequence."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]
"""The mean loss of a batch, from the model's output and the targets."""


def classes_second(outputs: Tensor) -> Tensor:
    """Scores with the classes along the second axis, where torch looks for them.

    Outputs of three axes are sequences, `(batch, length, classes)`; all others are left as they
    are.
    """
    return outputs.movedim(-1, 1) if outputs.ndim == 3 else outputs


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Torch's cross-entropy, which also takes sequences with their classes along the last axis.

    Args:
        outputs: scores `(batch, classes)` or `(batch, length, classes)`; of more axes, or without
            the one of samples, as torch takes them.
        targets: the class of every sample or place; -100 where there is nothing to learn.

    Returns:
        The mean over samples, or over all places.

    >>> import torch
    >>> cross_entropy(torch.zeros(2, 5, 4), torch.zeros(2, 5, dtype=torch.int64)).exp()
    tensor(4.)
    """
    return functional.cross_entropy(classes_second(outputs), targets)
