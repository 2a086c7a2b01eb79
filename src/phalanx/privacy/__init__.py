"""Training on data that nobody else may see."""

from phalanx.privacy.local_noise import gaussian_epsilon
from phalanx.privacy.secure_aggregation.client import SecureClient, Shares
from phalanx.privacy.secure_aggregation.credentials import channel_credentials, server_credentials
from phalanx.privacy.secure_aggregation.dealer import RoundLedger, deal
from phalanx.privacy.secure_aggregation.entropy import repeatable
from phalanx.privacy.secure_aggregation.model_server import ModelServerView
from phalanx.privacy.secure_aggregation.protocol import Transcript, run_round
from phalanx.privacy.secure_aggregation.secure_aggregation import SecureAggregation
from phalanx.privacy.secure_aggregation.serving_dealer import Dealer
from phalanx.privacy.secure_aggregation.serving_model_server import ModelServer
from phalanx.privacy.secure_aggregation.serving_worker_server import WorkerServer
from phalanx.privacy.secure_aggregation.setup import SecureSetup
from phalanx.privacy.secure_aggregation.traffic import Traffic, traffic
from phalanx.privacy.secure_aggregation.transport import (
    NotNowError,
    Peer,
    RoundOverError,
    fresh_keys,
)
from phalanx.privacy.secure_aggregation.uploader import Uploader
from phalanx.privacy.secure_aggregation.wire import MalformedMessageError
from phalanx.privacy.secure_aggregation.worker_server import WorkerServerView

__all__ = [
    "Dealer",
    "MalformedMessageError",
    "ModelServer",
    "ModelServerView",
    "NotNowError",
    "Peer",
    "RoundLedger",
    "RoundOverError",
    "SecureAggregation",
    "SecureClient",
    "SecureSetup",
    "Shares",
    "Traffic",
    "Transcript",
    "Uploader",
    "WorkerServer",
    "WorkerServerView",
    "channel_credentials",
    "deal",
    "fresh_keys",
    "gaussian_epsilon",
    "repeatable",
    "run_round",
    "server_credentials",
    "traffic",
]
