"""The round, the engines that carry it, and runs that survive being killed."""

from phalanx.training.engine import Collected, Engine, Inbox, Session
from phalanx.training.evaluation import Evaluation, evaluate
from phalanx.training.holdings import Holdings
from phalanx.training.job import Job
from phalanx.training.local import Local
from phalanx.training.memory import Memory
from phalanx.training.ray import Ray
from phalanx.training.reputation import Reputation, Standing, rounds_until_excluded
from phalanx.training.run import Run, train
from phalanx.training.worker_momentum import WorkerMomentum

__all__ = [
    "Collected",
    "Engine",
    "Evaluation",
    "Holdings",
    "Inbox",
    "Job",
    "Local",
    "Memory",
    "Ray",
    "Reputation",
    "Run",
    "Session",
    "Standing",
    "WorkerMomentum",
    "evaluate",
    "rounds_until_excluded",
    "train",
]
