"""What is proved of activation differences: the rate of convergence, and the condition on bits."""

import math
from typing import Any

import torch
from torch import nn

from phalanx.compression import Compressor, SampleQuantization
from phalanx.data import Digits
from phalanx.errors import NotFiniteError
from phalanx.experiments import build, load
from phalanx.losses import cross_entropy
from phalanx.pipeline import ActivationDifference, SimulatedPipeline
from phalanx.randomness import generator
from phalanx.reproduce.staged_training import chain

_WIDTH, _BATCH = 32, 32


def relative_error_bound(dim: int, bits: int) -> float:
    """`c_Q` of stochastic rounding to 2^b levels up to max |x|: `E||x - Q(x)|| <= c_Q ||x||`.

    Levels are `2 s / (2^b - 1)` apart, so a value is off by at most half of that, root mean square;
    the largest, s, is exact, and `s <= ||x||`: so `c_Q = sqrt(d - 1) / (2^b - 1)`.

    >>> [round(relative_error_bound(512, bits), 1) for bits in (2, 3, 4, 6)]
    [7.5, 3.2, 1.5, 0.4]
    """
    return math.sqrt(dim - 1) / float(2**bits - 1)


def fewest_bits(dim: int) -> int:
    """The fewest bits for which that is below `sqrt(1 / 2)`, as the theorem wants it."""
    return next(bits for bits in range(1, 33) if relative_error_bound(dim, bits) < math.sqrt(0.5))


def error_record(bits: int, dim: int) -> dict[str, Any]:
    """The relative error of rounding normal values, beside the bound."""
    x = torch.randn(200, dim, generator=generator("theory", dim))
    quantizer = SampleQuantization(bits, "stochastic")
    rounded = quantizer.decode(quantizer.encode(x, generator("theory", "draws", bits)))
    error = ((rounded - x).norm(dim=1) / x.norm(dim=1)).mean().item()
    return {"numbers": dim, "bound": relative_error_bound(dim, bits), "error": error}


def rate_record(steps: int, method: str, bits: int, back: int, seed: int) -> dict[str, Any]:
    """Squared norms of the whole gradient on average over a run of SGD with rate 4 / sqrt(T).

    Digits in four stages; stochastic rounding, as the theorem wants it. None if it diverges.
    """
    splits = load(Digits())
    inputs, targets = splits.train[:]
    network = build(lambda shape, classes: chain(shape, classes, 4, _WIDTH), splits, seed)
    forward: ActivationDifference | Compressor = ActivationDifference(bits, "stochastic")
    if method == "direct":
        forward = SampleQuantization(bits, "stochastic")
    pipeline = SimulatedPipeline(
        list(network.children()),
        inputs[:1],
        cross_entropy,
        num_samples=len(inputs),
        forward=forward,
        backward=SampleQuantization(back, "stochastic"),
        wire=False,
        seed=seed,
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=4 / math.sqrt(steps))
    draws, squares = generator(seed, "rate"), list[float]()
    for step in range(steps):
        if step % max(1, steps // 40) == 0:
            squares.append(_squared_gradient(network, inputs, targets))
        ids = torch.randperm(len(inputs), generator=draws)[:_BATCH]
        optimizer.zero_grad()
        try:
            pipeline.step(ids, inputs[ids], targets[ids])
        except NotFiniteError:
            return {"squared gradient": None}
        optimizer.step()
    return {"squared gradient": sum(squares) / len(squares)}


def _squared_gradient(network: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> float:
    loss = cross_entropy(network(inputs), targets)
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    return sum(float(one.square().sum()) for one in gradients)
