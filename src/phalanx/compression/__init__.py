"""Gradient compressors, and means of what their messages decode to."""

from phalanx.compression.accordion import Accordion
from phalanx.compression.atomo import Atomo
from phalanx.compression.atoms import Atoms, Basis, Decomposition, Entries, SingularVectors, Waves
from phalanx.compression.auto_basis import AutoBasis
from phalanx.compression.averaging import TensorStates, average, gather
from phalanx.compression.base import Compressor, frame
from phalanx.compression.critical_regimes import CriticalRegimes, Regime
from phalanx.compression.distributed import communicate
from phalanx.compression.error_feedback import ErrorFeedback
from phalanx.compression.half_precision import HalfPrecision
from phalanx.compression.message import Message, Part, fixed, num_values
from phalanx.compression.momentum import MomentumCorrection
from phalanx.compression.power_sgd import PowerSGD
from phalanx.compression.qsgd import QSGD
from phalanx.compression.random_block import RandomBlock
from phalanx.compression.random_k import RandomK
from phalanx.compression.randomized_singular_vectors import RandomizedSingularVectors
from phalanx.compression.sample_quantization import SampleQuantization
from phalanx.compression.scaled_sign import ScaledSign
from phalanx.compression.scheduled import Scheduled
from phalanx.compression.sign_sgd import SignSGD
from phalanx.compression.signum import Signum
from phalanx.compression.simulation import simulate
from phalanx.compression.tern_grad import TernGrad
from phalanx.compression.threshold import SampledTopK, Threshold
from phalanx.compression.top_k import TopK
from phalanx.compression.two_stage import TwoStage
from phalanx.compression.uncompressed import Uncompressed
from phalanx.compression.uniform_quantization import UniformQuantization
from phalanx.compression.whole_gradient import WholeGradient

__all__ = [
    "QSGD",
    "Accordion",
    "Atomo",
    "Atoms",
    "AutoBasis",
    "Basis",
    "Compressor",
    "CriticalRegimes",
    "Decomposition",
    "Entries",
    "ErrorFeedback",
    "HalfPrecision",
    "Message",
    "MomentumCorrection",
    "Part",
    "PowerSGD",
    "RandomBlock",
    "RandomK",
    "RandomizedSingularVectors",
    "Regime",
    "SampleQuantization",
    "SampledTopK",
    "ScaledSign",
    "Scheduled",
    "SignSGD",
    "Signum",
    "SingularVectors",
    "TensorStates",
    "TernGrad",
    "Threshold",
    "TopK",
    "TwoStage",
    "Uncompressed",
    "UniformQuantization",
    "Waves",
    "WholeGradient",
    "average",
    "communicate",
    "fixed",
    "frame",
    "gather",
    "num_values",
    "simulate",
]
