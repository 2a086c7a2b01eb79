"""How well the decoder named the liars."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from phalanx.reporting.record import byzantine, missing, suspects


@dataclass(frozen=True)
class Detection:
    """Counts over pairs of a worker and a round.

    A *lie* is a message from a worker that was bad in that round and whose message entered
    decoding. A bad worker that stands in `missing` (silent, late, dead, refused for its shape) told
    no lie: nothing of it could be caught or missed, and naming it counts neither way.
    """

    lies: int = 0
    """Messages from bad workers that entered decoding."""
    caught: int = 0
    """Lies whose sender the decoder named in that round."""
    false_alarms: int = 0
    """Times that the decoder named a worker that was not bad in that round."""
    unheard: int = 0
    """Times that a bad worker's message never entered decoding."""

    @property
    def precision(self) -> float | None:
        """Share of the named that had lied; None if nobody was named or no worker was bad.

        Without a drill nobody knows who is bad, so naming workers is no mistake then.
        """
        named = self.caught + self.false_alarms
        return self.caught / named if named and self.lies + self.unheard else None

    @property
    def recall(self) -> float | None:
        """Share of the lies whose sender was named; None if there was no lie."""
        return self.caught / self.lies if self.lies else None


def liars(entry: dict[str, Any]) -> set[int]:
    """The workers whose lies entered decoding in a round."""
    return byzantine(entry) - set(missing(entry))


def detection(rounds: Sequence[dict[str, Any]]) -> Detection:
    """Counts who lied and who was named over the rounds of `metrics.jsonl`.

    >>> detection([{"step": 0, "byzantine": [1, 4], "suspects": [1], "missing": {"4": "silent"}}])
    Detection(lies=1, caught=1, false_alarms=0, unheard=1)
    """
    return Detection(
        lies=sum(len(liars(entry)) for entry in rounds),
        caught=sum(len(liars(entry) & suspects(entry)) for entry in rounds),
        false_alarms=sum(len(suspects(entry) - byzantine(entry)) for entry in rounds),
        unheard=sum(len(byzantine(entry) & set(missing(entry))) for entry in rounds),
    )


def total(detections: Iterable[Detection]) -> Detection:
    """The counts of several runs together."""
    counts = [(one.lies, one.caught, one.false_alarms, one.unheard) for one in detections]
    return Detection(*(sum(column) for column in zip(*counts, strict=True)))
