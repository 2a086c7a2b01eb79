"""Gradient coding by cyclic repetition: neighbours on a circle share their work."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from phalanx.checks import require_one_of
from phalanx.coding.frequency_band import centered_band
from phalanx.coding.groups import check_stragglers, circle_lengths, consecutive_groups, name
from phalanx.coding.linear_code import LinearCode
from phalanx.errors import DecodeError
from phalanx.randomness import generator

Construction = Literal["centered", "random"]
_DRAWS = 20  # random codes, of which the best is kept
_SAMPLED = 64  # sets of stragglers on which they are compared, besides those side by side
_TOLERANCE = 1e-8
_WAVES = 4


@dataclass(frozen=True)
class CyclicRepetition(LinearCode):
    """Exact gradients without any s workers, for any number of workers.

    Worker i computes partitions i .. i + s around a circle and sends one weighted sum of their
    gradients; any messages of all but s workers of a circle combine to the exact sum. (The cyclic
    repetition scheme, or cyclic MDS code.)

    Guarantee: the mean gradient up to rounding, as long as at most s workers of each circle are
    missing; otherwise a `DecodeError`. It believes what arrives: against Byzantine workers take
    `DracoCyclic`.

    The default weights are those of `DracoCyclic`, read as a code against erasures: deterministic,
    and on circles as short as the default ones the better conditioned. Rounding is amplified most
    by workers that are missing side by side: on one circle of 15 workers with s = 2 up to 9-fold,
    and 80-fold by the best of 20 random codes. Longer circles amplify more, hence `group_length`;
    on one circle of 45 with s = 10 neither is of use in float32, and random codes are less bad.

    Cost: encoding s + 1 vector additions; decoding one pass over the messages, and algebra on
    `group_length` x `group_length` matrices, once for each set of workers that arrives.

    Source: Tandon, Lei, Dimakis and Karampatziakis, "Gradient Coding: Avoiding Stragglers in
    Distributed Learning", ICML 2017 (the cyclic repetition scheme: `construction="random"`). The
    default weights and circles are this package's.

    >>> import torch
    >>> from phalanx.coding import CyclicRepetition
    >>> code = CyclicRepetition(num_workers=5, num_stragglers=2)
    >>> messages = code.encode_all([torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0]])])
    >>> decoded = code.decode(messages, arrived=torch.tensor([True, False, True, False, True]))
    >>> round(decoded.gradient.item(), 4)
    3.0
    """

    num_stragglers: int = 2
    """Workers of each circle that may be missing (s in the paper); below num_workers."""

    group_length: int | None = None
    """Most workers on one circle; the workers are cut into circles of about equal length. By
    default 13, or num_stragglers + 2 if that is more; num_workers for the paper's one circle."""

    construction: Construction = "centered"
    """'centered': closed form, well conditioned. 'random': the paper's, from Gaussian numbers; of
    20 draws the best conditioned is kept."""

    seed: int = 0
    """Of the random construction."""

    def __post_init__(self) -> None:
        check_stragglers(self.num_workers, self.num_stragglers)
        shortest = self.num_stragglers + 1
        if self.group_length is not None and not shortest <= self.group_length <= self.num_workers:
            raise ValueError(
                f"group_length must be from num_stragglers + 1 = {shortest} to num_workers = "
                f"{self.num_workers}, got {self.group_length}"
            )
        require_one_of(("centered", "random"), construction=self.construction)

    @cached_property
    def groups(self) -> tuple[range, ...]:
        """The circles: ranges of workers, which hold the partitions of the same numbers."""
        if self.group_length == self.num_workers:
            return (range(self.num_workers),)
        longest = self.group_length or max(13, self.num_stragglers + 2)
        lengths = circle_lengths(self.num_workers, self.num_stragglers + 1, longest)
        return consecutive_groups(lengths)

    @cached_property
    def weights(self) -> Float[Tensor, "workers partitions"]:
        """Float64; s + 1 neighbours in every row."""
        weights: Tensor = torch.block_diag(*(self._circle(len(group))[0] for group in self.groups))
        return weights

    @cached_property
    def assignment(self) -> Bool[Tensor, "workers partitions"]:
        """Which worker computes the gradient of which partition: s + 1 around its circle."""
        return self.weights != 0

    @property
    def min_workers(self) -> int:
        """All but s, who may all belong to one circle."""
        return self.num_workers - self.num_stragglers

    def coefficients(self, arrived: Bool[Tensor, " workers"]) -> Float[Tensor, " workers"]:
        """The shortest combination that is exact; see `LinearCode.coefficients`."""
        found = torch.zeros(self.num_workers, dtype=torch.float64)
        for group in self.groups:
            circle = slice(group.start, group.stop)
            here = arrived[circle]
            missing = [group[place] for place in (~here).nonzero().flatten().tolist()]
            if len(missing) > self.num_stragglers:
                raise self._error(group, missing, f"{len(missing)} are missing")
            weights, basis, target = self._circle(len(group))
            combination = torch.linalg.lstsq(basis[here].T, target, driver="gelsd").solution
            off = (combination @ weights[here] - 1).abs().max().item()
            if off > _TOLERANCE:
                raise self._error(group, missing, f"the code is too ill conditioned ({off:.0e})")
            found[circle] = torch.zeros_like(found[circle]).masked_scatter(here, combination)
        return found

    def _circle(self, length: int) -> tuple[Tensor, Tensor, Tensor]:
        return _circle(length, self.num_stragglers, self.construction, self.seed)

    def _error(self, group: range, missing: list[int], reason: str) -> DecodeError:
        return DecodeError(
            f"workers {group.start} to {group.stop - 1} cannot be decoded: {reason}; missing: "
            f"{name(missing)}; any {self.num_stragglers} of them may be missing",
            workers=missing,
            bound=0,
        )


