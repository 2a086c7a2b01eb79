"""PowerSGD: what it sends, and what error feedback and the warm start are for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from phalanx.compression import Compressor, ErrorFeedback, PowerSGD, Uncompressed
from phalanx.experiments import Records
from phalanx.reporting import Table
from phalanx.reproduce.base import Claim, Findings, Recipe, Scope, above, claim, figures, published
from phalanx.reproduce.digits_training import DigitsTraining, percents, training_table
from phalanx.reproduce.network_bytes import lstm, megabytes_claim, resnet18

_PAPER = published("powersgd")
_HEADERS = ("network", "values", "fewer", "MB an epoch", "published MB", "published result")


def _rank(rank: int, *, warm_start: bool = True) -> PowerSGD:
    return PowerSGD(rank, min_compression=1.0, warm_start=warm_start)


_METHODS: dict[str, Compressor] = {
    "SGD": Uncompressed(),
    "rank 1": ErrorFeedback(_rank(1)),
    "rank 2": ErrorFeedback(_rank(2)),
    "rank 2, cold start": ErrorFeedback(_rank(2, warm_start=False)),
    "rank 1, no feedback": _rank(1),
    "rank 2, no feedback": _rank(2),
}


@dataclass(frozen=True)
class PowerSGDRecipe(DigitsTraining, Recipe):
    """Bytes of two networks exactly, and training on digits with and without error feedback.

    Cost: in quick mode about a minute on one core.
    Source: Vogels, Karimireddy and Jaggi, "PowerSGD: Practical Low-Rank Gradient Compression for
    Distributed Optimization", NeurIPS 2019, tables 1 to 6.
    """

    name: ClassVar[str] = "powersgd"
    paper: ClassVar[str] = (
        "Vogels, Karimireddy and Jaggi, PowerSGD: Practical Low-Rank Gradient Compression for "
        "Distributed Optimization, NeurIPS 2019"
    )
    methods: ClassVar[Mapping[str, Compressor]] = _METHODS

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Counts of bytes, and how training ended."""
        score, rows = percents(found), _rows()
        return Findings(
            answer=(
                f"Rank 1 and 2 reach {score['rank 1']} % and {score['rank 2']} % on digits, SGD "
                f"{score['SGD']} %; without error feedback {score['rank 1, no feedback']} % and "
                f"{score['rank 2, no feedback']} %."
            ),
            claims=[
                *(
                    megabytes_claim(
                        f"Megabytes an epoch that a worker sends for {said}.",
                        [row[4] for row in rows if row[0].startswith(name)],
                        [row[3] for row in rows if row[0].startswith(name)],
                    )
                    for name, said in (
                        ("ResNet-18", "ResNet-18: SGD, and rank 1, 2, 4, 7"),
                        ("LSTM", "the LSTM: SGD, and rank 1, 2, 4"),
                    )
                ),
                *_claims(score),
            ],
            tables=(
                Table(
                    "Traffic",
                    "Values that a worker sends in a step, how many times fewer than SGD, and "
                    "megabytes an epoch, beside the published figures: accuracy in percent, "
                    "perplexity of the LSTM.",
                    _HEADERS,
                    tuple((*row[:3], round(row[3], 1), *row[4:]) for row in rows),
                ),
                training_table(found),
            ),
            notes=_PAPER["notes"],
            settings={"num_seeds": self.seeds(scope)},
        )


def _rows() -> list[tuple[Any, ...]]:
    """Name, values, times fewer, megabytes, and what is published, by network and rank."""
    rows = []
    for name, network in (("ResNet-18", resnet18()), ("LSTM", lstm())):
        whole = network.num_values
        for rank, (size, quality) in _PAPER[name].items():
            values = whole if rank == "SGD" else network.message_values(_rank(int(rank[-1])))
            epoch = network.megabytes(values)
            rows.append((f"{name}, {rank}", values, round(whole / values, 1), epoch, size, quality))
    return rows


def _claims(score: dict[str, float]) -> list[Claim]:
    told, plain, cold = _PAPER["claims"], score["SGD"], score["rank 2, cold start"]
    ranks = [score[f"rank {rank}"] for rank in (1, 2)]
    without = [score[f"rank {rank}, no feedback"] for rank in (1, 2)]
    near = [above(ranks[1], plain, -0.5), above(ranks[0], plain, -1.0)]
    worse = [above(one, other, 1.0) for one, other in zip(ranks, without, strict=True)]
    return [
        claim(told["good"], figures([plain, *ranks]), near),
        claim(told["feedback"], f"without feedback: {figures(without)}", worse),
        claim(told["warm start"], figures([cold, ranks[1]]), [above(ranks[1], cold, 0.3)]),
    ]
