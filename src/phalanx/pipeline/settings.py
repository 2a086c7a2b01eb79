"""Common settings of a pipeline's boundaries, and the memory that they take."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from phalanx.compression import Compressor, SampleQuantization
from phalanx.pipeline.activation_difference import ActivationDifference
from phalanx.pipeline.base import ActivationCodec
from phalanx.pipeline.boundary import ActivationBoundary, remembers
from phalanx.pipeline.buffers import BufferKind, buffer_bytes
from phalanx.pipeline.splitting import Crossing, noise_upstream


class Estimate(NamedTuple):
    """What a pipeline's buffers take, known before training.

    Attributes:
        side_bytes: of one side of each boundary.
        total_bytes: of all sides of all boundaries.
    """

    side_bytes: tuple[int, ...]
    total_bytes: int


@dataclass(frozen=True)
class Crossed:
    """How activations and their gradients cross the boundaries of a pipeline."""

    num_samples: int
    """Samples of the training set; ids are below."""
    forward: ActivationCodec | Compressor = field(default_factory=ActivationDifference)
    """How activations are compressed."""
    backward: Compressor = field(default_factory=SampleQuantization)
    """How their gradients are."""
    warmup_epochs: int = 1
    """Visits of a sample in which nothing of it is compressed."""
    buffer: BufferKind = "memory"
    """Where activations are remembered: `memory`, `disk`, or rounded in `low_bit`."""
    buffer_dtype: torch.dtype = torch.float16
    """Of them in memory and on disk."""
    buffer_bits: int = 4
    """Of them in a low-bit buffer."""
    folder: Path | None = None
    """For buffers on disk, a folder of each process's own; by default a temporary one."""
    checksum: bool = False
    """Whether receivers check that both sides remember the same."""
    seed: int = 0
    """Of stochastic rounding."""
    num_epochs: int | None = None
    """How often each sample will be visited, if that is known."""

    def __post_init__(self) -> None:
        if self.remembers and self.num_epochs is not None and self.num_epochs < 2:
            raise ValueError(
                "num_epochs must be at least 2 for differences to be sent, "
                f"got {self.num_epochs}; compress activations themselves instead"
            )

    @property
    def remembers(self) -> bool:
        """Whether there are buffers."""
        return remembers(self.forward)

    def boundary(
        self, crossing: Crossing, name: str, device: torch.device | str = "cpu"
    ) -> ActivationBoundary:
        """One side of one of the boundaries."""
        return ActivationBoundary(
            crossing.shape,
            self.num_samples,
            dtype=crossing.dtype,
            forward=self.forward,
            backward=self.backward,
            warmup_epochs=self.warmup_epochs,
            buffer=self.buffer,
            buffer_dtype=self.buffer_dtype,
            buffer_bits=self.buffer_bits,
            folder=self.folder,
            checksum=self.checksum,
            seed=self.seed,
            name=name,
            device=device,
        )

    def estimate(self, crossings: Sequence[Crossing]) -> Estimate:
        """What the buffers will take; the last stage's crossing is none."""
        sides = tuple(
            buffer_bytes(
                self.buffer, self.num_samples, one.shape, self.buffer_dtype, self.buffer_bits
            )
            if self.remembers
            else 0
            for one in crossings[:-1]
        )
        return Estimate(sides, 2 * sum(sides))

    def warn_of_noise(self, stages: Sequence[nn.Module]) -> None:
        """Warns if activations of a sample differ between visits by chance, not by training."""
        if self.remembers and (found := noise_upstream(stages)):
            warnings.warn(
                f"differences of activations are mostly noise after dropout: {', '.join(found)}; "
                "switch it off before the last boundary",
                stacklevel=3,
            )
