"""PyTorch optimizers that communicate: 1-bit Adam, and gossip around any optimizer."""

from phalanx.optimizers.decentralize import decentralize
from phalanx.optimizers.gossip_optimizer import GossipOptimizer
from phalanx.optimizers.one_bit_adam import OneBitAdam

__all__ = ["GossipOptimizer", "OneBitAdam", "decentralize"]
