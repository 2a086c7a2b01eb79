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

    Raises:
        ValueError: on the CPU, if a target is no class.

    >>> import torch
    >>> cross_entropy(torch.zeros(2, 5, 4), torch.zeros(2, 5, dtype=torch.int64)).exp()
    tensor(4.)
    """
    scores = classes_second(outputs)
    try:
        return functional.cross_entropy(scores, targets)
    except IndexError as error:  # asked afterwards, as it would cost time, and `vmap` forbids it
        raise ValueError(targets_problem(scores, targets) or str(error)) from error


def targets_problem(scores: Tensor, targets: Tensor, ignored: int = -100) -> str | None:
    """Why targets are no classes of these scores `(batch, classes, ...)`; None if they are.

    >>> import torch
    >>> targets_problem(torch.zeros(2, 3), torch.tensor([1, 3]))
    'targets must be classes from 0 to 2 (-100 is left out), got 3'
    """
    if scores.ndim < 2 or targets.is_floating_point() or not targets.numel():
        return None
    classes = scores.shape[1]
    wrong = targets[(targets != ignored) & ((targets < 0) | (targets >= classes))]
    if not len(wrong):
        return None
    return (
        f"targets must be classes from 0 to {classes - 1} ({ignored} is left out), got "
        f"{int(wrong.flatten()[0])}"
    )
