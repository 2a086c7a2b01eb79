"""Seconds per round: the gradient of one partition, decoding by codes and rules, who is faster."""

import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from statistics import median
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from phalanx.attacks import RandomWorkers, ReverseGradient
from phalanx.coding import Code
from phalanx.experiments import Record, Records
from phalanx.models import LeNet, ResNet18
from phalanx.randomness import seeded

_MODELS = {"LeNet": (LeNet, (1, 28, 28)), "ResNet-18": (ResNet18, (3, 32, 32))}
_ATTACK = ReverseGradient(100.0)


def time_gradient(*, model: str, samples: int) -> dict[str, Any]:
    """Median seconds for the gradient of one partition, and its length."""
    shape, source = _MODELS[model][1], torch.Generator().manual_seed(0)
    with seeded(0, "model"):
        network = _MODELS[model][0](shape, 10)
    inputs = torch.randn(samples, *shape, generator=source)
    targets = torch.randint(10, (samples,), generator=source)

    def gradient() -> None:
        network.zero_grad()
        cross_entropy(network(inputs), targets).backward()

    dim = sum(weight.numel() for weight in network.parameters())
    return {"gradient_s": _in_turn(gradient, lambda: None, repeats=5)[0], "dim": dim}


def time_decoder(
    *,
    decoder: Code | Callable[[Tensor], Tensor],
    num_workers: int,
    byzantine: int,
    dim: int,
    gradient_s: float,
    repeats: int,
) -> dict[str, Any]:
    """Median seconds to decode messages with Byzantine ones among them, and for the round.

    Under a rule each worker computes the gradient of its share of the batch, in `gradient_s`
    seconds; under a code the busiest one computes `gradients` times as many samples.
    `decode_ratio` is decoding over the plain mean of the same messages, in turn.
    """
    coded = isinstance(decoder, Code)
    partitions = decoder.num_partitions if isinstance(decoder, Code) else num_workers
    messages = all_gradients(partitions, dim)
    if isinstance(decoder, Code) and byzantine > 0:
        messages = decoder.encode_all([messages])  # without redundancy it is the gradient itself
    bad = RandomWorkers(byzantine).byzantine(0, num_workers, seed=0).nonzero().flatten().tolist()
    honest = messages[bad]
    for worker in bad:
        messages[worker] = _ATTACK.forge(messages[worker], None, len(bad))
    decode = decoder.decode if isinstance(decoder, Code) else decoder
    seconds, ratio = _in_turn(lambda: decode(messages), lambda: messages.mean(dim=0), repeats)
    messages[bad] = honest
    gradients = 1
    if isinstance(decoder, Code):
        busiest = int(decoder.assignment.sum(dim=1).max())
        gradients = busiest * num_workers // partitions
    return {
        "coded": coded,
        "gradients": gradients,
        "gradient_s": gradient_s,
        "compute_s": gradients * gradient_s,
        "decode_s": seconds,
        "decode_ratio": ratio,
        "total_s": gradients * gradient_s + seconds,
    }


def median_by_passes(
    messages: Float[Tensor, "workers dim"], tolerance: float = 1e-6, max_iterations: int = 100
) -> Float[Tensor, " dim"]:
    """The geometric median by Weiszfeld's iteration on the messages, as it is usually computed.

    Cost: two passes over the messages per iteration.
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


def median_by_sorting(messages: Float[Tensor, "workers dim"]) -> Float[Tensor, " dim"]:
    """The coordinate-wise median of stacked messages by torch, as it is usually computed.

    >>> median_by_sorting(torch.tensor([[1.0, 5.0], [2.0, 4.0], [900.0, -900.0]]))
    tensor([2., 4.])
    """
    return messages.median(dim=0).values


@lru_cache(maxsize=1)
def all_gradients(num_workers: int, dim: int) -> Tensor:
    """Gradients of all partitions, kept for the next decoder."""
    source = torch.Generator().manual_seed(0)
    return torch.empty(num_workers, dim).uniform_(-1, 1, generator=source)


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
    return median(seconds), median(ratios)


def decoders_of(times: Records, *, coded: bool) -> list[str]:
    """Codes, or rules, among what was timed."""
    return list(dict.fromkeys(one["decoder"] for one in times if one["coded"] == coded))


def _best(times: Records, like: Record, seconds: str = "total_s") -> Record:
    """DRACO's faster round with this one's model and Byzantine workers."""
    alike = times.where(**{axis: like[axis] for axis in ("model", "workers", "byzantine")})
    return min((one for one in alike if one["coded"]), key=lambda one: one[seconds])


def ratios_to_best(times: Records, rule: str, seconds: str = "total_s") -> list[float]:
    """Seconds of a rule's round over those of the faster DRACO, wherever somebody attacks."""
    attacked = (one for one in times.where(decoder=rule) if one["byzantine"] > 0)
    return [one[seconds] / _best(times, one, seconds)[seconds] for one in attacked]


def span_of(ratios: Sequence[float]) -> str:
    """From the least to the largest.

    >>> span_of([0.501, 2.0]), span_of([3.04, 3.01])
    ('0.5 to 2 times', '3 times')
    """
    ends = [f"{value:.2g}" for value in (min(ratios), max(ratios))]
    return " to ".join(dict.fromkeys(ends)) + " times"


def winners(times: Records) -> list[tuple[Any, ...]]:
    """Where DRACO's cheap decoding pays for its redundant gradients."""
    rows = list[tuple[Any, ...]]()
    for rule in (one for one in times if not one["coded"]):
        draco, spare = _best(times, rule), 2 * rule["byzantine"]
        limit = max(rule["decode_s"] - draco["decode_s"], 0.0) / spare if spare else None
        faster = min(rule, draco, key=lambda one: one["total_s"])["decoder"]
        axes = ("decoder", "model", "workers", "byzantine")
        named = (*(rule[axis] for axis in axes), draco["decoder"])
        rows.append((*named, rule["total_s"] / draco["total_s"], faster, limit))
    return rows
