"""AC-SGD on texts: a language model and a classifier in stages, and all traffic in few bits."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from phalanx.compression import Compressor, ErrorFeedback, SampleQuantization, UniformQuantization
from phalanx.data import LabelledTexts, Splits, TextFile
from phalanx.errors import NotFiniteError
from phalanx.losses import cross_entropy
from phalanx.models import GPT, TextClassifier
from phalanx.pipeline import ActivationDifference, SimulatedPipeline, split
from phalanx.randomness import seeded
from phalanx.reporting import Table
from phalanx.reproduce.base import Finding, Progress, verdict
from phalanx.reproduce.staged_training import DIFFERENCES, DIRECT, StagedTraining
from phalanx.training import evaluate

PLAY, QUESTIONS = "tinyshakespeare.txt.gz", "trec.csv.gz"
_BITS = ((2, 4), (3, 6), (4, 8))  # forward and backward
_NOTHING, _ALL = "nothing compressed", "all three"
_GRADIENTS = ErrorFeedback(UniformQuantization(bits=4))
_STAGES, _VOCABULARY = 4, 2048
_HEADERS = (
    "method",
    "test loss",
    "test accuracy, %",
    "MB of activations",
    "MB of gradients of replicas",
    "error of activations",
)
NOTES = (
    "Texts: next characters of Shakespeare, and the types of questions (TREC). The paper "
    "fine-tunes GPT-2 and DeBERTa of 1.5 billion weights; these models are tiny and start from "
    "nothing, so that activations change more between visits. In quick mode there is one seed.",
    "All three: two pipelines that keep half of the samples each, differences in 4 bits and their "
    "gradients in 8, and gradients of replicas in 4 bits (buckets of 512) with error feedback, "
    "before Adam. The paper compresses Adam's momentum; so does OneBitAdam, among processes.",
)
ABSENT = (
    f"The part on texts needs {PLAY} and {QUESTIONS} in the folder of data (--data, or the "
    "variable PHALANX_DATA); what was not there was left out."
)


@dataclass(frozen=True)
class Ended:
    """How runs of one method ended, on average over the seeds."""

    loss: float
    """On the test data; infinite where numbers were not finite any more."""
    accuracy: float
    """In percent."""
    boundaries: int
    """Bytes across all boundaries, both ways."""
    gradients: int | None
    """Bytes of the gradients of all replicas, where there are several."""
    error: float
    """Relative error of the activations in the last epoch."""


@dataclass(frozen=True)
class Task:
    """What is learnt, by which model."""

    name: str
    """In a few words."""
    splits: Splits
    """The data."""
    model: Callable[[], nn.Module]
    """Makes it; its `layers` are a chain."""
    epochs: int
    """Visits of each sample."""
    rate: float
    """Learning rate of Adam."""
    seeds: int
    """Runs of each method."""
    slack: float
    """How much worse counts as equal: of the test loss, or points of the accuracy."""
    by_accuracy: bool
    """Whether methods are held against each other by accuracy, and not by the test loss."""
    batch_size: int = 32
    """Samples a step."""

    def measure(self, progress: Progress) -> dict[str, Ended]:
        """Runs of all methods, by name."""
        exact = ActivationDifference(32), SampleQuantization(32)
        cases: dict[str, tuple[Any, Compressor]] = {_NOTHING: exact}
        for bits, back in _BITS:
            coarse = SampleQuantization(back)
            cases[_name(DIRECT, bits, back)] = SampleQuantization(bits), coarse
            cases[_name(DIFFERENCES, bits, back)] = ActivationDifference(bits), coarse
        cases[_ALL] = ActivationDifference(4), SampleQuantization(8)
        found = {}
        for name, (forward, backward) in cases.items():
            progress(f"{self.name}: {name}")
            replicas = 2 if name == _ALL else 1
            runs = [self._run(forward, backward, replicas, seed) for seed in range(self.seeds)]
            found[name] = Ended(
                fmean(one.loss for one in runs),
                fmean(one.accuracy for one in runs),
                runs[0].boundaries,
                runs[0].gradients,
                fmean(one.error for one in runs),
            )
        return found

    def worse(self, one: Ended, other: Ended, by: float = 0.0) -> bool:
        """Whether a method did worse than another, by more than that."""
        if self.by_accuracy:
            return one.accuracy < other.accuracy - by
        return one.loss > other.loss + by

    def _run(self, forward: Any, backward: Compressor, replicas: int, seed: int) -> Ended:
        inputs, targets = self.splits.train.tensors  # type: ignore[attr-defined]
        with seeded(seed, "weights"):
            model = self.model()
        stages = split(model.layers, _STAGES)  # type: ignore[arg-type]
        pipelines = [
            SimulatedPipeline(
                stages,
                inputs[:1],
                cross_entropy,
                num_samples=len(inputs),
                forward=forward,
                backward=backward,
                wire=False,
                measure=True,
                seed=seed,
            )
            for _ in range(replicas)
        ]
        gradients = _GRADIENTS if replicas > 1 else None
        optimizer = torch.optim.Adam(model.parameters(), lr=self.rate)
        training = StagedTraining(inputs, targets, self.epochs, self.batch_size, seed, gradients)
        errors: list[float] = []
        try:
            errors.extend(training.run(pipelines, optimizer))
            end = evaluate(model, cross_entropy, self.splits.test, self.splits.train)
        except NotFiniteError:
            return Ended(math.inf, 0.0, 0, None, math.inf)
        crossed = [side.traffic for one in pipelines for side in one.senders]
        exchanged = None
        if gradients is not None:
            shapes = [tuple(one.shape) for one in model.parameters()]
            message = sum(gradients.num_bytes(shape, torch.float32) for shape in shapes)
            exchanged = message * replicas * training.num_steps(replicas)
        return Ended(
            end.loss,
            100 * (end.accuracy or 0.0),
            sum(one.activation_bytes + one.gradient_bytes for one in crossed),
            exchanged,
            errors[-1],
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

    def tasks(self, data: Path | None, *, full: bool) -> list[Task]:
        """Those whose data are there; in full with longer sequences, and three seeds."""
        found = []
        seeds = 3 if full else 1
        if data is not None and (data / PLAY).is_file():
            splits = TextFile(data / PLAY, length=64 if full else 32).load()
            shape, classes = splits.input_shape, splits.num_classes
            found.append(
                Task(
                    "next characters",
                    self._part(splits, 4000 if full else 512),
                    lambda: GPT(shape, classes, width=self.width),
                    self.epochs or (12 if full else 8),
                    0.003,
                    seeds,
                    slack=0.05,
                    by_accuracy=False,
                )
            )
        if data is not None and (data / QUESTIONS).is_file():
            words = LabelledTexts(data / QUESTIONS, length=16, vocabulary=_VOCABULARY).load()
            found.append(
                Task(
                    "types of questions",
                    self._part(words, 4000 if full else 1024),
                    lambda: TextClassifier(
                        words.input_shape, words.num_classes, _VOCABULARY, self.width, depth=4
                    ),
                    self.epochs or (12 if full else 5),
                    0.003,
                    seeds,
                    slack=3.0,
                    by_accuracy=True,
                )
            )
        return found

    def _part(self, splits: Splits, samples: int) -> Splits:
        train = _first(splits.train, self.samples or samples)
        return Splits(train, _first(splits.test, 1000), splits.input_shape, splits.num_classes)


def _first(dataset: Any, samples: int) -> TensorDataset:
    samples = min(samples, len(dataset)) // 2 * 2  # the same for two replicas
    return TensorDataset(*(one[:samples] for one in dataset.tensors))


def table(task: Task, ended: dict[str, Ended]) -> Table:
    """What came out, method by method."""
    rows = tuple(
        (
            name,
            one.loss if math.isfinite(one.loss) else None,
            one.accuracy,
            one.boundaries / 1e6,
            None if one.gradients is None else one.gradients / 1e6,
            one.error if math.isfinite(one.error) else None,
        )
        for name, one in ended.items()
    )
    caption = (
        f"{task.name.capitalize()}, in four stages, rounded to the nearest; the first of "
        f"{task.epochs} epochs crosses in full. Bits are those forward and backward."
    )
    return Table(f"Texts: {task.name}", caption, _HEADERS, rows)


def findings(measured: Sequence[tuple[Task, dict[str, Ended]]]) -> tuple[Finding, ...]:
    """The paper's claims about language models, beside what was measured."""
    kept, better, whole = [], [], []
    shown: dict[str, list[str]] = {DIFFERENCES: [], DIRECT: [], _ALL: []}
    for task, ended in measured:
        exact = ended[_NOTHING]
        ours, theirs = (
            [ended[_name(method, *bits)] for bits in _BITS] for method in (DIFFERENCES, DIRECT)
        )
        kept += [not task.worse(one, exact, by=task.slack) for one in ours]
        better += [task.worse(other, one) for one, other in zip(ours, theirs, strict=True)]
        whole.append(not task.worse(ended[_ALL], exact, by=task.slack))
        for method, found in ((DIFFERENCES, ours), (DIRECT, theirs)):
            shown[method].append(f"{task.name}: {_figures(found)}; without {_figures([exact])}")
        fewer = exact.boundaries / max(ended[_ALL].boundaries, 1)
        shown[_ALL].append(
            f"{task.name}: {_figures([ended[_ALL]])}; without {_figures([exact])}; "
            f"{fewer:.1f} times fewer bytes across the boundaries"
        )
    return (
        Finding(
            "Language models trained with differences lose nothing (test loss and accuracy with 2, "
            "3 and 4 bits; within 0.05 of the loss, or 3 points where texts are classified).",
            "no loss (1.5 billion weights)",
            ". ".join(shown[DIFFERENCES]),
            verdict(kept),
        ),
        Finding(
            "They do worse with activations rounded directly to as many bits.",
            "worse, or not at all",
            ". ".join(shown[DIRECT]),
            verdict(better),
        ),
        Finding(
            "The same holds with activations, their gradients and those of replicas compressed.",
            "no loss (1.5 billion weights)",
            ". ".join(shown[_ALL]),
            verdict(whole),
        ),
    )


def _name(method: str, bits: int, back: int) -> str:
    return f"{method}, {bits} and {back} bits"


def _figures(found: Sequence[Ended]) -> str:
    losses = " / ".join(f"{one.loss:.2f}" for one in found)
    return f"{losses} ({' / '.join(f'{one.accuracy:.1f}' for one in found)} %)"
