"""Planning: which code or compressor pays, from delays and link speeds."""

from phalanx.planning.code_planner import CodeOutlook, CodePlanner, write_plan
from phalanx.planning.compressor_planner import (
    CompressorOutlook,
    CompressorPlanner,
    bits_per_second,
    seconds,
)

__all__ = [
    "CodeOutlook",
    "CodePlanner",
    "CompressorOutlook",
    "CompressorPlanner",
    "bits_per_second",
    "seconds",
    "write_plan",
]
