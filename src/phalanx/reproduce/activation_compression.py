"""AC-SGD: how few bits activations may cross in, as they are or as differences."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.utils.data import TensorDataset

from phalanx.compression import (
    QSGD,
    Compressor,
    ErrorFeedback,
    SampleQuantization,
    TensorStates,
    UniformQuantization,
    simulate,
)
from phalanx.data import DataSource, Digits, LabelledTexts, Splits, TextFile
from phalanx.errors import NotFiniteError
from phalanx.evaluation import evaluate
from phalanx.experiments import Cell, MakeModel, Record, Records, build, grid, load, pivot
from phalanx.losses import cross_entropy
from phalanx.models import GPT, TextClassifier
from phalanx.pipeline import ActivationDifference, SimulatedPipeline, split
from phalanx.randomness import generator
from phalanx.reproduce.base import Findings, Recipe, Scope, above, report, sized, words

_CHARACTERS, _TYPES = "next characters", "types of questions"
_FILES = {_CHARACTERS: "tinyshakespeare.txt.gz", _TYPES: "trec.csv.gz"}
_DIRECT, _ZERO, _DIFFERENCES = "direct", "direct, zero a level", "differences"
_NOTHING, _ALL = "nothing compressed", "all three"
_BITS = ((2, 4), (3, 6), (4, 8))  # forward and backward
_ROUNDINGS = ("nearest", "stochastic")


@dataclass(frozen=True)
class ActivationCompression(Recipe):
    """Networks in two and four stages, with activations in 2, 3 and 4 bits: digits, then texts.

    Source: Wang, Yuan, Rimanic, He, Dao, Chen, Re, Zhang, "Fine-tuning Language Models over Slow
    Networks using Activation Compression with Guarantees", NeurIPS 2022.
    """

    name: ClassVar[str] = "activation-compression"

    stages: tuple[int, ...] = (2, 4)
    """Numbers of stages; the last is where the figures of the answer come from."""
    width: int = 128
    """Of the hidden layers: two in two stages, else one fewer than stages."""
    epochs: int = sized(8, 12, 40)
    """Visits of each sample."""
    seeds: int = sized(1, 2, 5)
    """Runs of each method."""
    batch_size: int = 32
    """Samples a step."""
    learning_rate: float = 0.02
    """Of SGD with momentum 0.9."""
    texts: tuple[int, ...] = sized((), (512, 1024), (4000, 4000))
    """Sequences and questions to train on; empty leaves texts out."""
    text_epochs: tuple[int, int] = sized((8, 5), (8, 5), (12, 12))
    """Visits of each sequence and question."""
    text_length: int = sized(32, 32, 64)
    """Characters of a sequence."""
    text_seeds: int = sized(1, 1, 3)
    """Runs of each method on texts."""
    text_width: int = 32
    """Of both models of texts, each of four blocks."""

    def cells(self, scope: Scope) -> list[Cell]:
        """Every method on digits and on texts."""
        exact = {"forward": SampleQuantization(32), "backward": SampleQuantization(32)}
        methods: dict[Any, Any] = {None: {_NOTHING: exact}}
        for rounding in _ROUNDINGS:
            methods[rounding] = {
                _name(method, *bits): _codecs(method, *bits, rounding, self.width)
                for bits in _BITS
                for method in (_DIRECT, _ZERO, _DIFFERENCES)
                if method != _ZERO or bits == _BITS[0]
            }
        fixed = {
            "data": Digits(),
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "optimizer": partial(SGD, lr=self.learning_rate, momentum=0.9),
        }
        found = []
        for number in self.stages:
            for rounding, codecs in methods.items():
                axes = {
                    "stages": {number: {"model": partial(chain, number=number, width=self.width)}},
                    "rounding": {rounding: {}},
                    "method": codecs,
                    "seed": {n: {"seed": n, "inspect": n == 0} for n in range(self.seeds)},
                }
                found += grid(staged_run, axes, fixed)
        return found + (self._on_texts(scope) if self.texts else [])

    def _on_texts(self, scope: Scope) -> list[Cell]:
        classifier = partial(TextClassifier, vocabulary=2048, depth=4)
        sources: list[tuple[Any, Any]] = [
            (partial(TextFile, length=self.text_length), GPT),
            (partial(LabelledTexts, length=16, vocabulary=2048), classifier),
        ]
        tasks = {
            name: {
                "data": First(source(scope.file(_FILES[name])), samples),
                "model": partial(in_stages, model=partial(model, width=self.text_width)),
                "epochs": epochs,
            }
            for name, (source, model), samples, epochs in zip(
                _FILES, sources, self.texts, self.text_epochs, strict=True
            )
        }
        exact = {"forward": ActivationDifference(32), "backward": SampleQuantization(32)}
        replicas = {"replicas": 2, "gradients": ErrorFeedback(UniformQuantization(bits=4))}
        methods = {_NOTHING: exact} | {
            _name(method, *bits): _codecs(method, *bits)
            for bits in _BITS
            for method in (_DIRECT, _DIFFERENCES)
        }
        methods[_ALL] = _codecs(_DIFFERENCES, 4, 8) | replicas
        fixed = {"optimizer": partial(Adam, lr=0.003), "batch_size": 32}
        axes: dict[str, Any] = {"task": tasks, "method": methods, "seed": range(self.text_seeds)}
        return grid(staged_run, axes, fixed)

    def findings(self, found: Records, scope: Scope) -> Findings:
        """How training ended with every method."""
        deepest = found.where(stages=self.stages[-1])
        digits, coarse = found.where(stages=list(self.stages)), _name(_DIFFERENCES, 2, 4)
        exact: float | None = deepest.mean(_percent, method=_NOTHING)
        ours, theirs, zeros = (
            [deepest.mean(_percent, rounding=r, method=_name(m, 2, 4)) for r in _ROUNDINGS]
            for m in (_DIFFERENCES, _DIRECT, _ZERO)
        )
        first = deepest.where(seed=0)
        curves = [one["errors"] for one in first.where(method=coarse)]
        sent = [first.where(method=one)[0]["boundary_bytes"] for one in (_NOTHING, coarse)]
        remembered = digits.where(method=[_name(_DIFFERENCES, *bits) for bits in _BITS], seed=0)
        agreed = [bool(one["agreed"]) for one in remembered]
        samples = len(load(Digits()).train)  # type: ignore[arg-type]
        once = [one["full_samples"] == samples * (one["stages"] - 1) for one in remembered]
        falls = (f"{one[1]:.2f} to {one[-1]:.2f}" if one[1:] else "—" for one in curves)
        values = {
            "recipe": self,
            "stages": self.stages[-1],
            "exact": exact,
            "ours": ours,
            "theirs": theirs,
            "zeros": zeros,
            "falls": " / ".join(falls),
            "agreed": sum(agreed),
            "once": sum(once),
            "runs": len(once),
            "fewer": sent[0] / sent[1],
        }
        holds = {
            "differences": [above(one, exact, -1.0) for one in ours],
            "direct": [(a or 0) > (b or 0) for a, b in zip(ours, theirs, strict=True)],
            "error": [len(one) > 2 and one[-1] < 0.5 * one[1] for one in curves],
            "both sides": agreed,
            "once": once,
            "time": None,
        }
        notes = ("notes", "notes on texts" if self.texts else "without texts")
        parts = report(self.told, holds, values, answer="answer", notes=notes)
        for rounding in _ROUNDINGS:
            some = pivot(digits.where(rounding=[None, rounding]), "stages", "method", _percent)
            parts += report(self.told, {}, {"rounding": rounding}, {"digits": some})
        for number in self.stages:
            lines = {
                str(one["method"]): (range(2, len(one["errors"]) + 1), one["errors"][1:])
                for one in digits.where(stages=number, rounding="nearest", seed=0)
                if not str(one["method"]).startswith(_ZERO)
            }
            parts += report(self.told, {}, {"number": number}, plots={"errors": lines})
        return parts + (text_findings(self.told, found) if self.texts else Findings("", []))


def text_findings(told: Mapping[str, Any], found: Records) -> Findings:
    """The paper's claims about language models, beside what was measured."""
    by_bits = {m: [_name(m, *bits) for bits in _BITS] for m in (_DIFFERENCES, _DIRECT)}
    groups = by_bits | {_ALL: [_ALL]}
    holds: dict[str, list[bool]] = {name: [] for name in groups}
    shown: dict[str, list[str]] = {name: [] for name in groups}
    tables = Findings("", [])
    for task in map(str, found.labels("task")):
        some = found.where(task=task)
        ended = pivot(some, "method", None, _COLUMNS)
        values = {"task": task.capitalize(), "epochs": len(some[0]["errors"])}
        tables += report(told, {}, values, {"texts": ended})
        losses, shares = (
            {str(m): ended[m, header] for m in ended.rows} for header in list(_COLUMNS)[:2]
        )
        slack = 3.0 if task == _TYPES else 0.05
        costs = {
            method: -(shares[method] or 0.0)
            if task == _TYPES
            else math.inf
            if loss is None
            else loss
            for method, loss in losses.items()
        }
        for name, methods in groups.items():
            if name == _DIRECT:
                pairs = zip(by_bits[_DIFFERENCES], methods, strict=True)
                holds[name] += [costs[theirs] > costs[ours] for ours, theirs in pairs]
            else:
                holds[name] += [costs[one] <= costs[_NOTHING] + slack for one in methods]
            values = {"task": task, "losses": [losses[one] for one in methods]}
            values |= {"shares": [shares[one] for one in methods]}
            values |= {"exact": losses[_NOTHING], "share": shares[_NOTHING]}
            shown[name].append(words(told["text"], values))
        crossed = [some.mean("boundary_bytes", method=one) for one in (_NOTHING, _ALL)]
        shown[_ALL][-1] += words(told["fewer"], {"fewer": crossed[0] / max(crossed[1], 1)})
    claims = {f"texts, {name}": one for name, one in holds.items()}
    values = {"shown": {name: ". ".join(one) for name, one in shown.items()}}
    return report(told, claims, values) + tables


