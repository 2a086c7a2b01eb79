"""Detection of Byzantine workers by the decoder: precision and recall."""

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from phalanx.reporting.record import byzantine, missing, suspected, suspects


@dataclass(frozen=True)
class Detection:
    """Counts over pairs of a worker and a round.

    A *lie* is a message of a worker that was Byzantine in that round, if it entered decoding. A
    Byzantine worker that stands in `missing` (silent, late, dead, refused for its shape) counts
    neither way: nothing of it could be caught or missed.

    A worker is *named* if it was Byzantine for certain, and *suspected* if it was named or an
    outlier. Precision and recall are those of suspicion: rules have no other.
    """

    lies: int = 0
    """Messages of Byzantine workers that entered decoding."""
    caught: int = 0
    """Those of them whose sender the decoder suspected in that round."""
    false_alarms: int = 0
    """Times that the decoder suspected a worker that was not Byzantine in that round."""
    unheard: int = 0
    """Times that a Byzantine worker's message never entered decoding."""
    proven: int = 0
    """Lies whose sender the decoder named in that round."""
    framed: int = 0
    """Times that the decoder named a worker that was not Byzantine in that round: 0 within the
    bound, unless honest workers were broken."""

    @property
    def precision(self) -> float | None:
        """Share of the suspected that were Byzantine; None if nobody was suspected or Byzantine.

        Without a simulated attack nobody knows who is, so suspecting workers is no mistake then.
        """
        suspected = self.caught + self.false_alarms
        return self.caught / suspected if suspected and self.lies + self.unheard else None

    @property
    def recall(self) -> float | None:
        """Share of Byzantine messages whose sender was suspected; None if there were none."""
        return self.caught / self.lies if self.lies else None

    @property
    def proof(self) -> float | None:
        """Share of Byzantine messages whose sender was named; None if there were none."""
        return self.proven / self.lies if self.lies else None

    @property
    def verb(self) -> str:
        """What became of workers: "named", or "suspected" where some of that was without proof."""
        certain = (self.proven, self.framed) == (self.caught, self.false_alarms)
        return "named" if certain else "suspected"


def byzantine_senders(entry: dict[str, Any]) -> set[int]:
    """Byzantine workers whose messages entered decoding in a round."""
    return byzantine(entry) - set(missing(entry))


def detection(rounds: Sequence[dict[str, Any]]) -> Detection:
    """Counts who was Byzantine, suspected and named over the rounds of `metrics.jsonl`.

    >>> detection([{"step": 0, "byzantine": [1, 4], "suspects": [1], "missing": {"4": "silent"}}])
    Detection(lies=1, caught=1, false_alarms=0, unheard=1, proven=1, framed=0)
    """
    return Detection(
        lies=sum(len(byzantine_senders(entry)) for entry in rounds),
        caught=sum(len(byzantine_senders(entry) & suspected(entry)) for entry in rounds),
        false_alarms=sum(len(suspected(entry) - byzantine(entry)) for entry in rounds),
        unheard=sum(len(byzantine(entry) & set(missing(entry))) for entry in rounds),
        proven=sum(len(byzantine_senders(entry) & suspects(entry)) for entry in rounds),
        framed=sum(len(suspects(entry) - byzantine(entry)) for entry in rounds),
    )


def total(detections: Iterable[Detection]) -> Detection:
    """The counts of several runs together."""
    counts = [astuple(one) for one in detections]
    return Detection(*(sum(column) for column in zip(*counts, strict=True)))
