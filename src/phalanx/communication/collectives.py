"""Collectives that a worker of a round asks for, in one process or in many."""

from collections.abc import Generator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from phalanx.randomness import generator

HOPS_PER_MESSAGE = 2
"""Gloo sends a message when its receiver has said that it is ready: there, and back."""


class AllReduce(NamedTuple):
    """Asks for the sum (or the largest values) of all workers' tensors; every worker gets it.

    Attributes:
        tensor: one-dimensional, of equal length and dtype on all workers.
        largest: whether to take maxima instead of sums.
    """

    tensor: Tensor
    largest: bool = False

    def wire_bytes(self, num_workers: int) -> float:
        """Bytes sent per worker, by a ring: sums of its share go round, then totals."""
        return 2 * (num_workers - 1) / num_workers * self.tensor.nbytes

    def num_hops(self, num_workers: int) -> int:
        """How often something is waited for, by a ring; see `HOPS_PER_MESSAGE`."""
        return HOPS_PER_MESSAGE * 2 * (num_workers - 1)


class AllGather(NamedTuple):
    """Asks for all workers' bytes, in the order of the workers.

    Attributes:
        tensor: uint8, one-dimensional.
        equal: whether all workers' lengths are known to be equal, and need not be exchanged.
        most: bytes that a worker can have; who says that it has more is taken to have none, and no
            room is made for them. None for any number.
    """

    tensor: Tensor
    equal: bool = False
    most: int | None = None

    def wire_bytes(self, num_workers: int) -> float:
        """Bytes sent per worker, by a ring, if all have as many; lengths take 8 each."""
        lengths = 0 if self.equal else 8
        return float((num_workers - 1) * (self.tensor.nbytes + lengths))

    def num_hops(self, num_workers: int) -> int:
        """How often something is waited for, by a ring; see `HOPS_PER_MESSAGE`."""
        return HOPS_PER_MESSAGE * (num_workers - 1) * (1 if self.equal else 2)


class AllToAll(NamedTuple):
    """Asks for the bytes that every worker has for this one, in the order of the workers.

    Attributes:
        tensor: uint8, one-dimensional: what is for each worker, one after the other.
        lengths: of these pieces, the same on all workers.
    """

    tensor: Tensor
    lengths: tuple[int, ...]

    def wire_bytes(self, num_workers: int) -> float:
        """Bytes sent per worker: all but its own piece, taken to be as long as the first."""
        return float(self.tensor.nbytes - self.lengths[0])

    def num_hops(self, num_workers: int) -> int:
        """How often something is waited for, one piece after the other; see `HOPS_PER_MESSAGE`."""
        return HOPS_PER_MESSAGE * (num_workers - 1)


Request = AllReduce | AllGather | AllToAll
"""What a worker asks for."""

Answer = Tensor | list[Tensor]
"""What it is sent: a sum, or the tensors of all workers."""

State = tuple[Tensor, ...]
"""What a worker remembers of one tensor between rounds; empty for a compressor without memory."""


class Averaged(NamedTuple):
    """What a worker knows at the end of a round.

    Attributes:
        mean: the mean of the tensors, as far as compression lets it through; the same on all
            workers, bit for bit.
        sent: what of this worker's own tensors went into it; error feedback remembers the rest.
        states: the next states.
    """

    mean: list[Tensor]
    sent: list[Tensor]
    states: list[State]


Exchange = Generator[Request, Answer, Averaged]
"""A worker's part of a round: asks for collectives, is sent their results, and ends with a mean."""


class ExchangeContext(NamedTuple):
    """What an exchange knows besides the tensors: above all, where its randomness comes from.

    Attributes:
        seed: of the run, the same on all workers.
        step: number of the round.
        worker: id of this worker.
        num_workers: how many take part.
        names: of the tensors, in order.
        out: tensors like those of the round which the means may be written to, instead of to new
            memory. What a compressor remembers may then be changed in place too; None: nothing.
    """

    seed: int
    step: int
    worker: int
    num_workers: int
    names: tuple[str, ...]
    out: tuple[Tensor, ...] | None = None

    def generator(self, place: int, *, shared: bool) -> torch.Generator:
        """Randomness for one tensor: the worker's own, or the same on all workers."""
        who: int | str = "shared" if shared else self.worker
        return generator(self.seed, "compression", self.step, self.names[place], who)

    def only(self, places: Sequence[int]) -> "ExchangeContext":
        """The context of an exchange of some of the tensors."""
        names = tuple(self.names[place] for place in places)
        out = None if self.out is None else tuple(self.out[place] for place in places)
        return self._replace(names=names, out=out)
