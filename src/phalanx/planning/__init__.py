"""Planning: which code or compressor pays, from delays and link speeds."""

from phalanx.planning.code_planner import Outlook, Planner, write_plan
from phalanx.planning.link_planner import LinkOutlook, LinkPlanner, bits_per_second, seconds

__all__ = [
    "LinkOutlook",
    "LinkPlanner",
    "Outlook",
    "Planner",
    "bits_per_second",
    "seconds",
    "write_plan",
]
