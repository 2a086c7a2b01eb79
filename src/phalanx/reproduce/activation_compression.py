"""AC-SGD: how few bits activations may cross in, as they are or as differences."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
from phalanx.experiments import (
    Cell,
    MakeModel,
    Record,
    Records,
    build,
    grid,
    line_plot,
    load,
    pivot,
)
from phalanx.losses import cross_entropy
from phalanx.models import GPT, TextClassifier
from phalanx.pipeline import ActivationDifference, SimulatedPipeline, split
from phalanx.randomness import generator
from phalanx.reporting import Table
from phalanx.reproduce.base import Claim, Findings, Recipe, Scope, above, claim, figures, published

_PAPER = published("activation-compression")
_CLAIMS = _PAPER["claims"]
PLAY, QUESTIONS = "tinyshakespeare.txt.gz", "trec.csv.gz"
_CHARACTERS, _TYPES = "next characters", "types of questions"
_DIRECT, _ZERO, _DIFFERENCES = "direct", "direct, zero a level", "differences"
_NOTHING, _ALL = "nothing compressed", "all three"
_BITS = ((2, 4), (3, 6), (4, 8))  # forward and backward
_ROUNDINGS = ("nearest", "stochastic")
_ABSENT = (
    f"The part on texts needs {PLAY} and {QUESTIONS} in the folder of data (--data, or the "
    "variable PHALANX_DATA); what was not there was left out."
)


@dataclass(frozen=True)
class Texts:
    """Sizes of the part on texts."""

    samples: int | None = None
    """To train on; by default 512 sequences and 1024 questions, or 4000 of each in full."""
    epochs: int | None = None
    """By default 8 and 5, or 12 in full."""
    width: int = 32
    """Of both models, each of four blocks."""

    def cells(self, scope: Scope) -> list[Cell]:
        """All methods on the texts that are there; in full longer sequences and three seeds."""
        full, width, tasks = scope.full, self.width, {}
        classifier = partial(TextClassifier, vocabulary=2048, depth=4)
        questions = partial(LabelledTexts, length=16, vocabulary=2048)
        for name, file, source, model, samples, epochs in (
            (_CHARACTERS, PLAY, partial(TextFile, length=64 if full else 32), GPT, 512, 8),
            (_TYPES, QUESTIONS, questions, classifier, 1024, 5),
        ):
            if scope.data is not None and (scope.data / file).is_file():
                samples = self.samples or (4000 if full else samples)
                tasks[name] = {
                    "data": First(source(scope.data / file), samples),
                    "model": partial(in_stages, model=partial(model, width=width)),
                    "epochs": self.epochs or (12 if full else epochs),
                }
        exact = {"forward": ActivationDifference(32), "backward": SampleQuantization(32)}
        replicas = {"replicas": 2, "gradients": ErrorFeedback(UniformQuantization(bits=4))}
        methods = {_NOTHING: exact} | {
            _name(method, *bits): _codecs(method, *bits)
            for bits in _BITS
            for method in (_DIRECT, _DIFFERENCES)
        }
        methods[_ALL] = _codecs(_DIFFERENCES, 4, 8) | replicas
        seeds = range(3 if full else 1)
        fixed = {"optimizer": partial(Adam, lr=0.003), "batch_size": 32}
        axes: dict[str, Any] = {"task": tasks, "method": methods, "seed": seeds}
        return grid(staged_run, axes, fixed) if tasks else []


@dataclass(frozen=True)
class ActivationCompression(Recipe):
    """Networks in two and four stages, with activations in 2, 3 and 4 bits: digits, then texts.

    Cost: in quick mode two to three minutes on one core.
    Source: Wang, Yuan, Rimanic, He, Dao, Chen, Re, Zhang, "Fine-tuning Language Models over Slow
    Networks using Activation Compression with Guarantees", NeurIPS 2022.
    """

    name: ClassVar[str] = "activation-compression"
    paper: ClassVar[str] = (
        "Wang, Yuan, Rimanic, He, Dao, Chen, Re and Zhang, Fine-tuning Language Models over Slow "
        "Networks using Activation Compression with Guarantees, NeurIPS 2022"
    )

    stages: tuple[int, ...] = (2, 4)
    """Numbers of stages; the last is where the figures of the answer come from."""
    width: int = 128
    """Of the hidden layers: two in two stages, else one fewer than stages."""
    epochs: int | None = None
    """By default 12, or 40 in full."""
    seeds: int | None = None
    """Runs of each method; by default 2, or 5 in full."""
    batch_size: int = 32
    """Samples a step."""
    learning_rate: float = 0.02
    """Of SGD with momentum 0.9."""
    texts: Texts = field(default_factory=Texts)
    """Of the part on texts."""

    def cells(self, scope: Scope) -> list[Cell]:
        """Every method on digits; without `data` the part on texts is left out."""
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
            "epochs": self._epochs(scope),
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
                    "seed": {one: {"seed": one, "inspect": one == 0} for one in self._seeds(scope)},
                }
                found += grid(staged_run, axes, fixed)
        return found + self.texts.cells(scope)

    def findings(self, found: Records, scope: Scope) -> Findings:
        """How training ended with every method."""
        deepest = found.where(stages=self.stages[-1])
        digits = found.where(stages=list(self.stages))
        tasks = [str(one) for one in found.labels("task")]
        nearest = deepest.where(rounding="nearest")
        ours, theirs, exact = (
            figures([_accuracy(some, name)])
            for some, name in (
                (nearest, _name(_DIFFERENCES, 2, 4)),
                (nearest, _name(_DIRECT, 2, 4)),
                (deepest, _NOTHING),
            )
        )
        return Findings(
            answer=(
                f"In {self.stages[-1]} stages with activations in 2 bits, rounded to the nearest, "
                f"differences reached {ours} % where direct rounding reached {theirs} % and no "
                f"compression {exact} %."
            ),
            claims=[
                *self._claims(digits, deepest, self._epochs(scope)),
                *(_text_claims(found.where(task=tasks)) if tasks else ()),
            ],
            tables=[
                *(
                    pivot(
                        digits.where(rounding=[None, rounding]), "stages", "method", _percent
                    ).table(
                        f"Rounding: {rounding}",
                        "Test accuracy in percent, mean over the seeds; bits forward and backward.",
                        "stages",
                    )
                    for rounding in _ROUNDINGS
                ),
                *(_text_table(one, found.where(task=one)) for one in tasks),
            ],
            plots=[
                line_plot(
                    f"Error of the activations, {number} stages",
                    "Relative error of what receivers go on from, by epoch; the first crosses in "
                    "full.",
                    {
                        str(one["method"]): ([*range(2, len(one["errors"]) + 1)], one["errors"][1:])
                        for one in digits.where(stages=number, rounding="nearest", seed=0)
                        if not str(one["method"]).startswith(_ZERO)
                    },
                    x="epoch",
                    y="relative error (log scale)",
                    log="y",
                )
                for number in self.stages
            ],
            notes=(
                *_PAPER["notes"],
                *(_PAPER["notes on texts"] if tasks else ()),
                *(() if len(tasks) == 2 else (_ABSENT,)),
            ),
            settings={"epochs": self._epochs(scope), "seeds": len(self._seeds(scope))},
        )

    def _epochs(self, scope: Scope) -> int:
        return self.epochs or (40 if scope.full else 12)

    def _seeds(self, scope: Scope) -> range:
        return range(self.seeds or (5 if scope.full else 2))

    def _claims(self, digits: Records, deepest: Records, epochs: int) -> list[Claim]:
        number, exact = self.stages[-1], _accuracy(deepest, _NOTHING)
        ours, theirs, zeros = (
            [_accuracy(deepest.where(rounding=one), _name(method, 2, 4)) for one in _ROUNDINGS]
            for method in (_DIFFERENCES, _DIRECT, _ZERO)
        )
        first = deepest.where(seed=0)
        curves = [one["errors"] for one in first.where(method=_name(_DIFFERENCES, 2, 4))]
        finest, coarsest = (
            first.where(method=one)[0]["boundary_bytes"]
            for one in (_NOTHING, _name(_DIFFERENCES, 2, 4))
        )
        methods = [_name(_DIFFERENCES, *bits) for bits in _BITS]
        remembered = digits.where(method=methods, seed=0)
        agreed = [bool(one["agreed"]) for one in remembered]
        samples = len(load(Digits()).train)  # type: ignore[arg-type]
        once = [one["full_samples"] == samples * (one["stages"] - 1) for one in remembered]
        return [
            claim(
                _CLAIMS["differences"],
                f"{figures(ours)} %; without compression {figures([exact])} %",
                [above(one, exact, -1.0) for one in ours],
                stages=number,
            ),
            claim(
                _CLAIMS["direct"],
                f"{figures(theirs)} %; on a grid with a zero, {figures(zeros)} %",
                [(one or 0) > (other or 0) for one, other in zip(ours, theirs, strict=True)],
                stages=number,
            ),
            claim(
                _CLAIMS["error"],
                " / ".join(f"{one[1]:.2f} to {one[-1]:.2f}" if one[1:] else "—" for one in curves),
                [len(one) > 2 and one[-1] < 0.5 * one[1] for one in curves],
            ),
            claim(_CLAIMS["both sides"], f"in {sum(agreed)} of {len(agreed)} runs", agreed),
            claim(_CLAIMS["once"], f"in {sum(once)} of {len(once)} runs", once),
            claim(
                _CLAIMS["time"],
                f"not timed here; {finest / coarsest:.1f} times fewer bytes with 2 and 4 bits, the "
                f"first of {epochs} epochs included",
            ),
        ]


def _text_claims(found: Records) -> list[Claim]:
    """The paper's claims about language models, beside what was measured."""
    kept, better, whole = [], [], []
    shown: dict[str, list[str]] = {_DIFFERENCES: [], _DIRECT: [], _ALL: []}
    for task in map(str, found.labels("task")):
        ended = _ended(found.where(task=task))
        place, sign, slack = (1, -1, 3.0) if task == _TYPES else (0, 1, 0.05)

        def loss(one: Sequence[Any], place: int = place, sign: int = sign) -> float:
            return float(sign * one[place])

        exact, last = ended[_NOTHING], ended[_ALL]
        ours, theirs = (
            [ended[_name(method, *bits)] for bits in _BITS] for method in (_DIFFERENCES, _DIRECT)
        )
        kept += [loss(one) <= loss(exact) + slack for one in ours]
        better += [loss(other) > loss(one) for one, other in zip(ours, theirs, strict=True)]
        whole.append(loss(last) <= loss(exact) + slack)
        for method, each in ((_DIFFERENCES, ours), (_DIRECT, theirs), (_ALL, [last])):
            shown[method].append(f"{task}: {_figures(each)}; without {_figures([exact])}")
        fewer = exact[2] / max(last[2], 1)
        shown[_ALL][-1] += f"; {fewer:.1f} times fewer bytes across the boundaries"
    return [
        claim(_CLAIMS[f"texts, {method}"], ". ".join(shown[method]), holds)
        for method, holds in ((_DIFFERENCES, kept), (_DIRECT, better), (_ALL, whole))
    ]


