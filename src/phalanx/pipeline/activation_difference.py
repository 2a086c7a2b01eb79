"""Quantised activation differences (AC-SGD, also called AQ-SGD)."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.compression import Message, SampleQuantization
from phalanx.pipeline.base import ActivationCodec


@dataclass(frozen=True)
class ActivationDifference(ActivationCodec):
    """Sends how a sample's activations differ from what both sides remember of it.

    As training settles, activations of the same sample change less and less, and so does the error
    of rounding the change; rounding the activations themselves has the same error for ever.

    Guarantee: while the weights stand still, rounding to the nearest divides a sample's largest
    error by at least `2^bits - 1` at every visit, down to the precision of the buffer. Published:
    SGD with an unbiased quantiser of relative error below `sqrt(1/2)` converges as `1 / sqrt(T)`.
    Bits so few that the error is larger can diverge.
    Cost: of its quantiser, and a sample's activations remembered on both sides of each boundary.
    Source: Wang, Yuan, Rimanic, He, Dao, Chen, Re, Zhang, "Fine-tuning Language Models over Slow
    Networks using Activation Compression with Guarantees", NeurIPS 2022, algorithm 1.

    >>> import torch
    >>> method = ActivationDifference(bits=2)
    >>> seen, now = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.5, 0.9]])
    >>> message = method.encode(now, seen)
    >>> message.num_bytes, method.decode(message, seen)
    (5, tensor([[1.5000, 0.8333]]))
    """

    bits: int = 4
    """Bits a value takes: 2 to 4 as published, 8 at most; or 32, and activations themselves travel
    every time, as they are."""
    rounding: Literal["nearest", "stochastic"] = "nearest"
    """To the nearest level, as published runs did, or `stochastic`, as the guarantee wants it."""
    scale: Literal["sample", "token"] = "sample"
    """What shares a scale: all of a sample, or each of its tokens."""

    def __post_init__(self) -> None:
        self.quantizer  # noqa: B018  (checks the fields)

    @property
    def quantizer(self) -> SampleQuantization:
        """What rounds the differences."""
        return SampleQuantization(self.bits, self.rounding, self.scale)

    @property
    def exact(self) -> bool:
        """With 32 bits."""
        return self.bits == 32

    def encode(
        self,
        activations: Float[Tensor, "batch ..."],
        remembered: Float[Tensor, "batch ..."],
        generator: torch.Generator | None = None,
    ) -> Message:
        """The rounded differences."""
        return self.quantizer.encode(activations - remembered, generator)

    def decode(
        self, message: Message, remembered: Float[Tensor, "batch ..."]
    ) -> Float[Tensor, "batch ..."]:
        """What is remembered, moved by the differences: the same bits on both sides."""
        return remembered + self.quantizer.decode(message)
