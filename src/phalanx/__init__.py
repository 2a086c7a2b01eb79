"""Phalanx: train PyTorch models on machines, networks and peers that you cannot fully trust."""

__version__ = "0.1.0"

from importlib import import_module
from typing import Any

from phalanx.federated import federate
from phalanx.training import Run, train

__all__ = ["Run", "audit_backdoor", "federate", "train"]


def __getattr__(name: str) -> Any:
    """Audits are imported when they are asked for: their plots would make every start wait."""
    if name == "audit_backdoor":
        return import_module("phalanx.backdoors").audit_backdoor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
