"""What came of a cell."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from statistics import median
from typing import Any, Literal

from phalanx.reporting import Detection, detection

Status = Literal["finished", "stopped", "failed", "not applicable"]


@dataclass(frozen=True)
class Outcome:
    """What came of a cell: figures if it ran, a reason if it did not run to its end."""

    status: Status
    """`"stopped"` if more messages were unusable than the method survives, `"failed"` on any other
    error, `"not applicable"` if the parts of the cell do not go together, so that it never ran."""
    reason: str | None = None
    """Why it did not run to its end."""
    rounds: int = 0
    """Rounds completed."""
    test_accuracy: float | None = None
    """A share in [0, 1], of the last weights, also where the run was stopped."""
    test_loss: float | None = None
    """Of the last weights; None if it is not finite."""
    round_seconds: float | None = None
    """Median seconds a round."""
    decode_seconds: float | None = None
    """Median seconds a round in which messages were decoded."""
    seconds: float | None = None
    """Seconds in all."""
    detection: Detection = Detection()  # noqa: RUF009 - frozen
    """Who lied and who was named."""
    accuracies: Sequence[Sequence[int | float]] = ()
    """Pairs of rounds completed and test accuracy, whenever it was measured."""
    warnings: Sequence[str] = ()
    """What was warned of, each once."""

    @property
    def settled(self) -> bool:
        """Whether running it again would give the same: it ended, or was stopped by its liars."""
        return self.status in ("finished", "stopped")

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Outcome":
        """The outcome that was written.

        Raises:
            KeyError: if a name is missing.
            TypeError: if a value is of another kind.
        """
        named = {one.name: content[one.name] for one in fields(cls)}
        named["detection"] = Detection(**content["detection"])
        named["accuracies"] = tuple((rounds, share) for rounds, share in content["accuracies"])
        named["warnings"] = tuple(content["warnings"])
        return cls(**named)


def medians(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of an outcome that come from the rounds of a run."""
    if not rounds:
        return {}
    return {
        "rounds": len(rounds),
        "round_seconds": median(entry["seconds"] for entry in rounds),
        "decode_seconds": median(entry["decode_seconds"] for entry in rounds),
        "detection": detection(rounds),
        "accuracies": tuple(
            (entry["step"] + 1, entry["test_accuracy"])
            for entry in rounds
            if entry.get("test_accuracy") is not None
        ),
    }
