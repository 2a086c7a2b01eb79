"""Several compressors in one: messages that say which, and a round with one for each tensor."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from phalanx.communication.collectives import Averaged, Exchange, ExchangeContext, State
from phalanx.compression.base import Compressor, Shape
from phalanx.compression.message import Message, Part, fixed


def labelled_layout(
    codecs: Iterable[Compressor], shape: Shape, dtype: torch.dtype
) -> tuple[Part, ...]:
    """A label, and the bytes of a message of one of these compressors."""
    most = max(sum(part.most_bytes for part in one.layout(shape, dtype)) for one in codecs)
    return fixed(torch.uint8, 1), Part(torch.uint8, 0, most)


def labelled(label: int, message: Message) -> tuple[Tensor, ...]:
    """The parts of a message about another message."""
    data = message.to_tensor()
    return torch.tensor([label], dtype=torch.uint8, device=data.device), data


def exchange_by_level(
    codec: Callable[[int], Compressor],
    levels: Sequence[int],
    tensors: list[Tensor],
    states: list[State],
    context: ExchangeContext,
) -> Exchange:
    """A worker's part of a round in which each tensor has a compressor: an exchange for each level.

    Args:
        codec: the compressor of a level.
        levels: of the tensors, the same on all workers.
        tensors: of this worker.
        states: as the compressors of the levels know them.
        context: of the round.
    """
    result = Averaged(list(tensors), list(tensors), list(states))
    for level in sorted(set(levels)):
        places = [place for place, one in enumerate(levels) if one == level]
        found = yield from codec(level).exchange(
            [tensors[place] for place in places],
            [states[place] for place in places],
            context.only(places),
        )
        for at, place in enumerate(places):
            result.mean[place] = found.mean[at]
            result.sent[place] = found.sent[at]
            result.states[place] = found.states[at]
    return result
