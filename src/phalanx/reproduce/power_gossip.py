"""PowerGossip: low-rank gossip that needs no tuning, beside gossip that does."""

import math
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, ClassVar

import torch
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from phalanx import gossip
from phalanx.compression import TopK
from phalanx.data import DataSource, DirichletPartitioner, IidPartitioner, Partitioner
from phalanx.errors import NotFiniteError
from phalanx.evaluation import evaluate
from phalanx.experiments import Cell, Record, Records, build, grid, load, pivot, tuned
from phalanx.experiments.records import Value
from phalanx.gossip import DPSGD, ChocoSGD, Gossip, PowerGossip, Topology
from phalanx.models import MLP
from phalanx.randomness import generator
from phalanx.reproduce.base import Findings, Measure, Recipe, Scope, report, sized

_FILES, _FAMILY = ("fashion_mnist.npz", "mnist.npz"), "images of the MNIST family"
_WARM, _COLD = "PowerGossip, rank 1", "PowerGossip, rank 1, factors drawn anew"
_OURS = "PowerGossip, rank 1, optimal diffusion"
_REDUCED, _PLAIN = "all-reduce", "D-PSGD"
_CHOCO = ("Choco, signs, tuned", "Choco, top 1 %, tuned")
_CONSENSUS: dict[str, Gossip] = {
    _PLAIN: DPSGD(),
    "D-PSGD, optimal diffusion": DPSGD("optimal"),
    _WARM: PowerGossip(),
    _OURS: PowerGossip(diffusion="optimal"),
    "PowerGossip, rank 1, signs": PowerGossip(signs=True),
    _COLD: PowerGossip(warm_start=False),
    "PowerGossip, rank 2": PowerGossip(rank=2),
    **{f"Choco, signs, {rate}": ChocoSGD(consensus_rate=rate) for rate in (0.1, 0.4)},
    **{f"Choco, top 1 %, {rate}": ChocoSGD(TopK(0.01), rate) for rate in (0.01, 0.03, 0.3)},
    "Moniqua, 8 bits, bound 8": gossip.Moniqua(8.0),
}
_SPLITS: dict[str, Partitioner] = {
    "alike": IidPartitioner(),
    "different": DirichletPartitioner(1.0),
}
_UNTUNED: dict[str, Gossip] = {
    _REDUCED: gossip.AllReduceAveraging(),
    _PLAIN: DPSGD(),
    _OURS: PowerGossip(diffusion="optimal"),
    _WARM: PowerGossip(),
    "PowerGossip, rank 1, 2 iterations": PowerGossip(iterations=2, diffusion="optimal"),
    "PowerGossip, rank 1, signs": PowerGossip(diffusion="optimal", signs=True),
    "PowerGossip, rank 2": PowerGossip(rank=2, diffusion="optimal"),
    "Moniqua, 8 bits": gossip.Moniqua(0.5),
}
_TUNED: dict[str, dict[Any, Gossip]] = {  # by consensus rate
    _CHOCO[0]: {rate: ChocoSGD(consensus_rate=rate) for rate in (0.1, 0.4, 0.8)},
    _CHOCO[1]: {rate: ChocoSGD(TopK(0.01), rate) for rate in (0.01, 0.03, 0.1)},
    "DeepSqueeze, signs, tuned": {
        rate: gossip.DeepSqueeze(consensus_rate=rate) for rate in (0.01, 0.05)
    },
}
_METHODS = {name: {None: one} for name, one in _UNTUNED.items()} | _TUNED
_ENDED: dict[str, Value] = {
    "test accuracy (%)": lambda one: 100 * one["test_accuracy"],
    "training loss": "train_loss",
    "distance (%)": lambda one: None if one["distance"] is None else 100 * one["distance"],
}
_LENGTHS = (1 / 4, 1 / 2, 2)  # of other runs, relative to that of the comparison


