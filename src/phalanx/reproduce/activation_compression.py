"""AC-SGD: how few bits activations may cross in, as they are or as differences."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Literal

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from phalanx.compression import QSGD, Compressor, SampleQuantization, UniformQuantization
from phalanx.data import Digits
from phalanx.errors import NotFiniteError
from phalanx.pipeline import ActivationDifference, SimulatedPipeline
from phalanx.randomness import seeded
from phalanx.reporting import Plot, Table
from phalanx.reporting.plots import COLOURS
from phalanx.reproduce import activation_language
from phalanx.reproduce.activation_language import Texts
from phalanx.reproduce.base import Finding, Findings, Progress, Recipe, figures, verdict
from phalanx.reproduce.staged_training import DIFFERENCES, DIRECT, StagedTraining

_ZERO = "direct, zero a level"
_CASES = (  # method, bits forward and backward
    (DIRECT, 2, 4),
    (_ZERO, 2, 4),
    (DIFFERENCES, 2, 4),
    (DIRECT, 3, 6),
    (DIFFERENCES, 3, 6),
    (DIRECT, 4, 8),
    (DIFFERENCES, 4, 8),
)
Rounding = Literal["nearest", "stochastic"]

_ROUNDINGS: tuple[Rounding, ...] = ("nearest", "stochastic")
_NOTES = (
    "Data, where nothing else is said: scikit-learn's digits; the paper fine-tunes language models "
    "of 1.5 billion weights. The shape of its claim is compared, not its figures.",
    "All stages in one process, which comes to the values of the stages as processes; the first "
    "epoch crosses in full, forward and backward, with either method.",
    "Direct rounds activations, differences rounds what changed since the sample's last visit; one "
    "scale for each sample. Gradients are rounded alike. The grid has 2^bits levels, of which none "
    "is zero; direct rounding also stands there with one level fewer, and a zero among them.",
    "A run whose numbers were not finite any more has a dash for its accuracy.",
    "Times on slow links are measured by benchmarks/bench_pipeline.py, not here.",
)


@dataclass(frozen=True)
class Trained:
    """Runs of one method, one a seed."""

    accuracies: list[float | None]
    """Test accuracies in percent; None where numbers were not finite."""
    errors: list[float]
    """`||m - a|| / ||a||` by epoch, of the first seed, averaged over boundaries and batches."""
    num_bytes: int
    """That crossed all boundaries both ways, in the run of the first seed."""
    full: int
    """Samples that crossed a boundary in full, in the run of the first seed."""
    agreed: bool
    """Whether both sides of all boundaries ended with equal buffers, with the first seed."""

    @property
    def accuracy(self) -> float | None:
        """The mean; None if one of them is."""
        found = [one for one in self.accuracies if one is not None]
        return fmean(found) if len(found) == len(self.accuracies) else None


Key = tuple[int, Rounding, str, int]  # stages, rounding, method, bits forward


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

    def measure(self, out: Path, *, full: bool, data: Path | None, progress: Progress) -> Findings:
        """Trains with every method; without `data` the part on texts is left out."""
        epochs, seeds = self.epochs or (40 if full else 12), self.seeds or (5 if full else 2)
        runs: dict[Key, Trained] = {}
        exact: dict[int, Trained] = {}
        for number in self.stages:
            progress(f"{number} stages: nothing compressed")
            exact[number] = self._trained(number, DIRECT, 32, 32, "nearest", epochs, seeds)
            for rounding, (method, bits, back) in itertools.product(_ROUNDINGS, _CASES):
                progress(f"{number} stages, {rounding}: {method}, {bits} and {back} bits")
                key = number, rounding, method, bits
                runs[key] = self._trained(number, method, bits, back, rounding, epochs, seeds)
        tasks = self.texts.tasks(data, full=full)
        texts = [(task, task.measure(progress)) for task in tasks]
        more = activation_language.findings(texts) if texts else ()
        absent = () if len(tasks) == 2 else (activation_language.ABSENT,)
        tables = [self._table(rounding, exact, runs) for rounding in _ROUNDINGS]
        return Findings(
            answer=self._answer(exact, runs),
            findings=self._findings(exact, runs, epochs) + more,
            tables=(*tables, *(activation_language.table(*one) for one in texts)),
            plots=tuple(_plot(number, runs) for number in self.stages),
            notes=_NOTES + (activation_language.NOTES if texts else ()) + absent,
            settings={
                "width": self.width,
                "epochs": epochs,
                "seeds": seeds,
                "batch_size": self.batch_size,
                "learning_rate": self.learning_rate,
                "full": full,
            },
        )

    def _trained(
        self,
        number: int,
        method: str,
        bits: int,
        back: int,
        rounding: Rounding,
        epochs: int,
        seeds: int,
    ) -> Trained:
        forward = self._forward(method, bits, rounding)
        backward = SampleQuantization(back, rounding)
        found = [self._run(number, forward, backward, epochs, seed) for seed in range(seeds)]
        _, errors, pipeline = found[0]
        sides = list(zip(pipeline.senders, pipeline.receivers, strict=True))
        return Trained(
            [accuracy for accuracy, _, _ in found],
            errors,
            sum(one.traffic.activation_bytes + one.traffic.gradient_bytes for one, _ in sides),
            sum(one.traffic.full_samples for one, _ in sides),
            all(_same(one.state_dict(), other.state_dict()) for one, other in sides),
        )

    def _forward(
        self, method: str, bits: int, rounding: Rounding
    ) -> ActivationDifference | Compressor:
        if method == DIFFERENCES:
            return ActivationDifference(bits, rounding)
        if method == DIRECT:
            return SampleQuantization(bits, rounding)
        if rounding == "nearest":  # one bucket a sample
            return UniformQuantization(self.width, bits)
        return QSGD(self.width, levels=(1 << (bits - 1)) - 1, norm="max")

    def _run(
        self,
        number: int,
        forward: ActivationDifference | Compressor,
        backward: SampleQuantization,
        epochs: int,
        seed: int,
    ) -> tuple[float | None, list[float], SimulatedPipeline]:
        (inputs, targets), (tests, answers) = _digits()
        with seeded(seed, "weights"):
            stages = chain(number, self.width)
        pipeline = SimulatedPipeline(
            stages,
            inputs[:1],
            cross_entropy,
            num_samples=len(inputs),
            forward=forward,
            backward=backward,
            # Both sides, where they have something to agree on; the rest is the same, sooner.
            wire=seed == 0 and isinstance(forward, ActivationDifference),
            measure=seed == 0,
            seed=seed,
        )
        weights = [weight for stage in stages for weight in stage.parameters()]
        optimizer = torch.optim.SGD(weights, lr=self.learning_rate, momentum=0.9)
        training = StagedTraining(inputs, targets, epochs, self.batch_size, seed)
        errors: list[float] = []
        try:
            errors.extend(training.run([pipeline], optimizer))  # keeps those before a failure
        except NotFiniteError:
            return None, errors, pipeline
        outputs = pipeline.predict(tests)
        if not outputs.isfinite().all():
            return None, errors, pipeline
        accuracy = (outputs.argmax(dim=1) == answers).double().mean().item()
        return 100 * accuracy, errors, pipeline

    def _findings(
        self, exact: dict[int, Trained], runs: dict[Key, Trained], epochs: int
    ) -> tuple[Finding, ...]:
        deepest = self.stages[-1]
        samples = len(_digits()[0][0])
        pairs = [
            (runs[deepest, rounding, DIFFERENCES, 2], runs[deepest, rounding, DIRECT, 2])
            for rounding in _ROUNDINGS
        ]
        zeros = [runs[deepest, rounding, _ZERO, 2].accuracy for rounding in _ROUNDINGS]
        kept = [(ours.accuracy or 0) >= (exact[deepest].accuracy or 0) - 1 for ours, _ in pairs]
        better = [(ours.accuracy or 0) > (theirs.accuracy or 0) for ours, theirs in pairs]
        coarsest, finest = runs[deepest, "nearest", DIFFERENCES, 2], exact[deepest]
        curves = [ours.errors for ours, _ in pairs]
        falls = [len(one) > 2 and one[-1] < 0.5 * one[1] for one in curves]
        remembered = [one for (_, _, method, _), one in runs.items() if method == DIFFERENCES]
        once = [
            one.full == samples * (number - 1)
            for (number, _, method, _), one in runs.items()
            if method == DIFFERENCES
        ]
        return (
            Finding(
                "With differences, 2 bits forward and 4 back train as well as no compression "
                f"({deepest} stages; nearest / stochastic, within a point).",
                "no loss (language models)",
                f"{figures([ours.accuracy for ours, _ in pairs])} %; without compression "
                f"{figures([exact[deepest].accuracy])} %",
                verdict(kept),
            ),
            Finding(
                f"Activations rounded directly to 2 bits train worse ({deepest} stages; nearest / "
                "stochastic).",
                "worse, or not at all",
                f"{figures([theirs.accuracy for _, theirs in pairs])} %; on a grid with a zero, "
                f"{figures(zeros)} %",
                verdict(better),
            ),
            Finding(
                "The relative error of 2-bit differences falls as training goes on (second and "
                "last epoch; nearest / stochastic).",
                "falls",
                " / ".join(f"{one[1]:.2f} to {one[-1]:.2f}" if one[1:] else "—" for one in curves),
                verdict(falls),
            ),
            Finding(
                "Both sides of every boundary remember the same, bit for bit.",
                "the same",
                f"in {sum(one.agreed for one in remembered)} of {len(remembered)} runs",
                verdict([one.agreed for one in remembered]),
            ),
            Finding(
                "Every sample crosses every boundary in full once.",
                "once",
                f"in {sum(once)} of {len(once)} runs",
                verdict(once),
            ),
            Finding(
                "Training is up to 4.3 times as fast over slow networks, 4.9 with the gradients of "
                "data parallelism.",
                "4.3; 4.9",
                f"not timed here; {finest.num_bytes / coarsest.num_bytes:.1f} times fewer bytes "
                f"with 2 and 4 bits, the first of {epochs} epochs included",
                "—",
            ),
        )

    def _answer(self, exact: dict[int, Trained], runs: dict[Key, Trained]) -> str:
        deepest = self.stages[-1]
        ours, theirs = (
            runs[deepest, "nearest", method, 2].accuracy for method in (DIFFERENCES, DIRECT)
        )
        return (
            f"In {deepest} stages with activations in 2 bits, rounded to the nearest, differences "
            f"reached {figures([ours])} % where direct rounding reached {figures([theirs])} % and "
            f"no compression {figures([exact[deepest].accuracy])} %."
        )

    def _table(
        self, rounding: Rounding, exact: dict[int, Trained], runs: dict[Key, Trained]
    ) -> Table:
        methods = [f"{one}, {bits} and {back} bits" for one, bits, back in _CASES]
        headers = ("stages", "nothing compressed", *methods)
        rows = tuple(
            (
                number,
                exact[number].accuracy,
                *(runs[number, rounding, method, bits].accuracy for method, bits, _ in _CASES),
            )
            for number in self.stages
        )
        caption = "Test accuracy in percent, mean over the seeds; bits forward and backward."
        return Table(f"Rounding: {rounding}", caption, headers, rows)


def chain(number: int, width: int) -> list[nn.Module]:
    """The stages of a network for digits: a hidden layer each, and at least two in all."""
    stages: list[nn.Module] = [nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU())]
    hidden = [(nn.Linear(width, width), nn.ReLU()) for _ in range(max(1, number - 2))]
    stages += [nn.Sequential(*pair) for pair in hidden[: number - 2]]
    rest = [layer for pair in hidden[max(0, number - 2) :] for layer in pair]
    return [*stages, nn.Sequential(*rest, nn.Linear(width, 10))]


def _digits() -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Inputs and targets to train on, and to test on."""
    splits = Digits().load()
    return splits.train.tensors, splits.test.tensors  # type: ignore[attr-defined]


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    mine, theirs = one["buffer"], other["buffer"]
    return all(torch.equal(mine[name], theirs[name]) for name in mine)


def _plot(number: int, runs: dict[Key, Trained]) -> Plot:
    shown = {
        f"{method}, {bits} bits": runs[number, "nearest", method, bits].errors
        for method, bits, _ in _CASES
        if method != _ZERO
    }
    title = f"Error of the activations, {number} stages"
    ends = "; ".join(f"{name} {errors[-1]:.2g}" for name, errors in shown.items() if errors)
    caption = "Relative error of what receivers go on from, by epoch; the first crosses in full."
    alt = f"{title}. In the last epoch: {ends}."
    return Plot(title, caption, alt, partial(plot_errors, shown))


def plot_errors(errors: Mapping[str, Sequence[float]], ax: Axes) -> None:
    """One line a method, from the second epoch on: direct dotted, differences in full."""
    for place, (name, values) in enumerate(errors.items()):
        style = ":" if name.startswith(DIRECT) else "-"
        epochs = range(2, len(values) + 1)
        ax.plot(epochs, values[1:], style, color=COLOURS[place // 2], label=name)
    ax.set_yscale("log")
    ax.set_xlabel("epoch")
    ax.set_ylabel("relative error (log scale)")
    ax.legend()
