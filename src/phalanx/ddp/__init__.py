"""Communication hooks for `DistributedDataParallel`, and the collectives under them."""

from phalanx.ddp.aggregation import GradientAggregation, Outcome, aggregate
from phalanx.ddp.collective import robust_all_reduce

__all__ = ["GradientAggregation", "Outcome", "aggregate", "robust_all_reduce"]