def _percent(one: Record) -> float | None:
    """Test accuracy; None if numbers of a run were not finite."""
    share: float | None = one["test_accuracy"]
    return None if share is None else 100 * share


_COLUMNS: dict[str, Any] = {
    "test loss": "test_loss",
    "test accuracy, %": _percent,
    "MB of activations": lambda one: one["boundary_bytes"] / 1e6,
    "MB of gradients of replicas": lambda one: (
        one["gradient_bytes"] and one["gradient_bytes"] / 1e6
    ),
    "error of activations": "error",
}


def _name(method: str, bits: int, back: int) -> str:
    return f"{method}, {bits} and {back} bits"


def _codecs(
    method: str, bits: int, back: int, rounding: Any = "nearest", width: int = 0
) -> dict[str, Any]:
    """How activations and their gradients are rounded."""
    forward: ActivationDifference | Compressor
    if method == _DIFFERENCES:
        forward = ActivationDifference(bits, rounding)
    elif method == _DIRECT:
        forward = SampleQuantization(bits, rounding)
    elif rounding == "nearest":  # one bucket a sample
        forward = UniformQuantization(width, bits)
    else:
        forward = QSGD(width, levels=(1 << (bits - 1)) - 1, norm="max")
    return {"forward": forward, "backward": SampleQuantization(back, rounding)}


