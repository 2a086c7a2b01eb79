"""Comparison of runs: distance from the reference, speed, and detection."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from safetensors import safe_open

from phalanx.reporting.detection import Detection, detection
from phalanx.reporting.record import RunRecord, byzantine

SAME_WEIGHTS = 1e-5
"""Largest relative weight difference at which two runs are said to have the same weights."""


@dataclass(frozen=True)
class Row:
    """One run in a comparison."""

    title: str
    """The run's title."""
    status: str
    """`"finished"`, `"stopped"` or `"unfinished"`."""
    rounds: int
    """Rounds completed."""
    test_accuracy: float | None
    """Final (or last measured) test accuracy, a share in [0, 1]."""
    weight_difference: float | None
    """max |w - w_reference| over all floating-point entries of `model.safetensors`; infinite if
    either holds numbers that are not finite; None if there is nothing to compare."""
    relative_difference: float | None
    """`weight_difference` / max |w_reference|."""
    round_seconds: float | None
    """Median seconds per round."""
    compute_seconds: float | None
    """Median seconds per round in which gradients were computed."""
    decode_seconds: float | None
    """Median seconds per round in which messages were decoded."""
    detection: Detection
    """Detection of Byzantine workers."""
    is_reference: bool = False
    """Whether the others are held against this run."""
    round_bytes: float | None = None
    """Median bytes of messages per round; None if they were not counted."""
    evaluation: Mapping[str, float] = field(default_factory=dict)
    """Final (or last measured) evaluation by name, see `RunRecord.evaluation`."""


def is_honest(record: RunRecord) -> bool:
    """Whether no attack was staged in a run."""
    attack = None if record.result is None else record.result.get("attack")
    return attack is None and not any(byzantine(entry) for entry in record.rounds)


def find_reference(records: Sequence[RunRecord]) -> RunRecord | None:
    """The first honest run that finished with weights; None for a single run."""
    found = (
        record
        for record in records
        if record.status == "finished" and is_honest(record) and _model(record).is_file()
    )
    return next(found, None) if len(records) > 1 else None


def compare_runs(records: Sequence[RunRecord], reference: RunRecord | None = None) -> list[Row]:
    """One row a run, in the order given.

    Args:
        records: the runs.
        reference: the run that the weights are compared with; put first if it is not among the
            records. By default the first finished honest run, if there are several runs.

    Raises:
        ValueError: if the reference that was given has no `model.safetensors`.

    Cost: one pass over the weights of each run and of the reference, one tensor at a time.
    """
    if reference is not None and not _model(reference).is_file():
        raise ValueError(
            f"{reference.folder} cannot be the reference: model.safetensors is missing"
        )
    records = with_reference(records, reference)
    reference = reference or find_reference(records)
    return [_row(record, reference) for record in records]


def with_reference(
    records: Sequence[RunRecord], reference: RunRecord | None
) -> Sequence[RunRecord]:
    """The records, led by the reference if it is not among them."""
    if reference is None or any(record.folder == reference.folder for record in records):
        return records
    return [reference, *records]


def _row(record: RunRecord, reference: RunRecord | None) -> Row:
    difference = relative = None
    if reference is not None and _model(record).is_file():
        difference, relative = _weight_difference(_model(record), _model(reference))
    return Row(
        title=record.title,
        status=record.status,
        rounds=len(record.rounds),
        test_accuracy=record.test_accuracy,
        weight_difference=difference,
        relative_difference=relative,
        round_seconds=_median(record, "seconds"),
        compute_seconds=_median(record, "compute_seconds"),
        decode_seconds=_median(record, "decode_seconds"),
        detection=detection(record.rounds),
        is_reference=reference is not None and record.folder == reference.folder,
        round_bytes=_median(record, "message_bytes"),
        evaluation=record.evaluation,
    )


def _model(record: RunRecord) -> Path:
    return record.folder / "model.safetensors"


def _median(record: RunRecord, name: str) -> float | None:
    values = [value for _, value in record.series(name)]
    return median(values) if values else None


def _weight_difference(path: Path, reference: Path) -> tuple[float | None, float | None]:
    """Largest absolute and relative difference; (None, None) if the models are not of one shape."""
    difference = scale = 0.0
    with safe_open(path, "pt") as mine, safe_open(reference, "pt") as theirs:
        if set(mine.keys()) != set(theirs.keys()):
            return None, None
        for name in sorted(mine.keys()):
            w, w_reference = mine.get_tensor(name), theirs.get_tensor(name)
            if w.shape != w_reference.shape:
                return None, None
            if not w.is_floating_point() or w.numel() == 0:
                continue  # counters, such as BatchNorm's, are no weights
            w, w_reference = w.double(), w_reference.double()
            if not (w.isfinite().all() and w_reference.isfinite().all()):
                return math.inf, math.inf
            difference = max(difference, (w - w_reference).abs().max().item())
            scale = max(scale, w_reference.abs().max().item())
    return difference, difference / scale if scale else math.inf if difference else 0.0
