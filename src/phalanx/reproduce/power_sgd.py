"""PowerSGD: what it sends, and what error feedback and the warm start are for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from phalanx.compression import Compressor, ErrorFeedback, PowerSGD, Uncompressed
from phalanx.experiments import Records
from phalanx.reproduce.base import Findings, Recipe, Scope, above, report
from phalanx.reproduce.digits_training import DigitsTraining, percents, training
from phalanx.reproduce.network_bytes import lstm, megabytes_claim, resnet18


def _rank(rank: int, *, warm_start: bool = True) -> PowerSGD:
    return PowerSGD(rank, min_compression=1.0, warm_start=warm_start)


@dataclass(frozen=True)
class PowerSGDRecipe(DigitsTraining, Recipe):
    """Bytes of two networks exactly, and training on digits with and without error feedback.

    Source: Vogels, Karimireddy and Jaggi, "PowerSGD: Practical Low-Rank Gradient Compression for
    Distributed Optimization", NeurIPS 2019, tables 1 to 6.
    """

    name: ClassVar[str] = "powersgd"
    methods: ClassVar[Mapping[str, Compressor]] = {
        "SGD": Uncompressed(),
        "rank 1": ErrorFeedback(_rank(1)),
        "rank 2": ErrorFeedback(_rank(2)),
        "rank 2, cold start": ErrorFeedback(_rank(2, warm_start=False)),
        "rank 1, no feedback": _rank(1),
        "rank 2, no feedback": _rank(2),
    }

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Counts of bytes, and how training ended."""
        score, rows, sizes = percents(found), list[tuple[Any, ...]](), Findings("", [])
        for name, network in (("ResNet-18", resnet18()), ("LSTM", lstm())):
            logged, whole = self.told[name], network.num_values
            numbers = [
                whole if rank == "SGD" else network.message_values(_rank(int(rank[-1])))
                for rank in logged
            ]
            sent, published = (
                [*map(network.megabytes, numbers)],
                [size for size, _ in logged.values()],
            )
            sizes += megabytes_claim(self.told, self.told["what"][name], published, sent)
            for rank, one, epoch in zip(logged, numbers, sent, strict=True):
                fewer = round(whole / one, 1)
                rows.append((f"{name}, {rank}", one, fewer, round(epoch, 1), *logged[rank]))
        plain, cold = score["SGD"], score["rank 2, cold start"]
        ranks, without = (
            [score[f"rank {rank}{ending}"] for rank in (1, 2)] for ending in ("", ", no feedback")
        )
        values = {"plain": plain, "ranks": ranks, "without": without, "cold": cold}
        holds = {
            "good": [above(ranks[1], plain, -0.5), above(ranks[0], plain, -1.0)],
            "feedback": [above(one, bare, 1.0) for one, bare in zip(ranks, without, strict=True)],
            "warm start": [above(ranks[1], cold, 0.3)],
        }
        tables = {"traffic": rows, "training": training(found)}
        return sizes + report(self.told, holds, values, tables, answer="answer")
