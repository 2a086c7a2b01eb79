"""Linear gradient codes against stragglers."""

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from phalanx.coding.base import Code, Decoded
from phalanx.coding.groups import check_messages, check_owned, check_partitions, name
from phalanx.columns import Shard, add_weighted_sums, finite_rows, weighted_sum, whole
from phalanx.errors import DecodeError
from phalanx.floats import all_finite

_LOST_DIGITS = 1e-2  # rounding, as amplified, beyond which a sum is no gradient any more


@dataclass(frozen=True)
class LinearCode(Code):
    """A linear gradient code: against workers that are late or dead, not against Byzantine ones.

    A subclass says by what each worker multiplies the gradients of its partitions (`weights`), and
    by what the server multiplies the messages that arrived (`coefficients`). All else is here: the
    passes over the numbers, and the bound on the error that missing messages leave.

    A message that is not finite counts as missing, and its sender as a suspect. A message that is
    finite and wrong is believed.
    """

    compressible: ClassVar[Literal["freely", "alike", "never"]] = "freely"

    @property
    @abstractmethod
    def weights(self) -> Float[Tensor, "workers partitions"]:
        """Float64; row i makes the message of worker i from the gradients of the partitions."""

    @abstractmethod
    def coefficients(self, arrived: Bool[Tensor, " workers"]) -> Float[Tensor, " workers"]:
        """Float64; by what each message is multiplied, so that all add up to the partitions' sum.

        Args:
            arrived: whose messages there are; at least one. The others get 0.

        Raises:
            DecodeError: if the code asks for more messages than these.
        """

    def can_decode(self, arrived: Bool[Tensor, " workers"]) -> bool:
        """Whether `decode` takes the messages of these workers."""
        try:
            _solve(self, tuple(arrived.tolist()))
        except DecodeError:
            return False
        return True

    def encode(self, worker: int, gradients: Float[Tensor, "owned dim"]) -> Float[Tensor, " width"]:
        """The weighted sum of the worker's gradients.

        Raises:
            ValueError: if there is not one gradient for each partition that the worker owns.
        """
        owned = self.assignment[worker]
        check_owned(len(gradients), int(owned.sum()), worker)
        return weighted_sum(gradients, self.weights[worker, owned])

    def encode_all(
        self, blocks: Iterable[Float[Tensor, "_ dim"]]
    ) -> Float[Tensor, "workers width"]:
        """All messages, added up as the gradients come, each sum computed once.

        Raises:
            ValueError: if the blocks do not hold one gradient for each partition.
        """
        messages, seen = torch.empty(0, 0), 0
        first_alike = _first_alike(self.weights)
        senders = sorted(set(first_alike))
        for gradients in blocks:
            rows, dim = gradients.shape
            if seen == 0:
                messages = gradients.new_zeros(self.num_workers, dim)
            check_partitions(seen + rows, self.num_partitions, complete=False)
            shares = self.weights[:, seen : seen + rows]
            add_weighted_sums(messages, senders, gradients, shares)
            seen += rows
        check_partitions(seen, self.num_partitions)
        for worker, first in enumerate(first_alike):
            if worker != first:
                messages[worker] = messages[first]
        return messages

    def decode(
        self,
        messages: Float[Tensor, "workers width"],
        arrived: Bool[Tensor, " workers"] | None = None,
        *,
        generator: torch.Generator | None = None,
        shard: Shard | None = None,
    ) -> Decoded:
        """The mean gradient, or nearly; see `Code.decode`. One pass over what arrived.

        With a `shard`, messages hold its columns only, and so does the gradient.
        """
        shard = shard or whole(messages)
        if arrived is None:
            arrived = torch.ones(self.num_workers, dtype=torch.bool)
        check_messages(messages, arrived, self.num_workers)
        here = arrived.cpu()
        gradient, solution = self._mean(messages, here)
        # What is not finite shows in the sum, so that only rows outside of it are read for it.
        unread = here & (solution.coefficients == 0)
        sound = _finite_everywhere(gradient, shard)
        broken = shard.anywhere(~finite_rows(messages, unread if sound else here))
        if not sound:
            gradient, solution = self._mean(messages, here & ~broken)
            if not _finite_everywhere(gradient, shard):
                raise DecodeError(
                    f"the messages are finite, but their sum overflows {messages.dtype}",
                    workers=(here & ~broken).nonzero().flatten().tolist(),
                    bound=0,
                )
        return Decoded(gradient, broken.to(messages.device), 0.0, solution.error)

    def _mean(self, messages: Tensor, usable: Tensor) -> tuple[Tensor, "_Solution"]:
        solution = _solve(self, tuple(usable.tolist()))
        lost = solution.amplification * torch.finfo(messages.dtype).eps
        if lost > _LOST_DIGITS and messages.dtype.itemsize >= 4:
            missing = (~usable).nonzero().flatten().tolist()
            raise DecodeError(
                f"decoding around the missing workers {name(missing)} would lose all digits of "
                f"{messages.dtype}: rounding is amplified {solution.amplification:.0e}-fold",
                workers=missing,
                bound=0,
            )
        return weighted_sum(messages, solution.coefficients / self.num_partitions), solution


def _finite_everywhere(gradient: Tensor, shard: Shard) -> bool:
    return not shard.anywhere(torch.tensor([not all_finite([gradient])])).any()


class _Solution(NamedTuple):
    """How one set of messages is decoded, and how well."""

    coefficients: Tensor
    error: float
    amplification: float


@lru_cache(maxsize=1024)
def _solve(code: LinearCode, usable: tuple[bool, ...]) -> _Solution:
    """Algebra on workers x partitions, once per set of workers that arrived."""
    arrived = torch.tensor(usable)
    if not arrived.any():
        raise DecodeError(
            "no message arrived that is finite", workers=list(range(len(usable))), bound=0
        )
    coefficients = code.coefficients(arrived)
    share = coefficients @ code.weights
    amplification = (coefficients.abs() @ code.weights.abs()).max().item()
    return _Solution(coefficients, relative_error(share), amplification)


def relative_error(share: Float[Tensor, " partitions"]) -> float:
    """`Decoded.error` of a sum that holds so much of each partition's gradient, ideally 1.

    By the Cauchy-Schwarz inequality; below the rounding of the algebra it is 0.
    """
    error = float((share - 1).square().mean().sqrt())
    return error if error > 1e-10 else 0.0


def _first_alike(weights: Tensor) -> list[int]:
    """For every worker the first one that sends the same message."""
    first: dict[tuple[float, ...], int] = {}
    return [first.setdefault(tuple(row), worker) for worker, row in enumerate(weights.tolist())]
