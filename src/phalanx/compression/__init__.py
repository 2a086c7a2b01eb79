"""Compressors: fewer bytes on the wire, and means of what they decode to."""

from phalanx.compression.atomo import Atomo
from phalanx.compression.atoms import Atoms, Basis, Entries, SingularVectors, Waves
from phalanx.compression.averaging import Memory, average
from phalanx.compression.base import Compressor
from phalanx.compression.collectives import AllGather, AllReduce, Averaged, Round
from phalanx.compression.distributed import communicate
from phalanx.compression.error_feedback import ErrorFeedback
from phalanx.compression.half_precision import HalfPrecision
from phalanx.compression.message import Message, Part
from phalanx.compression.power_sgd import PowerSGD
from phalanx.compression.qsgd import QSGD
from phalanx.compression.random_block import RandomBlock
from phalanx.compression.random_k import RandomK
from phalanx.compression.randomized_singular_vectors import RandomizedSingularVectors
from phalanx.compression.scaled_sign import ScaledSign
from phalanx.compression.sign_sgd import SignSGD
from phalanx.compression.simulation import simulate
from phalanx.compression.tern_grad import TernGrad
from phalanx.compression.threshold import SampledTopK, Threshold
from phalanx.compression.top_k import TopK
from phalanx.compression.uniform_quantization import UniformQuantization
from phalanx.compression.whole_gradient import WholeGradient

__all__ = [
    "QSGD",
    "AllGather",
    "AllReduce",
    "Atomo",
    "Atoms",
    "Averaged",
    "Basis",
    "Compressor",
    "Entries",
    "ErrorFeedback",
    "HalfPrecision",
    "Memory",
    "Message",
    "Part",
    "PowerSGD",
    "RandomBlock",
    "RandomK",
    "RandomizedSingularVectors",
    "Round",
    "SampledTopK",
    "ScaledSign",
    "SignSGD",
    "SingularVectors",
    "TernGrad",
    "Threshold",
    "TopK",
    "UniformQuantization",
    "Waves",
    "WholeGradient",
    "average",
    "communicate",
    "simulate",
]
