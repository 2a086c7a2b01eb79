"""Coded computation: matrix products and data shuffling that outlast slow workers."""

from phalanx.coded_computation.coded_least_squares import CodedLeastSquares
from phalanx.coded_computation.coded_matmul import CodedMatmul, CodedMatrix, Product
from phalanx.coded_computation.coded_shuffle import CodedShuffle
from phalanx.coded_computation.coded_shuffle_sampler import CodedShuffleSampler
from phalanx.coded_computation.ray_matmul import RayMatmul, RayMatmulSession, TimedProduct
from phalanx.coded_computation.ray_shuffle import RayShuffle, RayShuffleSession, ShuffleTraffic
from phalanx.coded_computation.row_bytes import pack_rows, unpack_rows
from phalanx.coded_computation.shuffle_plan import RowCache, ShufflePlan

__all__ = [
    "CodedLeastSquares",
    "CodedMatmul",
    "CodedMatrix",
    "CodedShuffle",
    "CodedShuffleSampler",
    "Product",
    "RayMatmul",
    "RayMatmulSession",
    "RayShuffle",
    "RayShuffleSession",
    "RowCache",
    "ShufflePlan",
    "ShuffleTraffic",
    "TimedProduct",
    "pack_rows",
    "unpack_rows",
]
