"""Broadcasts to all neighbours: tensors as they are, or compressed."""

import torch
from torch import Tensor

from phalanx.communication.wire import from_bytes, require_finite_values, to_bytes
from phalanx.compression import Compressor, ErrorFeedback, Message, MomentumCorrection, frame
from phalanx.gossip.base import GossipRound, State
from phalanx.gossip.network import NeighborBroadcast


def uncompressed(tensors: list[Tensor]) -> NeighborBroadcast:
    """The tensors of every node as they are."""
    like = [x[0] for x in tensors]
    size = sum(x.numel() * x.element_size() for x in like)
    return NeighborBroadcast(
        tensors,
        [size] * len(tensors[0]),
        lambda place: to_bytes([x[place] for x in tensors]),
        lambda row: read(row, like),
    )


def read(row: Tensor, like: list[Tensor]) -> list[Tensor]:
    """Tensors like these out of a neighbour's bytes.

    Raises:
        WireError: if there are not as many bytes as they take, or a value is not finite.
    """
    found = from_bytes(row, [(x.dtype, x.numel()) for x in like])
    require_finite_values(found)
    return [values.view(x.shape) for values, x in zip(found, like, strict=True)]


def compressed(
    compressor: Compressor, tensors: list[Tensor], states: list[State], round: GossipRound
) -> tuple[NeighborBroadcast, list[State]]:
    """The tensors of every node as messages of a compressor, each tensor by itself.

    Args:
        compressor: of all nodes.
        tensors: `(nodes, ...)` each.
        states: the compressor's own, stacked over the nodes.
        round: where randomness comes from.
    """
    nodes = round.network.edges.nodes
    messages: list[list[Message]] = [[] for _ in nodes]
    values, following = [], []
    for tensor_place, (x, state) in enumerate(zip(tensors, states, strict=True)):
        decoded, kept = torch.empty_like(x), []
        for place, node in enumerate(nodes):
            who = "shared" if compressor.needs_shared_randomness else node
            source = round.generator(tensor_place, who) if compressor.random else None
            own = tuple(part[place] for part in state)
            message, own = compressor.update(x[place], own, source)
            messages[place].append(message)
            decoded[place] = compressor.decode(message)
            kept.append(own)
        values.append(decoded)
        following.append(tuple(torch.stack(parts) for parts in zip(*kept, strict=True)))
    like, framing = messages[0], 0 if compressor.fixed_size else 8 * len(tensors)
    shapes = [(one.shape, one.dtype) for one in like]
    broadcast = NeighborBroadcast(
        values,
        [framing + sum(message.num_bytes for message in row) for row in messages],
        lambda place: frame(messages[place], compressor.fixed_size),
        lambda row: [compressor.decode(one) for one in compressor.unframe(row, shapes)],
        None if compressor.fixed_size else framing + sum(message.most_bytes for message in like),
    )
    return broadcast, following


def initial(compressor: Compressor, like: Tensor) -> State:
    """The compressor's own state of every node, stacked."""
    states = [compressor.init(x) for x in like]
    return tuple(torch.stack(parts) for parts in zip(*states, strict=True))


def require_plain_compressor(compressor: Compressor) -> None:
    """Raises a `ValueError` for one that remembers what it left out: the algorithm does that."""
    if isinstance(compressor, ErrorFeedback | MomentumCorrection):
        raise ValueError(
            f"compressor must be one without error feedback, got {compressor}: what it leaves out "
            "is remembered already"
        )
