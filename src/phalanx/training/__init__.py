"""The round, the engines that carry it, and runs that survive being killed."""

from phalanx.evaluation import Evaluation, evaluate
from phalanx.losses import cross_entropy
from phalanx.training.engines.base import Collected, Engine, Inbox, Session
from phalanx.training.engines.local import Local
from phalanx.training.engines.ray import Ray
from phalanx.training.job import Job
from phalanx.training.loop import Run
from phalanx.training.reputation import Reputation, Standing, rounds_until_excluded
from phalanx.training.run import train
from phalanx.training.worker_state import Memory

__all__ = [
    "Collected",
    "Engine",
    "Evaluation",
    "Inbox",
    "Job",
    "Local",
    "Memory",
    "Ray",
    "Reputation",
    "Run",
    "Session",
    "Standing",
    "cross_entropy",
    "evaluate",
    "rounds_until_excluded",
    "train",
]
