"""Communication hooks for `DistributedDataParallel`, and the collectives under them."""

from phalanx.ddp.aggregation import AggregatedStep, GradientAggregation, aggregate
from phalanx.ddp.coded import CodedSampler
from phalanx.ddp.collective import robust_all_reduce
from phalanx.ddp.compression import CompressedStep, GradientCompression, compress

__all__ = [
    "AggregatedStep",
    "CodedSampler",
    "CompressedStep",
    "GradientAggregation",
    "GradientCompression",
    "aggregate",
    "compress",
    "robust_all_reduce",
]