def _ended(found: Records) -> dict[str, Sequence[Any]]:
    """By method: loss, accuracy, bytes of activations and of replicas' gradients, and error.

    The bytes are those of the first seed, the rest means; what diverged has infinite losses.
    """
    first = found.where(seed=found.labels("seed")[0])
    return {
        str(one["method"]): (
            found.mean(lambda run: _infinite(run["test_loss"]), method=one["method"]),
            found.mean(lambda run: 100 * (run["test_accuracy"] or 0.0), method=one["method"]),
            one["boundary_bytes"],
            one["gradient_bytes"],
            found.mean(lambda run: _infinite(run["error"]), method=one["method"]),
        )
        for one in first
    }


def _text_table(task: str, found: Records) -> Table:
    epochs, sizes = len(found[0]["errors"]), ("MB of activations", "MB of gradients of replicas")
    rows = []
    for name, (loss, accuracy, crossed, exchanged, error) in _ended(found).items():
        known = [one if math.isfinite(one) else None for one in (loss, error)]
        sent = None if exchanged is None else exchanged / 1e6
        rows.append((name, known[0], accuracy, crossed / 1e6, sent, known[1]))
    return Table(
        f"Texts: {task}",
        f"{task.capitalize()}, in four stages, rounded to the nearest; the first of {epochs} "
        "epochs crosses in full. Bits are those forward and backward.",
        ("method", "test loss", "test accuracy, %", *sizes, "error of activations"),
        tuple(rows),
    )


