"""Estimators of the Bayes error, label noise, and classes whose Bayes error is known."""

from phalanx.readiness.bayes_error.base import BayesErrorEstimator, Estimate
from phalanx.readiness.bayes_error.cover_hart import (
    chance_error,
    clopper_pearson,
    cover_hart,
    inverse_cover_hart,
    neighbor_lower_bound,
)
from phalanx.readiness.bayes_error.gaussians import (
    sample_simplex_gaussians,
    simplex_gaussians_bayes_error,
    two_gaussians_bayes_error,
    two_gaussians_neighbor_risk,
)
from phalanx.readiness.bayes_error.henze_penrose import HenzePenrose, minimum_spanning_tree
from phalanx.readiness.bayes_error.intrinsic_dimension import two_nearest_dimension
from phalanx.readiness.bayes_error.kernel_density import KernelDensity
from phalanx.readiness.bayes_error.label_noise import (
    bayes_error_of_posteriors,
    class_noise,
    noisy_bayes_error,
    noisy_bayes_error_bounds,
    redraw_labels,
    transition_labels,
    transition_matrix,
    uniform_noise,
)
from phalanx.readiness.bayes_error.nearest_neighbor_error import NearestNeighborError
from phalanx.readiness.bayes_error.nearest_neighbor_extrapolation import (
    NearestNeighborExtrapolation,
)
from phalanx.readiness.bayes_error.nearest_neighbor_posterior import NearestNeighborPosterior
from phalanx.readiness.bayes_error.neighborhood_impurity import NeighborhoodImpurity
from phalanx.readiness.bayes_error.neighbors import NeighborSearch, nearest_neighbors

__all__ = [
    "BayesErrorEstimator",
    "Estimate",
    "HenzePenrose",
    "KernelDensity",
    "NearestNeighborError",
    "NearestNeighborExtrapolation",
    "NearestNeighborPosterior",
    "NeighborSearch",
    "NeighborhoodImpurity",
    "bayes_error_of_posteriors",
    "chance_error",
    "class_noise",
    "clopper_pearson",
    "cover_hart",
    "inverse_cover_hart",
    "minimum_spanning_tree",
    "nearest_neighbors",
    "neighbor_lower_bound",
    "noisy_bayes_error",
    "noisy_bayes_error_bounds",
    "redraw_labels",
    "sample_simplex_gaussians",
    "simplex_gaussians_bayes_error",
    "transition_labels",
    "transition_matrix",
    "two_gaussians_bayes_error",
    "two_gaussians_neighbor_risk",
    "two_nearest_dimension",
    "uniform_noise",
]
