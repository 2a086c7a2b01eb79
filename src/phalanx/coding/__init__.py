"""Codes: redundant work that undoes lies exactly, and outlasts workers that are late."""

from phalanx.coding.approximate_code import ApproximateCode
from phalanx.coding.base import Code, Decoded
from phalanx.coding.bernoulli_gradient_code import BernoulliGradientCode
from phalanx.coding.block_stragglers import BlockStragglers
from phalanx.coding.coded_least_squares import CodedLeastSquares
from phalanx.coding.coded_matmul import CodedMatmul, CodedMatrix, Product
from phalanx.coding.coded_shuffle import CodedShuffle
from phalanx.coding.coded_shuffle_sampler import CodedShuffleSampler
from phalanx.coding.cyclic_repetition import CyclicRepetition
from phalanx.coding.detox import Detox
from phalanx.coding.draco_cyclic import DracoCyclic
from phalanx.coding.draco_repetition import DracoRepetition
from phalanx.coding.erasure_head import ErasureHead
from phalanx.coding.fractional_repetition import FractionalRepetition
from phalanx.coding.greedy_stragglers import GreedyStragglers
from phalanx.coding.latency import (
    expected_time_mds,
    expected_time_repetition,
    expected_time_uncoded,
    harmonic,
    optimal_code_rate,
    optimal_num_blocks,
    optimal_time,
)
from phalanx.coding.linear_code import LinearCode
from phalanx.coding.random_stragglers import RandomStragglers
from phalanx.coding.regularized_bernoulli_gradient_code import RegularizedBernoulliGradientCode
from phalanx.coding.row_bytes import pack_rows, unpack_rows
from phalanx.coding.shuffle_plan import RowCache, ShufflePlan
from phalanx.coding.spectral_stragglers import SpectralStragglers
from phalanx.coding.stochastic_block_code import StochasticBlockCode
from phalanx.coding.stragglers import Stragglers
from phalanx.coding.voting import Party, vote

__all__ = [
    "ApproximateCode",
    "BernoulliGradientCode",
    "BlockStragglers",
    "Code",
    "CodedLeastSquares",
    "CodedMatmul",
    "CodedMatrix",
    "CodedShuffle",
    "CodedShuffleSampler",
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
    "Product",
    "RandomStragglers",
    "RegularizedBernoulliGradientCode",
    "RowCache",
    "ShufflePlan",
    "SpectralStragglers",
    "StochasticBlockCode",
    "Stragglers",
    "expected_time_mds",
    "expected_time_repetition",
    "expected_time_uncoded",
    "harmonic",
    "optimal_code_rate",
    "optimal_num_blocks",
    "optimal_time",
    "pack_rows",
    "unpack_rows",
    "vote",
]
