"""Coded computation: matrix products and data shuffling that outlast slow workers."""

from phalanx.coded_computation.coded_least_squares import CodedLeastSquares
from phalanx.coded_computation.coded_matmul import CodedMatmul, CodedMatrix, Product
from phalanx.coded_computation.coded_shuffle import CodedShuffle
from phalanx.coded_computation.coded_shuffle_sampler import CodedShuffleSampler
from phalanx.coded_computation.matmul_session import MatmulSession, TimedProduct
from phalanx.coded_computation.row_bytes import pack_rows, unpack_rows
from phalanx.coded_computation.shuffle_plan import RowCache, ShufflePlan
from phalanx.coded_computation.shuffle_session import Delivery, ShuffleSession

__all__ = [
    "CodedLeastSquares",
    "CodedMatmul",
    "CodedMatrix",
    "CodedShuffle",
    "CodedShuffleSampler",
    "Delivery",
    "MatmulSession",
    "Product",
    "RowCache",
    "ShufflePlan",
    "ShuffleSession",
    "TimedProduct",
    "pack_rows",
    "unpack_rows",
]
