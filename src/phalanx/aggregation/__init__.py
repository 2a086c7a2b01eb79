"""Robust rules: one vector from the messages of workers some of whom lie."""

from phalanx.aggregation.base import Aggregate, Aggregator
from phalanx.aggregation.coordinate_median import CoordinateMedian
from phalanx.aggregation.coordinate_rule import CoordinateRule
from phalanx.aggregation.geometric_median import GeometricMedian
from phalanx.aggregation.geometry_rule import GeometryRule, Verdict
from phalanx.aggregation.gram import Geometry
from phalanx.aggregation.krum import Krum
from phalanx.aggregation.mean import Mean
from phalanx.aggregation.multi_krum import MultiKrum

__all__ = [
    "Aggregate",
    "Aggregator",
    "CoordinateMedian",
    "CoordinateRule",
    "GeometricMedian",
    "Geometry",
    "GeometryRule",
    "Krum",
    "Mean",
    "MultiKrum",
    "Verdict",
]
