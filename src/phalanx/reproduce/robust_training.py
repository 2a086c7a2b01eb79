"""What recipes about Byzantine workers share: the rules that they compare, tables and plots."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch.utils.data import TensorDataset

from phalanx.aggregation import (
    Aggregator,
    CenteredClipping,
    CoordinateMedian,
    GeometricMedian,
    Krum,
    Mean,
    TrimmedMean,
)
from phalanx.data import DataSource, LongTailedPartitioner, Splits
from phalanx.experiments import Pivot, Record, line_plot
from phalanx.randomness import generator
from phalanx.reporting import Plot, Table
from phalanx.reporting.format import difference, percent
from phalanx.reproduce.base import Images
from phalanx.transforms import WorkerMomentum

REFERENCE = {"rule": Mean(), "code": None, "attack": None, "byzantine": None}
"""The mean without attack: with its final weights those of other runs are compared."""


@dataclass(frozen=True)
class OtherTest(DataSource):
    """The data of a source with another test set."""

    source: DataSource
    """The data."""
    first: int | None = None
    """How many test samples are left, the first ones; all by default."""
    tail: float = 1.0
    """Share of its samples that each class keeps of what the class before keeps, a long tail."""

    def load(self) -> Splits:
        """The training set as it is, and what is left of the test set."""
        splits = self.source.load()
        inputs, targets = (column[: self.first] for column in splits.test[:])
        if self.tail < 1:
            source = generator(0, "long tail")
            (kept,) = LongTailedPartitioner(self.tail).split(targets, 1, source)
            inputs, targets = inputs[kept], targets[kept]
        return replace(splits, test=TensorDataset(inputs, targets))


def robust_rules(num_byzantine: int, radius: float, iterations: int) -> dict[str, Aggregator]:
    """The rules that these papers compare, told what to survive; the plain mean first.

    Args:
        num_byzantine: messages, or mixtures of them, that may be Byzantine.
        radius: of centred clipping (tau).
        iterations: of centred clipping (L).
    """
    return {
        "mean": Mean(),
        "Krum": Krum(num_byzantine),
        "median": CoordinateMedian(num_byzantine),
        "RFA": GeometricMedian(num_byzantine, max_iterations=3),
        "trimmed mean": TrimmedMean(num_byzantine),
        "centred clipping": CenteredClipping(radius, iterations, num_byzantine),
    }


def momentum(beta: float, *, published: bool) -> dict[str, Any]:
    """Worker momentum as an argument: a sum as the papers have it, or an average; none if 0."""
    transform = WorkerMomentum(beta, "sum" if published else "average") if beta else None
    return {"transforms": [transform]} if transform else {}


def notes(images: Images, told: Mapping[str, Any]) -> list[str]:
    """What the data are, what is to be known in any case, and what of quick or of full runs."""
    return [
        f"Data: {images.origin}.",
        *told["notes"],
        told["full" if images.published else "quick"],
    ]


def side_by_side(
    title: str,
    caption: str,
    ours: Pivot,
    paper: Mapping[tuple[Any, Any], float | None],
    header: str = "{column}, {who}",
) -> Table:
    """The paper's figures by row and column, as far as there are any, each beside ours."""
    headers, columns = ["rule"], [list[Any](ours.rows)]
    for column in ours.columns:
        text = ", ".join(map(str, column)) if isinstance(column, tuple) else column
        logged = [paper.get((row, column)) for row in ours.rows]
        for who, shown in (("paper", logged), ("ours", ours.column(column))):
            if who == "ours" or any(one is not None for one in shown):
                headers.append(header.format(column=text, who=who))
                columns.append(shown)
    return Table(title, caption, tuple(headers), tuple(zip(*columns, strict=True)))


def training_table(found: Iterable[Record], title: str = "Training") -> Table:
    """How runs ended that were compared with the reference."""
    return Table(
        title,
        "Final test accuracy, largest weight difference relative to the largest weight of the run "
        "without Byzantine workers, their messages (lies), and how many of those were named, or "
        "suspected without proof.",
        ("run", "status", "test accuracy", "relative difference", "lies", "named", "false alarms"),
        tuple(
            (
                one["run"],
                one.status,
                percent(one["test_accuracy"]),
                difference(gap(one)),
                *(one[name] for name in ("lies", "caught", "false_alarms")),
            )
            for one in found
        ),
    )


def gap(one: Record) -> float:
    """The largest relative weight difference; infinite where weights are not finite."""
    apart: float | None = one["relative_difference"]
    return float("inf") if apart is None else apart


def by_run(found: Iterable[Record]) -> dict[str, Record]:
    """Each record by what its run is called."""
    return {one["run"]: one for one in found}


def accuracy_plot(attack: str, caption: str, found: Sequence[Record]) -> Plot:
    """Test accuracy over rounds of runs under an attack."""
    lines = {
        one["run"]: (
            list(map(float, one["evaluated"])),
            [100 * share for share in one["accuracies"]],
        )
        for one in found
    }
    title = f"Test accuracy under attack: {attack}"
    return line_plot(title, caption, lines, x="rounds", y="test accuracy (%)")
