"""How fast nodes on a graph agree on the mean of random matrices, for PowerGossip's recipe."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from torch import Tensor

from phalanx.compression import TopK
from phalanx.gossip import (
    DPSGD,
    ChocoSGD,
    Consensus,
    Gossip,
    Moniqua,
    PowerGossip,
    SimulatedNetwork,
    Topology,
    average,
)
from phalanx.randomness import generator
from phalanx.reporting import Plot, Table
from phalanx.reporting.plots import COLOURS
from phalanx.reproduce.base import NOT_QUOTED, Finding, Progress, verdict

_WARM, _COLD = "PowerGossip, rank 1", "PowerGossip, rank 1, factors drawn anew"
_SIGNS = "Choco, signs"
_ALGORITHMS: dict[str, Gossip] = {
    "D-PSGD": DPSGD(),
    "D-PSGD, optimal diffusion": DPSGD("optimal"),
    _WARM: PowerGossip(),
    f"{_WARM}, optimal diffusion": PowerGossip(diffusion="optimal"),
    f"{_WARM}, signs": PowerGossip(signs=True),
    _COLD: PowerGossip(warm_start=False),
    "PowerGossip, rank 2": PowerGossip(rank=2),
    **{f"{_SIGNS}, {rate}": ChocoSGD(consensus_rate=rate) for rate in (0.1, 0.4)},
    **{f"Choco, top 1 %, {rate}": ChocoSGD(TopK(0.01), rate) for rate in (0.01, 0.03, 0.3)},
    "Moniqua, 8 bits, bound 8": Moniqua(8.0),
}


class OnGraph(NamedTuple):
    """What untuned PowerGossip leaves on a graph.

    Attributes:
        gap: the spectral gap.
        left: relative squared distance to the mean.
    """

    gap: float
    left: float


@dataclass(frozen=True)
class NoiseConsensus:
    """Square Gaussian matrices on a ring, and on other graphs."""

    num_nodes: int
    """At least 4, even."""
    size: int
    """Rows and columns."""
    rounds: int
    """Of gossip."""

    def on_ring(self, progress: Progress) -> dict[str, Consensus]:
        """By algorithm."""
        network, found = SimulatedNetwork(Topology.ring(self.num_nodes)), {}
        for name, algorithm in _ALGORITHMS.items():
            progress(f"consensus: {name}")
            found[name] = average(self._start(), algorithm, network, rounds=self.rounds)
        return found

    def on_graphs(self, progress: Progress) -> dict[str, OnGraph]:
        """Of PowerGossip with the plain step, by graph."""
        nodes, found = self.num_nodes, {}
        for name, topology in {
            "ring": Topology.ring(nodes),
            "torus": Topology.torus(2, nodes // 2),
            "star": Topology.star(nodes),
            "complete": Topology.complete(nodes),
        }.items():
            progress(f"consensus on a graph: {name}")
            network = SimulatedNetwork(topology)
            one = average(self._start(), PowerGossip(), network, rounds=self.rounds)
            found[name] = OnGraph(topology.spectral_gap, one.distances[-1])
        return found

    def findings(
        self, ring: Mapping[str, Consensus], graphs: Mapping[str, OnGraph]
    ) -> tuple[Finding, ...]:
        """What is claimed of consensus, and what is not."""
        warm, cold = (ring[name].distances[-1] for name in (_WARM, _COLD))
        kb = {name: _kilobytes_to(found, 0.01) for name, found in ring.items()}
        signs = [size for name, size in kb.items() if size is not None and _SIGNS in name]
        return (
            Finding(
                "PowerGossip with the plain step converges on every graph (relative squared "
                f"distance after {self.rounds} rounds on {', '.join(graphs)}).",
                NOT_QUOTED,
                ", ".join(f"{one.left:.2g}" for one in graphs.values()),
                verdict([one.left < 0.05 for one in graphs.values()]),
            ),
            Finding(
                "Reusing the last factors is better than drawing them anew (relative squared "
                f"distance to the mean after {self.rounds} rounds, {self.size} x {self.size} "
                "white noise).",
                NOT_QUOTED,
                f"{warm:.2g} against {cold:.2g}",
                verdict([warm < cold]),
            ),
            Finding(
                "On white noise signs need fewer bytes than rank 1 (kB that a node sent until 1 % "
                "of the squared distance was left).",
                "not claimed",
                f"{_number(min(signs, default=None))} against {_number(kb[_WARM])}",
                "—",
            ),
        )

    def tables(
        self, ring: Mapping[str, Consensus], graphs: Mapping[str, OnGraph]
    ) -> tuple[Table, ...]:
        """All algorithms on the ring, and one on all graphs."""
        at = [max(1, self.rounds // 10), max(1, 3 * self.rounds // 10), self.rounds]
        rows: list[tuple[str | float, ...]] = []
        for name, found in ring.items():
            left = [f"{found.distances[step]:.2g}" for step in at]
            sent = found.bytes_sent[0].item() / len(found.distances[1:])
            rows.append((name, *left, sent, _number(_kilobytes_to(found, 0.01))))
        return (
            Table(
                "Consensus of white noise",
                f"Relative squared distance to the mean of {self.size} x {self.size} Gaussian "
                f"matrices on a ring of {self.num_nodes}, and what a node sends.",
                ("algorithm", *(f"{one} rounds" for one in at), "bytes a round", "kB to 1 %"),
                tuple(rows),
            ),
            Table(
                "PowerGossip without tuning",
                f"Rank 1, diffusion 1, after {self.rounds} rounds on the same matrices.",
                ("graph", "spectral gap", "relative squared distance"),
                tuple((name, f"{one.gap:.3g}", f"{one.left:.2g}") for name, one in graphs.items()),
            ),
        )

    def _start(self) -> Tensor:
        shape = (self.num_nodes, self.size, self.size)
        return torch.randn(shape, generator=generator(0, "consensus"))


def plot(ring: Mapping[str, Consensus]) -> Plot:
    """Distances against bytes."""
    title = "Distance to the mean against bytes sent"
    caption = "White noise on a ring; both axes are logarithmic."
    ends = "; ".join(f"{name} {found.distances[-1]:.2g}" for name, found in ring.items())
    return Plot(title, caption, f"{title}. In the end: {ends}.", partial(_draw, ring))


def _draw(ring: Mapping[str, Consensus], ax: Axes) -> None:
    styles: list[Any] = ["-", "--"]
    for number, (name, found) in enumerate(ring.items()):
        rounds = len(found.distances) - 1
        sent = [found.bytes_sent[0].item() / 1000 * step / rounds for step in range(rounds + 1)]
        colour = COLOURS[number % len(COLOURS)]
        style = styles[number // len(COLOURS) % 2]
        ax.plot(sent[1:], found.distances[1:], color=colour, linestyle=style, label=name)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("kB that a node sent")
    ax.set_ylabel("relative squared distance")
    ax.legend(fontsize="x-small")


def _kilobytes_to(found: Consensus, target: float) -> float | None:
    """What a node had sent when the distance was first at most this, in kB; None if it never was.

    On a ring all nodes send the same, and the same in every other round.
    """
    total, rounds = found.bytes_sent[0].item() / 1000, len(found.distances) - 1
    for step, distance in enumerate(found.distances):
        if distance <= target:
            return total * step / rounds
    return None


def _number(value: float | None) -> str:
    return "never" if value is None else f"{value:.3g}"
