"""Seconds a round: the gradient of one partition, and decoding by code and by rule."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from phalanx.aggregation import GeometricMedian, Krum
from phalanx.attacks import RandomWorkers, ReverseGradient
from phalanx.coding import Code, DracoCyclic, DracoRepetition
from phalanx.models import LeNet, ResNet18
from phalanx.reporting.plots import COLOURS
from phalanx.reproduce.base import Progress

Rule = Callable[[Tensor], Tensor]
Timed = Literal["LeNet", "ResNet-18"]
_SMALL = 2**21  # numbers a message, up to which iterating over the messages takes no minutes
_ATTACK = ReverseGradient(100.0)


@dataclass(frozen=True)
class RoundTime:
    """What a round with one decoder costs, in medians of seconds."""

    model: str
    """Whose gradients."""
    liars: int
    """How many workers lie."""
    decoder: str
    """The rule or the code."""
    coded: bool
    """Whether it is a code, whose workers compute several gradients."""
    gradients: int
    """Gradients of partitions that each worker computes: 2 s + 1 with a code."""
    gradient_s: float
    """Seconds a gradient."""
    decode_s: float
    """Seconds to decode."""
    decode_ratio: float
    """Decoding over the plain mean of the same messages, in turn."""

    @property
    def total_s(self) -> float:
        """Seconds a round, all workers at once."""
        return self.gradients * self.gradient_s + self.decode_s


def time_rounds(
    model: Timed,
    num_workers: int,
    all_liars: Sequence[int],
    samples: int,
    full: bool,
    progress: Progress,
) -> Iterator[RoundTime]:
    """Times rounds with a model's gradients under several numbers of liars, one decoder at a time.

    Args:
        model: whose gradients.
        num_workers: how many messages there are.
        all_liars: how many lie, and how many the code and the rules are made to survive.
        samples: in the gradient of a partition.
        full: more repeats.
        progress: is told what is being timed.
    """
    progress(f"timing a gradient of {model}")
    gradient_s, dim = _gradient_seconds(model, samples)
    gradients = torch.empty(num_workers, dim)
    gradients.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    small = dim <= _SMALL
    repeats = (9 if full else 5) if small else (7 if full else 2)
    for liars in all_liars:
        decoders = _decoders(num_workers, liars, passes=full or small)
        for name, decoder in decoders.items():
            progress(f"timing {model}, {liars} liars: {name}")
            seconds, ratio = _decode_seconds(decoder, gradients, liars, repeats)
            coded = isinstance(decoder, Code)
            copies = 2 * liars + 1 if coded else 1
            yield RoundTime(model, liars, name, coded, copies, gradient_s, seconds, ratio)


def _decoders(num_workers: int, liars: int, *, passes: bool) -> dict[str, Code | Rule]:
    rules: dict[str, Code | Rule] = {
        "geometric median": GeometricMedian(liars),
        "Krum": Krum(liars),
    }
    if passes:
        rules["geometric median by passes"] = median_by_passes
    return rules | {
        "DRACO repetition": DracoRepetition(num_workers, liars),
        "DRACO cyclic": DracoCyclic(num_workers, liars),
    }


def _decode_seconds(
    decoder: Code | Rule, gradients: Tensor, liars: int, repeats: int
) -> tuple[float, float]:
    """Median seconds to decode, and as a ratio to the plain mean of the same messages."""
    if isinstance(decoder, Code) and liars > 0:
        messages = decoder.encode_all([gradients])
    else:  # a rule, or a code without redundancy: the message is the gradient itself
        messages = gradients
    bad = RandomWorkers(liars).byzantine(0, len(messages), seed=0).nonzero().flatten().tolist()
    honest = messages[bad]
    for worker in bad:
        messages[worker] = _ATTACK.forge(messages[worker], None, len(bad))
    decode = decoder.decode if isinstance(decoder, Code) else decoder
    timing = _in_turn(lambda: decode(messages), lambda: messages.mean(dim=0), repeats)
    messages[bad] = honest
    return timing


def median_by_passes(
    messages: Float[Tensor, "workers dim"], tolerance: float = 1e-6, max_iterations: int = 100
) -> Float[Tensor, " dim"]:
    """The geometric median by Weiszfeld's iteration on the messages, as it is usually computed.

    Cost: two passes over the messages an iteration.
    Source: Weiszfeld, Tohoku Mathematical Journal 43, 1937.

    >>> median_by_passes(torch.tensor([[1.0], [1.0], [100.0]])).round(decimals=2)
    tensor([1.])
    """
    point = messages.mean(dim=0)
    for _ in range(max_iterations):
        distances = torch.stack([torch.dist(message, point) for message in messages])
        weights = 1 / distances.clamp_min(1e-12)
        moved = (weights / weights.sum()) @ messages
        step, point = torch.dist(moved, point), moved
        if step <= tolerance * distances.median():
            break
    return point


def plot_rounds(times: Sequence[RoundTime], ax: Axes) -> None:
    """One bar a decoder, split into computing and decoding."""
    names = [one.decoder for one in times]
    compute = [one.gradients * one.gradient_s for one in times]
    ax.barh(names, compute, color=COLOURS[0], height=0.6, label="compute")
    decode = [one.decode_s for one in times]
    ax.barh(names, decode, left=compute, color=COLOURS[1], height=0.6, label="decode")
    ax.invert_yaxis()
    ax.set_xlabel("seconds a round")
    ax.grid(False, axis="y")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2)


def _gradient_seconds(model: Timed, samples: int) -> tuple[float, int]:
    """Seconds for the gradient of one partition, and its length."""
    shape = (1, 28, 28) if model == "LeNet" else (3, 32, 32)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network: nn.Module = (LeNet if model == "LeNet" else ResNet18)(shape, 10)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, *shape, generator=generator)
    targets = torch.randint(10, (samples,), generator=generator)

    def gradient() -> None:
        network.zero_grad()
        cross_entropy(network(inputs), targets).backward()

    seconds, _ = _in_turn(gradient, lambda: None, repeats=5)
    return seconds, sum(weight.numel() for weight in network.parameters())


def _in_turn(
    call: Callable[[], object], baseline: Callable[[], object], repeats: int
) -> tuple[float, float]:
    """Median seconds of a call, and its median ratio to a baseline timed right before it."""
    seconds, ratios = [], []
    for turn in range(repeats + 1):
        began = time.perf_counter()
        baseline()
        between = time.perf_counter()
        call()
        ended = time.perf_counter()
        if turn > 0:  # the first warms up
            seconds.append(ended - between)
            ratios.append((ended - between) / max(between - began, 1e-9))
    return statistics.median(seconds), statistics.median(ratios)