def _figures(ended: Iterable[Sequence[Any]]) -> str:
    losses, accuracies = zip(*(one[:2] for one in ended), strict=True)
    return f"{' / '.join(f'{one:.2f}' for one in losses)} ({figures(accuracies)} %)"


def _percent(one: Record) -> float | None:
    share: float | None = one["test_accuracy"]
    return None if share is None else 100 * share


def _accuracy(found: Records, method: str) -> float | None:
    """In percent, the mean over the seeds; None if numbers of a run were not finite."""
    average: float | None = found.mean(_percent, method=method)
    return average


def _infinite(value: float | None) -> float:
    return math.inf if value is None else value


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
        `test_accuracy`, a share, and `test_loss`; None and infinite if numbers were not finite.
        `errors`: `||m - a|| / ||a||` by epoch, over boundaries and batches; `error`: the last one.
        `boundary_bytes`: that crossed all boundaries, both ways.
        `gradient_bytes`: of the gradients of all replicas, where they are compressed.
        `full_samples`: that crossed a boundary in full, over all boundaries.
        `agreed`: whether both sides of all boundaries remember the same.
        `stopped`: why, if numbers were not finite any more.
    """
    splits = load(data)
    inputs, targets = splits.train[:]
    network = build(model, splits, seed)
    pipelines = [
        SimulatedPipeline(
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
        for _ in range(replicas)
    ]
    made, errors, stopped = optimizer(network.parameters()), list[float](), None
    try:
        errors.extend(  # keeps those before a failure
            descend(pipelines, made, inputs, targets, epochs, batch_size, seed, gradients)
        )
        accuracy, loss, _ = evaluate(network, cross_entropy, splits.test, splits.train)
        stopped = None if math.isfinite(loss) else "the test loss is not finite"
    except NotFiniteError as error:
        accuracy, loss, stopped = None, math.inf, str(error)
    sides = [pair for one in pipelines for pair in zip(one.senders, one.receivers, strict=True)]
    exchanged = None
    if gradients is not None:
        shapes = [tuple(one.shape) for one in network.parameters()]
        message = sum(gradients.num_bytes(shape, torch.float32) for shape in shapes)
        steps = epochs * sum(1 for _ in _batches(len(inputs), replicas, batch_size, seed, 0))
        exchanged = message * replicas * steps
    values = {
        "test_accuracy": accuracy if stopped is None else None,
        "test_loss": loss,
        "errors": errors,
        "error": errors[-1] if stopped is None else math.inf,
        "boundary_bytes": sum(
            one.traffic.activation_bytes + one.traffic.gradient_bytes for one, _ in sides
        ),
        "gradient_bytes": exchanged,
        "full_samples": sum(one.traffic.full_samples for one, _ in sides),
        "agreed": all(_same(one.state_dict(), other.state_dict()) for one, other in sides),
    }
    return values if stopped is None else values | {"stopped": stopped}


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
