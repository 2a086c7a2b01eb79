"""PowerGossip: low-rank gossip that needs no tuning, beside gossip that does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from phalanx.compression import TopK
from phalanx.data import DirichletPartitioner, IidPartitioner, Partitioner
from phalanx.gossip import (
    DPSGD,
    AllReduceAveraging,
    ChocoSGD,
    DeepSqueeze,
    Gossip,
    Moniqua,
    PowerGossip,
)
from phalanx.reporting import Table
from phalanx.reproduce.base import NOT_QUOTED, Finding, Findings, Progress, Recipe, verdict
from phalanx.reproduce.full_runs import images
from phalanx.reproduce.gossip_consensus import NoiseConsensus, plot
from phalanx.reproduce.gossip_runs import RingTraining, Trained, averaged

_FILES = ("fashion_mnist.npz", "mnist.npz")
_REDUCED, _PLAIN = "all-reduce", "D-PSGD"
_OURS = "PowerGossip, rank 1, optimal diffusion"
_SPLITS: dict[str, Partitioner] = {
    "alike": IidPartitioner(),
    "different": DirichletPartitioner(1.0),
}
_UNTUNED: dict[str, Gossip] = {
    _REDUCED: AllReduceAveraging(),
    _PLAIN: DPSGD(),
    _OURS: PowerGossip(diffusion="optimal"),
    "PowerGossip, rank 1": PowerGossip(),
    "PowerGossip, rank 1, 2 iterations": PowerGossip(iterations=2, diffusion="optimal"),
    "PowerGossip, rank 1, signs": PowerGossip(diffusion="optimal", signs=True),
    "PowerGossip, rank 2": PowerGossip(rank=2, diffusion="optimal"),
    "Moniqua, 8 bits": Moniqua(0.5),
}
_TUNED: dict[str, dict[float, Gossip]] = {
    "Choco, signs": {rate: ChocoSGD(consensus_rate=rate) for rate in (0.1, 0.4, 0.8)},
    "Choco, top 1 %": {rate: ChocoSGD(TopK(0.01), rate) for rate in (0.01, 0.03, 0.1)},
    "DeepSqueeze, signs": {rate: DeepSqueeze(consensus_rate=rate) for rate in (0.01, 0.05)},
}
_CHOCO = ("Choco, signs", "Choco, top 1 %")
_LENGTHS = (1 / 4, 1 / 2, 1, 2)
_NOTES = (
    "All nodes are computed in one process; bytes are those that the messages of a node to all its "
    "neighbours have, without headers. Of an all-reduce they are those of a ring's.",
    "The learning rate is that of a few which gave the all-reduce the lowest training loss, and "
    "the same for all; the paper tunes it for each method. As in the authors' code it is warmed up "
    "over the first sixtieth of a run and falls to a tenth after a half and after three quarters, "
    "momentum is Nesterov's, and PowerGossip takes the step that is optimal for uncompressed "
    "rounds on the graph: 1.308 on a ring of 8.",
    "Consensus rates are chosen by the first seed's training loss: the test data choose nothing.",
    "Nodes take the gradient, average, and then step, as D-PSGD does. What is tested is the model "
    "with the mean of all nodes' weights.",
    "Data is dealt out alike, as in the paper, or by shares of the classes that differ (Dirichlet, "
    "1), which the paper does not do.",
    "The published table of accuracies (ResNet-20 on CIFAR-10, 8 nodes on a ring, 300 epochs; and "
    "an LSTM on WikiText-2) is not quoted.",
)


@dataclass(frozen=True)
class PowerGossipRecipe(Recipe):
    """Consensus of random matrices, and training on a ring, by gossip of several kinds.

    Cost: in quick mode under three minutes on one core.
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
    """Of training; by default 240, or 2000 in full."""

    learning_rates: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2)
    """Those that are tried with the all-reduce."""

    def measure(self, out: Path, *, full: bool, data: Path | None, progress: Progress) -> Findings:
        """Seeks the mean of matrices, then trains on digits, or in full on images from `data`."""
        splits, origin, _ = images(data if full else None, _FILES, "images of the MNIST family")
        steps, seeds = self.steps or (2000 if full else 240), range(3 if full else 2)
        noise = NoiseConsensus(self.num_nodes, self.size, self.rounds)
        ring, graphs = noise.on_ring(progress), noise.on_graphs(progress)
        progress("choosing the learning rate")
        training = RingTraining(splits, self.num_nodes, self.hidden, self.samples, steps)
        training = training.tuned(self.learning_rates, IidPartitioner())
        tried, trained = _trained(training, seeds, progress)
        lengths = _lengths(training, seeds, progress)
        return Findings(
            answer=self._answer(trained),
            findings=(
                *(_on_par(split, trained) for split in _SPLITS),
                *(_near(split, trained) for split in _SPLITS),
                _sensitive(tried),
                _patient(lengths),
                *noise.findings(ring, graphs),
            ),
            tables=(
                *noise.tables(ring, graphs),
                *(_training_table(split, trained) for split in _SPLITS),
                _tuning_table(tried),
                _length_table(lengths),
            ),
            plots=(plot(ring),),
            notes=(f"Data: {origin}.", *_NOTES),
            settings={
                "num_nodes": self.num_nodes,
                "matrices": f"{self.size} x {self.size}",
                "rounds": self.rounds,
                "hidden": " ".join(map(str, self.hidden)),
                "samples": self.samples,
                "steps": steps,
                "learning_rate": training.rate,
                "seeds": len(seeds),
                "full": full,
            },
        )

    def _answer(self, trained: Mapping[tuple[str, str], Trained]) -> str:
        ours, plain = (trained["alike", one] for one in (_OURS, _PLAIN))
        return (
            f"On a ring of {self.num_nodes}, untuned PowerGossip of rank 1 came to "
            f"{ours.accuracy:.1f} %, uncompressed gossip to {plain.accuracy:.1f} %, with "
            f"{plain.num_bytes / ours.num_bytes:.0f} times fewer bytes."
        )


