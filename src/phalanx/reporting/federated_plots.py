"""Plots of federated runs: the partition, participation, accuracy over clients and traffic."""

from collections import Counter
from itertools import accumulate
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from phalanx.reporting.plots import COLOURS, DASHES
from phalanx.reporting.record import RunRecord

_ACCURACIES = {
    "test_accuracy": "on test data",
    "client_accuracy_median": "median client",
    "client_accuracy_worst_decile": "worst tenth of the clients",
}


def plot_partition(record: RunRecord, ax: Axes) -> None:
    """Samples of every class at every client: one bar per client, in order of their sizes."""
    counts = np.array(record.class_counts)
    counts = counts[np.argsort(-counts.sum(axis=1), kind="stable")]
    places, below = np.arange(len(counts)), np.zeros(len(counts))
    shades = colormaps["tab20"].colors  # type: ignore[attr-defined]
    for number, column in enumerate(counts.T):
        colour = shades[(2 * number + number // 10) % 20]  # the ten strong ones first
        label = str(number) if counts.shape[1] <= 12 else None
        ax.bar(places, column, bottom=below, width=1.0, color=colour, label=label)
        below = below + column
    ax.set_xlabel("clients, the largest first")
    ax.set_ylabel("samples")
    ax.set_xlim(-0.5, len(counts) - 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if counts.shape[1] <= 12:
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=12, title="class")


def plot_client_accuracy(record: RunRecord, ax: Axes) -> None:
    """Accuracy of the global model over rounds: on test data, and on clients' own samples."""
    for place, (name, label) in enumerate(_ACCURACIES.items()):
        if points := record.series(name):
            rounds, values = zip(*points, strict=True)
            ax.plot(rounds, values, label=label, color=COLOURS[place], marker="o", markersize=3.5)
    ax.set_xlabel("rounds completed")
    ax.set_ylabel("accuracy (%)")
    ax.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, symbol=""))
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3)


def plot_traffic(record: RunRecord, ax: Axes) -> None:
    """Megabytes so far, up and down, over rounds."""
    for place, (name, label) in enumerate(
        {"message_bytes": "up", "broadcast_bytes": "down"}.items()
    ):
        rounds, values = zip(*record.series(name), strict=True)
        total = [one / 1e6 for one in accumulate(values)]
        ax.plot(rounds, total, label=label, color=COLOURS[place], linestyle=DASHES[place])
    ax.set_xlabel("rounds completed")
    ax.set_ylabel("MB so far")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2)


def plot_participation(record: RunRecord, ax: Axes) -> None:
    """In how many rounds every client took part, and how often it was suspected then."""
    took, blamed = participation(record)
    number = 1 + max([*took, len(record.class_counts) - 1])
    places = np.arange(number)
    ax.bar(places, [took[one] for one in places], width=1.0, color="#8C959F90", label="took part")
    ax.bar(places, [blamed[one] for one in places], width=1.0, color=COLOURS[1], label="suspected")
    ax.set_xlabel("client")
    ax.set_ylabel("rounds")
    ax.set_xlim(-0.5, number - 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2)


def participation(record: RunRecord) -> tuple[Counter[Any], Counter[Any]]:
    """In how many rounds each client took part, and was named or suspected."""
    took = Counter(one for entry in record.rounds for one in entry.get("clients") or ())
    blamed = Counter(
        one
        for entry in record.rounds
        for one in {*(entry.get("suspects") or ()), *(entry.get("outliers") or ())}
    )
    return took, blamed
