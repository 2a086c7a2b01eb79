"""Differential privacy, its accountant, and secure aggregation by two servers."""

from phalanx.privacy.accountant import Accountant, Budget, noise_multiplier_for
from phalanx.privacy.local_noise import gaussian_epsilon
from phalanx.privacy.secure_aggregation.client import SecureClient, Shares, Uploader
from phalanx.privacy.secure_aggregation.dealer import Dealer, deal
from phalanx.privacy.secure_aggregation.messages import (
    CommunicationCost,
    MalformedMessageError,
    communication_cost,
)
from phalanx.privacy.secure_aggregation.model_server import ModelServer, ModelServerView
from phalanx.privacy.secure_aggregation.protocol import RoundLedger, SecureSetup, seeded_entropy
from phalanx.privacy.secure_aggregation.secure_aggregation import (
    SecureAggregation,
    Transcript,
    run_round,
)
from phalanx.privacy.secure_aggregation.transport import (
    Peer,
    RoundOverError,
    UnexpectedMessageError,
    channel_credentials,
    fresh_keys,
    server_credentials,
)
from phalanx.privacy.secure_aggregation.worker_server import WorkerServer, WorkerServerView
from phalanx.privacy.top_agg import noisy_vote, top_agg_rdp, top_agg_sensitivity, top_signs

__all__ = [
    "Accountant",
    "Budget",
    "CommunicationCost",
    "Dealer",
    "MalformedMessageError",
    "ModelServer",
    "ModelServerView",
    "Peer",
    "RoundLedger",
    "RoundOverError",
    "SecureAggregation",
    "SecureClient",
    "SecureSetup",
    "Shares",
    "Transcript",
    "UnexpectedMessageError",
    "Uploader",
    "WorkerServer",
    "WorkerServerView",
    "channel_credentials",
    "communication_cost",
    "deal",
    "fresh_keys",
    "gaussian_epsilon",
    "noise_multiplier_for",
    "noisy_vote",
    "run_round",
    "seeded_entropy",
    "server_credentials",
    "top_agg_rdp",
    "top_agg_sensitivity",
    "top_signs",
]
