"""Communication hooks for `DistributedDataParallel`, and the collectives under them."""

from phalanx.ddp.aggregation import GradientAggregation, Outcome, aggregate
from phalanx.ddp.collective import robust_all_reduce
from phalanx.ddp.compression import CompressedStep, GradientCompression, compress
from phalanx.ddp.link_probe import probe_link

__all__ = [
    "CompressedStep",
    "GradientAggregation",
    "GradientCompression",
    "Outcome",
    "aggregate",
    "compress",
    "probe_link",
    "robust_all_reduce",
]
