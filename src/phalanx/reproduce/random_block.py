"""Random blocks: what which values are sent, by whom and with what memory, does to training."""

from collections.abc import Mapping
from dataclasses import dataclass
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
from phalanx.experiments import Records
from phalanx.reporting import Table
from phalanx.reproduce.base import Claim, Findings, Recipe, Scope, above, claim, figures, published
from phalanx.reproduce.digits_training import DigitsTraining, percents, training_table
from phalanx.reproduce.network_bytes import megabytes_claim, resnet18

_PAPER = published("random-block")
_METHODS: dict[str, Compressor] = {  # the axes: which values, whose randomness, what memory
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


@dataclass(frozen=True)
class RandomBlocks(DigitsTraining, Recipe):
    """Top-k, random-k and random blocks, shared or not, with error feedback or without.

    Cost: in quick mode about two minutes on one core.
    Source: Barati Eghlidi and Jaggi, "Sparse Communication for Training Deep Networks", 2020.
    """

    name: ClassVar[str] = "random-block"
    paper: ClassVar[str] = (
        "Barati Eghlidi and Jaggi, Sparse Communication for Training Deep Networks, 2020"
    )

    methods: ClassVar[Mapping[str, Compressor]] = _METHODS

    rates: tuple[float, ...] = (0.02, 0.1)

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Counts of bytes, and how training ended."""
        score, counted, sent = percents(found), _counted(), _PAPER["megabytes"]
        return Findings(
            answer=(
                f"At 10 % random blocks reach {score['block 10 %']} % on digits and random-k "
                f"{score['random-k 10 %']} %; at 1 % top-k reaches {score['top-k 1 %']} %, "
                f"random-k with own positions {score['random-k 1 %, own']} %, with shared ones "
                f"{score['random-k 1 %']} %."
            ),
            claims=[
                megabytes_claim(
                    f"Megabytes an epoch for ResNet-18: {'; '.join(counted)}.",
                    sent.values(),
                    [epoch for _, epoch in counted.values()],
                ),
                *_claims(score, found),
            ],
            tables=(
                Table(
                    "Traffic of ResNet-18",
                    "Four-byte values that a worker sends in a step, and megabytes an epoch of 24 "
                    "steps. One in 64 is how the published megabytes of top-k come about: our "
                    "reading.",
                    ("method", "values", "MB an epoch", "published MB"),
                    tuple(
                        (name, round(size), round(epoch, 1), sent[name])
                        for name, (size, epoch) in counted.items()
                    ),
                ),
                training_table(found),
            ),
            notes=_PAPER["notes"],
            settings={"num_seeds": self.seeds(scope)},
        )


def _claims(score: dict[str, float], found: Records) -> list[Claim]:
    told, bare = _PAPER["claims"], "top-k 1 %, no feedback"
    tenth = [score[name] for name in ("block 10 %", "random-k 10 %")]
    block, shared, top = (score[f"{name} 1 %"] for name in ("block", "random-k", "top-k"))
    own, own_block = score["random-k 1 %, own"], score["block 1 %, own"]
    loss, bare_loss = (
        found.mean("train_loss", compressor=name, tuned=True) for name in ("top-k 1 %", bare)
    )
    return [
        claim(
            told["values"],
            f"10 %: {figures(tenth)}; 1 %: {figures([block, shared, top])}",
            [above(tenth[1], tenth[0]), above(shared, block), above(top, shared, 1.0)],
        ),
        claim(
            told["own positions"],
            f"random-k 1 %: {figures([own, shared])}, own and shared; blocks: "
            f"{figures([own_block, block])}",
            [above(own, shared, 1.0), above(own_block, block, 1.0)],
        ),
        claim(
            told["feedback"],
            f"top-k 1 %: {figures([top, score[bare]])}, loss {loss:.2g} and {bare_loss:.2g}",
            [above(top, score[bare], 1.0), bare_loss >= 2 * loss],
        ),
    ]


def _counted() -> dict[str, tuple[int | float, float]]:
    """Four-byte values that a worker sends a step for ResNet-18, and megabytes an epoch."""
    network = resnet18()
    total = network.num_values
    ranks = [network.message_values(PowerSGD(rank, min_compression=1.0)) for rank in (7, 2)]
    sizes = (total, total / 32, *ranks, 2 * total / 64)
    named = zip(_PAPER["megabytes"], sizes, strict=True)
    return {name: (size, network.megabytes(size)) for name, size in named}
