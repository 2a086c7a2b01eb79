"""Training on data that nobody else may see."""

from phalanx.privacy.local_noise import gaussian_epsilon
from phalanx.privacy.secure_aggregation.client import SecureClient, Shares
from phalanx.privacy.secure_aggregation.dealer import RoundLedger, deal
from phalanx.privacy.secure_aggregation.entropy import repeatable
from phalanx.privacy.secure_aggregation.model_server import ModelServerView
from phalanx.privacy.secure_aggregation.protocol import Transcript, run_round
from phalanx.privacy.secure_aggregation.secure_aggregation import SecureAggregation
from phalanx.privacy.secure_aggregation.setup import SecureSetup
from phalanx.privacy.secure_aggregation.worker_server import WorkerServerView

__all__ = [
    "ModelServerView",
    "RoundLedger",
    "SecureAggregation",
    "SecureClient",
    "SecureSetup",
    "Shares",
    "Transcript",
    "WorkerServerView",
    "deal",
    "gaussian_epsilon",
    "repeatable",
    "run_round",
]
