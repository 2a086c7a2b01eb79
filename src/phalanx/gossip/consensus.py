"""Average consensus by repeated gossip."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from phalanx.checks import require_at_least
from phalanx.compression import TensorStates
from phalanx.gossip.base import Gossip
from phalanx.gossip.mixing import mix
from phalanx.gossip.network import Network
from phalanx.gossip.simulated_network import SimulatedNetwork


class Consensus(NamedTuple):
    """What nodes hold after some rounds.

    Attributes:
        values: `(nodes here, ...)`; close to the mean over all nodes.
        distances: the relative squared distance to the mean before the first round, and after
            each: only where all nodes are here, else empty.
        bytes_sent: `(nodes here,)` int64; what each has sent, to the byte.
        memory: to go on from.
    """

    values: Float[Tensor, "nodes ..."]
    distances: list[float]
    bytes_sent: Int64[Tensor, " nodes"]
    memory: TensorStates


def average(
    tensor: Float[Tensor, "nodes ..."],
    algorithm: Gossip,
    network: Network,
    *,
    rounds: int,
    tolerance: float = 0.0,
    seed: int = 0,
    memory: TensorStates | None = None,
) -> Consensus:
    """Rounds of gossip on a tensor, until the nodes hold about the same: its mean over them.

    Among processes, each gives its own value and calls with equal arguments.

    Args:
        tensor: `(nodes here, ...)`; one node's in a process, `value.unsqueeze(0)`.
        algorithm: what all nodes do.
        network: where the nodes are.
        rounds: how many at most.
        tolerance: the relative squared distance at which to stop; needs all nodes here.
        seed: of the run.
        memory: what the nodes remember of earlier rounds.

    Raises:
        ValueError: if `rounds` is below 0, or a tolerance is asked for among processes.
        NotFiniteError, RankLostError, WireError: see `mix`.

    >>> from phalanx.gossip import DPSGD, SimulatedNetwork, Topology
    >>> network = SimulatedNetwork(Topology.ring(5))
    >>> average(torch.arange(5.0), DPSGD("optimal"), network, rounds=20).values
    tensor([2.0000, 2.0000, 2.0000, 2.0000, 2.0000])
    """
    require_at_least(0, rounds=rounds)
    seen = isinstance(network, SimulatedNetwork)
    if tolerance > 0 and not seen:
        raise ValueError(
            f"tolerance must be 0 among processes, got {tolerance}: none sees them all"
        )
    memory = TensorStates() if memory is None else memory
    sent = torch.zeros_like(network.bytes_sent)
    start = spread(tensor) if seen else 0.0
    distances = [1.0 if start else 0.0] if seen else []
    for _ in range(rounds):
        if seen and distances[-1] <= tolerance:
            break
        mixed = mix(algorithm, network, {"value": tensor}, memory, seed=seed)
        tensor, memory = mixed.values["value"], mixed.memory
        sent += mixed.bytes_sent
        if seen:
            distances.append(spread(tensor) / start if start else 0.0)
    return Consensus(tensor, distances, sent, memory)


def spread(tensor: Float[Tensor, "nodes ..."]) -> float:
    """The squared distance of the nodes to their mean, added over nodes, in float64.

    >>> spread(torch.tensor([1.0, 3.0]))
    2.0
    """
    values = tensor.detach().double()
    return (values - values.mean(dim=0)).square().sum().item()
