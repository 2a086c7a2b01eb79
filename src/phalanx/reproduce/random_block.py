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
from phalanx.reproduce.base import Findings, Recipe, Scope, above, report
from phalanx.reproduce.digits_training import DigitsTraining, percents, training
from phalanx.reproduce.network_bytes import megabytes_claim, resnet18


@dataclass(frozen=True)
class RandomBlocks(DigitsTraining, Recipe):
    """Top-k, random-k and random blocks, shared or not, with error feedback or without.

    Source: Barati Eghlidi and Jaggi, "Sparse Communication for Training Deep Networks", 2020.
    """

    name: ClassVar[str] = "random-block"
    methods: ClassVar[Mapping[str, Compressor]] = {
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

    rates: tuple[float, ...] = (0.02, 0.1)

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Counts of bytes, and how training ended."""
        score, sent, network = percents(found), self.told["megabytes"], resnet18()
        total = network.num_values
        ranks = [network.message_values(PowerSGD(rank, min_compression=1.0)) for rank in (7, 2)]
        sizes = (total, total / 32, *ranks, 2 * total / 64)
        epochs = [network.megabytes(size) for size in sizes]
        traffic = [
            (name, round(size), round(epoch, 1), sent[name])
            for name, size, epoch in zip(sent, sizes, epochs, strict=True)
        ]
        tenth = [score[name] for name in ("block 10 %", "random-k 10 %")]
        block, shared, top = (score[f"{name} 1 %"] for name in ("block", "random-k", "top-k"))
        own, own_block = score["random-k 1 %, own"], score["block 1 %, own"]
        ends = ("top-k 1 %", "top-k 1 %, no feedback")
        loss = [found.mean("train_loss", compressor=name, tuned=True) for name in ends]
        bare = score[ends[1]]
        values = {"tenth": tenth, "block": block, "shared": shared, "top": top, "own": own}
        values |= {"own_block": own_block, "bare": bare, "loss": loss}
        holds = {
            "values": [above(tenth[1], tenth[0]), above(shared, block), above(top, shared, 1.0)],
            "own positions": [above(own, shared, 1.0), above(own_block, block, 1.0)],
            "feedback": [above(top, bare, 1.0), loss[1] >= 2 * loss[0]],
        }
        tables = {"traffic": traffic, "training": training(found)}
        counted = megabytes_claim(self.told, "; ".join(sent), sent.values(), epochs)
        return counted + report(self.told, holds, values, tables, answer="answer")