@dataclass(frozen=True)
class First(DataSource):
    """The first samples of other data, as many as two replicas can share; 1000 to test on."""

    source: DataSource
    """The other data."""
    samples: int
    """To train on, at most."""

    def load(self) -> Splits:
        """Reads all and keeps the first."""
        whole = self.source.load()
        parts = [(whole.train, self.samples), (whole.test, 1000)]
        sizes = [min(samples, len(one)) // 2 * 2 for one, samples in parts]  # type: ignore[arg-type]
        train, test = (
            TensorDataset(*(column[:size] for column in one[:]))
            for (one, _), size in zip(parts, sizes, strict=True)
        )
        return Splits(train, test, whole.input_shape, whole.num_classes)


def chain(input_shape: tuple[int, ...], num_classes: int, number: int, width: int) -> nn.Sequential:
    """A network in stages: a hidden layer each, and at least two in all."""
    size = math.prod(input_shape)
    stages: list[nn.Module] = [nn.Sequential(nn.Flatten(), nn.Linear(size, width), nn.ReLU())]
    hidden = [(nn.Linear(width, width), nn.ReLU()) for _ in range(max(1, number - 2))]
    stages += [nn.Sequential(*pair) for pair in hidden[: number - 2]]
    rest = [layer for pair in hidden[max(0, number - 2) :] for layer in pair]
    return nn.Sequential(*stages, nn.Sequential(*rest, nn.Linear(width, num_classes)))


def in_stages(input_shape: tuple[int, ...], num_classes: int, model: MakeModel) -> nn.Sequential:
    """A model whose `layers` are a chain, cut into four stages."""
    layers: Any = model(input_shape, num_classes).layers
    return nn.Sequential(*split(layers, 4))


def staged_run(
    *,
    data: DataSource,
    model: Callable[[tuple[int, ...], int], nn.Sequential],
    forward: ActivationDifference | Compressor,
    backward: Compressor,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
    epochs: int,
    batch_size: int,
    seed: int = 0,
    inspect: bool | None = None,
    replicas: int = 1,
    gradients: Compressor | None = None,
) -> dict[str, Any]:
    """Training of a model in stages, by one pipeline or by replicas that average their gradients.

    Args:
        data: held in memory.
        model: makes the chain of stages.
        forward: how activations are rounded.
        backward: how their gradients are.
        optimizer: made of the weights.
        epochs: visits of each sample.
        batch_size: samples per step, over all replicas.
        seed: of weights, order and rounding.
        inspect: whether boundaries that remember something keep both sides, and errors are
            measured; errors only, by default.
        replicas: pipelines over the same stages.
        gradients: how the gradients of several replicas are compressed.

    Returns:
        `test_accuracy`, a share, and `test_loss`; `errors`: `||m - a|| / ||a||` by epoch, over
        boundaries and batches; `error`: the last one; `stopped`: why, if numbers were not finite.
        `boundary_bytes` crossed all boundaries, both ways; `gradient_bytes` are those of all
        replicas; `full_samples` crossed a boundary in full; `agreed`: whether both sides of all
        boundaries remember the same.
    """
    splits = load(data)
    inputs, targets = splits.train[:]
    network = build(model, splits, seed)
    make = partial(
        SimulatedPipeline,
        list(network.children()),
        inputs[:1],
        cross_entropy,
        num_samples=len(inputs),
        forward=forward,
        backward=backward,
        # Both sides, where they have something to agree on; the rest is the same, sooner.
        wire=bool(inspect) and isinstance(forward, ActivationDifference),
        measure=inspect is not False,
        seed=seed,
    )
    pipelines, errors = [make() for _ in range(replicas)], list[float]()
    sides = [pair for one in pipelines for pair in zip(one.senders, one.receivers, strict=True)]
    values: dict[str, Any] = {"errors": errors, "gradient_bytes": None}
    if gradients is not None:
        sizes = [
            gradients.num_bytes(tuple(one.shape), torch.float32) for one in network.parameters()
        ]
        steps = epochs * math.ceil(len(inputs) // replicas / (batch_size // replicas))
        values["gradient_bytes"] = sum(sizes) * replicas * steps
    ended: dict[str, Any] = {"test_accuracy": None, "test_loss": math.inf, "error": math.inf}
    try:
        made = optimizer(network.parameters())
        errors.extend(  # keeps those before a failure
            descend(pipelines, made, inputs, targets, epochs, batch_size, seed, gradients)
        )
        accuracy, loss, _ = evaluate(network, cross_entropy, splits.test, splits.train)
        if math.isfinite(loss):
            ended = {"test_accuracy": accuracy, "test_loss": loss, "error": errors[-1]}
        else:
            ended["stopped"] = "the test loss is not finite"
    except NotFiniteError as error:
        ended["stopped"] = str(error)
    traffic = [one.traffic for one, _ in sides]
    return (
        values
        | ended
        | {
            "boundary_bytes": sum(one.activation_bytes + one.gradient_bytes for one in traffic),
            "full_samples": sum(one.full_samples for one in traffic),
            "agreed": all(_same(one.state_dict(), other.state_dict()) for one, other in sides),
        }
    )


def descend(
    pipelines: Sequence[SimulatedPipeline],
    optimizer: Optimizer,
    inputs: Tensor,
    targets: Tensor,
    epochs: int,
    batch_size: int,
    seed: int,
    gradients: Compressor | None = None,
) -> Iterator[float]:
    """Trains, and tells after every epoch the relative error of the activations, on average.

    Of R replicas, which share their stages, r holds samples r, R + r, 2 R + r ..., for good.

    Raises:
        NotFiniteError: if activations or gradients are not finite.
    """
    weights = dict(nn.ModuleList(pipelines[0].stages).named_parameters())
    memories = [TensorStates()] * len(pipelines)
    for epoch in range(epochs):
        errors = []
        for batches in _batches(len(inputs), len(pipelines), batch_size, seed, epoch):
            rows = []
            for pipeline, ids in zip(pipelines, batches, strict=True):
                optimizer.zero_grad()
                pipeline.step(ids, inputs[ids], targets[ids])
                rows.append(
                    {name: one.grad for name, one in weights.items() if one.grad is not None}
                )
                errors.append(fmean(pipeline.errors) if pipeline.errors else 0.0)
            if gradients is not None:
                means, memories = simulate(gradients, rows, memories, seed=seed)
                for name, mean in means[0].items():
                    weights[name].grad = mean
            optimizer.step()
        yield fmean(errors)


def _batches(
    size: int, replicas: int, batch_size: int, seed: int, epoch: int
) -> Iterator[tuple[Tensor, ...]]:
    """The ids of each replica, step by step."""
    orders = []
    for own in (torch.arange(size)[place::replicas] for place in range(replicas)):
        order = torch.randperm(len(own), generator=generator(seed, "order", epoch))
        orders.append(own[order].split(batch_size // replicas))
    return zip(*orders, strict=True)


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    mine, theirs = one["buffer"], other["buffer"]
    return all(torch.equal(mine[name], theirs[name]) for name in mine)
