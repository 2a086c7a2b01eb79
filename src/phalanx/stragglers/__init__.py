"""Stragglers: models of delays, waiting policies and a virtual clock."""

from phalanx.stragglers.delays import (
    Bimodal,
    Bursty,
    DelayModel,
    Pareto,
    RecordedTrace,
    ShiftedExponential,
)
from phalanx.stragglers.latency import (
    expected_time_mds,
    expected_time_repetition,
    expected_time_uncoded,
    harmonic,
    optimal_code_rate,
    optimal_num_blocks,
    optimal_time,
)
from phalanx.stragglers.virtual_clock import Rounds, virtual_clock
from phalanx.stragglers.waiting import (
    AdaptiveDeadline,
    Deadline,
    FirstOf,
    UntilDecodable,
    WaitFor,
    WaitForAll,
    WaitingPolicy,
)

__all__ = [
    "AdaptiveDeadline",
    "Bimodal",
    "Bursty",
    "Deadline",
    "DelayModel",
    "FirstOf",
    "Pareto",
    "RecordedTrace",
    "Rounds",
    "ShiftedExponential",
    "UntilDecodable",
    "WaitFor",
    "WaitForAll",
    "WaitingPolicy",
    "expected_time_mds",
    "expected_time_repetition",
    "expected_time_uncoded",
    "harmonic",
    "optimal_code_rate",
    "optimal_num_blocks",
    "optimal_time",
    "virtual_clock",
]
