"""Decentralised training in a script of one model per process."""

from typing import Literal

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from phalanx.gossip import Gossip, ParameterGossip, PowerGossip, ProcessNetwork, Topology
from phalanx.optimizers.gossip_optimizer import GossipOptimizer


def decentralize(
    model: nn.Module,
    optimizer: Optimizer,
    algorithm: Gossip | None = None,
    topology: Topology | None = None,
    *,
    first: Literal["gossip", "step"] = "gossip",
    group: dist.ProcessGroup | None = None,
    seed: int = 0,
) -> GossipOptimizer:
    """Makes steps of the optimizer steps of the group: beside each, models meet their neighbours'.

    Called by all ranks, after `torch.distributed` was started; models begin with the mean of all
    ranks' parameters.

    Args:
        model: this rank's, not wrapped in `DistributedDataParallel`.
        optimizer: of its parameters.
        algorithm: what all ranks do; `PowerGossip()` by default.
        topology: who is whose neighbour; by default a ring.
        first: what comes first in a step, see `GossipOptimizer`.
        group: the ranks; all of them by default.
        seed: of the run, the same on all ranks.

    Returns:
        What takes the optimizer's place in the loop, and in the checkpoint that each rank writes.

    Raises:
        ValueError: on all ranks, if they differ in algorithm, topology, seed, or the names, shapes
            or dtypes of parameters; or if the topology is of another size, or the model averages
            its gradients already.
    """
    if isinstance(model, DistributedDataParallel):
        raise ValueError("model must be one of this rank alone, got a DistributedDataParallel")
    ring = Topology.ring(dist.get_world_size(group))
    network = ProcessNetwork(topology or ring, group)
    names = model.named_parameters()
    gossip = ParameterGossip(names, algorithm or PowerGossip(), network, seed=seed)
    gossip.synchronize()
    return GossipOptimizer(optimizer, gossip, first)
