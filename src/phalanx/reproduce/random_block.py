"""Random blocks: what which values are sent, by whom and with what memory, does to training."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

from phalanx.compression import (
    Compressor,
    ErrorFeedback,
    PowerSGD,
    RandomBlock,
    RandomK,
    TopK,
    Uncompressed,
)
from phalanx.reporting import Table
from phalanx.reproduce.base import (
    NOT_QUOTED,
    Finding,
    Findings,
    Progress,
    Recipe,
    above,
    figures,
    verdict,
)
from phalanx.reproduce.compressed_training import DigitsTraining, Trained
from phalanx.reproduce.network_bytes import (
    RESNET18_STEPS,
    mebibytes_an_epoch,
    message_values,
    num_values,
    resnet18_shapes,
)

_NOTES = (
    "Data: scikit-learn's digits. Figures of ResNet-18 on CIFAR-10 are those that Vogels, "
    "Karimireddy and Jaggi, PowerSGD, NeurIPS 2019, table 4, measured for these methods, with as "
    "many values as PowerSGD sends at rank 7 and 2. Compare the order, not the figures.",
    "Shared random positions need small learning rates: a run with the accuracy of guessing "
    "diverged at all of those tried.",
)


@dataclass(frozen=True)
class RandomBlocks(Recipe):
    """Top-k, random-k and random blocks, shared or not, with error feedback or without.

    Cost: in quick mode about two minutes on one core.
    Source: Barati Eghlidi and Jaggi, "Sparse Communication for Training Deep Networks", 2020.
    """

    name: ClassVar[str] = "random-block"
    paper: ClassVar[str] = (
        "Barati Eghlidi and Jaggi, Sparse Communication for Training Deep Networks, 2020"
    )

    training: DigitsTraining = field(default_factory=partial(DigitsTraining, rates=(0.02, 0.1)))
    """How long, how often and with which learning rates."""

    def measure(self, out: Path, *, full: bool, data: Path | None, progress: Progress) -> Findings:
        """Counts, then trains; `data` is not needed."""
        results, table = self.training.train(_methods(), full, progress)
        return Findings(
            answer=(
                f"At 10 % random blocks reach {results['block 10 %'].accuracy} % on digits and "
                f"random-k {results['random-k 10 %'].accuracy} %; at 1 % top-k reaches "
                f"{results['top-k 1 %'].accuracy} %, random-k with own positions "
                f"{results['random-k 1 %, own'].accuracy} %, with shared ones "
                f"{results['random-k 1 %'].accuracy} %."
            ),
            findings=(_byte_finding(), *_findings(results)),
            tables=(_byte_table(), table),
            notes=_NOTES,
            settings=self.training.settings(full),
        )


def _methods() -> dict[str, Compressor]:
    """The axes: which values, whose randomness, what memory."""
    return {
        "SGD": Uncompressed(),
        "top-k 1 %": ErrorFeedback(TopK(0.01)),
        "top-k 1 %, no feedback": TopK(0.01),
        "random-k 1 %": ErrorFeedback(RandomK(0.01, rescale=False)),
        "random-k 1 %, own": ErrorFeedback(RandomK(0.01, rescale=False, shared=False)),
        "block 1 %": ErrorFeedback(RandomBlock(0.01, rescale=False)),
        "block 1 %, own": ErrorFeedback(RandomBlock(0.01, rescale=False, shared=False)),
        "random-k 10 %": ErrorFeedback(RandomK(0.1, rescale=False)),
        "block 10 %": ErrorFeedback(RandomBlock(0.1, rescale=False)),
    }


def _findings(results: dict[str, Trained]) -> tuple[Finding, ...]:
    score = {name: one.accuracy for name, one in results.items()}
    loss = {name: one.loss for name, one in results.items()}
    own, shared = score["random-k 1 %, own"], score["random-k 1 %"]
    return (
        Finding(
            "With as many values, random blocks are at most as good as random-k, and top-k best.",
            "24 MB: 93.3 / 94.0 (top-k at 32 MB: 94.4); 8 MB: 87.8 / 92.6 / 93.6",
            f"10 %: {figures([score['block 10 %'], score['random-k 10 %']])}; "
            f"1 %: {figures([score['block 1 %'], shared, score['top-k 1 %']])}",
            verdict(
                [
                    above(score["random-k 10 %"], score["block 10 %"]),
                    above(score["random-k 1 %"], score["block 1 %"]),
                    above(score["top-k 1 %"], score["random-k 1 %"], 1.0),
                ]
            ),
        ),
        Finding(
            "Workers that draw positions of their own cover more of them, and send more.",
            NOT_QUOTED,
            f"random-k 1 %: {figures([own, shared])}, own and shared; blocks: "
            f"{figures([score['block 1 %, own'], score['block 1 %']])}",
            verdict(
                [above(own, shared, 1.0), above(score["block 1 %, own"], score["block 1 %"], 1.0)]
            ),
        ),
        Finding(
            "Error feedback helps.",
            NOT_QUOTED,
            f"top-k 1 %: {figures([score['top-k 1 %'], score['top-k 1 %, no feedback']])}, loss "
            f"{loss['top-k 1 %']:.2g} and {loss['top-k 1 %, no feedback']:.2g}",
            verdict(
                [
                    above(score["top-k 1 %"], score["top-k 1 %, no feedback"], 1.0),
                    loss["top-k 1 %, no feedback"] >= 2 * loss["top-k 1 %"],
                ]
            ),
        ),
    )


def _counted() -> dict[str, tuple[int | float, int]]:
    """Four-byte values that a worker sends a step for ResNet-18, and published megabytes."""
    shapes = resnet18_shapes()
    total = num_values(shapes)
    by_rank = {rank: message_values(PowerSGD(rank, min_compression=1.0), shapes) for rank in (2, 7)}
    return {
        "SGD": (total, 1023),
        "signs": (total / 32, 32),
        "random block or random-k, as many as rank 7": (by_rank[7], 24),
        "random block or random-k, as many as rank 2": (by_rank[2], 8),
        "top-k with 4 bytes a position, one in 64": (2 * total / 64, 32),
    }


def _byte_finding() -> Finding:
    sizes = {
        name: mebibytes_an_epoch(size, RESNET18_STEPS) for name, (size, _) in _counted().items()
    }
    published = [size for _, size in _counted().values()]
    ours = [round(size) for size in sizes.values()]
    return Finding(
        f"Megabytes an epoch for ResNet-18: {'; '.join(sizes)}.",
        " / ".join(map(str, published)),
        " / ".join(map(str, ours)),
        verdict([one == other for one, other in zip(ours, published, strict=True)]),
    )


def _byte_table() -> Table:
    return Table(
        "Traffic of ResNet-18",
        "Four-byte values that a worker sends in a step, and megabytes an epoch of 24 steps. One "
        "in 64 is how the published megabytes of top-k come about: our reading.",
        ("method", "values", "MB an epoch", "published MB"),
        tuple(
            (name, round(size), round(mebibytes_an_epoch(size, RESNET18_STEPS), 1), published)
            for name, (size, published) in _counted().items()
        ),
    )
