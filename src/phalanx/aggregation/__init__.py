"""Robust aggregation rules: one vector from the messages of workers, some of them Byzantine."""

from phalanx.aggregation.adaptive_norm_clipping import AdaptiveNormClipping
from phalanx.aggregation.aggregate import Aggregate, far_out, left_out
from phalanx.aggregation.arc import ARC
from phalanx.aggregation.base import Aggregator, State, require_tolerated
from phalanx.aggregation.bucketing import Bucketing
from phalanx.aggregation.bulyan import Bulyan
from phalanx.aggregation.caf import CAF
from phalanx.aggregation.centered_clipping import CenteredClipping
from phalanx.aggregation.comparative_gradient_elimination import ComparativeGradientElimination
from phalanx.aggregation.coordinate_median import CoordinateMedian
from phalanx.aggregation.coordinate_rule import CoordinateRule
from phalanx.aggregation.distances import require_distances_only, weigh_distances
from phalanx.aggregation.geometric_median import GeometricMedian
from phalanx.aggregation.geometry_rule import GeometryRule, Verdict
from phalanx.aggregation.gram import Geometry
from phalanx.aggregation.krum import Krum
from phalanx.aggregation.mean import Mean
from phalanx.aggregation.mean_around_median import MeanAroundMedian
from phalanx.aggregation.minimum_diameter_averaging import MinimumDiameterAveraging
from phalanx.aggregation.mixtures import Mixtures
from phalanx.aggregation.monna import MoNNA
from phalanx.aggregation.multi_krum import MultiKrum
from phalanx.aggregation.nearest_neighbor_mixing import NearestNeighborMixing
from phalanx.aggregation.norm_clipping import NormClipping
from phalanx.aggregation.pipeline import Chain, Pipeline, PreAggregation
from phalanx.aggregation.resampling import Resampling
from phalanx.aggregation.sign_majority import SignMajority
from phalanx.aggregation.smallest_maximum_eigenvalue_averaging import (
    SmallestMaximumEigenvalueAveraging,
)
from phalanx.aggregation.trimmed_mean import TrimmedMean
from phalanx.columns import Shard

__all__ = [
    "ARC",
    "CAF",
    "AdaptiveNormClipping",
    "Aggregate",
    "Aggregator",
    "Bucketing",
    "Bulyan",
    "CenteredClipping",
    "Chain",
    "ComparativeGradientElimination",
    "CoordinateMedian",
    "CoordinateRule",
    "GeometricMedian",
    "Geometry",
    "GeometryRule",
    "Krum",
    "Mean",
    "MeanAroundMedian",
    "MinimumDiameterAveraging",
    "Mixtures",
    "MoNNA",
    "MultiKrum",
    "NearestNeighborMixing",
    "NormClipping",
    "Pipeline",
    "PreAggregation",
    "Resampling",
    "Shard",
    "SignMajority",
    "SmallestMaximumEigenvalueAveraging",
    "State",
    "TrimmedMean",
    "Verdict",
    "far_out",
    "left_out",
    "require_distances_only",
    "require_tolerated",
    "weigh_distances",
]