@lru_cache(maxsize=64)
def _circle(
    length: int, num_stragglers: int, construction: Construction, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of one circle, and what decoding needs; see `_row_space`. Once per shape of code."""
    if construction == "centered":
        weights = centered_band(length, num_stragglers, _WAVES)[0]
    else:
        weights = _random_code(length, num_stragglers, seed)
    return weights, *_row_space(weights, num_stragglers)


def _row_space(weights: Tensor, num_stragglers: int) -> tuple[Tensor, Tensor]:
    """A basis B of what any messages can be, and the t for which v B = t means v weights = 1.

    Any rows of the basis are as independent as they can be, which the weights' are not: they have
    a null space, whose rounding a solver would have to tell from the rest.
    """
    rank = len(weights) - num_stragglers
    left, sizes, right = torch.linalg.svd(weights)
    return left[:, :rank], right[:rank].sum(dim=1) / sizes[:rank]


def _random_code(length: int, num_stragglers: int, seed: int) -> Float[Tensor, "length length"]:
    """The best of several random cyclic codes, by how much the worst stragglers amplify rounding.

    Every row lies in the null space of a Gaussian matrix whose rows add up to zero, and so does the
    row of ones; any `length - num_stragglers` rows span that space.
    """
    draw = generator(seed, "cyclic repetition", length, num_stragglers)
    neighbours = torch.arange(length)[:, None] + torch.arange(length - num_stragglers)
    subsets = torch.stack(
        [torch.randperm(length, generator=draw)[: length - num_stragglers] for _ in range(_SAMPLED)]
    )
    present = torch.cat([neighbours % length, subsets])
    codes = [_draw_code(length, num_stragglers, draw) for _ in range(_DRAWS)]
    return min(codes, key=lambda weights: _amplification(weights, num_stragglers, present))


def _draw_code(length: int, num_stragglers: int, draw: torch.Generator) -> Tensor:
    checks = torch.randn(num_stragglers, length, generator=draw, dtype=torch.float64)
    checks[:, -1] -= checks.sum(dim=1)
    weights = torch.eye(length, dtype=torch.float64)
    for worker in range(length):
        others = (worker + 1 + torch.arange(num_stragglers)) % length
        weights[worker, others] = -torch.linalg.solve(checks[:, others], checks[:, worker])
    return weights


def _amplification(weights: Tensor, num_stragglers: int, present: Tensor) -> float:
    """The largest factor by which decoding amplifies rounding, over sets of present workers."""
    basis, target = _row_space(weights, num_stragglers)
    targets = target.expand(len(present), -1)
    combinations = torch.linalg.solve(basis[present].transpose(1, 2), targets)
    return float((combinations.abs()[:, None] @ weights[present].abs()).max())
