"""Planners: which code or which compressor pays, from delays and link speeds."""

from phalanx.planning.code_planner import CodeOutlook, CodePlanner
from phalanx.planning.compressor_planner import CompressorOutlook, CompressorPlanner
from phalanx.planning.plan import Plan

__all__ = [
    "CodeOutlook",
    "CodePlanner",
    "CompressorOutlook",
    "CompressorPlanner",
    "Plan",
]