_Trained = dict[tuple[str, str], Trained]
_Tried = dict[tuple[str, str, float], Trained]
_Lengths = dict[tuple[str, int], Trained]


def _trained(
    training: RingTraining, seeds: Sequence[int], progress: Progress
) -> tuple[_Tried, _Trained]:
    """All methods on data dealt out alike and not; with the consensus rates that were tried."""
    tried: _Tried = {}
    trained: _Trained = {}
    for split, shards in _SPLITS.items():
        for name, algorithm in _UNTUNED.items():
            progress(f"training, data {split}: {name}")
            trained[split, name] = averaged(training.runs(algorithm, shards, seeds))
        for name, candidates in _TUNED.items():
            progress(f"training, data {split}: {name}, tuned")
            first = {
                rate: training.run(algorithm, shards, seeds[0])
                for rate, algorithm in candidates.items()
            }
            best = min(first, key=lambda rate: first[rate].loss)
            others = training.runs(candidates[best], shards, seeds[1:])
            trained[split, f"{name}, tuned"] = averaged([first[best], *others])
            tried |= {(split, name, rate): one for rate, one in first.items()}
    return tried, trained


def _lengths(training: RingTraining, seeds: Sequence[int], progress: Progress) -> _Lengths:
    """Shorter and longer runs where data differ."""
    found: _Lengths = {}
    for steps in (max(1, round(share * training.steps)) for share in _LENGTHS):
        for name in (_OURS, _PLAIN):
            progress(f"training for {steps} steps: {name}")
            runs = replace(training, steps=steps).runs(_UNTUNED[name], _SPLITS["different"], seeds)
            found[name, steps] = averaged(runs)
    return found


def _on_par(split: str, trained: _Trained) -> Finding:
    ours = trained[split, _OURS].accuracy
    best = max(trained[split, f"{one}, tuned"].accuracy for one in _CHOCO)
    return Finding(
        f"PowerGossip without tuning is on par with tuned Choco-SGD (data {split}, test accuracy).",
        "on par (abstract)" if split == "alike" else "not claimed",
        f"{ours:.1f} % and {best:.1f} %",
        verdict([ours >= best - 1]),
    )


def _near(split: str, trained: _Trained) -> Finding:
    ours, plain, reduced = (trained[split, one] for one in (_OURS, _PLAIN, _REDUCED))
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


def _sensitive(tried: _Tried) -> Finding:
    found = {
        name: [tried["different", name, rate].accuracy for rate in _TUNED[name]] for name in _CHOCO
    }
    return Finding(
        "Choco-SGD has to be tuned: its accuracy depends on the consensus rate (data different).",
        "tuned for every task",
        "; ".join(
            f"{name} {min(values):.1f} to {max(values):.1f} %" for name, values in found.items()
        ),
        verdict([max(values) - min(values) > 1 for values in found.values()]),
    )


def _patient(lengths: _Lengths) -> Finding:
    steps = sorted({one for _, one in lengths})
    gaps = [lengths[_PLAIN, one].accuracy - lengths[_OURS, one].accuracy for one in steps]
    apart = [lengths[_OURS, one].distance for one in steps]
    return Finding(
        "Short runs end before rank 1 has brought the nodes together (data different, after "
        f"{', '.join(map(str, steps))} steps): points that it is behind uncompressed gossip, and "
        "how far its nodes are from their mean.",
        "not claimed",
        f"{', '.join(f'{gap:.1f}' for gap in gaps)}; {', '.join(f'{one:.0f}' for one in apart)} %",
        "—",
    )


def _training_table(split: str, trained: _Trained) -> Table:
    plain = trained[split, _PLAIN].num_bytes
    return Table(
        f"Training, data {split}",
        "Test accuracy and training loss of the mean model; how far nodes are from it in the end, "
        "relative to its length; what a node sends in a step, all its neighbours together.",
        ("method", "test accuracy", "training loss", "distance", "bytes a step", "times fewer"),
        tuple(
            (method, *_row(one), round(one.num_bytes), f"{plain / one.num_bytes:.1f}")
            for (place, method), one in trained.items()
            if place == split
        ),
    )


def _tuning_table(tried: _Tried) -> Table:
    return Table(
        "Consensus rates that were tried",
        "The first seed. Of each method and data the rate with the lowest training loss is taken.",
        ("method", "data", "rate", "test accuracy", "training loss", "distance"),
        tuple((name, split, rate, *_row(one)) for (split, name, rate), one in tried.items()),
    )


def _length_table(lengths: _Lengths) -> Table:
    return Table(
        "Shorter and longer runs, data different",
        "The whole schedule of learning rates in so many steps.",
        ("method", "steps", "test accuracy", "training loss", "distance"),
        tuple((name, steps, *_row(one)) for (name, steps), one in lengths.items()),
    )


def _row(one: Trained) -> tuple[str, str, str]:
    return f"{one.accuracy:.1f} %", f"{one.loss:.3g}", f"{one.distance:.2g} %"
