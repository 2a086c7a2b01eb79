"""Phalanx: train PyTorch models on machines, networks and peers that you cannot fully trust."""

__version__ = "0.1.0"

from typing import TYPE_CHECKING, Any

from phalanx.federated import federate
from phalanx.training import Run, train

if TYPE_CHECKING:
    from phalanx.backdoors import audit_backdoor

__all__ = ["Run", "audit_backdoor", "federate", "train"]


def __getattr__(name: str) -> Any:
    """Audits are imported when they are asked for: their plots would make every start wait."""
    if name == "audit_backdoor":
        from phalanx.backdoors import audit_backdoor

        return audit_backdoor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
