"""Selection of the largest values of a vector."""

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from phalanx.checks import require_share

_BLOCK = 1 << 17  # values at a time: a block and its magnitudes stay in the cache
_SAMPLE = 1 << 16  # values looked at to guess where the largest begin
_SMALL = 1 << 16  # below that many values sorting is as fast


def num_kept(ratio: float, dim: int) -> int:
    """This share of `dim` values, rounded, but at least one of them."""
    return min(dim, max(1, round(ratio * dim)))


def require_ratio(ratio: float) -> None:
    """Raises a `ValueError` unless it is a share above 0."""
    require_share(ratio=ratio)


def reached(
    values: Float[Tensor, " dim"], border: Float[Tensor, "..."], *, strictly: bool = False
) -> Int64[Tensor, " places"]:
    """Where values are as large as a border, or larger than it, increasing: one border or many."""
    if values.device.type != "cpu" or values.dtype not in (torch.float32, torch.float64):
        return (values > border if strictly else values >= border).nonzero().flatten()
    compare = np.greater if strictly else np.greater_equal  # several times as fast as torch's
    return torch.from_numpy(np.flatnonzero(compare(values.numpy(), border.numpy())))


def largest(x: Float[Tensor, " dim"], count: int) -> Int64[Tensor, " count"]:
    """Increasing indices of the `count` values of largest magnitude; of equal ones the first.

    The values are finite. A sample guesses a magnitude that somewhat more than `count` values
    reach; one pass collects these, and the exact choice is made among them. If the guess was too
    high, all values are searched: the answer is the same, the time is not.
    """
    candidates = _candidates(x, count)
    magnitudes = (x if candidates is None else x[candidates]).abs()
    last = _ranked(magnitudes, count)
    found = (magnitudes >= last).nonzero().flatten()
    if surplus := len(found) - count:  # the last of those that tie
        kept = torch.ones_like(found, dtype=torch.bool)
        kept[(magnitudes[found] == last).nonzero().flatten()[-surplus:]] = False
        found = found[kept]
    return found if candidates is None else candidates[found]


def _ranked(magnitudes: Float[Tensor, " dim"], count: int) -> Float[Tensor, ""]:
    """The value with `count` values at least as large: found from the end that is nearer."""
    rest = len(magnitudes) - count + 1
    if rest < count:
        return torch.topk(magnitudes, rest, largest=False, sorted=False).values.max()
    return torch.topk(magnitudes, count, sorted=False).values.min()


def _candidates(x: Float[Tensor, " dim"], count: int) -> Int64[Tensor, " candidates"] | None:
    """Increasing indices that include the `count` largest, if a good guess was found."""
    if x.numel() <= _SMALL or count > x.numel() // 4:
        return None
    threshold = _guess(x, count)
    if x.device.type != "cpu":
        found = reached(x.abs(), threshold)
    else:
        magnitudes = x.new_empty(_BLOCK)
        pieces = []
        for start in range(0, x.numel(), _BLOCK):
            block = x[start : start + _BLOCK]
            found = reached(torch.abs(block, out=magnitudes[: len(block)]), threshold)
            pieces.append(found.add_(start))
        found = torch.cat(pieces)
    return found if len(found) >= count else None


def _guess(x: Float[Tensor, " dim"], count: int) -> Tensor:
    """A magnitude that at least `count` values reach, unless the sample is an unlucky one."""
    sample = x[:: max(1, x.numel() // _SAMPLE)].abs()
    expected = count * len(sample) / x.numel()
    rank = min(len(sample), int(expected + 4 * expected**0.5 + 4))  # four standard deviations on
    return torch.topk(sample, rank, sorted=False).values.min()
