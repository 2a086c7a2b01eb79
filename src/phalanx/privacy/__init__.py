"""Differential privacy and its accountant, secure sums, and secure aggregation by two servers."""

from phalanx.privacy.accountant import Accountant, Budget, noise_multiplier_for
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
from phalanx.privacy.secure_sum.client import SumClient
from phalanx.privacy.secure_sum.distributed_noise import DistributedNoise, discrete_gaussian
from phalanx.privacy.secure_sum.fixed_point import SumRange
from phalanx.privacy.secure_sum.server import OpenedSum, run_secure_sum
from phalanx.privacy.secure_sum.setup import SumSetup
from phalanx.privacy.secure_sum.simulation import secure_sum
from phalanx.privacy.top_agg import TopAgg, top_k_votes

__all__ = [
    "Accountant",
    "Budget",
    "CommunicationCost",
    "Dealer",
    "DistributedNoise",
    "MalformedMessageError",
    "ModelServer",
    "ModelServerView",
    "OpenedSum",
    "Peer",
    "RoundLedger",
    "RoundOverError",
    "SecureAggregation",
    "SecureClient",
    "SecureSetup",
    "Shares",
    "SumClient",
    "SumRange",
    "SumSetup",
    "TopAgg",
    "Transcript",
    "UnexpectedMessageError",
    "Uploader",
    "WorkerServer",
    "WorkerServerView",
    "channel_credentials",
    "communication_cost",
    "deal",
    "discrete_gaussian",
    "fresh_keys",
    "noise_multiplier_for",
    "run_round",
    "run_secure_sum",
    "secure_sum",
    "seeded_entropy",
    "server_credentials",
    "top_k_votes",
]
