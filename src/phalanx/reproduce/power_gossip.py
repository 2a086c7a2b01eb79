"""PowerGossip: low-rank gossip that needs no tuning, beside gossip that does."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, ClassVar

import torch
from matplotlib.axes import Axes
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torch.utils.data import Dataset

from phalanx.compression import TopK
from phalanx.data import DirichletShards, IidShards, Shards, Splits
from phalanx.gossip import (
    DPSGD,
    AllReduceAveraging,
    ChocoSGD,
    Consensus,
    DeepSqueeze,
    Gossip,
    GossipOptimizer,
    ParameterGossip,
    PowerGossip,
    Replicas,
    SimulatedNetwork,
    Topology,
    average,
)
from phalanx.models import MLP
from phalanx.randomness import generator, seeded
from phalanx.reporting import Plot, Table
from phalanx.reporting.plots import COLOURS
from phalanx.reproduce.base import NOT_QUOTED, Finding, Findings, Progress, Recipe, verdict
from phalanx.reproduce.full_runs import images
from phalanx.training import evaluate

_FILES = ("fashion_mnist.npz", "mnist.npz")
_REDUCED, _PLAIN = "all-reduce", "D-PSGD"
_FIRST, _SECOND = "PowerGossip, rank 1", "PowerGossip, rank 2"
_SIGNS, _SPARSE = "Choco, signs", "Choco, top 1 %"
_SPLITS: dict[str, Shards] = {"alike": IidShards(), "different": DirichletShards(1.0)}
_RATES = {_SIGNS: (0.1, 0.4, 0.8), _SPARSE: (0.01, 0.03, 0.1)}
_SQUEEZE = (0.01, 0.05)
_NOTES = (
    "All nodes are computed in one process; bytes are those that the messages of a node to all its "
    "neighbours have, without headers. Of an all-reduce they are those of a ring's.",
    "The learning rate is that of a few which gave the all-reduce the lowest training loss, and "
    "the same for all. The paper tunes it for each method.",
    "Nodes take the gradient, average, and then step with momentum, as D-PSGD does. What is tested "
    "is the model with the mean of all nodes' weights.",
    "Data is dealt out alike, or by shares of the classes that differ (Dirichlet, 1).",
    "The published table of accuracies (ResNet-20 on CIFAR-10, 8 nodes on a ring, 300 epochs; and "
    "an LSTM on WikiText-2) is not quoted.",
)


@dataclass(frozen=True)
class Trained:
    """How one method ended, as means over the seeds."""

    accuracy: float
    """Test accuracy of the mean model, in percent."""
    loss: float
    """Training loss over the last tenth of the steps, mean over the nodes."""
    num_bytes: float
    """What a node sent in a step."""


@dataclass(frozen=True)
class PowerGossipRecipe(Recipe):
    """Consensus of random matrices, and training on a ring, by gossip of several kinds.

    Cost: in quick mode about a minute and a half on one core.
    Source: Vogels, Karimireddy, Jaggi, "Practical Low-Rank Communication Compression in
    Decentralized Deep Learning", NeurIPS 2020.
    """

    name: ClassVar[str] = "powergossip"
    paper: ClassVar[str] = (
        "Vogels, Karimireddy and Jaggi, Practical Low-Rank Communication Compression in "
        "Decentralized Deep Learning, NeurIPS 2020"
    )

    num_nodes: int = 8
    """Nodes on the ring; at least 4, even."""

    size: int = 100
    """Rows and columns of the matrices whose mean is sought."""

    rounds: int = 1000
    """Rounds of that."""

    hidden: tuple[int, ...] = (128, 128)
    """Widths of the hidden layers of the network that is trained."""

    samples: int = 32
    """Samples a node and step."""

    steps: int | None = None
    """Of training; by default 120, or 2000 in full."""

    learning_rates: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2)
    """Those that are tried with the all-reduce."""

    def measure(self, out: Path, *, full: bool, data: Path | None, progress: Progress) -> Findings:
        """Seeks the mean of matrices, then trains on digits, or in full on images from `data`."""
        splits, origin, _ = images(data if full else None, _FILES, "images of the MNIST family")
        steps, seeds = self.steps or (2000 if full else 120), range(3 if full else 2)
        consensus = self._consensus(progress)
        graphs = self._graphs(progress)
        loop = _Loop(splits, self.num_nodes, self.hidden, self.samples, steps)
        progress("choosing the learning rate")
        rate = min(
            self.learning_rates,
            key=lambda one: loop.run(AllReduceAveraging(), IidShards(), one, 0).loss,
        )
        trained = {}
        for split, shards in _SPLITS.items():
            for method, algorithm in _methods().items():
                progress(f"training, data {split}: {method}")
                runs = [loop.run(algorithm, shards, rate, seed) for seed in seeds]
                trained[split, method] = _averaged(runs)
        return Findings(
            answer=self._answer(trained),
            findings=(
                *(self._on_par(split, trained) for split in _SPLITS),
                *(self._near(split, trained) for split in _SPLITS),
                self._untuned(graphs),
                self._tuned(trained),
                Finding(
                    "Reusing the last factors is better than drawing them anew (relative squared "
                    f"distance to the mean after {self.rounds} rounds, {self.size} x {self.size} "
                    "white noise).",
                    NOT_QUOTED,
                    " against ".join(
                        f"{consensus[one].distances[-1]:.2g}" for one in (_FIRST, _COLD)
                    ),
                    "yes"
                    if consensus[_FIRST].distances[-1] < consensus[_COLD].distances[-1]
                    else "no",
                ),
                self._noise(consensus),
            ),
            tables=(
                self._consensus_table(consensus),
                self._graph_table(graphs),
                *(self._training_table(split, trained) for split in _SPLITS),
            ),
            plots=(_plot(consensus),),
            notes=(f"Data: {origin}.", *_NOTES),
            settings={
                "num_nodes": self.num_nodes,
                "matrices": f"{self.size} x {self.size}",
                "rounds": self.rounds,
                "hidden": " ".join(map(str, self.hidden)),
                "samples": self.samples,
                "steps": steps,
                "learning_rate": rate,
                "seeds": len(seeds),
                "full": full,
            },
        )

    def _start(self) -> Tensor:
        shape = (self.num_nodes, self.size, self.size)
        return torch.randn(shape, generator=generator(0, "consensus"))

    def _consensus(self, progress: Progress) -> dict[str, Consensus]:
        network = SimulatedNetwork(Topology.ring(self.num_nodes))
        algorithms: dict[str, Gossip] = {
            _PLAIN: DPSGD(),
            f"{_PLAIN}, optimal diffusion": DPSGD("optimal"),
            _FIRST: PowerGossip(),
            f"{_FIRST}, optimal diffusion": PowerGossip(diffusion="optimal"),
            _COLD: PowerGossip(warm_start=False),
            _SECOND: PowerGossip(rank=2),
            **{f"{_SIGNS}, {one}": ChocoSGD(consensus_rate=one) for one in (0.1, 0.4)},
            **{f"{_SPARSE}, {one}": ChocoSGD(TopK(0.01), one) for one in (0.01, 0.03, 0.3)},
        }
        found = {}
        for name, algorithm in algorithms.items():
            progress(f"consensus: {name}")
            found[name] = average(self._start(), algorithm, network, rounds=self.rounds)
        return found

    def _graphs(self, progress: Progress) -> dict[str, tuple[float, float]]:
        """Spectral gaps, and distances that untuned PowerGossip leaves, by graph."""
        nodes, found = self.num_nodes, {}
        for name, topology in {
            "ring": Topology.ring(nodes),
            "torus": Topology.torus(2, nodes // 2),
            "star": Topology.star(nodes),
            "complete": Topology.complete(nodes),
        }.items():
            progress(f"consensus on a graph: {name}")
            one = average(
                self._start(), PowerGossip(), SimulatedNetwork(topology), rounds=self.rounds
            )
            found[name] = topology.spectral_gap, one.distances[-1]
        return found

    def _on_par(self, split: str, trained: Mapping[tuple[str, str], Trained]) -> Finding:
        ours = trained[split, _FIRST].accuracy
        best = max(trained[split, one].accuracy for one in _tuned_names())
        return Finding(
            f"PowerGossip without tuning is on par with tuned Choco-SGD (data {split}, test "
            "accuracy).",
            "on par (abstract)",
            f"{ours:.1f} % and {best:.1f} %",
            "yes" if ours >= best - 1 else "no",
        )

    def _near(self, split: str, trained: Mapping[tuple[str, str], Trained]) -> Finding:
        ours, plain, reduced = (trained[split, one] for one in (_FIRST, _PLAIN, _REDUCED))
        fewer = plain.num_bytes / ours.num_bytes
        near = ours.accuracy >= max(plain.accuracy, reduced.accuracy) - 1
        return Finding(
            f"It comes within a point of uncompressed gossip and all-reduce (data {split}) at a "
            "fraction of the bytes.",
            NOT_QUOTED,
            f"{ours.accuracy:.1f} % against {plain.accuracy:.1f} % and {reduced.accuracy:.1f} %, "
            f"with {fewer:.0f} times fewer bytes than D-PSGD",
            verdict([near, fewer >= 20]),
        )

    def _untuned(self, graphs: Mapping[str, tuple[float, float]]) -> Finding:
        return Finding(
            "PowerGossip with the plain step converges on every graph (relative squared distance "
            f"after {self.rounds} rounds on {', '.join(graphs)}).",
            NOT_QUOTED,
            ", ".join(f"{left:.2g}" for _, left in graphs.values()),
            verdict([left < 0.05 for _, left in graphs.values()]),
        )

    def _tuned(self, trained: Mapping[tuple[str, str], Trained]) -> Finding:
        found = {
            kind: [trained["different", f"{kind}, {rate}"].accuracy for rate in rates]
            for kind, rates in _RATES.items()
        }
        return Finding(
            "Choco-SGD has to be tuned: its accuracy depends on the consensus rate (data "
            "different).",
            "tuned for every task",
            "; ".join(
                f"{kind} {min(values):.1f} to {max(values):.1f} %" for kind, values in found.items()
            ),
            verdict([max(values) - min(values) > 1 for values in found.values()]),
        )

    def _noise(self, consensus: Mapping[str, Consensus]) -> Finding:
        kb = {name: _kilobytes_to(found, 0.01) for name, found in consensus.items()}
        signs = [kb[name] for name in kb if name.startswith(_SIGNS) and kb[name] is not None]
        low = min((one for one in signs if one is not None), default=None)
        return Finding(
            "On white noise signs need fewer bytes than rank 1 (kB that a node sent until 1 % of "
            "the squared distance was left).",
            "not claimed",
            f"{_number(low)} against {_number(kb[_FIRST])}",
            "—",
        )

    def _answer(self, trained: Mapping[tuple[str, str], Trained]) -> str:
        ours, plain = (trained["alike", one] for one in (_FIRST, _PLAIN))
        return (
            f"On a ring of {self.num_nodes}, untuned PowerGossip of rank 1 came to "
            f"{ours.accuracy:.1f} %, uncompressed gossip to {plain.accuracy:.1f} %, with "
            f"{plain.num_bytes / ours.num_bytes:.0f} times fewer bytes."
        )

    def _consensus_table(self, consensus: Mapping[str, Consensus]) -> Table:
        at = [max(1, self.rounds // 10), max(1, 3 * self.rounds // 10), self.rounds]
        rows: list[tuple[str | float, ...]] = []
        for name, found in consensus.items():
            left = [f"{found.distances[step]:.2g}" for step in at]
            sent = found.bytes_sent[0].item() / len(found.distances[1:])
            rows.append((name, *left, sent, _number(_kilobytes_to(found, 0.01))))
        return Table(
            "Consensus of white noise",
            f"Relative squared distance to the mean of {self.size} x {self.size} Gaussian matrices "
            f"on a ring of {self.num_nodes}, and what a node sends.",
            ("algorithm", *(f"{one} rounds" for one in at), "bytes a round", "kB to 1 %"),
            tuple(rows),
        )

    def _graph_table(self, graphs: Mapping[str, tuple[float, float]]) -> Table:
        return Table(
            "PowerGossip without tuning",
            f"Rank 1, diffusion 1, after {self.rounds} rounds on the same matrices.",
            ("graph", "spectral gap", "relative squared distance"),
            tuple((name, f"{gap:.3g}", f"{left:.2g}") for name, (gap, left) in graphs.items()),
        )

    def _training_table(self, split: str, trained: Mapping[tuple[str, str], Trained]) -> Table:
        plain = trained[split, _PLAIN].num_bytes
        return Table(
            f"Training, data {split}",
            "Test accuracy of the mean model; training loss at the nodes in the last steps; what a "
            "node sends in a step, all its neighbours together.",
            ("method", "test accuracy", "training loss", "bytes a step", "times fewer"),
            tuple(
                (
                    method,
                    f"{one.accuracy:.1f} %",
                    f"{one.loss:.3g}",
                    round(one.num_bytes),
                    f"{plain / one.num_bytes:.1f}",
                )
                for (place, method), one in trained.items()
                if place == split
            ),
        )


_COLD = "PowerGossip, rank 1, factors drawn anew"


def _methods() -> dict[str, Gossip]:
    signs = {f"{_SIGNS}, {one}": ChocoSGD(consensus_rate=one) for one in _RATES[_SIGNS]}
    sparse = {f"{_SPARSE}, {one}": ChocoSGD(TopK(0.01), one) for one in _RATES[_SPARSE]}
    squeeze = {f"DeepSqueeze, signs, {one}": DeepSqueeze(consensus_rate=one) for one in _SQUEEZE}
    return {
        _REDUCED: AllReduceAveraging(),
        _PLAIN: DPSGD(),
        _FIRST: PowerGossip(),
        f"{_FIRST}, optimal diffusion": PowerGossip(diffusion="optimal"),
        _SECOND: PowerGossip(rank=2),
        **signs,
        **sparse,
        **squeeze,
    }


def _tuned_names() -> list[str]:
    return [f"{kind}, {rate}" for kind, rates in _RATES.items() for rate in rates]


@dataclass(frozen=True)
class _Loop:
    """Training on a ring, all nodes at once."""

    splits: Splits
    """The data."""
    num_nodes: int
    """On the ring."""
    hidden: tuple[int, ...]
    """Widths of the layers."""
    samples: int
    """A node and step."""
    steps: int
    """Of training."""

    def run(self, algorithm: Gossip, shards: Shards, rate: float, seed: int) -> Trained:
        """One run; every method sees the same batches and starts with the same weights."""
        inputs, targets = self._held(shards, seed)
        with seeded(seed, "weights"):
            model = MLP(self.splits.input_shape, self.splits.num_classes, self.hidden)
        replicas = Replicas(model, self.num_nodes)
        network = SimulatedNetwork(Topology.ring(self.num_nodes))
        gossip = ParameterGossip(replicas.by_name(), algorithm, network, seed=seed)
        sgd = SGD(replicas.parameters(), lr=rate, momentum=0.9)
        optimizer, losses = GossipOptimizer(sgd, gossip), []
        for step in range(self.steps):
            batches = [
                torch.randint(len(own), (self.samples,), generator=generator(seed, step, node))
                for node, own in enumerate(targets)
            ]
            x, y = (
                torch.stack([own[batch] for own, batch in zip(held, batches, strict=True)])
                for held in (inputs, targets)
            )
            optimizer.zero_grad()
            each = cross_entropy(replicas(x).flatten(0, 1), y.flatten(), reduction="none")
            loss = each.view(self.num_nodes, -1).mean(dim=1)
            loss.sum().backward()
            optimizer.step()
            losses.append(loss.mean().item())
        found = evaluate(
            replicas.model(), cross_entropy, self.splits.test, self.splits.train
        ).accuracy
        assert found is not None  # they are classes
        sent = network.bytes_sent.double().mean().item() / self.steps
        return Trained(100 * found, mean(losses[-max(1, self.steps // 10) :]), sent)

    def _held(self, shards: Shards, seed: int) -> tuple[list[Tensor], list[Tensor]]:
        """Inputs and targets of every node."""
        whole = _tensors(self.splits.train)
        split = shards.split(whole[1], self.num_nodes, generator(seed, "shards"))
        return [whole[0][own] for own in split], [whole[1][own] for own in split]


def _tensors(dataset: Dataset[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor]:
    inputs, targets = dataset[torch.arange(len(dataset))]  # type: ignore[arg-type]
    return inputs, targets


def _averaged(runs: list[Trained]) -> Trained:
    return Trained(
        mean(one.accuracy for one in runs),
        mean(one.loss for one in runs),
        mean(one.num_bytes for one in runs),
    )


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


def _plot(consensus: Mapping[str, Consensus]) -> Plot:
    title = "Distance to the mean against bytes sent"
    caption = "White noise on a ring; both axes are logarithmic."
    ends = "; ".join(f"{name} {found.distances[-1]:.2g}" for name, found in consensus.items())
    return Plot(title, caption, f"{title}. In the end: {ends}.", partial(_draw, consensus))


def _draw(consensus: Mapping[str, Consensus], ax: Axes) -> None:
    styles: list[Any] = ["-", "--"]
    for number, (name, found) in enumerate(consensus.items()):
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
