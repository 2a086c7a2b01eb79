"""Differential privacy and its accountant, private generators, secure sums and aggregation."""

from phalanx.privacy.accountant import Accountant, Budget, noise_multiplier_for
from phalanx.privacy.generation.class_moments import ClassMoments
from phalanx.privacy.generation.datalens import DataLens
from phalanx.privacy.generation.domain import Column, Domain
from phalanx.privacy.generation.dp_gan import DPGan
from phalanx.privacy.generation.membership import (
    MembershipAudit,
    Pairs,
    audit_membership,
    epsilon_lower_bound,
    hold_out_pairs,
)
from phalanx.privacy.generation.output import downstream_accuracy, write_synthetic
from phalanx.privacy.generation.private_data import PrivateData, read_private
from phalanx.privacy.generation.run import Generated, generate
from phalanx.privacy.generation.shards import deal_shards
from phalanx.privacy.generation.synthesizer import Fitting, Mechanism, Synthesizer
from phalanx.privacy.generation.teachers import Teachers
from phalanx.privacy.generation.votes import ProjectedVote, TopAggVote, Vote
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
from phalanx.privacy.top_agg import noisy_majority, top_agg_sensitivity, top_k_votes

__all__ = [
    "Accountant",
    "Budget",
    "ClassMoments",
    "Column",
    "CommunicationCost",
    "DPGan",
    "DataLens",
    "Dealer",
    "DistributedNoise",
    "Domain",
    "Fitting",
    "Generated",
    "MalformedMessageError",
    "Mechanism",
    "MembershipAudit",
    "ModelServer",
    "ModelServerView",
    "OpenedSum",
    "Pairs",
    "Peer",
    "PrivateData",
    "ProjectedVote",
    "RoundLedger",
    "RoundOverError",
    "SecureAggregation",
    "SecureClient",
    "SecureSetup",
    "Shares",
    "SumClient",
    "SumRange",
    "SumSetup",
    "Synthesizer",
    "Teachers",
    "TopAggVote",
    "Transcript",
    "UnexpectedMessageError",
    "Uploader",
    "Vote",
    "WorkerServer",
    "WorkerServerView",
    "audit_membership",
    "channel_credentials",
    "communication_cost",
    "deal",
    "deal_shards",
    "discrete_gaussian",
    "downstream_accuracy",
    "epsilon_lower_bound",
    "fresh_keys",
    "generate",
    "hold_out_pairs",
    "noise_multiplier_for",
    "noisy_majority",
    "read_private",
    "run_round",
    "run_secure_sum",
    "secure_sum",
    "seeded_entropy",
    "server_credentials",
    "top_agg_sensitivity",
    "top_k_votes",
    "write_synthetic",
]
