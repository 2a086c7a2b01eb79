"""Message transforms: momentum, noise and compression of worker messages."""

from phalanx.transforms.base import MessageContext, MessageTransform
from phalanx.transforms.chain import Chain
from phalanx.transforms.compressed import Compressed
from phalanx.transforms.gaussian_noise import GaussianNoise
from phalanx.transforms.worker_momentum import WorkerMomentum

__all__ = [
    "Chain",
    "Compressed",
    "GaussianNoise",
    "MessageContext",
    "MessageTransform",
    "WorkerMomentum",
]
