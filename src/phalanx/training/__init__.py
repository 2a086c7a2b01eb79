"""Training: rounds, engines that run them, and runs that resume after a kill."""

from phalanx.evaluation import Evaluation, evaluate
from phalanx.training.engines.base import (
    Collector,
    Engine,
    Replies,
    Reply,
    Session,
    Site,
    Task,
    Waiting,
    WorkerFactory,
)
from phalanx.training.engines.local import Local
from phalanx.training.engines.ray import Ray
from phalanx.training.exchange import Collected, ExchangeMemory, exchange
from phalanx.training.job import Job
from phalanx.training.loop import Run
from phalanx.training.reputation import OutlierTest, Reputation, Standing, rounds_until_excluded
from phalanx.training.round import Round
from phalanx.training.run import train
from phalanx.training.server_step import OptimizerStep, ServerMomentum, ServerStep
from phalanx.training.worker import TrainingWorkers

__all__ = [
    "Collected",
    "Collector",
    "Engine",
    "Evaluation",
    "ExchangeMemory",
    "Job",
    "Local",
    "OptimizerStep",
    "OutlierTest",
    "Ray",
    "Replies",
    "Reply",
    "Reputation",
    "Round",
    "Run",
    "ServerMomentum",
    "ServerStep",
    "Session",
    "Site",
    "Standing",
    "Task",
    "TrainingWorkers",
    "Waiting",
    "WorkerFactory",
    "evaluate",
    "exchange",
    "rounds_until_excluded",
    "train",
]
