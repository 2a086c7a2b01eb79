"""Random blocks: close to SGD or not, and what choosing values costs in time."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar

import torch

from phalanx.compression import (
    Compressor,
    ErrorFeedback,
    PowerSGD,
    RandomBlock,
    RandomK,
    TopK,
    Uncompressed,
)
from phalanx.experiments import Cell, Records, grid
from phalanx.randomness import generator
from phalanx.reproduce.base import Findings, Recipe, Scope, above, report, sized
from phalanx.reproduce.cifar_training import CifarTraining, cifar10
from phalanx.reproduce.digits_training import percents, training
from phalanx.reproduce.network_bytes import megabytes_claim, resnet18

_ENCODED = {"top-k": TopK(0.01), "random-k": RandomK(0.01), "block": RandomBlock(0.01)}
_TIMED = 7  # encodings, of which the median counts


@dataclass(frozen=True)
class RandomBlocks(CifarTraining, Recipe):
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

    timed_values: int = sized(10**6, 11_173_962, 11_173_962)
    """Values of the tensor whose encoding is timed: by default those of ResNet-18."""

    def cells(self, scope: Scope) -> list[Cell]:
        """Training with every method, and the time that encoding takes."""
        timed = {"encoded": _ENCODED}
        alone = grid(encode_run, timed, {"num_values": self.timed_values}, alone=True)
        return [*super().cells(scope), *alone]

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Counts of bytes, how training ended, and seconds."""
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
        bare, plain = score[ends[1]], score["SGD"]
        times = {name: 1e3 * found.mean("seconds", encoded=name) for name in _ENCODED}
        quicker = [times[name] / times["block"] for name in ("random-k", "top-k")]
        near = [above(one, plain, -1.0) for one in (tenth[0], block)]
        values: dict[str, Any] = {"tenth": tenth, "block": block, "shared": shared, "top": top}
        values |= {"own": own, "own_block": own_block, "bare": bare, "loss": loss, "plain": plain}
        values |= {"times": times, "quicker": quicker, "recipe": self}
        values |= {"data": cifar10(scope).origin, "lost": [plain - tenth[0], plain - block]}
        runs = found.where(tuned=True)
        lowest = [one["compressor"] for one in runs if one["rate"] == min(self.rates)]
        values["edge"] = list(dict.fromkeys(lowest)) or ["none"]
        holds = {
            "close": near,
            "encode": [one > 1 for one in quicker],
            "values": [above(tenth[1], tenth[0]), above(shared, block), above(top, shared, 1.0)],
            "own positions": [above(own, shared, 1.0), above(own_block, block, 1.0)],
            "feedback": [above(top, bare, 1.0), loss[1] >= 2 * loss[0]],
        }
        tables = {"traffic": traffic, "training": training(found), "encoding": list(times.items())}
        counted = megabytes_claim(self.told, "; ".join(sent), sent.values(), epochs)
        answer = "close" if all(near) else "partly close" if any(near) else "not close"
        return report(self.told, holds, values, tables, answer=answer) + counted


def encode_run(*, encoded: Compressor, num_values: int) -> dict[str, float]:
    """Median seconds of making a message of a Gaussian vector, after one that is not timed."""
    x = torch.randn(num_values, generator=generator(0, "encoded"))
    seconds = []
    for turn in range(_TIMED + 1):
        began = time.perf_counter()
        encoded.encode(x, generator(turn, "draws"))
        seconds.append(time.perf_counter() - began)
    return {"seconds": median(seconds[1:])}
