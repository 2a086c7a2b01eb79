"""Message transforms: what a worker does to its message before it sends it."""

from phalanx.transforms.worker_momentum import WorkerMomentum

__all__ = ["WorkerMomentum"]
