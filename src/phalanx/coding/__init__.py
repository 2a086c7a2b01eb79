"""Gradient codes: redundant work against Byzantine workers and stragglers."""

from phalanx.coding.approximate_code import ApproximateCode
from phalanx.coding.base import Code, Decoded
from phalanx.coding.bernoulli_gradient_code import BernoulliGradientCode
from phalanx.coding.block_stragglers import BlockStragglers
from phalanx.coding.cyclic_repetition import CyclicRepetition
from phalanx.coding.detox import Detox
from phalanx.coding.draco_cyclic import DracoCyclic
from phalanx.coding.draco_repetition import DracoRepetition
from phalanx.coding.erasure_head import ErasureHead
from phalanx.coding.fractional_repetition import FractionalRepetition
from phalanx.coding.greedy_stragglers import GreedyStragglers
from phalanx.coding.linear_code import LinearCode
from phalanx.coding.random_stragglers import RandomStragglers
from phalanx.coding.regularized_bernoulli_gradient_code import RegularizedBernoulliGradientCode
from phalanx.coding.spectral_stragglers import SpectralStragglers
from phalanx.coding.stochastic_block_code import StochasticBlockCode
from phalanx.coding.stragglers import Stragglers
from phalanx.coding.uncoded import Uncoded
from phalanx.coding.voting import Party, vote

__all__ = [
    "ApproximateCode",
    "BernoulliGradientCode",
    "BlockStragglers",
    "Code",
    "CyclicRepetition",
    "Decoded",
    "Detox",
    "DracoCyclic",
    "DracoRepetition",
    "ErasureHead",
    "FractionalRepetition",
    "GreedyStragglers",
    "LinearCode",
    "Party",
    "RandomStragglers",
    "RegularizedBernoulliGradientCode",
    "SpectralStragglers",
    "StochasticBlockCode",
    "Stragglers",
    "Uncoded",
    "vote",
]
