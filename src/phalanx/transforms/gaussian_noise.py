"""Gaussian noise added to every message."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.privacy.noise import with_noise
from phalanx.transforms.base import MessageContext, MessageTransform, State


@dataclass(frozen=True)
class GaussianNoise(MessageTransform):
    """Independent Gaussian noise on every number of a message: `m + N(0, std^2 I)`.

    The mechanism of differential privacy behind a computation of bounded influence, such as
    `ClippedGradient`: with n workers the mean has noise of standard deviation `std / sqrt(n)`.
    Randomness follows from the run's seed, so that runs can be repeated; whoever knows the seed can
    take the noise away. With a `secret` it follows from that alone, and is added on a grid, which
    leaves no trace of floating point; `DifferentialPrivacy` makes one, and keeps the ledger.

    Not under codes that compare messages, since every worker draws its own noise.

    Cost: one pass over the message.
    Source: Dwork and Roth, "The Algorithmic Foundations of Differential Privacy", 2014, section 3.5
    and appendix A.

    >>> import torch
    >>> from phalanx.parameters import ParameterLayout
    >>> from phalanx.transforms import GaussianNoise, MessageContext
    >>> layout = ParameterLayout(("w",), ((1000,),), torch.float32)
    >>> context = MessageContext(layout, seed=0, step=0, worker=0, num_workers=1)
    >>> noisy, _ = GaussianNoise(std=2.0).update(torch.zeros(1000), (), context)
    >>> 1.9 < noisy.std() < 2.1
    tensor(True)
    """

    std: float = 0.01
    """Standard deviation of the noise on each number."""

    secret: str | None = field(default=None, repr=False)
    """What noise is drawn from, if nobody else is to know it."""

    sensitivity: float = 1.0
    """Euclidean distance that the grid is fine for, with a secret."""

    def __post_init__(self) -> None:
        if not 0 <= self.std < float("inf"):
            raise ValueError(f"std must be finite and at least 0, got {self.std}")

    def update(
        self, message: Float[Tensor, " width"], state: State, context: MessageContext
    ) -> tuple[Float[Tensor, " width"], State]:
        """The message with fresh noise; see `MessageTransform.update`."""
        if self.secret is not None:
            label = f"noise of a message {context.step} {context.worker}"
            seed = self.secret.encode()
            return with_noise(message, self.std, self.sensitivity, seed, label), ()
        drawn = torch.randn(
            message.shape, dtype=message.dtype, generator=context.generator("gaussian noise")
        )
        return message + self.std * drawn.to(message.device), ()
