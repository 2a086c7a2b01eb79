"""Codes: redundant work from which exact results are decoded, whoever lies, lags or dies."""

from phalanx.coding.base import Code, Decoded
from phalanx.coding.coded_least_squares import CodedLeastSquares
from phalanx.coding.coded_matmul import CodedMatmul, CodedMatrix, Product
from phalanx.coding.coded_shuffle import CodedShuffle
from phalanx.coding.coded_shuffle_sampler import CodedShuffleSampler
from phalanx.coding.draco_cyclic import DracoCyclic
from phalanx.coding.draco_repetition import DracoRepetition
from phalanx.coding.latency import (
    expected_time_mds,
    expected_time_repetition,
    expected_time_uncoded,
    harmonic,
    optimal_code_rate,
    optimal_num_blocks,
    optimal_time,
)
from phalanx.coding.row_bytes import pack_rows, unpack_rows
from phalanx.coding.shuffle_plan import RowCache, ShufflePlan

__all__ = [
    "Code",
    "CodedLeastSquares",
    "CodedMatmul",
    "CodedMatrix",
    "CodedShuffle",
    "CodedShuffleSampler",
    "Decoded",
    "DracoCyclic",
    "DracoRepetition",
    "Product",
    "RowCache",
    "ShufflePlan",
    "expected_time_mds",
    "expected_time_repetition",
    "expected_time_uncoded",
    "harmonic",
    "optimal_code_rate",
    "optimal_num_blocks",
    "optimal_time",
    "pack_rows",
    "unpack_rows",
]
