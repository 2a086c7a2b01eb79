"""SignSGD with majority vote."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from phalanx.bits import check_packed, pack_signs, packed_length, unpack_signs
from phalanx.communication.collectives import AllReduce, Averaged, Exchange, ExchangeContext, State
from phalanx.compression.base import Compressor, Shape
from phalanx.compression.message import Part, fixed, num_values

_PACKED_WORKERS = 16  # up to here packed bits to everybody are less than a byte each, added


@dataclass(frozen=True)
class SignSGD(Compressor):
    """Sends the sign of every value; the workers' mean is replaced by their majority's sign.

    The magnitude is lost: learning rates are about a thousandth of those of SGD. Fewer than half of
    the workers that send wrong signs do not decide where the others agree. See `Signum`, too.
    Wire: one bit a value to every worker up to 16 workers; beyond, bytes added on the way.
    Cost: one pass.
    Source: Bernstein, Zhao, Azizzadenesheli, Anandkumar, "signSGD with Majority Vote is
    Communication Efficient and Fault Tolerant", ICLR 2019, section 3.

    >>> import torch
    >>> compressor = SignSGD()
    >>> compressor.decode(compressor.encode(torch.tensor([3.0, -1.0, 0.0])))
    tensor([ 1., -1.,  1.])
    """

    tie: int = 0
    """What a value becomes where as many workers are for as against: 0 or 1."""

    def __post_init__(self) -> None:
        if self.tie not in (0, 1):
            raise ValueError(f"tie must be 0 or 1, got {self.tie}")

    def layout(self, shape: Shape, dtype: torch.dtype) -> tuple[Part, ...]:
        """Bits."""
        return (fixed(torch.uint8, packed_length(num_values(shape), 1)),)

    def pack(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """A bit is set where the value is negative; zero counts as positive."""
        return (pack_signs(x),)

    def unpack(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """One with the signs."""
        return unpack_signs(parts[0], num_values(shape), parts[0].new_ones(1, dtype=dtype))

    def check(self, parts: Sequence[Tensor], shape: Shape, dtype: torch.dtype) -> None:
        """Bits after the last are zero."""
        check_packed(parts[0], 1, num_values(shape))

    def exchange(
        self, tensors: list[Tensor], states: list[State], context: ExchangeContext
    ) -> Exchange:
        """The majority's signs, in place of the mean."""
        found = [self.update(x, state) for x, state in zip(tensors, states, strict=True)]
        messages = [message for message, _ in found]
        sent = [self.decode(message) for message in messages]
        if context.num_workers <= _PACKED_WORKERS or not tensors:
            sums = yield from self._gather(messages, context.num_workers)
        else:
            container = torch.int8 if context.num_workers <= 127 else torch.int32
            flat = [one.reshape(-1).to(container) for one in sent]
            total = yield AllReduce(torch.cat(flat))
            assert isinstance(total, Tensor)
            pieces = total.split([len(one) for one in flat])
            sums = [piece.view(x.shape) for piece, x in zip(pieces, tensors, strict=True)]
        votes = [self._vote(total, x.dtype) for total, x in zip(sums, tensors, strict=True)]
        return Averaged(votes, sent, [state for _, state in found])

    def _vote(self, total: Tensor, dtype: torch.dtype) -> Tensor:
        """The sign of a sum of signs, or of their mean: of one that is nearly zero it is a tie."""
        signs = torch.where(total.abs() < 1 / (2 * _PACKED_WORKERS), 0, total.sign())
        return torch.where(signs == 0, self.tie, signs).to(dtype)
