"""PowerSGD: what it sends, and what error feedback and the warm start are for."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from phalanx.compression import Compressor, ErrorFeedback, PowerSGD, Uncompressed
from phalanx.reporting import Table
from phalanx.reproduce.base import Finding, Findings, Progress, Recipe, above, figures, verdict
from phalanx.reproduce.compressed_training import DigitsTraining, Trained
from phalanx.reproduce.network_bytes import (
    LSTM_STEPS,
    RESNET18_STEPS,
    lstm_shapes,
    mebibytes_an_epoch,
    message_values,
    num_values,
    resnet18_shapes,
)

_RESNET18 = {0: (1023, 94.3), 1: (4, 93.6), 2: (8, 94.4), 4: (14, 94.5), 7: (24, 94.6)}
"""Published megabytes an epoch and test accuracy, by rank; 0 is SGD."""
_LSTM = {0: (7730, 91), 1: (25, 102), 2: (38, 93), 4: (64, 91)}
"""Published megabytes an epoch and perplexity."""
_NOTES = (
    "Data: scikit-learn's digits; the paper trains ResNet-18 on CIFAR-10 with 16 workers, and an "
    "LSTM on WikiText-2. Compare the order of the methods, not the figures.",
    "Bytes follow from the shapes of the networks' tensors: no network is trained for them. A "
    "megabyte is 2^20 bytes, as the published figures imply.",
    "Every method has the learning rate of those tried with the least training loss.",
)


def _rank(rank: int, *, warm_start: bool = True) -> PowerSGD:
    return PowerSGD(rank, min_compression=1.0, warm_start=warm_start)


@dataclass(frozen=True)
class PowerSGDRecipe(Recipe):
    """Bytes of two networks exactly, and training on digits with and without error feedback.

    Cost: in quick mode about a minute on one core.
    Source: Vogels, Karimireddy and Jaggi, "PowerSGD: Practical Low-Rank Gradient Compression for
    Distributed Optimization", NeurIPS 2019, tables 1 to 6.
    """

    name: ClassVar[str] = "powersgd"
    paper: ClassVar[str] = (
        "Vogels, Karimireddy and Jaggi, PowerSGD: Practical Low-Rank Gradient Compression for "
        "Distributed Optimization, NeurIPS 2019"
    )

    training: DigitsTraining = field(default_factory=DigitsTraining)
    """How long, how often and with which learning rates."""

    def measure(self, out: Path, *, full: bool, data: Path | None, progress: Progress) -> Findings:
        """Counts, then trains; `data` is not needed."""
        methods: dict[str, Compressor] = {
            "SGD": Uncompressed(),
            "rank 1": ErrorFeedback(_rank(1)),
            "rank 2": ErrorFeedback(_rank(2)),
            "rank 2, cold start": ErrorFeedback(_rank(2, warm_start=False)),
            "rank 1, no feedback": _rank(1),
            "rank 2, no feedback": _rank(2),
        }
        results, table = self.training.train(methods, full, progress)
        return Findings(
            answer=(
                f"Rank 1 and 2 reach {results['rank 1'].accuracy} % and "
                f"{results['rank 2'].accuracy} % on digits, SGD {results['SGD'].accuracy} %; "
                f"without error feedback {results['rank 1, no feedback'].accuracy} % and "
                f"{results['rank 2, no feedback'].accuracy} %."
            ),
            findings=(*_byte_findings(), *_training_findings(results)),
            tables=(_byte_table(), table),
            notes=_NOTES,
            settings=self.training.settings(full),
        )


def _values(rank: int, lstm: bool) -> int:
    """Values a step; rank 0 is the whole gradient."""
    shapes = lstm_shapes() if lstm else resnet18_shapes()
    return message_values(_rank(rank), shapes) if rank else num_values(shapes)


def _byte_findings() -> tuple[Finding, ...]:
    found = []
    for name, published, steps, lstm in (
        ("ResNet-18", _RESNET18, RESNET18_STEPS, False),
        ("the LSTM", _LSTM, LSTM_STEPS, True),
    ):
        ours = [round(mebibytes_an_epoch(_values(rank, lstm), steps)) for rank in published]
        theirs = [size for size, _ in published.values()]
        ranks = ", ".join(str(rank) for rank in published if rank)
        found.append(
            Finding(
                f"Megabytes an epoch that a worker sends for {name}: SGD, and rank {ranks}.",
                " / ".join(map(str, theirs)),
                " / ".join(map(str, ours)),
                verdict([one == other for one, other in zip(ours, theirs, strict=True)]),
            )
        )
    return tuple(found)


def _training_findings(results: dict[str, Trained]) -> tuple[Finding, ...]:
    score = {name: one.accuracy for name, one in results.items()}
    plain = score["SGD"]
    return (
        Finding(
            "Rank 2 is as good as SGD, rank 1 nearly.",
            "SGD, rank 1, rank 2: 94.3 / 93.6 / 94.4",
            figures([plain, score["rank 1"], score["rank 2"]]),
            verdict([above(score["rank 2"], plain, -0.5), above(score["rank 1"], plain, -1.0)]),
        ),
        Finding(
            "Error feedback is needed.",
            "unbiased rank 1 and 2, which cannot have it: 71.2 / 75.9, of another estimator",
            "without feedback: "
            + figures([score["rank 1, no feedback"], score["rank 2, no feedback"]]),
            verdict(
                [above(score[f"rank {r}"], score[f"rank {r}, no feedback"], 1.0) for r in (1, 2)]
            ),
        ),
        Finding(
            "A warm start helps.",
            "rank 2 without and with: 94.0 / 94.4",
            figures([score["rank 2, cold start"], score["rank 2"]]),
            verdict([above(score["rank 2"], score["rank 2, cold start"], 0.3)]),
        ),
    )


def _byte_table() -> Table:
    rows = []
    for name, published, steps, lstm in (
        ("ResNet-18", _RESNET18, RESNET18_STEPS, False),
        ("LSTM", _LSTM, LSTM_STEPS, True),
    ):
        whole = _values(0, lstm)
        for rank, (size, quality) in published.items():
            values = _values(rank, lstm)
            epoch = round(mebibytes_an_epoch(values, steps), 1)
            label = f"{name}, rank {rank}" if rank else f"{name}, SGD"
            rows.append((label, values, round(whole / values, 1), epoch, size, quality))
    return Table(
        "Traffic",
        "Values that a worker sends in a step, how many times fewer than SGD, and megabytes an "
        "epoch, beside the published figures: accuracy in percent, perplexity of the LSTM.",
        ("network", "values", "fewer", "MB an epoch", "published MB", "published result"),
        tuple(rows),
    )