@dataclass(frozen=True)
class PowerGossipRecipe(Recipe):
    """Consensus of random matrices, and training on a ring, by gossip of several kinds.

    Source: Vogels, Karimireddy, Jaggi, "Practical Low-Rank Communication Compression in
    Decentralized Deep Learning", NeurIPS 2020.
    """

    name: ClassVar[str] = "powergossip"

    num_nodes: int = 8
    """Nodes on the ring; at least 4, even."""
    size: int = 100
    """Rows and columns of the matrices whose mean is sought."""
    rounds: int = 1000
    """Rounds of that."""
    hidden: tuple[int, ...] = (128, 128)
    """Widths of the hidden layers of the network that is trained."""
    samples: int = 32
    """Samples per node and step."""
    steps: int = sized(60, 240, 2000)
    """Of training."""
    seeds: int = sized(1, 2, 3)
    """Runs of each method that are averaged."""
    learning_rates: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2)
    """Those that are tried with the all-reduce."""

    def cells(self, scope: Scope) -> list[Cell]:
        """Consensus, and the all-reduce with every learning rate."""
        nodes, fixed = self.num_nodes, {"size": self.size, "rounds": self.rounds}
        graphs = {
            "torus": Topology.torus(2, nodes // 2),
            "star": Topology.star(nodes),
            "complete": Topology.complete(nodes),
        }
        ring, reduced = {"ring": Topology.ring(nodes)}, gossip.AllReduceAveraging()
        choice = {"algorithm": reduced, "partitioner": IidPartitioner(), "seed": 0}
        steps = {"steps": self.steps}
        return [
            *grid(consensus_run, {"topology": ring, "algorithm": _CONSENSUS}, fixed),
            *grid(consensus_run, {"topology": graphs, "algorithm": {_WARM: PowerGossip()}}, fixed),
            *grid(ring_run, {"rate": self.learning_rates}, self._fixed(scope) | choice | steps),
        ]

    def measure(self, scope: Scope, run: Measure) -> Records:
        """The all-reduce chooses the learning rate, the first seed the consensus rates."""
        first = run(self.cells(scope))
        fixed, steps = self._fixed(scope) | {"rate": _best_rate(first)}, self.steps
        others = sorted({max(1, round(share * steps)) for share in _LENGTHS} - {steps})
        cells = []
        for split, (method, candidates) in product(_SPLITS, _METHODS.items()):
            lengths = others if split == "different" and method in (_OURS, _PLAIN) else []
            axes: dict[str, Any] = {
                "split": {split: {"partitioner": _SPLITS[split]}},
                "method": {method: {}},
                "consensus_rate": {rate: {"algorithm": one} for rate, one in candidates.items()},
                "steps": [steps, *lengths],
                "seed": range(self.seeds),
            }
            cells += grid(ring_run, axes, fixed)
        return Records([*first, *tuned(cells, "consensus_rate", "train_loss", run)])

    def findings(self, found: Records, scope: Scope) -> Findings:
        """What is left of the distance to the mean, and how training ended."""
        kept = found.where(tuned=True)
        splits = {split: kept.where(split=split, steps=self.steps) for split in _SPLITS}
        shown = {split: self._split(split, some) for split, some in splits.items()}
        tried = found.where(seed=0, steps=self.steps, method=list(_TUNED))
        spans = {
            name.removesuffix(", tuned"): [100 * one["test_accuracy"] for one in each]
            for name in _CHOCO
            for each in [tried.where(method=name, split="different")]
        }
        values = shown["alike"][0] | {
            "data": scope.images(_FILES, _FAMILY).origin,
            "rate": _best_rate(found),
            "spans": "; ".join(
                f"{name} {min(one):.1f} to {max(one):.1f} %" for name, one in spans.items()
            ),
        }
        holds = {"tuning": [max(one) - min(one) > 1 for one in spans.values()]}
        rates = {"rates": pivot(tried, ("method", "split", "consensus_rate"), None, _ENDED)}
        answer = report(self.told, holds, values, rates, answer="answer")
        lengths = self._lengths(kept.where(split="different", method=[_PLAIN, _OURS]))
        training = shown["alike"][1] + shown["different"][1] + answer + lengths
        return training + self._consensus(found.where(topology=found.labels("topology")))

    def _lengths(self, found: Records) -> Findings:
        """What shorter and longer runs come to."""
        found = Records(sorted(found, key=lambda one: (one["steps"], one["method"] == _PLAIN)))
        behind, apart = list[float](), list[float]()
        for length in found.labels("steps"):
            some = found.where(steps=length)
            plain, ours = (_mean("test_accuracy", some, method=one) for one in (_PLAIN, _OURS))
            behind.append(plain - ours)
            apart.append(_mean("distance", some, method=_OURS))
        steps = ", ".join(map(str, found.labels("steps")))
        table = {"lengths": pivot(found, ("steps", "method"), None, _ENDED)}
        values = {"steps": steps, "gaps": behind, "apart": apart}
        return report(self.told, {"short": None}, values, table)

    def _consensus(self, found: Records) -> Findings:
        """What gossip of several kinds leaves of the distance to the mean of white noise."""
        graphs, ring = found.where(algorithm=_WARM), found.where(topology="ring")
        left = [one["distances"][-1] for one in graphs]
        at = [max(1, self.rounds // 10), max(1, 3 * self.rounds // 10), self.rounds]
        warm, cold = (ring.where(algorithm=one)[0]["distances"][-1] for one in (_WARM, _COLD))
        sent = {str(one["algorithm"]): _kilobytes_to_1_percent(one) for one in ring}
        signs = [size for name, size in sent.items() if size is not None and "Choco, signs" in name]
        values = {
            "recipe": self,
            "graphs": ", ".join(map(str, graphs.labels("topology"))),
            "left": left,
            "warm": warm,
            "cold": cold,
            "signs": _number(min(signs, default=None)),
            "rank": _number(sent[_WARM]),
            "at": at,
        }
        near = [one < 0.05 for one in left]
        holds = {"graphs": near, "warm start": [warm < cold], "signs": None}
        tables = {
            "consensus": [
                (
                    one["algorithm"],
                    *(one["distances"][step] for step in at),
                    one["node_bytes"] / self.rounds,
                    sent[one["algorithm"]],
                )
                for one in ring
            ],
            "graphs": [
                (one["topology"], one["spectral_gap"], one["distances"][-1]) for one in graphs
            ],
        }
        lines = {str(one["algorithm"]): (_kilobytes(one)[1:], one["distances"][1:]) for one in ring}
        return report(self.told, holds, values, tables, {"bytes": lines})

    def _split(self, split: str, found: Records) -> tuple[dict[str, Any], Findings]:
        """How PowerGossip compares on one kind of data, and with what figures."""
        methods = (_OURS, _PLAIN, _REDUCED, *_CHOCO)
        ours, plain, reduced, *choco = (_mean("test_accuracy", found, method=m) for m in methods)
        most = _mean("message_bytes", found, method=_PLAIN)
        fewer = most / _mean("message_bytes", found, method=_OURS)
        values: dict[str, Any] = {"recipe": self, "split": split, "ours": ours, "plain": plain}
        values |= {"reduced": reduced, "choco": max(choco), "fewer": fewer}
        holds = {
            f"on par, data {split}": [ours >= max(choco) - 1],
            "near": [ours >= max(plain, reduced) - 1, fewer >= 20],
        }
        columns: dict[str, Value] = _ENDED | {
            "bytes a step": lambda one: round(one["message_bytes"]),
            "times fewer": lambda one: most / one["message_bytes"],
        }
        table = {"training": pivot(found, "method", None, columns)}
        return values, report(self.told, holds, values, table)

    def _fixed(self, scope: Scope) -> dict[str, Any]:
        """Arguments that all training runs share."""
        sizes = {"num_nodes": self.num_nodes, "hidden": self.hidden, "samples": self.samples}
        return {"data": scope.images(_FILES, _FAMILY).source, **sizes}


def consensus_run(
    *, topology: Topology, algorithm: Gossip, size: int, rounds: int
) -> dict[str, Any]:
    """Gossip on square Gaussian matrices.

    Returns:
        `distances`: relative squared ones to the mean, before the first round and after each.
        `node_bytes`: what the first node sent in all.
        `spectral_gap`: of the graph.
    """
    start = torch.randn((topology.num_nodes, size, size), generator=generator(0, "consensus"))
    found = gossip.average(start, algorithm, gossip.SimulatedNetwork(topology), rounds=rounds)
    sent = int(found.bytes_sent[0])
    return {"distances": found.distances, "node_bytes": sent, "spectral_gap": topology.spectral_gap}


def ring_run(
    *,
    data: DataSource,
    algorithm: Gossip,
    partitioner: Partitioner,
    num_nodes: int,
    hidden: tuple[int, ...],
    samples: int,
    steps: int,
    rate: float,
    seed: int,
) -> dict[str, Any]:
    """Training on a ring; every algorithm sees the same batches and starts with the same weights.

    Momentum is Nesterov's. The learning rate is warmed up over the first sixtieth of the run, and
    falls to a tenth after a half, and again after three quarters.

    Returns:
        `test_accuracy`, a share, and `train_loss`: of the model with the mean of all weights.
        `distance`: of the nodes' weights to their mean, relative to the length of that.
        `message_bytes`: what a node sent per step.
        `stopped`: why, where it diverged: then it guesses, and its loss and distance are infinite.
    """
    splits = load(data)
    inputs, targets = splits.train[:]
    held = partitioner.split(targets, num_nodes, generator(seed, "shards"))
    replicas = gossip.Replicas(build(partial(MLP, hidden=hidden), splits, seed), num_nodes)
    network = gossip.SimulatedNetwork(Topology.ring(num_nodes))
    sgd = SGD(replicas.parameters(), lr=rate, momentum=0.9, nesterov=True)
    mixed = gossip.ParameterGossip(replicas.by_name(), algorithm, network, seed=seed)
    schedule = LambdaLR(sgd, partial(_factor, steps=steps))
    for step in range(steps):
        batch = torch.stack(
            [
                own[torch.randint(len(own), (samples,), generator=generator(seed, step, node))]
                for node, own in enumerate(held)
            ]
        )
        sgd.zero_grad()
        outputs = replicas(inputs[batch]).flatten(0, 1)
        each = cross_entropy(outputs, targets[batch].flatten(), reduction="none")
        each.view(num_nodes, -1).mean(dim=1).sum().backward()
        try:
            mixed.mix()
        except NotFiniteError as error:
            sent = network.bytes_sent.double().mean().item() / max(1, step)
            guess = {"test_accuracy": 1 / splits.num_classes, "message_bytes": sent}
            return guess | {"train_loss": math.inf, "distance": math.inf, "stopped": str(error)}
        sgd.step()
        schedule.step()
    middle = replicas.model()
    apart = sum(gossip.spread(one) for one in replicas.parameters()) / num_nodes
    return {
        "test_accuracy": evaluate(middle, cross_entropy, splits.test, splits.train).accuracy,
        "train_loss": evaluate(middle, cross_entropy, splits.train, splits.train).loss,
        "distance": (apart / sum(one.square().sum().item() for one in middle.parameters())) ** 0.5,
        "message_bytes": network.bytes_sent.double().mean().item() / steps,
    }


def _factor(step: int, steps: int) -> float:
    """On the learning rate."""
    done, warm = step / steps, min(1.0, 60 * (step + 1) / steps)
    return warm * (1.0 if done < 1 / 2 else 0.1 if done < 3 / 4 else 0.01)


def _best_rate(found: Records) -> Any:
    """The learning rate with which the all-reduce has the least training loss."""
    tried = [one for one in found if "rate" in one.labels]
    return min(tried, key=partial(_value, "train_loss"))["rate"]


def _value(name: str, one: Record) -> float:
    """Accuracies and distances in percent; what diverged has infinite losses and distances."""
    value = math.inf if one[name] is None else one[name]
    return float(100 * value if name in ("test_accuracy", "distance") else value)


def _mean(name: str, found: Records, **labels: Any) -> float:
    average: float = found.mean(partial(_value, name), **labels)
    return average


def _kilobytes(one: Record) -> list[float]:
    """What a node had sent before the first round and after each; on a ring all send the same."""
    rounds = len(one["distances"]) - 1
    return [one["node_bytes"] / 1000 * step / rounds for step in range(rounds + 1)]


def _kilobytes_to_1_percent(one: Record) -> float | None:
    """What a node had sent when this was first left of the distance; None if it never was."""
    pairs = zip(_kilobytes(one), one["distances"], strict=True)
    return next((sent for sent, left in pairs if left <= 0.01), None)


def _number(value: float | None) -> str:
    return "never" if value is None else f"{value:.3g}"
