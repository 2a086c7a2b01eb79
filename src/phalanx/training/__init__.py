"""The round, the engines that carry it, and runs that survive being killed."""

from phalanx.training.accordion_batch import (
    AccordionBatch,
    AccordionBatchSampler,
    BatchState,
    suggest_batch,
)
from phalanx.training.delays import (
    Bimodal,
    Bursty,
    DelayModel,
    Pareto,
    RecordedTrace,
    ShiftedExponential,
)
from phalanx.training.diversity_monitor import DiversityMonitor, Spread, squared_norm
from phalanx.training.engine import Collected, Engine, Inbox, Session
from phalanx.training.evaluation import Evaluation, evaluate
from phalanx.training.gradient_diversity import GradientDiversity, gradient_diversity
from phalanx.training.holdings import Holdings
from phalanx.training.job import Job
from phalanx.training.largest_batch import (
    BatchTrial,
    LargestBatch,
    epochs_to_accuracy,
    largest_batch,
)
from phalanx.training.link_planner import LinkOutlook, LinkPlanner, bits_per_second, seconds
from phalanx.training.local import Local
from phalanx.training.loop import Run
from phalanx.training.losses import class_entropy
from phalanx.training.memory import Memory
from phalanx.training.planner import Outlook, Planner, write_plan
from phalanx.training.ray import Ray
from phalanx.training.ray_matmul import RayMatmul, RayMatmulSession, TimedProduct
from phalanx.training.ray_shuffle import RayShuffle, RayShuffleSession, Traffic
from phalanx.training.reputation import Reputation, Standing, rounds_until_excluded
from phalanx.training.run import train
from phalanx.training.virtual_clock import Rounds, virtual_clock
from phalanx.training.waiting import (
    AdaptiveDeadline,
    Deadline,
    FirstOf,
    UntilDecodable,
    WaitFor,
    WaitForAll,
    WaitingPolicy,
)
from phalanx.training.worker_momentum import WorkerMomentum

__all__ = [
    "AccordionBatch",
    "AccordionBatchSampler",
    "AdaptiveDeadline",
    "BatchState",
    "BatchTrial",
    "Bimodal",
    "Bursty",
    "Collected",
    "Deadline",
    "DelayModel",
    "DiversityMonitor",
    "Engine",
    "Evaluation",
    "FirstOf",
    "GradientDiversity",
    "Holdings",
    "Inbox",
    "Job",
    "LargestBatch",
    "LinkOutlook",
    "LinkPlanner",
    "Local",
    "Memory",
    "Outlook",
    "Pareto",
    "Planner",
    "Ray",
    "RayMatmul",
    "RayMatmulSession",
    "RayShuffle",
    "RayShuffleSession",
    "RecordedTrace",
    "Reputation",
    "Rounds",
    "Run",
    "Session",
    "ShiftedExponential",
    "Spread",
    "Standing",
    "TimedProduct",
    "Traffic",
    "UntilDecodable",
    "WaitFor",
    "WaitForAll",
    "WaitingPolicy",
    "WorkerMomentum",
    "bits_per_second",
    "class_entropy",
    "epochs_to_accuracy",
    "evaluate",
    "gradient_diversity",
    "largest_batch",
    "rounds_until_excluded",
    "seconds",
    "squared_norm",
    "suggest_batch",
    "train",
    "virtual_clock",
    "write_plan",
]
