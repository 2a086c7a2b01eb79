"""One round of gossip over named tensors."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from phalanx.compression import TensorStates
from phalanx.errors import NotFiniteError
from phalanx.floats import all_finite, within, working
from phalanx.gossip.base import Gossip, GossipRound
from phalanx.gossip.edges import as_rows
from phalanx.gossip.network import Network


class Mixed(NamedTuple):
    """What came out of a round.

    Attributes:
        values: the tensors after it, by name.
        memory: what the nodes remember.
        bytes_sent: `(nodes here,)` int64; what each has sent in the round, to the byte.
    """

    values: dict[str, Tensor]
    memory: TensorStates
    bytes_sent: Int64[Tensor, " nodes"]


def mix(
    algorithm: Gossip,
    network: Network,
    tensors: Mapping[str, Tensor],
    memory: TensorStates | None = None,
    *,
    seed: int = 0,
) -> Mixed:
    """One round of averaging with the neighbours; nothing that is given is changed.

    Among processes, all of them call it with the same names and shapes, and equal memory steps.

    Args:
        algorithm: what all nodes do.
        network: where the nodes are.
        tensors: by name. The first axis is that of the nodes that are here: all nodes of a
            `SimulatedNetwork`, one of a `ProcessNetwork`.
        memory: what the nodes here remember; None before the first round.
        seed: of the run, the same everywhere.

    Raises:
        NotFiniteError: if there is NaN or infinity; it names the nodes. Nothing was sent.
        ValueError: if a tensor has no such axis, or is not of floating point.
        DisagreementError, RankLostError, WireError: see `ProcessNetwork`.

    >>> from phalanx.gossip import DPSGD, SimulatedNetwork, Topology
    >>> network = SimulatedNetwork(Topology.ring(4))
    >>> mixed = mix(DPSGD(), network, {"w": torch.tensor([9.0, 0.0, 0.0, 0.0])})
    >>> mixed.values["w"], mixed.bytes_sent
    (tensor([3., 3., 0., 3.]), tensor([8, 8, 8, 8]))
    """
    memory = TensorStates() if memory is None else memory
    names = tuple(sorted(tensors))
    given = [tensors[name].detach() for name in names]
    _check(names, given, network.edges.nodes)
    values = [x.to(working(x.dtype)) for x in given]
    states = [
        memory.states.get(name, algorithm.init(x, network))
        for name, x in zip(names, values, strict=True)
    ]
    before = network.bytes_sent.clone()
    round = GossipRound(network, seed, memory.step, names)
    network.begin(memory.step)
    mixed, states = algorithm.mix(values, states, round)
    kept = {name: state for name, state in zip(names, states, strict=True) if state}
    return Mixed(
        {name: within(x, old.dtype) for name, x, old in zip(names, mixed, given, strict=True)},
        TensorStates(memory.step + 1, {**memory.states, **kept}),
        network.bytes_sent - before,
    )


def _check(names: tuple[str, ...], tensors: list[Tensor], nodes: tuple[int, ...]) -> None:
    if not names:
        raise ValueError("tensors must be at least one, got none")
    for name, x in zip(names, tensors, strict=True):
        if not x.is_floating_point():
            raise ValueError(f"tensors must be of floating point, got {x.dtype} for {name}")
        if not x.ndim or len(x) != len(nodes):
            raise ValueError(
                f"tensors must have {len(nodes)} nodes as their first axis, got the shape "
                f"{tuple(x.shape)} for {name}"
            )
    if not all_finite(tensors):
        sick = torch.stack([~as_rows(x).isfinite().all(1) for x in tensors if x.numel()]).any(0)
        found = [nodes[place] for place in sick.nonzero().flatten().tolist()]
        raise NotFiniteError(f"tensors must be finite, not so on nodes {found}", workers=found)
