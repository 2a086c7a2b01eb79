"""Pipeline parallelism over slow links, with compressed activations and gradients."""

from phalanx.pipeline.activation_difference import ActivationDifference
from phalanx.pipeline.base import ActivationCodec
from phalanx.pipeline.boundary import ActivationBoundary, BoundaryTraffic, MicrobatchPlan
from phalanx.pipeline.buffers import buffer_bytes
from phalanx.pipeline.gradients import average_gradients
from phalanx.pipeline.hugging_face import hugging_face_layers
from phalanx.pipeline.pipeline import CompressedPipeline
from phalanx.pipeline.settings import Estimate
from phalanx.pipeline.simulation import SimulatedPipeline
from phalanx.pipeline.splitting import split

__all__ = [
    "ActivationBoundary",
    "ActivationCodec",
    "ActivationDifference",
    "BoundaryTraffic",
    "CompressedPipeline",
    "Estimate",
    "MicrobatchPlan",
    "SimulatedPipeline",
    "average_gradients",
    "buffer_bytes",
    "hugging_face_layers",
    "split",
]
