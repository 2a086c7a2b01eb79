"""Accordion: bytes and accuracy of two levels of compression, and of the change between them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import ClassVar

from matplotlib.axes import Axes

from phalanx.batch_size import AccordionBatch
from phalanx.compression import Accordion, Compressor, ErrorFeedback, PowerSGD, TopK
from phalanx.data import Splits
from phalanx.models import MLP, LeNet
from phalanx.reporting import Plot, Table
from phalanx.reporting.plots import COLOURS
from phalanx.reproduce.accordion_runs import AccordionRun, run_batches, run_levels
from phalanx.reproduce.base import Finding, Findings, MakeModel, Progress, Recipe, verdict
from phalanx.reproduce.compressed_training import CompressedTraining
from phalanx.reproduce.full_runs import images

_LOW, _HIGH, _ACCORDION = "low compression", "high compression", "Accordion"
_FIRST, _AFTER = "low first, high after", "high first, low after"
_PLAIN, _FEEDBACK, _RANKS, _BATCHES = "top-k", "top-k, error feedback", "PowerSGD", "batch size"
_RATE = 0.1  # at first, where levels of compression are compared
_NAMES = ("cifar10.npz", "cifar10_12k.npz")
_NOTES = (
    "The workers are simulated; megabytes are the payload of one worker's messages over a run, "
    "vectors included, which are sent as they are. With top-k, messages are gathered: every "
    "worker receives as much from each of the others.",
    "Norms are the root mean square of those of the workers' own gradients, each layer by itself.",
    "Epochs, checks and drops of the learning rate stand in the proportions of the paper: 300, 10, "
    "and after 150 and 250.",
    "As accurate means: by at most half a point less, in the mean over the seeds.",
    "The paper's low top-k compression keeps 99 % of the values and costs several times a dense "
    "all-reduce; gains relative to it overstate those relative to plain SGD. Ours keeps less.",
    "'Low first' uses low compression for the first fifth of the run, and high compression from "
    "then on, without a look at norms; 'high first' is the reverse.",
)
_LSTM = (
    "LSTM, WikiText-2, top-k 99 / 2 %, one seed: perplexity low 97.6, high 105.3, Accordion 97.1"
)
_LOGS = {
    _PLAIN: _LSTM,
    _FEEDBACK: _LSTM,
    _RANKS: "VGG-19, CIFAR-10, ranks 4 / 1, one seed: low 93.5, high 67.0, Accordion 92.4 %",
}
_Pair = tuple[Compressor, Compressor]


@dataclass(frozen=True)
class AccordionRecipe(Recipe):
    """Static levels of compression, Accordion between them, and batches that grow.

    Cost: in quick mode about two minutes on two cores.
    Source: Agarwal, Wang, Lee, Venkataraman and Papailiopoulos, "Adaptive Gradient Communication
    via Critical Learning Regime Identification", MLSys 2021, and the logs its authors published.
    """

    name: ClassVar[str] = "accordion"
    paper: ClassVar[str] = (
        "Agarwal, Wang, Lee, Venkataraman and Papailiopoulos, Adaptive Gradient Communication via "
        "Critical Learning Regime Identification, MLSys 2021"
    )

    epochs: int = 60
    """Of every run; the learning rate falls to a tenth after a half, and again after 5/6."""

    interval: int = 2
    """Epochs from one look at the norms to the next: in proportion to the paper's 10 of 300."""

    top_k: tuple[float, float] = (0.2, 0.005)
    """Shares kept at low and high compression, with and without error feedback."""

    ranks: tuple[int, int] = (4, 1)
    """Ranks of PowerSGD, with error feedback."""

    batch_sizes: tuple[int, int] = (32, 256)
    """Batches of critical regimes, and elsewhere."""

    samples: int = 48
    """Of a worker and round; there are four workers."""

    hidden: tuple[int, ...] = (128,)
    """Widths of the network, where images are too small for LeNet."""

    seeds: int | None = None
    """Runs of each kind; by default 3, or 5 in full."""

    def measure(self, out: Path, *, full: bool, data: Path | None, progress: Progress) -> Findings:
        """Trains on the digits, or in full on the images of CIFAR-10 if `data` holds them."""
        splits, origin, published = images(data if full else None, _NAMES, "CIFAR-10")
        seeds = range(self.seeds or (5 if full else 3))
        make: MakeModel = LeNet if published else partial(MLP, hidden=self.hidden)
        training = CompressedTraining(
            splits, make, self.epochs, self._milestones(), samples=self.samples
        )
        runs: dict[str, dict[str, list[AccordionRun]]] = {}
        for kind, pair in self._pairs().items():
            runs[kind] = {}
            for name, compressor in self._settings(kind, pair, training.steps_per_epoch).items():
                progress(f"{kind}: {name}")
                runs[kind][name] = [run_levels(training, compressor, _RATE, seed) for seed in seeds]
        progress(_BATCHES)
        runs[_BATCHES] = self._batches(splits, make, seeds)
        return Findings(
            answer=self._answer(runs),
            findings=self._findings(runs),
            tables=tuple(_table(kind, found) for kind, found in runs.items()),
            plots=(_plot({kind: found[_ACCORDION] for kind, found in runs.items()}),),
            notes=(f"Data: {origin}.", *_NOTES),
            settings={
                "epochs": self.epochs,
                "interval": self.interval,
                "samples_a_worker": self.samples,
                "seeds": len(seeds),
                "full": full,
            },
        )

    def _milestones(self) -> tuple[int, int]:
        return max(1, self.epochs // 2), max(1, 5 * self.epochs // 6)

    def _pairs(self) -> dict[str, _Pair]:
        """Low and high compression of each kind."""
        plain = [TopK(ratio) for ratio in self.top_k]
        feedback = [ErrorFeedback(one) for one in plain]
        ranks = [ErrorFeedback(PowerSGD(rank)) for rank in self.ranks]
        return {
            _PLAIN: (plain[0], plain[1]),
            _FEEDBACK: (feedback[0], feedback[1]),
            _RANKS: (ranks[0], ranks[1]),
        }

    def _settings(self, kind: str, pair: _Pair, steps: int) -> dict[str, Accordion]:
        """What is compared; all of it is Accordion, some of it with nothing to decide."""
        low, high = pair
        adaptive = Accordion(
            low,
            high,
            steps_per_epoch=steps,
            interval=self.interval,
            milestones=self._milestones(),
        )
        # Low for two intervals, whatever the norms: for a fifth of the run.
        fifth = max(1, self.epochs // 10)
        blind = replace(adaptive, eta=math.inf, milestones=(), interval=fifth)
        settings = {
            _LOW: replace(adaptive, high=low),
            _HIGH: replace(adaptive, low=high),
            _ACCORDION: adaptive,
        }
        if kind == _PLAIN:
            settings |= {_FIRST: blind, _AFTER: replace(blind, low=high, high=low)}
        return settings

    def _batches(
        self, splits: Splits, make: MakeModel, seeds: Sequence[int]
    ) -> dict[str, list[AccordionRun]]:
        low, high = self.batch_sizes
        training = CompressedTraining(splits, make, self.epochs, self._milestones())
        found = {}
        for name, batch in {
            _LOW: AccordionBatch(low, low, interval=self.interval),
            _HIGH: AccordionBatch(high, high, interval=self.interval),
            _ACCORDION: AccordionBatch(low, high, interval=self.interval),
        }.items():
            rate = 0.02 * batch.low / low
            found[name] = [run_batches(training, batch, rate, seed) for seed in seeds]
        return found

    def _findings(self, runs: dict[str, dict[str, list[AccordionRun]]]) -> tuple[Finding, ...]:
        findings = []
        for kind in (_PLAIN, _FEEDBACK, _RANKS):
            low, high, ours = (_accuracy(runs[kind][name]) for name in (_LOW, _HIGH, _ACCORDION))
            less = _megabytes(runs[kind][_LOW]) / _megabytes(runs[kind][_ACCORDION])
            findings += [
                Finding(
                    f"Accordion is as accurate as low compression ({kind}).",
                    _LOGS[kind],
                    f"low {low:.1f}, high {high:.1f}, Accordion {ours:.1f} %",
                    verdict([ours >= low - 0.5]),
                ),
                Finding(
                    f"It sends several times less than low compression ({kind}).",
                    "our goal: 3 times less",
                    f"{less:.1f} times less",
                    verdict([less >= 3, less >= 1.2]),
                ),
            ]
        first, after = (runs[_PLAIN][name] for name in (_FIRST, _AFTER))
        findings.append(
            Finding(
                "High compression does harm early, not late: the same levels the other way round "
                f"are worse, though they send more ({_PLAIN}).",
                "early is critical",
                f"low first {_accuracy(first):.1f} % at {_megabytes(first):.1f} MB, high first "
                f"{_accuracy(after):.1f} % at {_megabytes(after):.1f} MB",
                verdict([_accuracy(first) > _accuracy(after)]),
            )
        )
        small, large, growing = (runs[_BATCHES][name] for name in (_LOW, _HIGH, _ACCORDION))
        fewer = _updates(small) / _updates(growing)
        findings.append(
            Finding(
                "Batches that grow take fewer updates and are as accurate as small ones.",
                "ResNet-18, CIFAR-10, one seed: small 94.5, large 93.2, growing 94.3 %; 5.45 times "
                "fewer updates",
                f"small {_accuracy(small):.1f}, large {_accuracy(large):.1f}, growing "
                f"{_accuracy(growing):.1f} %; {fewer:.2f} times fewer updates",
                verdict([_accuracy(growing) >= _accuracy(small) - 0.5, fewer >= 2]),
            )
        )
        return tuple(findings)

    def _answer(self, runs: dict[str, dict[str, list[AccordionRun]]]) -> str:
        parts = []
        for kind in (_PLAIN, _FEEDBACK, _RANKS):
            low, ours = runs[kind][_LOW], runs[kind][_ACCORDION]
            less = _megabytes(low) / _megabytes(ours)
            gap = _accuracy(ours) - _accuracy(low)
            parts.append(f"{less:.1f} times fewer bytes and {gap:+.1f} points with {kind}")
        return f"Against low compression throughout, Accordion has {', '.join(parts)}."


def _accuracy(runs: Sequence[AccordionRun]) -> float:
    return mean(run.accuracy for run in runs)


def _megabytes(runs: Sequence[AccordionRun]) -> float:
    return mean(run.megabytes for run in runs)


def _updates(runs: Sequence[AccordionRun]) -> float:
    return mean(float(run.updates) for run in runs)


def _table(kind: str, runs: dict[str, list[AccordionRun]]) -> Table:
    return Table(
        f"Levels: {kind}",
        "Test accuracy in percent, mean and standard deviation over seeds; training loss; payload "
        "of a worker over the run.",
        ("setting", "accuracy", "deviation", "loss", "MB", "times less than low", "updates"),
        tuple(
            (
                name,
                _accuracy(found),
                stdev([run.accuracy for run in found]) if len(found) > 1 else None,
                mean(run.loss for run in found),
                _megabytes(found),
                _megabytes(runs[_LOW]) / _megabytes(found),
                _updates(found),
            )
            for name, found in runs.items()
        ),
    )


def _plot(runs: dict[str, list[AccordionRun]]) -> Plot:
    title = "When compression is low"
    caption = "Share of the compressed values that Accordion kept at the low level (or, at the low "
    caption += "batch size), mean over seeds."
    shares = {
        kind: [mean(values) for values in zip(*(run.low_share for run in found), strict=True)]
        for kind, found in runs.items()
    }
    ends = "; ".join(f"{kind}: {100 * mean(share):.0f} %" for kind, share in shares.items())
    return Plot(title, caption, f"{title}. Over the run: {ends}.", partial(plot_levels, shares))


def plot_levels(shares: dict[str, list[float]], ax: Axes) -> None:
    """Share at the low level over epochs, one line a kind."""
    for colour, (kind, share) in zip(COLOURS, shares.items(), strict=False):
        ax.step(range(len(share)), share, where="post", color=colour, label=kind)
    ax.set_xlabel("epoch")
    ax.set_ylabel("share at the low level")
    ax.legend()
