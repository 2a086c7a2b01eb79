"""Two-stage compressed all-reduce: both halves are compressed."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from phalanx.communication.collectives import (
    AllGather,
    AllToAll,
    Averaged,
    Exchange,
    ExchangeContext,
    State,
)
from phalanx.compression.base import Compressor, frame
from phalanx.compression.message import Message
from phalanx.compression.scaled_sign import ScaledSign
from phalanx.compression.wrapper import Wrapper
from phalanx.errors import WireError
from phalanx.floats import within, working


@dataclass(frozen=True)
class TwoStage(Wrapper):
    """Every worker averages its share of all tensors, and sends the mean compressed again.

    A tensor is cut into as many chunks as there are workers. Each worker sends every chunk,
    compressed, to the worker that averages it; that one compresses the mean and sends it to all.
    Messages that can only be gathered then cost what an all-reduce of their size costs, whatever
    the number of workers. What the second compression leaves out of a biased compressor's mean is
    remembered where it happened. Train biased ones within `ErrorFeedback`, for what the first does.
    With `SignSGD` inside and `remember=False` it is a majority vote, with ties decided for plus.

    A worker that sends no messages stops those who should read them; the others find it lost.
    Wire: `2 (n - 1) / n` times that of the inner compressor. Memory: 1 / n of a tensor's size.
    Source: Tang et al., "1-bit Adam: Communication Efficient Large-Scale Training with Adam's
    Convergence Speed", ICML 2021, section 4; chunks are compressed one by one, each with its own
    scale, and are not filled up to equal sizes.

    >>> import torch
    >>> from phalanx.compression import TensorStates, simulate
    >>> rows = [{"w": torch.tensor([4.0, 1.0])}, {"w": torch.tensor([2.0, -3.0])}]
    >>> means, memories = simulate(TwoStage(), rows, [TensorStates(), TensorStates()])
    >>> means[1]["w"]
    tensor([ 3., -1.])
    """

    num_memories: ClassVar[int] = 1

    inner: Compressor = field(default_factory=ScaledSign)
    """The compressor of chunks: one that remembers nothing, whose messages have a fixed size, and
    that does not look at shapes."""
    remember: bool = True
    """Whether a biased compressor's errors in the means are added to the next ones."""

    def __post_init__(self) -> None:
        unfit = self.inner.per_tensor_shape or not self.inner.fixed_size
        if unfit or self.inner.init(torch.zeros(2)):
            raise ValueError(
                "inner must have messages of a fixed size, and neither memory nor need of shapes, "
                f"got {self.inner}"
            )

    @property
    def reducible(self) -> bool:
        """False: messages are averaged where they are decoded."""
        return False

    def exchange(
        self, tensors: list[Tensor], states: list[State], context: ExchangeContext
    ) -> Exchange:
        """Chunks to those who average them, and their means to all."""
        shared, everybody = self.inner.needs_shared_randomness, range(context.num_workers)
        sources = [
            context.generator(place, shared=shared) if self.inner.random else None
            for place in range(len(tensors))
        ]
        chunks = [x.detach().reshape(-1).tensor_split(context.num_workers) for x in tensors]
        outgoing = [
            [
                self.inner.encode(chunk[worker], source)
                for chunk, source in zip(chunks, sources, strict=True)
            ]
            for worker in everybody
        ]
        pieces = [frame(messages, fixed_size=True) for messages in outgoing]
        lengths = tuple(len(piece) for piece in pieces)
        arrived = yield AllToAll(torch.cat(pieces), lengths)
        assert isinstance(arrived, list)
        means = self._means(arrived, outgoing[context.worker])
        wanted = [
            mean + state[0] if state else mean for mean, state in zip(means, states, strict=True)
        ]
        own = [
            self.inner.encode(within(x, like.dtype), source)
            for x, like, source in zip(wanted, tensors, sources, strict=True)
        ]
        padded = torch.nn.functional.pad(
            frame(own, True), (0, max(lengths) - lengths[context.worker])
        )
        rows = yield AllGather(padded, equal=True)
        told = [
            [self.inner.decode(message) for message in messages]
            for messages in self._read(
                [row[:length] for row, length in zip(rows, lengths, strict=True)], outgoing
            )
        ]
        following: list[State] = [()] * len(tensors)
        if self.remember and not self.inner.unbiased:
            following = [(x - sent,) for x, sent in zip(wanted, told[context.worker], strict=True)]
        sent = [[self.inner.decode(message) for message in messages] for messages in outgoing]
        return Averaged(_joined(told, tensors), _joined(sent, tensors), following)

    def _means(self, rows: list[Tensor], like: list[Message]) -> list[Tensor]:
        """The means of what the workers sent of the chunks that are this worker's."""
        means = [
            torch.zeros(one.shape, dtype=working(one.dtype)).to(rows[0].device) for one in like
        ]
        for messages in self._read(rows, [like] * len(rows)):
            for mean, message in zip(means, messages, strict=True):
                mean += self.inner.decode(message).to(mean) / len(rows)
        return means

    def _read(self, rows: list[Tensor], like: list[list[Message]]) -> Iterator[list[Message]]:
        """The messages of each worker, about chunks like these."""
        for worker, (row, known) in enumerate(zip(rows, like, strict=True)):
            try:
                yield self.inner.unframe(row, [(one.shape, one.dtype) for one in known])
            except WireError as error:
                raise WireError(f"worker {worker}: {error}") from error


def _joined(chunks: list[list[Tensor]], like: list[Tensor]) -> list[Tensor]:
    """The workers' chunks of every tensor, put together."""
    pairs = zip(zip(*chunks, strict=True), like, strict=True)
    return [torch.cat(pieces).view(x.shape).to(x.device) for pieces, x in pairs]
