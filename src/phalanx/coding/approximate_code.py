"""Approximate gradient codes: fewer copies, any number of stragglers, a gradient that is near."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from phalanx.checks import require_at_least, require_one_of
from phalanx.coding.least_squares import Decoding, algorithmic, one_step, optimal
from phalanx.coding.linear_code import LinearCode, relative_error
from phalanx.errors import DecodeError

_ROUNDING = 1e-9


@dataclass(frozen=True)
class ApproximateCode(LinearCode):
    """A code whose workers send plain sums, decoded as well as the messages that arrived allow.

    Whoever arrives, `Decoded.error` bounds what is missing: a decoded gradient counts partition i
    `u_i` times instead of once, and by the Cauchy-Schwarz inequality is off by at most
    `sqrt(mean (u_i - 1)^2)` times the root mean square norm of the partitions' gradients.

    There are as many partitions as workers. A subclass says with which chance a worker holds a
    partition (`probabilities`), and draws the assignment.
    """

    decoding: Decoding = "optimal"
    """'one-step': all messages count alike. 'optimal': the weights that leave the least error.
    'algorithmic': `iterations` steps from nothing towards these."""

    iterations: int = 10
    """Steps of the algorithmic decoder; without effect on the others."""

    rescale: bool = False
    """Scale the gradient so that its partitions count once on average. Else least squares shrinks
    what it cannot cover, and steps are too short; the error bound is a little larger with it."""

    max_error: float | None = None
    """Largest `Decoded.error` that is accepted, a `DecodeError` beyond it; by default any."""

    def __post_init__(self) -> None:
        require_at_least(1, num_workers=self.num_workers)
        require_one_of(("one-step", "optimal", "algorithmic"), decoding=self.decoding)
        require_at_least(1, iterations=self.iterations)
        require_at_least(0, max_error=self.max_error)

    @property
    @abstractmethod
    def probabilities(self) -> Float[Tensor, "workers partitions"]:
        """Float64; the chance that a worker holds a partition."""

    @property
    def weights(self) -> Float[Tensor, "workers partitions"]:
        """Ones: messages are plain sums."""
        return self.assignment.double()

    @property
    def min_workers(self) -> int:
        """One, unless `max_error` asks for more than can be told beforehand."""
        return 1 if self.max_error is None else self.num_workers

    @property
    def load(self) -> float:
        """Partitions that a worker is expected to hold."""
        return self.probabilities.sum().item() / self.num_workers

    def coefficients(self, arrived: Bool[Tensor, " workers"]) -> Float[Tensor, " workers"]:
        """By `decoding` and `rescale`; see `LinearCode.coefficients`."""
        found = torch.zeros(self.num_workers, dtype=torch.float64)
        found[arrived] = self._weigh(arrived)
        share = found @ self.weights
        covered = share.mean().item()
        if self.rescale and covered > _ROUNDING:
            found, share = found / covered, share / covered
        error = relative_error(share)
        if self.max_error is not None and error > self.max_error + _ROUNDING:
            raise DecodeError(
                f"{int(arrived.sum())} messages of {self.num_workers} leave an error of "
                f"{error:.3g}, and max_error is {self.max_error}",
                workers=(~arrived).nonzero().flatten().tolist(),
                bound=0,
            )
        return found

    def _weigh(self, arrived: Tensor) -> Tensor:
        """The coefficients of the workers that arrived."""
        held = self.weights[arrived]
        if self.decoding == "one-step":
            return one_step(held, self.load)
        return optimal(held) if self.decoding == "optimal" else algorithmic(held, self.iterations)

    def expected_squared_error(self, num_arrived: int) -> float:
        """The expectation of `Decoded.error ** 2` when so many workers arrive, drawn uniformly.

        It is taken over assignments, too, and holds for the one-step decoder without rescaling: the
        only one with a closed form for every code.

        Raises:
            ValueError: if there is no closed form.
        """
        check_arrived(num_arrived, self.num_workers)
        if self.decoding != "one-step" or self.rescale:
            raise ValueError(
                f"decoding must be 'one-step', without rescale, for a closed form, got {self}"
            )
        chances, share = self.probabilities, num_arrived / self.num_workers
        scale = self.num_workers / (num_arrived * self.load)
        total, squares = chances.sum(dim=0), chances.square().sum(dim=0)
        drawn = share * (chances * (1 - chances)).sum(dim=0)
        # The variance of a sum over workers that are drawn without replacement.
        spread = (squares - total.square() / self.num_workers) / max(self.num_workers - 1, 1)
        chosen = share * (self.num_workers - num_arrived) * spread
        bias = scale * share * total - 1
        return float((scale**2 * (drawn + chosen) + bias.square()).mean())


def check_arrived(num_arrived: int, num_workers: int) -> None:
    """Raises ValueError unless `1 <= num_arrived <= num_workers`."""
    if not 1 <= num_arrived <= num_workers:
        raise ValueError(
            f"num_arrived must be from 1 to num_workers = {num_workers}, got {num_arrived}"
        )


def check_load(argument: str, load: int, num_workers: int) -> None:
    """Raises ValueError, which names the argument, unless `1 <= load <= num_workers`."""
    if not 1 <= load <= num_workers:
        raise ValueError(f"{argument} must be from 1 to num_workers = {num_workers}, got {load}")


def draw_assignment(
    probabilities: Float[Tensor, "workers partitions"], draw: torch.Generator
) -> Bool[Tensor, "workers partitions"]:
    """Every entry by its own chance; a worker left without any gets one partition at random."""
    held = torch.bernoulli(probabilities, generator=draw).bool()
    idle = (~held.any(dim=1)).nonzero().flatten()
    held[idle, torch.randint(held.shape[1], (len(idle),), generator=draw)] = True
    return held
