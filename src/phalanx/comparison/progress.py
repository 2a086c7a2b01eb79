"""How far a comparison has come."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from phalanx.comparison.grid import Place


@dataclass(frozen=True)
class Progress:
    """How far a comparison has come."""

    done: int
    """Cells that need no more work."""
    found: int
    """Those of them that were done before."""
    total: int
    """All cells."""
    running: Sequence[Place]
    """What is measured now, the longest first."""


Watch = Callable[[Progress], None]
"""Is told whenever a cell begins or ends."""
