"""Training: rounds, engines that run them, and runs that resume after a kill."""

from phalanx.evaluation import Evaluation, evaluate
from phalanx.training.adaptive_server_step import (
    AdaptiveServerStep,
    ServerAdagrad,
    ServerAdam,
    ServerYogi,
)
from phalanx.training.aggregation_protocol import AggregationProtocol
from phalanx.training.callbacks import Callback, EarlyStopping
from phalanx.training.differential_privacy import DifferentialPrivacy
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
from phalanx.training.engines.torch_distributed import TorchDistributed
from phalanx.training.exchange import Collected, ExchangeMemory, exchange
from phalanx.training.job import Job
from phalanx.training.loggers import (
    MLflowLogger,
    TensorBoardLogger,
    TrackioLogger,
    WandbLogger,
)
from phalanx.training.noisy_step import NoisyStep
from phalanx.training.privacy_ledger import PrivacyLedger
from phalanx.training.private_step import PrivateStep
from phalanx.training.received import Received
from phalanx.training.reputation import OutlierTest, Reputation, Standing, rounds_until_excluded
from phalanx.training.round import Round
from phalanx.training.run import train
from phalanx.training.run_record import Run
from phalanx.training.server_step import (
    ClippedStep,
    OptimizerStep,
    ServerMomentum,
    ServerStep,
)
from phalanx.training.worker import TrainingWorkers

__all__ = [
    "AdaptiveServerStep",
    "AggregationProtocol",
    "Callback",
    "ClippedStep",
    "Collected",
    "Collector",
    "DifferentialPrivacy",
    "EarlyStopping",
    "Engine",
    "Evaluation",
    "ExchangeMemory",
    "Job",
    "Local",
    "MLflowLogger",
    "NoisyStep",
    "OptimizerStep",
    "OutlierTest",
    "PrivacyLedger",
    "PrivateStep",
    "Ray",
    "Received",
    "Replies",
    "Reply",
    "Reputation",
    "Round",
    "Run",
    "ServerAdagrad",
    "ServerAdam",
    "ServerMomentum",
    "ServerStep",
    "ServerYogi",
    "Session",
    "Site",
    "Standing",
    "Task",
    "TensorBoardLogger",
    "TorchDistributed",
    "TrackioLogger",
    "TrainingWorkers",
    "Waiting",
    "WandbLogger",
    "WorkerFactory",
    "evaluate",
    "exchange",
    "rounds_until_excluded",
    "train",
]
